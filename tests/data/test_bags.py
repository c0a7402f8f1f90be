"""Several keys a row: text, Python values and lists give the same ids and weights, which stand in the records as they should."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_tf import Bag, DLRMConfig, FeatureSpec, Records, Vocabulary, prepare
from dlrm_tf.data.describe import describe_records
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.features import log_dense
from dlrm_tf.data.parse import parse_block
from dlrm_tf.data.readers import text as text_module
from dlrm_tf.data.record_files import row_dtype
from dlrm_tf.data.vocabulary_check import spec_difference
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import DataError

COLUMNS = (("tags", "categorical"), ("y", "label"), ("c", "categorical"), ("x", "float"), ("path", "categorical"))
# A weighted bag, a plain column, and a bag without weights.
SPEC = FeatureSpec(COLUMNS, bags={"tags": Bag("|", 3, pooling="mean", weight_separator=":"), "path": Bag("/", 2)}, separator=",")
UNWEIGHTED = FeatureSpec(COLUMNS, bags={"tags": Bag("|", 3), "path": Bag("/", 2)}, separator=",")
LINES = [
    "b:2|a:0.5|b,1,p,1,u/v",
    ",0,q,2,",
    "c|a|d|e,1,p,3,deadbeef",
    "a:x,0,p,4,u",  # bad
    "||a:3,1,,5,v/v/w",
    "deadbeef:0,1,p,6,/",
]
# By hand: ids are given in the order of keys within their rows; 'e' and the third key of a path are dropped.
KEYS = {"tags": ["b", "a", "", "c", "d", "deadbeef"], "c": ["p", "q", ""], "path": ["u", "v", "", "deadbeef"]}
IDS = [[0, 1, 0, 0, 0, 1], [2, -1, -1, 1, 2, -1], [3, 1, 4, 0, 3, -1], [2, 2, 1, 2, 1, 1], [5, -1, -1, 0, 2, 2]]
WEIGHTS = [[2, 0.5, 1, 1, 1, 1], [1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 0], [1, 1, 3, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
GOOD = [line for i, line in enumerate(LINES) if i != 3]
# The good lines as Python values.
TABLE = {
    "tags": [["b", "a", "b"], None, ("c", b"a", "d", "e"), np.array(["", "", "a"]), ["deadbeef"]],
    "tags_weights": [[2, 0.5, 1], None, [1, 1, 1, 7], (1, 1, 3), [0]],
    "c": ["p", "q", "p", None, "p"],
    "x": [1, 2, 3, 5, 6],
    "path": [["u", "v"], [], b"deadbeef", "v/v/w", [None, math.nan]],
}


def log_of(tmp_path, lines=LINES):
    path = tmp_path / "log.csv"
    path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape"))
    return path


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_prepare_by_hand(tmp_path):
    records = prepare(log_of(tmp_path), tmp_path / "out", spec=SPEC, test_fraction=0)
    dense, categorical, label, weights = records.numpy("train")
    assert (dense[:, 0].tolist(), label[:, 0].tolist()) == ([1, 2, 3, 5, 6], [1, 0, 1, 1, 1])
    assert categorical.dtype == np.int32 and categorical.tolist() == IDS
    assert weights.dtype == np.float32 and weights.tolist() == WEIGHTS
    vocabulary = records.vocabulary()
    assert {name: vocabulary.keys(name) for name in vocabulary.names} == KEYS
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["format"], manifest["spec"]) == (2, SPEC.to_dict())
    counts = manifest["counts"]
    assert (counts["keys"], counts["truncated"]) == ({"tags": 11, "path": 8}, {"tags": 1, "path": 1})
    assert counts["missing"] == {"x": 0, "tags": 1, "c": 1, "path": 1}
    assert counts["out_of_vocabulary"] == {"tags": 0, "c": 0, "path": 0}
    wanted = "log.csv:4: column 1 (tags): wanted a weight that is a finite number from 0 on. Received 'x'"
    assert counts["bad_lines"] == 1 and counts["bad_examples"][0].endswith(wanted)
    # The layout of a row: label, dense, ids, weights, all of four bytes.
    row = np.fromfile(tmp_path / "out" / "train" / "00000.bin", "<i4")[: 1 + 1 + 6 + 6]
    assert row[:2].view("<f4").tolist() == [1, 1] and row[2:8].tolist() == IDS[0] and row[8:].view("<f4").tolist() == WEIGHTS[0]
    assert Records.open(tmp_path / "out").config_fields() == {
        "categorical_feature_sizes": (6, 3, 4),
        "dense_dim": 1,
        "hot_sizes": (3, 1, 2),
        "pooling": ("mean", "sum", "sum"),
        "weighted": True,
    }
    text = "\n".join(describe_records(tmp_path / "out"))
    assert "13 categories in 3 features, 0 keys out of vocabulary (0.00%)" in text
    assert f"  {'tags':<12}{'6':>14}{'20.00%':>12}{'0.00%':>12}{'2.20':>12}{'20.00%':>12}" in text.splitlines()


def test_shards_of_long_rows_have_fewer_lines(tmp_path):
    """21 MB, as 2**17 of Criteo's rows have: here rows of 65,536 ids, 79 of them a shard."""
    spec = FeatureSpec((("y", "label"), ("c", "categorical")), bags={"c": Bag("|", 1 << 16)})
    records = prepare(log_of(tmp_path, ["1\ta|b"] * 200), tmp_path / "out", spec=spec, test_fraction=0)
    assert [shard.rows for shard in records.shards["train"]] == [79, 79, 42]


