"""Records: what is read is what was written, in every order and share, from any batch on; damaged folders are refused."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf import prepare, synth
from dlrm_tf.data import pipeline
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.describe import describe_records
from dlrm_tf.data.pipeline import bounded_rows
from dlrm_tf.data.record_files import row_dtype, write_manifest, write_rows
from dlrm_tf.data.records import Records
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError

ROWS = 3000
# Of the order in which version 0.1.0 reads 150,000 rows with seed 9 in batches of 1,000.
ORDER_OF_150_000 = "c9798737a92f6d1dd3af9b678d0d6f50e114a31e2f2cac7d0a2afe1b47687043"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """2572 train rows in 13 shards, one of them short."""
    folder = tmp_path_factory.mktemp("records")
    synth(folder / "log.tsv", ROWS, seed=2)
    return prepare(folder / "log.tsv", folder / "data", shard_lines=200)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """So that a small data set has many blocks and groups, cut at odd places."""
    monkeypatch.setattr(pipeline, "_BLOCK_ROWS", 30)
    monkeypatch.setattr(pipeline, "_GROUP_ROWS", 450)


def read(dataset) -> np.ndarray:
    """All rows of a dataset as one matrix: label, dense, categorical."""
    return np.concatenate([np.column_stack((label, x["dense"], x["categorical"])) for x, label in dataset.as_numpy_iterator()])


def expected(records, split="train", start=0, stop=None) -> np.ndarray:
    """The same of the recorded rows, in the order of the log."""
    dense, categorical, label = records.numpy(split, start, stop)
    return np.column_stack((label, np.log1p(dense), categorical))


def assert_same_rows(a, b):
    """Equal up to order."""
    np.testing.assert_allclose(a[np.lexsort(a.T)], b[np.lexsort(b.T)], rtol=1e-6)


def test_numpy_across_shards(records):
    dense, categorical, label = records.numpy("train")
    assert (dense.dtype, categorical.dtype, label.dtype) == (np.float32, np.int32, np.float32)
    assert (dense.shape, categorical.shape, label.shape) == ((2572, 13), (2572, 26), (2572, 1))
    for part, whole in zip(records.numpy("train", 150, 777), (dense, categorical, label)):
        np.testing.assert_array_equal(part, whole[150:777])
    assert len(records.numpy("train", 2500, 9999)[0]) == 72
    assert len(records.numpy("train", 5, 5)[0]) == 0
    with pytest.raises(DataError, match="wanted a range of its .* rows"):
        records.numpy("train", 9, 5)
    with pytest.raises(DataError, match="wanted one of the splits train, test. Received 'dev'"):
        records.numpy("dev")


@pytest.mark.parametrize("split", ["train", "test"])
def test_order_of_the_log(records, split):
    dataset = records.dataset(split, 128)
    batches = list(dataset.as_numpy_iterator())
    assert dataset.cardinality() == len(batches) == -(-records.rows(split) // 128)
    assert [len(label) for _, label in batches[:-1]] == [128] * (len(batches) - 1)
    np.testing.assert_allclose(read(dataset), expected(records, split), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [0, 172, 700, 2572])
def test_a_validation_split_is_the_end_of_train(records, rows):
    view = records.with_validation(rows)
    assert (view.rows("train"), view.rows("validation"), view.rows("test")) == (2572 - rows, rows, records.rows("test"))
    np.testing.assert_array_equal(expected(view), expected(records, stop=2572 - rows))
    np.testing.assert_array_equal(expected(view, "validation"), expected(records, start=2572 - rows))
    for split in ("train", "validation"):
        if view.rows(split):
            np.testing.assert_allclose(read(view.dataset(split, 100)), expected(view, split), rtol=1e-6)
            assert_same_rows(read(view.dataset(split, 100, shuffle_seed=4)), expected(view, split))
    assert records.rows("train") == 2572 and records.rows("validation") == 0  # the folder is as it was


@pytest.mark.slow
@pytest.mark.parametrize("share", ["rows", "files"])
def test_workers_share_a_validation_split_too(records, share):
    view = records.with_validation(700)
    np.testing.assert_array_equal(expected(view, "validation", 1, 100), expected(records, start=1872)[1:100])
    for split in ("train", "validation"):
        parts = [read(view.dataset(split, 64, worker=(i, 3), share=share)) for i in range(3)]
        assert_same_rows(np.concatenate(parts), expected(view, split))


def test_more_validation_rows_than_there_are(records):
    for rows in (2573, -1):
        with pytest.raises(DataError, match=f"wanted validation rows among the 2572 of train. Received {rows}"):
            records.with_validation(rows)


def test_types_and_shapes(records):
    features, label = records.dataset("train", 64, drop_remainder=True).element_spec
    assert (features["dense"].shape, features["dense"].dtype.name) == ((64, 13), "float32")
    assert (features["categorical"].shape, features["categorical"].dtype.name) == ((64, 26), "int32")
    assert (label.shape, label.dtype.name) == ((64, 1), "float32")
    assert records.dataset("train", 64).element_spec[1].shape.as_list() == [None, 1]


@pytest.mark.slow
def test_shuffled(records):
    """Each epoch has all rows, in an order of its own that the seed gives again."""
    one, again, other = (read(records.dataset("train", 100, shuffle_seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert_same_rows(one, expected(records))
    assert_same_rows(other, expected(records))
    assert (one != other).any()
    two_epochs = read(records.dataset("train", 100, shuffle_seed=1, repeat=True).take(2 * 26))
    np.testing.assert_array_equal(two_epochs[:2572], one)
    assert_same_rows(two_epochs[2572:], one)
    assert (two_epochs[2572:] != one).any()


def test_shuffling_mixes(records):
    """Neighbours of the log end up far apart: a batch holds rows of the whole epoch."""
    marked = expected(records)
    place = {row.tobytes(): i for i, row in enumerate(marked.astype(np.float32))}
    got = read(records.dataset("train", 128, shuffle_seed=3)).astype(np.float32)
    # Rows are unique here, and log1p of TensorFlow may differ in the last bit: compare by the ids.
    ids = {row[14:].tobytes(): i for i, row in enumerate(marked.astype(np.float32))}
    assert len(ids) == len(place) == len(marked)
    order = np.array([ids[row[14:].tobytes()] for row in got])
    spread = [order[at : at + 128].std() for at in range(0, 2432, 128)]
    assert min(spread) > 0.6 * 2572 / np.sqrt(12)  # a uniform draw of the epoch has 2572 / sqrt(12)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1


@pytest.fixture
def numbered(tmp_path):
    """Writes `rows` rows whose dense value is their number, with bags of `keys` places where that is more than one."""

    def write(rows, keys=1):
        bags = {"c": Bag("|", keys)} if keys > 1 else {}
        spec = FeatureSpec((("y", "label"), ("x", "float"), ("c", "categorical")), bags=bags)
        data = np.zeros(rows, row_dtype(spec))
        data["dense"][:, 0] = np.arange(rows)
        folder = tmp_path / f"{rows}_{keys}"
        (folder / "train").mkdir(parents=True)
        write_rows(str(folder / "train" / "00000.bin"), data)
        shard = {"path": "train/00000.bin", "rows": rows, "positives": 0, "sha256": ""}
        vocabulary = Vocabulary.from_keys({"c": ["", "a"]})
        write_manifest(str(folder), spec, {"lines": rows}, vocabulary, {"train": [shard], "test": []})
        return Records.open(folder)

    return write


def order(records, batch_size) -> np.ndarray:
    """Numbers of `numbered` rows, as they are read."""
    batches = records.dataset("train", batch_size, shuffle_seed=9).as_numpy_iterator()
    return np.rint(np.expm1(np.concatenate([x["dense"][:, 0] for x, _ in batches]).astype(np.float64))).astype(np.int64)


def test_rows_of_one_key_are_read_in_the_order_they_always_were(numbered, monkeypatch):
    """Or a resumed run would see rows twice. Also where rows are longer than Criteo's."""
    monkeypatch.undo()
    read_order = order(numbered(150_000), 1000)
    assert np.array_equal(np.sort(read_order), np.arange(150_000))
    assert hashlib.sha256(read_order.astype("<i8").tobytes()).hexdigest() == ORDER_OF_150_000
    assert bounded_rows(131072, numbered(10).spec, 912) == 131072


