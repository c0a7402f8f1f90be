"""The TPU model in TFRS's CPU mode: the same numbers as the ordinary model; and its network compiled by XLA, as on a TPU."""

import dataclasses

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.errors import UsageError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import make_optimizer
from dlrm_tf.train.placements.base import Placement
from dlrm_tf.train.placements.tpu import TPUPlacement, host_copy, tpu_model, with_row_numbers
from dlrm_tf.train.schedules import WarmUpThenDecay

tf = tensorflow()
CONFIG = dlrm_tf.DLRMConfig.preset("tiny")


def batches():
    generator = np.random.default_rng(0)
    ids = np.stack([generator.integers(0, size + 1, 64) for size in CONFIG.categorical_feature_sizes], 1).astype(np.int32)
    features = {"dense": generator.random((64, 13), np.float32), "categorical": ids}
    return tf.data.Dataset.from_tensor_slices((features, (ids[:, :1] % 2).astype(np.float32))).batch(16)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer, dense", [("sgd", None), ("adagrad", None), ("adagrad", "adam")])
def test_trains_as_the_ordinary_model(optimizer, dense):
    def made():
        return make_optimizer(optimizer, WarmUpThenDecay(0.1, 8, warmup_steps=3), dense=dense, dense_learning_rate=dense and 0.01)

    ordinary = dlrm_tf.DLRM(CONFIG, seed=1)
    of_tpu = made()
    on_tpu = tpu_model(ordinary, of_tpu)
    features, _ = next(iter(batches()))
    rows, _ = next(iter(with_row_numbers(CONFIG, batches)))
    np.testing.assert_allclose(on_tpu(rows), ordinary(features), rtol=0, atol=1e-6)
    ordinary.compile(made())
    on_tpu.compile(of_tpu)
    ordinary.fit(batches(), epochs=2, verbose=0)
    on_tpu.fit(with_row_numbers(CONFIG, batches), epochs=2, verbose=0)
    copied = host_copy(on_tpu)
    for mine, theirs in zip(copied.trainable_variables, ordinary.trainable_variables):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("interaction", ["dot", "cross"])
def test_a_training_step_compiles_with_xla(interaction):
    model = dlrm_tf.DLRM(dataclasses.replace(CONFIG, interaction=interaction), seed=1)

    @tf.function(jit_compile=True)
    def gradients(dense, embedded):
        with tf.GradientTape() as tape:
            tape.watch(embedded)
            logits = model.head(dense, embedded, training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.ones_like(logits), logits))
        return tape.gradient(loss, [embedded, *model.top_mlp.trainable_variables])

    dense, embedded = tf.random.normal([16, 13], seed=1), tf.random.normal([16, 26, 4], seed=2)
    compiled = gradients(dense, embedded)
    for one, other in zip(compiled, gradients.python_function(dense, embedded)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_fit_with_strategy_tpu(prepared, small_config, tmp_path, monkeypatch):
    options = {"config": small_config, "recipe": "mindspore", "optimizer": "adagrad", "batch_size": 100, "quiet": True}
    options = {**options, "validation_share": 0.1, "seed": 3}
    with pytest.raises(UsageError, match="strategy tpu: no TPU found .* name one in TPU_NAME"):
        dlrm_tf.fit(prepared, tmp_path / "run", strategy="tpu", **options)
    # All but the hardware: the default strategy in place of a TPUStrategy.
    monkeypatch.setattr(TPUPlacement, "make_strategy", Placement.make_strategy)
    trained = dlrm_tf.fit(prepared, tmp_path / "run", strategy="tpu", **options)
    assert trained.history[0]["step"] == 23  # the last batch, which is not full, is left out
    measured = dlrm_tf.evaluate(prepared.with_validation(257), trained.weights, split="validation", quiet=True)
    assert measured["logloss"] == pytest.approx(trained.history[0]["validation"]["logloss"], abs=1e-6)
    with pytest.raises(UsageError, match="the optimizer must be sgd or adagrad. Received LazyAdam"):
        dlrm_tf.fit(prepared, tmp_path / "other", strategy="tpu", **{**options, "optimizer": "lazy_adam"})