def test_without_weights_rows_have_none(tmp_path):
    log = log_of(tmp_path, [line.replace(":", "") for line in LINES])
    records = prepare(log, tmp_path / "out", spec=UNWEIGHTED, test_fraction=0)
    assert records.dtype.names == ("label", "dense", "categorical") and records.dtype.itemsize == 4 * (1 + 1 + 6)
    dense, categorical, label = records.numpy("train")
    assert categorical[0].tolist() == [0, 1, 2, 0, 0, 1]  # b2, a0.5, b
    assert records.config_fields()["pooling"] == "sum" and not records.config_fields()["weighted"]


def test_rare_keys_leave_and_unused_places_stay(tmp_path):
    """A key that stands twice in a row counts twice."""
    records = prepare(log_of(tmp_path), tmp_path / "out", spec=SPEC, test_fraction=0, min_count=2)
    vocabulary = records.vocabulary()
    kept = {"tags": ["b", "a", ""], "c": ["p"], "path": ["v", ""]}
    assert {name: vocabulary.keys(name) for name in vocabulary.names} == kept
    _, categorical, _, weights = records.numpy("train")
    assert categorical.tolist() == [
        [0, 1, 0, 0, 2, 0],
        [2, -1, -1, 1, 1, -1],
        [3, 1, 3, 0, 2, -1],
        [2, 2, 1, 1, 0, 0],
        [3, -1, -1, 0, 1, 1],
    ]
    assert weights.tolist() == WEIGHTS
    assert records.manifest["counts"]["out_of_vocabulary"] == {"tags": 3, "c": 2, "path": 2}


def test_a_fixed_and_a_growing_vocabulary(tmp_path):
    log = log_of(tmp_path)
    known = Vocabulary.from_keys({"tags": ["a"], "c": ["p"], "path": ["w", "v"]})
    fixed = prepare(log, tmp_path / "fixed", spec=SPEC, vocabulary=known, test_fraction=0)
    assert fixed.numpy("train")[1].tolist() == [
        [1, 0, 1, 0, 2, 1],
        [1, -1, -1, 1, 2, -1],
        [1, 0, 1, 0, 2, -1],
        [1, 1, 0, 1, 1, 1],
        [1, -1, -1, 0, 2, 2],
    ]
    assert fixed.manifest["counts"]["out_of_vocabulary"] == {"tags": 8, "c": 2, "path": 5}
    grown = prepare(log, tmp_path / "grown", spec=SPEC, vocabulary=known, grow=True, test_fraction=0)
    assert grown.vocabulary().keys("tags") == ["a", "b", "", "c", "d", "deadbeef"]
    assert grown.vocabulary().keys("path") == ["w", "v", "u", "", "deadbeef"]
    assert grown.numpy("train")[1][3].tolist() == [2, 2, 0, 2, 1, 1]


