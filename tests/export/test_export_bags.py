"""A model with several keys per feature gives one probability for a row in every form it is exported to."""

import json
import os

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.export.ascend.export import export_ascend
from dlrm_tf.export.savedmodel.bag_strings import BagStrings
from dlrm_tf.export.savedmodel.export import export_savedmodel
from dlrm_tf.export.tflite.export import TFLiteExporter, export_tflite
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.lite import Scorer
from dlrm_tf.score.predictor import Predictor
from dlrm_tf.score.targets import open_target

tf = tensorflow()
ROWS = 60
BAGS = {
    "plain": {"tags": Bag("|", 3), "words": Bag(",", 4, "mean")},
    "weighted": {"tags": Bag("|", 3, weight_separator=":"), "words": Bag(",", 4, "mean", ":")},
}
KEYS = {
    "tags": [*"abcdefgh", "", "0a0b0c0d", "a:b"],
    "site": ["x", "y|z", "", "1.5", "x:2"],
    "words": [*(f"w{i}" for i in range(30)), "", "Zürich", "ff"],
}


class Case:
    """A random model with its files, raw rows, and what the data room makes of them."""

    def __init__(self, kind, folder):
        self.spec = FeatureSpec.of(["n", "m"], list(KEYS), bags=BAGS[kind])
        self.vocabulary = dlrm_tf.Vocabulary.from_keys(KEYS)
        hot = {"hot_sizes": self.spec.hot_sizes, "pooling": self.spec.poolings, "weighted": self.spec.weighted}
        config = dlrm_tf.DLRMConfig(self.vocabulary.sizes, 2, 4, (8, 4), (16, 1), **hot)
        self.model = dlrm_tf.DLRM(config, seed=1)
        table = self.model.embedding.table
        table.assign(np.random.default_rng(7).normal(0, 0.5, table.shape))  # OOV rows too
        self.model.vocabulary_fingerprint = self.vocabulary.fingerprint
        self.weights, self.keys, self.columns = folder / "m.weights.h5", folder / "v.npz", folder / "spec.json"
        self.model.save_weights(self.weights)
        self.vocabulary.save(self.keys)
        self.columns.write_text(json.dumps(self.spec.to_dict()))
        self.dense, self.text = raw_rows(self.spec)
        self.encoded = Encoder(self.spec, self.vocabulary).arrays(self.dense, self.text)
        self.inputs = dict(zip(config.inputs, self.encoded))
        self.probability = tf.sigmoid(self.model(self.inputs)).numpy()

    def savedmodel(self, folder):
        given = {"vocabulary": self.keys, "spec": self.columns, "warmup_batches": (1, 4)}
        return export_savedmodel(self.weights, folder, **given)


def raw_rows(spec):
    """Texts with empty fields, empty keys, unknown keys, more keys than there is room for, weights given and not."""
    generator = np.random.default_rng(0)
    text = np.empty((ROWS, len(KEYS)), object)
    for f, (name, keys) in enumerate(KEYS.items()):
        bag = spec.bags.get(name)
        for row in range(ROWS):
            chosen = generator.choice(np.array([*keys, "unknown"], object), generator.integers(1, 7) if bag else 1)
            if bag and bag.weight_separator:
                # A key that contains the separator needs a weight after it.
                marks = [
                    f":{w:.3g}" if w > 0.3 or ":" in key else "" for w, key in zip(generator.random(len(chosen)) * 3, chosen)
                ]
                chosen = [key + mark for key, mark in zip(chosen, marks)]
            text[row, f] = bag.separator.join(chosen) if bag else chosen[0]
    text[0, 0] = text[1, 2] = ""
    text[2, 2] = ",,"
    return generator.integers(-3, 3000, (ROWS, 2)).astype(np.float32), text


@pytest.fixture(scope="module", params=list(BAGS))
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("bags"))


@pytest.fixture(scope="module")
def served(case, tmp_path_factory):
    path = case.savedmodel(tmp_path_factory.mktemp("served"))
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
        columns = dict(zip((*case.spec.dense_names, *KEYS), (*case.dense.T, *case.text.T)))
        np.testing.assert_allclose(predictor.predict(columns), case.probability[:, 0], atol=1e-6)