def test_a_group_of_rows_with_bags_has_the_bytes_of_one_of_criteos(numbered):
    """Here 450 rows of 160 bytes: 112 of 640, from blocks of 7."""
    records = numbered(1000, keys=158)
    assert records.dtype.itemsize == 640
    assert [bounded_rows(rows, records.spec, 640) for rows in (450, 30, 1)] == [112, 7, 1]
    assert bounded_rows(450, records.spec, 40) == 450
    read_order = order(records, 16)
    assert np.array_equal(np.sort(read_order), np.arange(1000))
    for start in range(0, 1000, 112):
        group = read_order[start : start + 112]
        assert len(np.unique(group // 7)) <= 18  # whole blocks, but for the first and the last
        assert (np.diff(group) == 1).mean() < 0.1


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 700), st.integers(0, 80), st.sampled_from([None, 7]), st.booleans(), st.integers(1, 4))
def test_starting_at_a_batch_is_as_if_the_earlier_ones_had_been_read(records, size, start, seed, drop, count):
    """Also in a later epoch, for any batch size and share."""
    pipeline._BLOCK_ROWS, pipeline._GROUP_ROWS = 30, 450
    arguments = {"shuffle_seed": seed, "drop_remainder": drop, "repeat": True, "worker": (count - 1, count)}
    if drop and records.rows("train") // count < size:
        with pytest.raises(DataError, match="wanted rows of .* for a batch of"):
            records.dataset("train", size, **arguments)
        return
    whole = records.dataset("train", size, **arguments).skip(start).take(3)
    np.testing.assert_array_equal(read(records.dataset("train", size, start_batch=start, **arguments).take(3)), read(whole))