def many_lines(rows=2000):
    """Lines with repeated and new keys, hex and other, some of them bad."""
    rng = np.random.default_rng(5)

    def bag(most, separator, weights):
        keys = [f"{k:08x}" if k % 3 else f"key{k}" for k in rng.zipf(1.3, rng.integers(0, most + 1)) % 5000]
        return separator.join(f"{key}:{rng.integers(0, 9) / 4}" if weights and rng.random() < 0.7 else key for key in keys)

    lines = [f"{bag(5, '|', True)},{i % 2},{rng.integers(40)},{i % 7},{bag(3, '/', False)}" for i in range(rows)]
    for at in (0, 99, 100, rows - 1):
        lines[at] = "a:-1,1,p,1,u"
    return lines


@pytest.mark.parametrize("min_count", [1, 3])
def test_shards_pieces_threads_and_an_interruption_do_not_matter(tmp_path, monkeypatch, min_count):
    log = log_of(tmp_path, many_lines())
    whole = prepare(log, tmp_path / "whole", spec=SPEC, min_count=min_count)
    monkeypatch.setattr(text_module, "PIECE_BYTES", 3000)
    options = {"spec": SPEC, "min_count": min_count, "shard_lines": 300}
    parts = prepare(log, tmp_path / "parts", threads=3, **options)
    for split in ("train", "test"):
        for one, other in zip(whole.numpy(split), parts.numpy(split)):
            np.testing.assert_array_equal(one, other)
    counts = parts.manifest["counts"]
    assert counts == whole.manifest["counts"] and counts["bad_lines"] == 4 and counts["truncated"]["tags"] > 300

    save = Workspace.save_shard

    def interrupted(workspace, number, rows, **rest):
        if number == 3:
            raise KeyboardInterrupt
        save(workspace, number, rows, **rest)

    monkeypatch.setattr(Workspace, "save_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(log, tmp_path / "again", threads=1, **options)
    monkeypatch.setattr(Workspace, "save_shard", save)
    with pytest.raises(DataError, match="interrupted prepare with other spec"):
        prepare(log, tmp_path / "again", **{**options, "spec": UNWEIGHTED})
    prepare(log, tmp_path / "again", threads=1, **options)
    assert tree(tmp_path / "again") == tree(tmp_path / "parts")


def test_dataset(tmp_path):
    """The pipeline gives the rows of `numpy`, in the log's order or shuffled."""
    pytest.importorskip("tensorflow")
    records = prepare(log_of(tmp_path, many_lines(300)), tmp_path / "out", spec=SPEC, test_fraction=0)
    dense, categorical, label, weights = records.numpy("train")
    dense = log_dense(dense)
    batches = list(records.dataset("train", 64).as_numpy_iterator())
    assert set(batches[0][0]) == {"dense", "categorical", "weights"}
    for name, wanted in (("dense", dense), ("categorical", categorical), ("weights", weights)):
        np.testing.assert_allclose(np.concatenate([features[name] for features, _ in batches]), wanted, rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), label)
    shuffled = list(records.dataset("train", 64, shuffle_seed=1).as_numpy_iterator())
    rows = sorted(zip(categorical.tolist(), weights.tolist()))
    came = [zip(features["categorical"].tolist(), features["weights"].tolist()) for features, _ in shuffled]
    assert sorted(row for batch in came for row in batch) == rows
    assert [row for batch in came for row in batch] != rows


