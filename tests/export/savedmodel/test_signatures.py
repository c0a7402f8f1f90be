"""raw, classify and regress: the same probability as serving_default, whatever form the row comes in."""

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.data.id_spaces import IdSpaces
from dlrm_tf.errors import DataError
from dlrm_tf.export.savedmodel.export import export_savedmodel
from dlrm_tf.export.savedmodel.string_ids import StringIds
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()
ROWS = 40


@pytest.fixture(scope="module")
def vocabulary():
    """Hex keys, the empty key, text that is no hex; the same keys in several features."""
    keys = {f"C{f}": [f"{i * 2654435761 % 2**32:08x}" for i in range(4 + f)] + ["", "Zürich", "0"] for f in range(1, 27)}
    return dlrm_tf.Vocabulary.from_keys(keys)


@pytest.fixture(scope="module")
def served(vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signatures")
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(vocabulary.sizes, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1)), seed=1)
    model.vocabulary_fingerprint = vocabulary.fingerprint
    model.save_weights(folder / "m.weights.h5")
    vocabulary.save(folder / "v.npz")
    path = export_savedmodel(folder / "m.weights.h5", folder, vocabulary=folder / "v.npz", warmup_batches=(1,))
    return model, tf.saved_model.load(path), path


@pytest.fixture(scope="module")
def rows(vocabulary):
    """Raw rows, and what the data room makes of them."""
    generator = np.random.default_rng(0)
    dense = generator.integers(-3, 3000, (ROWS, 13)).astype(np.float32)
    dense[generator.random((ROWS, 13)) < 0.3] = np.nan
    columns = []
    for name in vocabulary.names:
        keys = [*vocabulary.keys(name), "never seen", "0000000g", "abc"]
        columns.append(generator.choice(np.array(keys, object), ROWS))
    strings = np.stack(columns, axis=1)
    ids = np.stack([vocabulary.lookup(n, strings[:, f]) for f, n in enumerate(vocabulary.names)], axis=1)
    assert (ids == np.array(vocabulary.sizes)).any()
    return dense, strings, ids


def expected(model, rows):
    dense, _, ids = rows
    logit = model({"dense": np.log1p(np.maximum(np.nan_to_num(dense), 0)).astype(np.float32), "categorical": ids}).numpy()
    return 1 / (1 + np.exp(-logit))


def test_string_ids_equal_the_vocabulary(vocabulary, rows):
    _, strings, ids = rows
    np.testing.assert_array_equal(StringIds(vocabulary)(tf.constant(strings)), ids)


def test_a_part_of_the_buckets_is_refused():
    """The hash alone would give the ids of the whole."""
    whole = dlrm_tf.Vocabulary.empty(IdSpaces(("a", "b"), hashed={"a": 10, "b": 10}))
    assert StringIds(whole)(tf.constant([["x", "y"]])).numpy()[0].tolist() == [
        *whole.lookup("a", ["x"]),
        *whole.lookup("b", ["y"]),
    ]
    part = whole.keep([np.ones(10, bool), np.arange(10) % 2 == 0])
    with pytest.raises(DataError, match="wanted all 10 buckets of b. Received 5"):
        StringIds(part)


def test_raw_rows_score_as_prepared_ones(served, rows):
    model, loaded, _ = served
    out = loaded.signatures["raw"](dense=tf.constant(rows[0]), categorical=tf.constant(rows[1]))
    np.testing.assert_allclose(out["probability"], expected(model, rows), atol=1e-6)


def test_classify_and_regress_take_tf_examples(served, rows):
    model, loaded, _ = served
    examples = []
    for dense, ids in zip(rows[0], rows[2]):
        features = {
            "dense": tf.train.Feature(float_list=tf.train.FloatList(value=dense)),
            "categorical": tf.train.Feature(int64_list=tf.train.Int64List(value=ids)),
        }
        examples.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    probability = expected(model, rows)
    classified = loaded.signatures["classify"](inputs=tf.constant(examples))
    np.testing.assert_allclose(classified["scores"], np.hstack([1 - probability, probability]), atol=1e-6)
    assert classified["classes"].numpy().tolist() == [[b"0", b"1"]] * ROWS
    regressed = loaded.signatures["regress"](inputs=tf.constant(examples))
    np.testing.assert_allclose(regressed["outputs"], probability[:, 0], atol=1e-6)


def test_the_proto_carries_tf_servings_method_names(served):
    from tensorflow.core.protobuf import saved_model_pb2

    _, _, path = served
    with open(f"{path}/saved_model.pb", "rb") as f:
        signatures = saved_model_pb2.SavedModel.FromString(f.read()).meta_graphs[0].signature_def
    assert {name: signatures[name].method_name for name in ("serving_default", "raw", "classify", "regress")} == {
        "serving_default": "tensorflow/serving/predict",
        "raw": "tensorflow/serving/predict",
        "classify": "tensorflow/serving/classify",
        "regress": "tensorflow/serving/regress",
    }
    assert {k: [d.size for d in v.tensor_shape.dim] for k, v in signatures["raw"].inputs.items()} == {
        "dense": [-1, 13],
        "categorical": [-1, 26],
    }


def test_another_vocabulary_is_refused(served, tmp_path):
    model, _, _ = served
    model.save_weights(tmp_path / "m.weights.h5")
    dlrm_tf.Vocabulary.from_keys({f"C{f}": [str(i) for i in range(5)] for f in range(26)}).save(tmp_path / "v.npz")
    with pytest.raises(DataError, match="wanted the vocabulary .* was trained with"):
        export_savedmodel(tmp_path / "m.weights.h5", tmp_path / "out", vocabulary=tmp_path / "v.npz")
    model.vocabulary_fingerprint, kept = "", model.vocabulary_fingerprint
    model.save_weights(tmp_path / "m.weights.h5")
    model.vocabulary_fingerprint = kept
    with pytest.raises(DataError, match="has .* ids for feature"):
        export_savedmodel(tmp_path / "m.weights.h5", tmp_path / "out", vocabulary=tmp_path / "v.npz")
    assert not (tmp_path / "out").exists()


def test_no_skew_between_training_and_serving(golden_dir, tmp_path):
    """Every good line of a raw log, sent to `raw` as it stands, scores as its prepared row does in Keras."""
    log = golden_dir / "criteo" / "train.txt"
    records = dlrm_tf.prepare(log, tmp_path / "data")
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(records.sizes, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1)), seed=2)
    model.save_weights(tmp_path / "m.weights.h5")
    path = export_savedmodel(tmp_path / "m.weights.h5", tmp_path, vocabulary=tmp_path / "data" / "vocabulary.npz")
    lines = [line.split("\t") for line in log.read_text().split("\n")]
    cells = np.array([fields for fields in lines if len(fields) == 40], object)
    dense = np.array([[float(cell) if cell else np.nan for cell in row] for row in cells[:, 1:14]], np.float32)
    served = tf.saved_model.load(path).signatures["raw"](dense=tf.constant(dense), categorical=tf.constant(cells[:, 14:]))
    logits = np.concatenate([model.predict(records.dataset(split, 256), verbose=0) for split in ("train", "test")])
    assert len(logits) == records.rows("train") + records.rows("test") == 698
    np.testing.assert_allclose(served["logit"], logits, atol=1e-6)
