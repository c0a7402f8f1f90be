"""Several keys per feature in a SavedModel: text that the graph splits, tf.Examples, prepared rows."""

import os

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.export.savedmodel.bag_strings import BagStrings
from dlrm_tf.export.savedmodel.export import export_savedmodel
from dlrm_tf.export.tflite.export import TFLiteExporter
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.score.predictor import Predictor

tf = tensorflow()


@pytest.fixture(scope="module")
def served(case, tmp_path_factory):
    options = {"vocabulary": case.keys, "spec": case.columns, "warmup_batches": (1, 4)}
    path = export_savedmodel(case.weights, tmp_path_factory.mktemp("served"), **options)
    return path, tf.saved_model.load(path).signatures


def test_rows_are_what_the_tests_need(case):
    ids = case.inputs["categorical"]
    assert (ids == -1).any() and (ids == np.array(case.vocabulary.sizes)[np.array(case.model.config.column_features)]).any()
    assert case.probability.std() > 0.02


def test_text_is_split_in_the_graph_as_in_the_encoder(case, served):
    split = BagStrings(case.model.config, case.spec.categorical_names, case.spec.bags).split(tf.constant(case.text))
    np.testing.assert_array_equal(split[1], case.inputs["categorical"] != -1)
    if case.spec.weighted:
        used = split[1].numpy()
        np.testing.assert_array_equal(split[2].numpy()[used], case.inputs["weights"][used])
    _, signatures = served
    came = signatures["raw"](dense=tf.constant(case.dense), categorical=tf.constant(case.text))
    np.testing.assert_allclose(came["probability"], case.probability, atol=1e-6)


def test_prepared_rows(case, served):
    path, signatures = served
    came = signatures["serving_default"](**{name: tf.constant(values) for name, values in case.inputs.items()})
    np.testing.assert_allclose(came["probability"], case.probability, atol=1e-6)
    assert {n: tuple(s.shape) for n, s in signatures["serving_default"].structured_input_signature[1].items()} == {
        name: (None, columns) for name, (_, columns) in case.model.config.inputs.items()
    }
    with Predictor(path, case.vocabulary, spec=case.spec) as predictor:
        columns = dict(zip((*case.spec.dense_names, *case.features), (*case.dense.T, *case.text.T)))
        np.testing.assert_allclose(predictor.predict(columns), case.probability[:, 0], atol=1e-6)


def test_tf_examples_have_lists_of_keys(case, served):
    examples = []
    for dense, text in zip(case.dense, case.text):
        features = {"dense": tf.train.Feature(float_list=tf.train.FloatList(value=dense))}
        for name, field in zip(case.features, text):
            bag = case.spec.bags.get(name)
            keys = field.split(bag.separator) if bag else [field]
            if bag and bag.weight_separator:
                parts = [key.rpartition(":") if ":" in key else (key, "", "1") for key in keys]
                keys, weights = [p[0] for p in parts], [float(p[2]) for p in parts]
                features[f"{name}_weights"] = tf.train.Feature(float_list=tf.train.FloatList(value=weights))
            values = [] if field == "" else [key.encode() for key in keys]  # a missing list is the key ''
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        examples.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    _, signatures = served
    came = signatures["regress"](inputs=tf.constant(examples))["outputs"]
    np.testing.assert_allclose(came, case.probability[:, 0], atol=1e-6)
    scores = signatures["classify"](inputs=tf.constant(examples))["scores"]
    np.testing.assert_allclose(scores[:, 1], case.probability[:, 0], atol=1e-6)


