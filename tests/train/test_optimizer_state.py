"""Training goes on from MindSpore's optimizer state as MindSpore itself went on."""

import json

import numpy as np
import pytest
import tensorflow as tf

from dlrm_tf import convert, load
from dlrm_tf.checkpoints.names import MINDSPORE
from dlrm_tf.errors import CheckpointError
from dlrm_tf.model.optimizers import legacy, make_optimizer
from dlrm_tf.train.optimizer_state import restore_optimizer_state
from dlrm_tf.weights.layout import TABLE
from dlrm_tf.weights.optimizer_state import OptimizerStateReader
from dlrm_tf.weights.reader import WeightsReader

HALF = 10


@pytest.fixture
def half_way(golden_dir, golden_run, tmp_path):
    """Function `name -> (model after 10 steps, file, settings, MindSpore's arrays, batches)`."""

    def make(name):
        convert(golden_dir / f"{name}.ckpt", tmp_path / "m.weights.h5", optimizer_state=True, quiet=True)
        settings = json.loads((golden_dir / f"{name}.json").read_text())
        with np.load(golden_dir / f"{name}.npz") as arrays:
            wanted = {key: arrays[key] for key in arrays.files}
        return load(tmp_path / "m.weights.h5"), tmp_path / "m.weights.h5", settings, wanted, golden_run("tiny")[1]

    return make


def train(model, optimizer, run, steps, dense_gradients=False):
    losses = []
    for i in steps:
        with tf.GradientTape() as tape:
            features = {"dense": run["dense"][i], "categorical": run["categorical"][i]}
            loss = model.compute_loss((features, run["label"][i]), training=True)
        gradients = tape.gradient(loss, model.trainable_variables)
        if dense_gradients:
            gradients = [tf.convert_to_tensor(g) for g in gradients]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        losses.append(float(loss))
    return losses


def assert_weights(model, wanted, atol):
    config = model.config
    for weight, name in MINDSPORE.names(config).items():
        if weight.part == "embedding":
            offset = config.block_offsets[weight.index]
            came = model.embedding.read_rows(offset, offset + config.categorical_feature_sizes[weight.index])
        else:
            came = getattr(model.dense_layer(weight.part, weight.index), weight.kind).numpy()
        np.testing.assert_allclose(came, wanted[name], rtol=0, atol=atol, err_msg=name)


def test_adagrad_goes_on(half_way):
    model, path, settings, wanted, run = half_way("adagrad")
    optimizer = make_optimizer("adagrad", settings["learning_rate"])
    assert restore_optimizer_state(model, optimizer, path) == []
    assert int(optimizer.iterations) == HALF
    losses = train(model, optimizer, run, range(HALF, settings["steps"]))
    np.testing.assert_allclose(losses, wanted["losses"][HALF:], rtol=0, atol=1e-6)
    assert_weights(model, wanted, 1e-5)


def test_adagrad_goes_on_with_keras_fit(half_way):
    model, path, settings, wanted, run = half_way("adagrad")
    model.compile(make_optimizer("adagrad", settings["learning_rate"]))
    restore_optimizer_state(model, model.optimizer, path)
    steps = slice(HALF, settings["steps"])
    features = {key: run[key][steps].reshape(-1, *run[key].shape[2:]) for key in ("dense", "categorical", "label")}
    label = features.pop("label")
    model.fit(features, label, batch_size=run["label"].shape[1], shuffle=False, verbose=0)
    assert_weights(model, wanted, 1e-5)


def test_adagrad_without_its_state_goes_elsewhere(half_way):
    model, _, settings, wanted, run = half_way("adagrad")
    train(model, make_optimizer("adagrad", settings["learning_rate"]), run, range(HALF, settings["steps"]))
    with pytest.raises(AssertionError):
        assert_weights(model, wanted, 1e-3)


def test_momentum_goes_on(half_way):
    """MindSpore's momentum decays in every row in every step; so it is compared on gradients made dense."""
    model, path, settings, wanted, run = half_way("momentum")
    optimizer = legacy.SGD(settings["learning_rate"], momentum=0.9)
    assert restore_optimizer_state(model, optimizer, path) == []
    losses = train(model, optimizer, run, range(HALF, settings["steps"]), dense_gradients=True)
    np.testing.assert_allclose(losses, wanted["losses"][HALF:], rtol=0, atol=1e-6)
    assert_weights(model, wanted, 1e-5)


def test_our_sgd_has_momentum_for_the_mlps_only(half_way):
    model, path, settings, _, _ = half_way("momentum")
    optimizer = make_optimizer("sgd", settings["learning_rate"], momentum=0.9)
    assert restore_optimizer_state(model, optimizer, path) == [TABLE]
    with WeightsReader(path) as reader:
        v = OptimizerStateReader(reader).read("accum", "top_mlp/_sublayers/dense_1/vars/1", 0, 1)
    slot = optimizer.optimizers[0].get_slot(model.dense_layer("top_mlp", 1).bias, "momentum")
    np.testing.assert_allclose(slot.numpy(), -settings["learning_rate"] * v, rtol=1e-6)
    assert v != 0


def test_rowwise_adagrad_takes_the_mean_of_a_row(half_way):
    model, path, _, _, _ = half_way("adagrad")
    optimizer = make_optimizer("rowwise_adagrad")
    assert restore_optimizer_state(model, optimizer, path) == []
    with WeightsReader(path) as reader:
        accumulators = OptimizerStateReader(reader).read("accum", TABLE, 0, reader.config.table_rows)
    slot = optimizer.optimizers[1].get_slot(model.embedding.table, "accumulator")
    np.testing.assert_allclose(slot.numpy(), accumulators.mean(axis=1), rtol=1e-6)


def test_an_optimizer_that_does_not_fit(half_way):
    model, path, _, _, _ = half_way("adagrad")
    with pytest.raises(CheckpointError, match="state of MindSpore's adagrad, which SGD has no place for"):
        restore_optimizer_state(model, make_optimizer("sgd"), path)


def test_sgd_without_momentum_needs_no_place(golden_ckpt, tmp_path):
    convert(golden_ckpt("tiny", "trained"), tmp_path / "m.weights.h5", optimizer_state=True, quiet=True)
    optimizer = make_optimizer("sgd")
    restore_optimizer_state(load(tmp_path / "m.weights.h5"), optimizer, tmp_path / "m.weights.h5")
    assert int(optimizer.iterations) == 20


def test_a_file_without_state(golden_ckpt, tmp_path):
    convert(golden_ckpt("tiny", "trained"), tmp_path / "m.weights.h5", quiet=True)
    with pytest.raises(CheckpointError, match="wanted optimizer state of sgd, momentum, adagrad .*Received none"):
        restore_optimizer_state(load(tmp_path / "m.weights.h5"), make_optimizer("sgd"), tmp_path / "m.weights.h5")
