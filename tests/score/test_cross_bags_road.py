"""Bags with weights under cross layers, trained by the default recipe: one probability in every form, and grown."""

import numpy as np
import pytest
from test_bags_road import SPEC, TOLERANCE, generated, line

import dlrm_tf
from dlrm_tf.checkpoints.reference import logits
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.lite.scorer import Scorer
from dlrm_tf.probability import sigmoid
from dlrm_tf.weights.grow import grow_weights
from dlrm_tf.weights.reader import WeightsReader

tf = tensorflow()
pytestmark = pytest.mark.slow  # training compiles its graph
# float32 layers, but the table's rows are int8 (seen: 4e-4).
LITE_TOLERANCE = 5e-3
CROSS = {"interaction": "cross", "cross_layers": 2, "cross_rank": 5}


def prepared(folder, rows, **options):
    folder.mkdir()
    (folder / "log.tsv").write_text("".join(line(row) + "\n" for row in rows))
    return dlrm_tf.prepare(folder / "log.tsv", folder / "data", spec=SPEC, quiet=True, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`(folder, records, what fit returned)`."""
    folder = tmp_path_factory.mktemp("cross")
    records = prepared(folder / "first", generated(3000, 1), min_count=2)
    shape = {"embedding_dim": 4, "bottom_mlp": (8, 4), "top_mlp": (16, 1)}
    # So few units learn little from so few rows where half of them are left out.
    options = {"dropout": 0.0, "epochs": 5, "quiet": True}
    return folder, records, dlrm_tf.fit(records, folder / "run", **options, **shape, **CROSS)


def by_numpy(weights, arrays):
    with WeightsReader(weights) as reader:

        def weight(part, number, kind, ids):
            if part == "embedding":
                return reader.rows(number, 0, reader.config.categorical_feature_sizes[number] + 1)[ids]
            return reader.dense(part, number)[kind == "bias"]

        return sigmoid(logits(reader.config, weight, *arrays)[:, 0])


def test_every_form_gives_one_probability(trained):
    folder, records, done = trained
    config, vocabulary = done.model.config, records.vocabulary()
    assert (config.interaction, config.cross_rank, config.hot_sizes, config.weighted) == ("cross", 5, (4, 1, 3), True)
    assert (done.options.optimizer, done.options.recipe) == ("rowwise_adagrad", "default")
    measured = dlrm_tf.evaluate(records, done.weights, quiet=True)
    assert measured == done.test and measured["auc"] > 0.6

    rows = [*generated(50, 2), (0, 3.0, [("new", 2.0), ("t1", 0.5)], "none", ["x", "y", "z", "00000001"])]
    fields = [line(row).split("\t") for row in rows]
    dense, text = np.array([[float(f[1])] for f in fields], np.float32), np.array([f[2:] for f in fields], object)
    wanted = by_numpy(done.weights, Encoder(SPEC, vocabulary).arrays(dense, text))
    assert np.ptp(wanted) > 0.1
    keys = records.folder + "/vocabulary.npz"
    served = dlrm_tf.export_savedmodel(done.weights, folder / "served", vocabulary=keys, spec=SPEC, warmup_batches=(1,))
    lite = str(folder / "m.tflite")
    dlrm_tf.export_tflite(done.weights, lite, mlp="float32", vocabulary=keys, data=records, quiet=True)
    raw = tf.saved_model.load(served).signatures["raw"](dense=tf.constant(dense), categorical=tf.constant(text))
    np.testing.assert_allclose(raw["probability"][:, 0], wanted, atol=TOLERANCE)
    np.testing.assert_allclose(Scorer(lite).score_raw(dense, text), wanted, atol=LITE_TOLERANCE)
    for form, tolerance in ((done.weights, TOLERANCE), (served, TOLERANCE), (lite, LITE_TOLERANCE)):
        with dlrm_tf.Predictor(form, vocabulary, spec=SPEC) as predictor:
            np.testing.assert_allclose(predictor.predict([line(row) for row in rows]), wanted, atol=tolerance)


def test_grown_it_scores_as_before_and_is_tuned_by_the_recipe(trained, tmp_path):
    _, records, done = trained
    new = [(y, x, [(f"{key}b", w) for key, w in tags], shop, path) for y, x, tags, shop, path in generated(700, 4)]
    later = prepared(tmp_path / "second", [*generated(700, 3), *new], vocabulary=records.vocabulary(), grow=True)
    assert later.sizes > records.sizes and later.spec == records.spec
    grown = tmp_path / "grown.weights.h5"
    config = grow_weights(done.weights, grown, later.vocabulary(), seed=1)
    assert (config.hot_sizes, config.pooling, config.cross_rank) == ((4, 1, 3), ("mean", "sum", "sum"), 5)
    dense, ids, _, weights = records.numpy("test")
    known = (ids < np.array(records.sizes)[list(config.column_features)]).all(axis=1)
    assert known.sum() > 100
    arrays = np.log1p(dense[known]), ids[known], weights[known]
    np.testing.assert_allclose(by_numpy(grown, arrays), by_numpy(done.weights, arrays), rtol=0, atol=1e-12)

    tuned = dlrm_tf.fit(later, tmp_path / "run", weights=grown, quiet=True)
    assert tuned.model.config == config
    assert (tuned.options.optimizer, tuned.options.dropout, tuned.options.epochs) == ("lazy_adam", 0, 1)
    assert tuned.test["logloss"] < dlrm_tf.evaluate(later, grown, quiet=True)["logloss"]