def test_records_that_do_not_fit_their_spec_are_refused(tmp_path):
    prepare(log_of(tmp_path), tmp_path / "out", spec=SPEC, test_fraction=0)
    manifest = tmp_path / "out" / "manifest.json"
    good = manifest.read_text()
    for change, message in (
        ('"max_keys": 3', "wanted 320 bytes"),
        ('"max_keys": 99999999', "wanted at most 65,536 keys a row"),
        ('"max_keys": -1', "max_keys must be a whole number from 1 on"),
    ):
        manifest.write_text(good.replace('"max_keys": 2', change))
        with pytest.raises(DataError, match=message):
            Records.open(tmp_path / "out")


def test_of_one_key_every_pooling_is_the_same():
    """A model that takes one key a feature has no pooling; with weights it has."""
    spec = FeatureSpec(COLUMNS, bags={"tags": Bag("|", 1, pooling="mean")}, separator=",")
    network = {"dense_dim": 1, "embedding_dim": 4, "bottom_mlp": (4,), "top_mlp": (1,)}
    assert spec_difference(DLRMConfig((6, 3, 4), **network), spec) == ""
    weighted = {"hot_sizes": (1, 1, 1), "weighted": True}
    spec = FeatureSpec(COLUMNS, bags={"tags": Bag("|", 1, pooling="mean", weight_separator=":")}, separator=",")
    assert spec_difference(DLRMConfig((6, 3, 4), pooling="mean", **weighted, **network), spec) == ""
    assert "pools feature tags by sum" in spec_difference(DLRMConfig((6, 3, 4), **weighted, **network), spec)


@pytest.mark.parametrize("times", [1, 100])  # few rows and many
def test_one_row_in_every_form(times):
    encoder = Encoder(SPEC, Vocabulary.from_keys(KEYS))

    def check(batch):
        dense, ids, weights = batch
        assert (dense.dtype, ids.dtype, weights.dtype) == (np.float32, np.int32, np.float32)
        assert (ids.tolist(), weights.tolist()) == (IDS * times, WEIGHTS * times)

    lines, table = GOOD * times, {name: column * times for name, column in TABLE.items()}
    check(encoder.lines(lines))
    check(encoder.block(parse_block("\n".join(lines).encode(), SPEC)))
    check(encoder.columns(table))
    texts = {"tags": [line.split(",")[0] for line in lines], "path": [line.split(",")[4] for line in lines]}
    without = {name: column for name, column in table.items() if name != "tags_weights"}
    check(encoder.columns({**without, **texts}))
    check(encoder.arrays(np.array([table["x"]]).T, [list(row) for row in zip(texts["tags"], table["c"], table["path"])]))
    for rows in (lines, table):
        batches = list(encoder.batches(rows, 2))
        assert {len(batch[0]) for batch in batches[:-1]} == {2}
        check([np.concatenate(part) for part in zip(*batches)])


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_frames_with_lists(library):
    plain = {
        "tags": [["b", "a", "b"], None, ["c", "a", "d", "e"], ["", "", "a"], ["deadbeef"]],
        "tags_weights": [[2.0, 0.5, 1.0], None, [1.0, 1.0, 1.0, 7.0], [1.0, 1.0, 3.0], [0.0]],
        "c": TABLE["c"],
        "x": TABLE["x"],
        "path": [["u", "v"], [], ["deadbeef"], ["v", "v", "w"], [None, ""]],
    }
    if library == "pandas":
        frame = pytest.importorskip("pandas").DataFrame(plain, index=[5, 4, 3, 2, 1])
    else:
        frame = pytest.importorskip("polars").DataFrame(plain)
        if library == "pyarrow":
            pytest.importorskip("pyarrow")
            frame = frame.to_arrow()
    encoder = Encoder(SPEC, Vocabulary.from_keys(KEYS))
    for _, ids, weights in (encoder.columns(frame), [np.concatenate(part) for part in zip(*encoder.batches(frame, 2))]):
        assert (ids.tolist(), weights.tolist()) == (IDS, WEIGHTS)


