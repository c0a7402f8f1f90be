"""Every leg of the core, run on this TensorFlow: `make test` runs it on the newest, `make test-ascend` on the plugin's 2.6.5."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.data.prepare import prepare
from dlrm_tf.data.synthetic import synth
from dlrm_tf.keras2 import recommenders, tensorflow
from dlrm_tf.model.optimizers import make_optimizer

tf = tensorflow()
OTHER = os.environ.get("DLRM_TF_OTHER_PYTHON")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("legs")
    synth(folder / "rows.tsv", rows=20_000, seed=3, cardinalities=[40] * 26)
    return prepare(folder / "rows.tsv", folder / "data")


@pytest.mark.skipif(OTHER is None, reason="only make test-ascend promises the plugin's versions")
def test_this_is_the_plugins_tensorflow():
    assert sys.version_info[:2] == (3, 9)
    assert tf.__version__ == "2.6.5"
    assert recommenders().__version__.lstrip("v") == "0.6.0"
    assert np.__version__.startswith("1.19.")


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad"])
def test_adagrads_follow_their_formula(golden_run, name):
    _, run = golden_run("tiny")
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=4)
    table = model.embedding.table
    wanted, accumulated = table.numpy().astype(np.float64), 0.1
    model.compile(make_optimizer(name, 0.02))
    for step in range(3):
        features, label = {key: run[key][step] for key in ("dense", "categorical")}, run["label"][step]
        with tf.GradientTape() as tape:
            loss = model.compute_loss((features, label), training=True)
        gradient = tf.convert_to_tensor(tape.gradient(loss, table)).numpy().astype(np.float64)
        square = gradient**2 if name == "adagrad" else (gradient**2).mean(axis=1, keepdims=True)
        accumulated = accumulated + square
        wanted -= 0.02 * gradient / np.sqrt(accumulated)
        model.fit(features, label, batch_size=len(label), verbose=0)
    np.testing.assert_allclose(table, wanted, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_fit_evaluate_and_resume(records, tmp_path):
    config = dlrm_tf.DLRMConfig(records.sizes, embedding_dim=8, bottom_mlp=(32, 8), top_mlp=(32, 1))
    settings = {"config": config, "recipe": "mindspore", "optimizer": "adagrad", "learning_rate": 0.1, "batch_size": 256}
    settings = {**settings, "validation_share": 0.1, "quiet": True}
    whole = dlrm_tf.fit(records, tmp_path / "whole", epochs=3, **settings)
    assert whole.history[-1]["validation"]["auc"] > 0.6
    measured = dlrm_tf.evaluate(records, whole.best_weights, quiet=True)
    assert measured["rows"] == records.rows("test")
    assert measured["auc"] == pytest.approx(whole.test["auc"], abs=1e-6)
    dlrm_tf.fit(records, tmp_path / "halves", epochs=1, **settings)
    resumed = dlrm_tf.fit(records, tmp_path / "halves", epochs=3, resume=True, **settings)
    for a, b in zip(whole.model.trainable_variables, resumed.model.trainable_variables):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.skipif(OTHER is None, reason="needs a second environment: make test-ascend")
def test_weights_travel_between_the_versions(tmp_path):
    """A file written here loads on the other TensorFlow, trains a step there, and comes back."""
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=6)
    here, there = str(tmp_path / "here.weights.h5"), str(tmp_path / "there.weights.h5")
    model.save_weights(here)
    code = (
        "import json, sys, numpy as np, dlrm_tf\n"
        "from dlrm_tf.keras2 import tensorflow\n"
        "model = dlrm_tf.load(sys.argv[1])\n"
        "rows = {'dense': np.full((4, 13), 0.5, np.float32), 'categorical': np.arange(104, dtype=np.int32).reshape(4, 26) % 7}\n"
        "before = model(rows).numpy().tolist()\n"
        "model.compile('sgd')\n"
        "model.fit(rows, np.ones((4, 1), np.float32), batch_size=4, verbose=0)\n"
        "model.save_weights(sys.argv[2])\n"
        "print(json.dumps([tensorflow().__version__, before, model(rows).numpy().tolist()]))\n"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([OTHER, "-c", code, here, there], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version, before, after = json.loads(done.stdout.splitlines()[-1])
    assert version != tf.__version__
    rows = {"dense": np.full((4, 13), 0.5, np.float32), "categorical": np.arange(104, dtype=np.int32).reshape(4, 26) % 7}
    np.testing.assert_allclose(model(rows), before, rtol=0, atol=1e-6)
    np.testing.assert_allclose(dlrm_tf.load(there)(rows), after, rtol=0, atol=1e-6)
    model.compile("sgd")
    model.fit(rows, np.ones((4, 1), np.float32), batch_size=4, verbose=0)
    for a, b in zip(model.trainable_variables, dlrm_tf.load(there).trainable_variables):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