@pytest.mark.slow
@pytest.mark.parametrize("share", ["rows", "files"])
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_shares_of_workers_make_the_whole(records, share, seed, count):
    shares = [read(records.dataset("train", 64, shuffle_seed=seed, worker=(i, count), share=share)) for i in range(count)]
    assert_same_rows(np.concatenate(shares), expected(records))
    if share == "rows":
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if seed is None and share == "rows":
        np.testing.assert_allclose(np.concatenate(shares), expected(records), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"start_batch": -1}, "start_batch >= 0"),
        ({"worker": (2, 2)}, "index < count"),
        ({"share": "bytes"}, "share must be 'rows' or 'files'"),
        ({"batch_size": 3000, "drop_remainder": True}, "wanted rows of train for a batch of 3000"),
        ({"start_batch": 41}, "start_batch must be below 41, the batches of train. Received 41"),
    ],
)
def test_arguments_out_of_range(records, arguments, message):
    with pytest.raises(DataError, match=message):
        records.dataset("train", **{"batch_size": 64, **arguments})


@pytest.fixture
def copy(records, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(records.folder, folder)
    return folder


def change_manifest(folder, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "not a prepared data folder, or not finished"),
        (lambda f: (f / "manifest.json").write_text("{"), "damaged manifest"),
        (lambda f: (f / "manifest.json").write_text("[]"), "damaged manifest"),
        (lambda f: (f / "manifest.json").write_text("[" * 20_000), "damaged manifest"),
        (lambda f: (f / "train" / "00003.bin").unlink(), "00003.bin: missing"),
        (lambda f: (f / "train" / "00003.bin").write_bytes(b"x"), "wanted 32000 bytes .200 rows.. Received 1"),
        (lambda f: change_manifest(f, lambda m: m.update(format=99)), "wanted records of format 1 or 2. Received 99"),
        (lambda f: change_manifest(f, lambda m: m.pop("shards")), "damaged manifest"),
        (lambda f: change_manifest(f, lambda m: m["vocabulary"]["sizes"].pop()), "wanted 26 vocabulary sizes. Received 25"),
        (lambda f: change_manifest(f, lambda m: m["shards"]["test"][0].update(rows=1.5)), "wanted whole numbers of rows"),
        (lambda f: change_manifest(f, lambda m: m["shards"]["test"][0].update(rows=-1)), "wanted whole numbers of rows"),
        (lambda f: change_manifest(f, lambda m: m["shards"]["test"][0].update(path="../x.bin")), "is outside the folder"),
        (lambda f: change_manifest(f, lambda m: m["shards"]["test"][0].update(path="/etc/passwd")), "is outside the folder"),
    ],
)
def test_damaged_folders_are_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(DataError, match=message):
        Records.open(copy)


def test_a_shard_that_is_cut_while_it_is_read_is_told(copy):
    records = Records.open(copy)
    with open(copy / "train" / "00001.bin", "r+b") as file:
        file.truncate(160 * 150 + 7)
    with pytest.raises(DataError, match=r"00001.bin: wanted rows 100 to 200. Received 50: the file was cut meanwhile"):
        records.numpy("train", 300, 500)
    assert len(records.numpy("train", 300, 350)[0]) == 50


def test_verify_finds_a_changed_byte(copy):
    Records.open(copy).verify()
    shard = copy / "train" / "00002.bin"
    content = bytearray(shard.read_bytes())
    content[777] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="00002.bin: wanted sha256"):
        Records.open(copy).verify()


def test_another_vocabulary_is_refused(copy, golden_dir, tmp_path):
    prepare(golden_dir / "criteo" / "train.txt", tmp_path / "golden").vocabulary().save(copy / "vocabulary.npz")
    with pytest.raises(DataError, match="wanted the vocabulary these records were made with"):
        Records.open(copy).vocabulary()


def test_describe(golden_dir, tmp_path):
    lines = describe_records(prepare(golden_dir / "criteo" / "train.txt", tmp_path / "out").folder)
    assert lines[0] == f"{tmp_path / 'out'}: 698 rows from 700 lines, 2 bad lines skipped"
    assert lines[3].split() == ["train", "598", "rows,", "26.42%", "positive,", "1", "shards"]
    fields = [line.split("\t") for line in (golden_dir / "criteo" / "train.txt").read_text().splitlines()]
    missing = sum(line[14] == "" for line in fields if len(line) == 40) / 698
    assert lines[-26].split() == ["C1", "41", f"{missing:.2%}", "0.00%"]
    assert len(lines) == 8 + 39