def test_no_rows():
    for spec, more in ((SPEC, 1), (UNWEIGHTED, 0)):
        encoder = Encoder(spec, Vocabulary.from_keys(KEYS))
        for batch in (
            encoder.lines([]),
            encoder.columns(dict.fromkeys(TABLE, [])),
            encoder.arrays(*(np.zeros((0, n)) for n in (1, 3))),
        ):
            assert [array.shape for array in batch] == [(0, 1), (0, 6), (0, 6)][: 2 + more]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["a:b", "", "", "", ""]}, "row 0, tags: wanted a weight that is a finite number from 0 on. Received 'b'"),
        ({"tags": ["", b"a:1|c:", "", "", ""]}, "row 1, tags: wanted a weight that is a finite number from 0 on. Received ''"),
        ({"tags": ["a:-0.5", "", "", "", ""]}, "row 0, tags: wanted a weight .* Received '-0.5'"),
        ({"tags": ["a:1e39", "", "", "", ""]}, "row 0, tags: wanted a weight .* Received '1e39'"),
        ({"tags": ["a:nan", "", "", "", ""]}, "row 0, tags: wanted a weight .* Received 'nan'"),
        ({"tags": ["", ["a", "b"], "", "", ""]}, "row 1, tags: wanted a list of 2 weights .* keys. Received none"),
        ({"tags": [["a"]] * 5, "tags_weights": [[1]] * 4 + [[1, 2]]}, "row 4, tags: wanted a list of 1 weights .* Received 2"),
        ({"tags": [["a"]] * 5, "tags_weights": [["x"]] * 5}, "row 0, tags: wanted a weight .* Received 'x'"),
        ({"tags": [["a"]] * 5, "tags_weights": [[-1]] * 5}, "row 0, tags: wanted a weight .* Received -1"),
        ({"tags": [["a"]] * 5, "tags_weights": [[math.nan]] * 5}, "row 0, tags: wanted a weight .* Received nan"),
        ({"tags": [["a"]] * 5, "tags_weights": [[None]] * 5}, "row 0, tags: wanted a weight .* Received None"),
        ({"tags": [[]] * 5, "tags_weights": [[1]] * 5}, "row 0, tags: wanted no weights for an empty list of keys. Received 1"),
        ({"tags": ["a"] * 5, "tags_weights": [[1]] * 5}, "row 0, tags: wanted weights only beside a list of keys. Received 1"),
        ({"tags_weights": [None]}, "wanted columns of one length. Received 5 rows of x, 1 of tags_weights"),
        ({"tags_weights": "none"}, "wanted one column 'tags_weights'. Received 'none'"),
        ({"path": ["", ["a", "b"], ["c", 0.5], "", ""]}, r"row 2, path: wanted a category .* Received '0.5' \(float\)"),
        ({"path": ["", ["a", ["b"]], "", "", ""]}, r"row 1, path: wanted a category .* Received .* \(list\)"),
        ({"path": [{"a"}, "", "", "", ""]}, r"row 0, path: wanted a category .* \(set\)"),
        ({"c": ["", ["a"], "", "", ""]}, r"row 1, c: wanted a category .* \(list\)"),
    ],
)
def test_values_that_are_not_as_they_should_be(change, message):
    table = {**TABLE, "tags": ["a"] * 5, "tags_weights": [None] * 5, **change}
    with pytest.raises(DataError, match=f"^rows: {message}"):
        Encoder(SPEC, Vocabulary.from_keys(KEYS)).columns(table)


def test_a_bad_weight_stops_where_each_line_needs_a_score():
    encoder = Encoder(SPEC, Vocabulary.from_keys(KEYS))
    with pytest.raises(DataError, match=r"row 3: column 1 \(tags\): wanted a weight"):
        encoder.lines(LINES)
    with pytest.raises(DataError, match=r"row 0: column 4 \(x\): wanted a finite number"):  # the number's fault is told first
        encoder.lines(["a:x,1,p,one,u"])


def by_hand(text):
    """`(keys, weights)` of a field of `tags`, or None for a bad one, in the order in which a person reads it."""
    keys, weights = [], []
    for part in text.split("|")[:3]:
        key, mark, weight = part.rpartition(":")
        if not mark:
            key, weight = part, "1"
        try:
            number = float(weight)
        except ValueError:
            return None
        if not 0 <= number <= 3.4e38:
            return None
        keys.append(key)
        weights.append(number)
    return keys, weights


