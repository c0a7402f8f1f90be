"""Records.from_arrays: the folder that prepare makes of the same rows, or one without keys that trains all the same."""

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.data import arrays as module
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.describe import describe_records
from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.errors import DataError, UsageError


def whole(records):
    """All arrays of both splits, one after the other."""
    return [np.concatenate(parts) for parts in zip(*(records.numpy(split) for split in ("train", "test")))]


@pytest.mark.parametrize("shard_bytes", [160 * 33, 21 << 20])
def test_copies_what_prepare_made(golden_dir, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(module, "_SHARD_BYTES", shard_bytes)
    original = dlrm_tf.prepare(golden_dir / "criteo" / "train.txt", tmp_path / "original", test_fraction=1 / 6)
    dense, ids, label = whole(original)
    batches = ((dense[i : i + 50], ids[i : i + 50].astype(np.int64), label[i : i + 50, 0]) for i in range(0, len(dense), 50))
    vocabulary = tmp_path / "original" / "vocabulary.npz"
    copy = dlrm_tf.Records.from_arrays(tmp_path / "copy", batches, spec=CRITEO, vocabulary=vocabulary, test_fraction=1 / 6)
    copy.verify()
    assert len(copy.shards["train"]) == (1 if shard_bytes > 1 << 20 else 18)
    assert (copy.rows("train"), copy.rows("test")) == (698 - 116, 116)
    for got, wanted in zip(whole(copy), (dense, ids, label)):
        np.testing.assert_array_equal(got, wanted)
    assert copy.vocabulary().fingerprint == original.vocabulary().fingerprint
    assert copy.sizes == original.sizes
    assert (tmp_path / "copy" / "vocabulary.npz").read_bytes() == vocabulary.read_bytes()


def some_arrays(rows=70):
    rng = np.random.default_rng(1)
    sizes = (5, 3)
    ids = np.stack([np.arange(rows) % (size + 1) for size in sizes], axis=1)
    return {"dense": rng.normal(0, 5, (rows, 4)), "categorical": ids, "label": rng.integers(0, 2, rows), "sizes": sizes}


def test_without_keys(tmp_path):
    """Trains, evaluates and is described; what needs keys is refused in one line."""
    given = some_arrays()
    given["dense"][3, 1] = np.nan
    records = dlrm_tf.Records.from_arrays(tmp_path / "data", **given)
    assert records.spec.dense_names == ("I1", "I2", "I3", "I4") and records.spec.categorical_names == ("C1", "C2")
    assert records.sizes == (5, 3) and not records.has_keys
    records.verify()
    dense, ids, label = whole(records)
    np.testing.assert_array_equal(dense, np.nan_to_num(np.maximum(given["dense"], 0)).astype(np.float32))
    np.testing.assert_array_equal(ids, given["categorical"])
    np.testing.assert_array_equal(label[:, 0], given["label"])
    assert records.manifest["counts"]["out_of_vocabulary"] == {"C1": 11, "C2": 17}
    with pytest.raises(DataError, match="wanted records with a vocabulary. Received ones made from ids, which have no keys"):
        records.vocabulary()
    text = "\n".join(describe_records(tmp_path / "data"))
    assert "vocabulary none: the records were made from ids" in text
    config = dlrm_tf.DLRMConfig(records.sizes, dense_dim=4, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(8, 1))
    model = dlrm_tf.DLRM(config, seed=1)
    model.vocabulary_fingerprint = "of another program"
    model.save_weights(tmp_path / "m.weights.h5")
    run = dlrm_tf.fit(records, tmp_path / "run", weights=tmp_path / "m.weights.h5", batch_size=16, epochs=1, quiet=True)
    assert run is not None
    trained = sorted((tmp_path / "run").glob("*.weights.h5"))[0]
    assert dlrm_tf.evaluate(records, trained, quiet=True)["rows"] == 10
    assert dlrm_tf.load(trained).vocabulary_fingerprint == "of another program"


def test_sizes_follow_from_the_ids(tmp_path):
    given = some_arrays()
    del given["sizes"]
    assert dlrm_tf.Records.from_arrays(tmp_path / "data", **given).sizes == (6, 4)


def test_bags_with_weights(tmp_path):
    spec = FeatureSpec.of(["x"], ["c", "tags"], bags={"tags": Bag("|", 3, weight_separator=":")})
    ids = [[0, 1, 2, -1], [1, 0, -1, -1]]
    weights = [[1, 0.5, 2, 0], [1, 1, 0, 0]]
    records = dlrm_tf.Records.from_arrays(
        tmp_path / "data", [([[1.0], [2.0]], ids, [0, 1], weights)], spec=spec, sizes=(2, 3), test_fraction=0.5
    )
    _, got_ids, _, got_weights = whole(records)
    assert (got_ids.tolist(), got_weights.tolist()) == (ids, weights)
    assert (records.rows("train"), records.rows("test")) == (1, 1)
    for change, message in (
        ({"weights": [[1, -1, 2, 0], weights[1]]}, "row 0, weights: wanted finite numbers from 0 on. Received -1"),
        ({"categorical": [ids[0], [1, -1, 0, -1]]}, "row 1, tags: wanted ids from 0 to 3, or -1 in an unused place. Received -1"),
        ({"categorical": [[-1, 1, 2, -1], ids[1]]}, "row 0, c: wanted ids from 0 to 2. Received -1"),
        ({"weights": None}, r"wanted dense \[n, 1\], categorical \[n, 4\], label \[n\], weights \[n, 4\]. Received"),
    ):
        given = {"dense": [[1.0], [2.0]], "categorical": ids, "label": [0, 1], "weights": weights, **change}
        with pytest.raises(DataError, match=message):
            dlrm_tf.Records.from_arrays(tmp_path / "wrong", spec=spec, sizes=(2, 3), **given)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label": [0, 2]}, DataError, "arrays: row 1, label: wanted 0 or 1. Received 2"),
        (
            {"label": [0]},
            DataError,
            r"wanted dense \[n, 1\], categorical \[n, 1\], label \[n\]. Received \[2, 1\], \[2, 1\], \[1\]",
        ),
        ({"dense": [[1], [np.inf]]}, DataError, "arrays: row 1, I1: wanted a finite number"),
        ({"dense": [1, 2]}, DataError, r"wanted dense \[n, d\], categorical \[n, F\] and label \[n\]"),
        ({"categorical": [[0], [3]]}, DataError, "arrays: row 1, C1: wanted ids from 0 to 2. Received 3"),
        ({"categorical": [[0], [-1]]}, DataError, "arrays: row 1, C1: wanted ids from 0 to 2. Received -1"),
        ({"categorical": [[0.0], [1.0]]}, DataError, "arrays: categorical must be integer ids. Received float64"),
        ({"categorical": None}, UsageError, "wanted dense, categorical and label, or batches of them. Received no categorical"),
        ({"batches": []}, UsageError, "wanted either batches or arrays. Received batches and dense, categorical, label"),
        ({"sizes": (2, 2)}, UsageError, r"sizes must be 1 numbers of ids, one a feature. Received \(2, 2\)"),
        ({"test_fraction": 1}, UsageError, "test_fraction must be from 0 to below 1"),
        ({"vocabulary": dlrm_tf.Vocabulary.from_keys({"C1": ["a"]})}, UsageError, "sizes must be those of the vocabulary"),
        (
            {"vocabulary": dlrm_tf.Vocabulary.from_keys({"z": ["a", "b"]})},
            DataError,
            "wanted a vocabulary of the features C1. Received one of z",
        ),
        ({"dense": np.zeros((0, 1)), "categorical": np.zeros((0, 1), int), "label": []}, DataError, "at least one row"),
    ],
)
def test_wrong_arrays(tmp_path, change, error, message):
    given = {"dense": [[1.0], [2.0]], "categorical": [[0], [2]], "label": [0, 1], "sizes": (2,), **change}
    with pytest.raises(error, match=message):
        dlrm_tf.Records.from_arrays(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays(tmp_path):
    given = some_arrays()
    dlrm_tf.Records.from_arrays(tmp_path / "data", **given)
    with pytest.raises(FileExistsError):
        dlrm_tf.Records.from_arrays(tmp_path / "data", **given)