def test_tf_examples_have_ids_where_there_is_no_vocabulary(case, tmp_path):
    signatures = tf.saved_model.load(export_savedmodel(case.weights, tmp_path, warmup_batches=(1,))).signatures
    assert set(signatures) == {"serving_default", "classify", "regress"}
    raw = np.expm1(case.inputs["dense"].astype(np.float64))
    examples = []
    for row in range(len(case.dense)):
        features = {
            "dense": tf.train.Feature(float_list=tf.train.FloatList(value=raw[row])),
            "categorical": tf.train.Feature(int64_list=tf.train.Int64List(value=case.inputs["categorical"][row])),
        }
        if case.spec.weighted:
            features["weights"] = tf.train.Feature(float_list=tf.train.FloatList(value=case.inputs["weights"][row]))
        examples.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    came = signatures["regress"](inputs=tf.constant(examples))["outputs"]
    np.testing.assert_allclose(came, case.probability[:, 0], atol=1e-5)


def test_what_a_log_would_refuse_has_weight_one_in_the_graph():
    config = dlrm_tf.DLRMConfig((3,), hot_sizes=(8,), weighted=True)
    split = BagStrings(config, ["a"], {"a": Bag("|", 8, weight_separator=":")}).split
    texts = ["p:1e39|q:-1|r:nan|s:inf|t:|u:x|v:0x1|w:", "a:b:2|c: .5 |d:+1.|e:2e-1|:3|f:0|g|h:1e3", "i:7"]
    keys, used, weights = split(tf.constant([[text.encode()] for text in texts]))
    assert keys[0].numpy().tolist() == [b"p", b"q", b"r", b"s", b"t", b"u", b"v", b"w"]
    np.testing.assert_array_equal(weights[0], np.ones(8))
    assert keys[1].numpy().tolist() == [b"a:b", b"c", b"d", b"e", b"", b"f", b"g", b"h"]
    np.testing.assert_array_equal(weights[1], np.float32([2, 0.5, 1, 0.2, 3, 0, 1, 1000]))
    assert keys[2, 0] == b"i" and weights[2, 0] == 7 and used.numpy().sum(axis=1).tolist() == [8, 8, 1]


def test_a_vocabulary_needs_the_spec_of_the_model(case, tmp_path):
    with pytest.raises(UsageError, match="wanted the columns of the log .*--spec FILE"):
        export_savedmodel(case.weights, tmp_path, vocabulary=case.keys)
    other = FeatureSpec.of(["n", "m"], list(case.features), bags={**case.spec.bags, "words": Bag(",", 9, "mean")})
    with pytest.raises(DataError, match="takes 4 keys of feature words, but the data has 9"):
        export_savedmodel(case.weights, tmp_path, vocabulary=case.keys, spec=other)
    with pytest.raises(DataError, match=r"evaluation rows: wanted shapes .*\(60, 8\).*Received .*\(60, 3\)"):
        TFLiteExporter(case.weights, evaluation=(case.dense, case.encoded[1][:, :3], *case.encoded[2:]), quiet=True)
    assert not os.listdir(tmp_path)


def test_of_a_bag_of_one_key_the_first_counts(tmp_path):
    spec = FeatureSpec.of(["x"], ["a", "b"], bags={"a": Bag("|", 1)})
    vocabulary = dlrm_tf.Vocabulary.from_keys({"a": ["p", "q"], "b": ["p|q", "q"]})
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig((2, 2), 1, 4, (4,), (1,), hot_sizes=spec.hot_sizes), seed=1)
    assert not model.config.has_bags
    model.save_weights(tmp_path / "m.weights.h5")
    vocabulary.save(tmp_path / "v.npz")
    path = export_savedmodel(tmp_path / "m.weights.h5", tmp_path, vocabulary=tmp_path / "v.npz", spec=spec, warmup_batches=(1,))
    raw = tf.saved_model.load(path).signatures["raw"]
    came = raw(dense=tf.zeros([1, 1]), categorical=tf.constant([["q|p", "p|q"]]))["logit"]
    wanted = model({"dense": np.zeros((1, 1), np.float32), "categorical": np.array([[1, 0]], np.int32)})
    np.testing.assert_allclose(came, wanted, atol=1e-6)