KEY = st.one_of(
    st.sampled_from(["", "a", "a:b", "deadbeef", "DEADBEEF", "00000000", "deadbeef0", "\udcff", "Zürich"]),
    st.text(st.characters(blacklist_characters=",|/\r\n", blacklist_categories=("Cs",)), max_size=9),
)
WEIGHT = st.one_of(
    st.just(""), st.floats(-1, 1e6, width=32).map(lambda w: f":{w!r}"), st.sampled_from([":", ":x", ":inf", ":2", ":0"])
)
FIELD = st.lists(st.tuples(KEY, WEIGHT).map("".join), max_size=6).map("|".join)


@given(st.lists(st.tuples(FIELD, st.lists(KEY, max_size=4)), max_size=12))
def test_text_columns_and_lists_are_read_as_by_hand(rows):
    """Keys enter a vocabulary in the order of the text; every way in gives what reading field by field gives."""
    lines = [f"{tags},1,c,1,{'/'.join(path)}".encode("utf-8", "surrogateescape") for tags, path in rows]
    block = parse_block(b"".join(line + b"\n" for line in lines), SPEC)
    expected = [by_hand(tags) for tags, _ in rows]
    assert [line for line, _ in block.bad] == [i for i, bag in enumerate(expected) if bag is None]
    good = [(bag, path or [""], tags) for bag, (tags, path) in zip(expected, rows) if bag is not None]

    known = {"tags": {}, "c": {"c": 0}, "path": {}}
    ids, weights = np.full((len(good), 6), -1), np.zeros((len(good), 6))
    for row, ((keys, numbers), path, _) in enumerate(good):
        ids[row, 3], weights[row, 3] = 0, 1
        for f, first, found, of in (("tags", 0, keys, numbers), ("path", 4, path[:2], [1, 1])):
            for place, (key, weight) in enumerate(zip(found, of)):
                ids[row, first + place] = known[f].setdefault(key, len(known[f]))
                weights[row, first + place] = weight
    learned = Vocabulary.from_keys({"tags": [], "c": ["c"], "path": []})
    encoder = Encoder(SPEC, learned)
    rows_of_block = np.empty(len(good), row_dtype(SPEC))
    encoder.write_ids(block, rows_of_block["categorical"], weights=rows_of_block["weights"], learn=True)
    np.testing.assert_array_equal(rows_of_block["categorical"], ids)
    np.testing.assert_array_equal(rows_of_block["weights"], weights.astype(np.float32))
    assert {name: learned.keys(name) for name in learned.names if good} == {f: list(keys) for f, keys in known.items() if good}

    plain = {"c": ["c"] * len(good), "x": [1] * len(good)}
    texts = {**plain, "tags": [text for _, _, text in good], "path": ["/".join(path) for _, path, _ in good]}
    lists = {**plain, "tags": [bag[0] for bag, _, _ in good], "path": [path for _, path, _ in good]}
    lists["tags_weights"] = [bag[1] for bag, _, _ in good]
    for table in (texts, lists):
        _, came, of = encoder.columns(table)
        np.testing.assert_array_equal(came, ids)
        np.testing.assert_array_equal(of, weights.astype(np.float32))


@given(st.lists(st.tuples(FIELD, FIELD), max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_rows_of_a_block_are_a_block_of_its_lines(rows, start, stop):
    lines = [f"{tags},1,c,1,{path}".encode("utf-8", "surrogateescape") for tags, path in rows]
    start, stop = sorted((min(start, len(lines)), min(stop, len(lines))))
    part = parse_block(b"".join(line + b"\n" for line in lines), SPEC).rows(start, stop)
    alone = parse_block(b"".join(line + b"\n" for line in lines[start:stop]), SPEC)
    for f in (0, 2):
        for one, other in zip(part.column(f), alone.column(f)):
            np.testing.assert_equal(
                tuple(one) if isinstance(one, tuple) else one, tuple(other) if isinstance(other, tuple) else other
            )