def test_tf_examples_have_lists_of_keys(case, served):
    examples = []
    for dense, text in zip(case.dense, case.text):
        features = {"dense": tf.train.Feature(float_list=tf.train.FloatList(value=dense))}
        for name, field in zip(KEYS, text):
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
    for row in range(ROWS):
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


@pytest.mark.parametrize(
    "mlp, table_dtype, error", [("float32", "int8", 0.01), ("dynamic", "int8", 0.02), ("float32", "int4", 0.15)]
)
def test_a_tflite_file(case, tmp_path, mlp, table_dtype, error):
    label = (np.arange(ROWS) % 2).astype(np.float32)
    given = {"vocabulary": case.keys, "spec": case.spec, "evaluation": (*case.encoded, label), "max_auc_loss": 1.0}
    report = export_tflite(case.weights, tmp_path / "m.tflite", mlp=mlp, table_dtype=table_dtype, quiet=True, **given)
    assert report.rows == ROWS and report.max_error < error
    scorer = Scorer(tmp_path / "m.tflite")
    came = scorer.score(*case.encoded)
    np.testing.assert_allclose(came, case.probability[:, 0], atol=error)
    np.testing.assert_array_equal(scorer.score_raw(case.dense, case.text), came)
    # One row, then many: the shapes of the interpreter follow.
    np.testing.assert_allclose(scorer.score(*(array[:1] for array in case.encoded)), came[:1], atol=1e-3)
    wrong = case.encoded[:2] if case.spec.weighted else (*case.encoded, np.ones_like(case.encoded[1], np.float32))
    with pytest.raises(DataError, match="wanted dense, categorical"):
        scorer.score(*wrong)
    with open_target(tmp_path / "m.tflite") as target:
        np.testing.assert_array_equal(target.score(*case.encoded), came)


def test_a_frozen_graph_for_ascend(case, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = export_ascend(case.weights, tmp_path / "out")
    assert f"categorical:64,{case.model.config.id_columns}" in done.command
    assert ("weights:64" in done.command) == case.spec.weighted
    names = json.loads((tmp_path / "out" / "ascend.json").read_text())
    graph_def = tf.compat.v1.GraphDef.FromString((tmp_path / "out" / "frozen_graph.pb").read_bytes())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            feed = {f"{name}:0": values for name, values in zip(names["inputs"], case.encoded)}
            came = session.run(names["output"], feed)
            with np.load(tmp_path / "out" / "check.npz") as check:
                checked = session.run(names["output"], {f"{name}:0": check[name] for name in names["inputs"]})
                np.testing.assert_allclose(checked, check["probability"], atol=1e-6)
    np.testing.assert_allclose(came, case.probability, atol=1e-6)
    # No shape that depends on values.
    assert not {node.op for node in graph_def.node} & {"Where", "Unique", "SparseTensorDenseMatMul", "If", "While"}


def test_a_vocabulary_needs_the_spec_of_the_model(case, tmp_path):
    with pytest.raises(UsageError, match="wanted the columns of the log .*--spec FILE"):
        export_savedmodel(case.weights, tmp_path, vocabulary=case.keys)
    other = FeatureSpec.of(["n", "m"], list(KEYS), bags={**BAGS["plain"], "words": Bag(",", 9, "mean")})
    with pytest.raises(DataError, match="takes 4 keys of feature words, but the data has 9"):
        export_savedmodel(case.weights, tmp_path, vocabulary=case.keys, spec=other)
    with pytest.raises(DataError, match=r"evaluation rows: wanted shapes .*\(60, 8\).*Received .*\(60, 3\)"):
        TFLiteExporter(case.weights, evaluation=(case.dense, case.encoded[1][:, :3], *case.encoded[2:]), quiet=True)
    assert not os.listdir(tmp_path)


def test_mindspore_has_no_bags(case, tmp_path):
    with pytest.raises(UsageError, match="has several keys per feature, which MindSpore's network does not"):
        dlrm_tf.convert(case.weights, tmp_path / "m.ckpt", quiet=True)
