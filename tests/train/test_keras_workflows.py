"""What Keras users do with a model, done with a DLRM: their own data, callbacks, weights, precision, frozen parts."""

import os

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import legacy, make_optimizer

tf = tensorflow()
CONFIG = dlrm_tf.DLRMConfig.preset("tiny")


def rows(count, seed=0):
    generator = np.random.default_rng(seed)
    ids = np.stack([generator.integers(0, size, count) for size in CONFIG.categorical_feature_sizes], 1).astype(np.int32)
    dense = generator.random((count, CONFIG.dense_dim), np.float32)
    label = (dense[:, :1] > 0.5).astype(np.float32)
    return {"dense": dense, "categorical": ids}, label


def model_with(optimizer="adagrad", **compile_options):
    model = dlrm_tf.DLRM(CONFIG, seed=1)
    model.compile(optimizer, **compile_options)
    return model


def weights(model):
    return [v.numpy() for v in model.trainable_variables]


@pytest.mark.slow
def test_own_dataset_callbacks_and_validation(tmp_path):
    train = tf.data.Dataset.from_tensor_slices(rows(640)).shuffle(640, seed=1).batch(64)
    validation = rows(200, seed=1)
    model = model_with(make_optimizer("adagrad", 0.5), metrics=[tf.keras.metrics.AUC(from_logits=True, name="auc")])
    rates = []
    history = model.fit(
        train,
        epochs=4,
        validation_data=validation,
        verbose=0,
        callbacks=[
            tf.keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.weights.h5"), save_weights_only=True),
            tf.keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr / 2 if epoch else lr),
            tf.keras.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True),
            tf.keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: rates.append(float(model.optimizer.learning_rate))
            ),
        ],
    ).history
    np.testing.assert_allclose(rates, [0.5, 0.25, 0.125, 0.0625])
    assert history["loss"][-1] < history["loss"][0]
    # The file of the last epoch holds what Keras measured in it, and predict gives the logits that evaluate measures.
    model.load_weights(tmp_path / "4.weights.h5")
    loss, auc = model.evaluate(*validation, verbose=0)
    assert (loss, auc) == pytest.approx((history["val_loss"][3], history["val_auc"][3]), abs=1e-6)
    logits = model.predict(validation[0], batch_size=77, verbose=0)
    by_hand = np.mean(np.logaddexp(0, logits) - validation[1] * logits)
    assert loss == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.slow
def test_class_weights_are_sample_weights_and_weights_of_two_are_rows_twice():
    features, label = rows(64)
    by_class, by_sample, repeated = (model_with(make_optimizer("sgd", 0.1)) for _ in range(3))
    by_class.fit(features, label, batch_size=64, class_weight={0: 1.0, 1: 2.0}, shuffle=False, verbose=0)
    by_sample.fit(features, label, batch_size=64, sample_weight=1.0 + label[:, 0], shuffle=False, verbose=0)
    for one, other in zip(weights(by_class), weights(by_sample)):
        np.testing.assert_array_equal(one, other)
    # Keras's mean is over the rows, not over the weights; so rows counted twice need a larger rate.
    twice = np.flatnonzero(label[:, 0] == 1)
    index = np.concatenate([np.arange(64), twice])
    repeated.compile(make_optimizer("sgd", 0.1 * len(index) / 64))
    repeated.fit({k: v[index] for k, v in features.items()}, label[index], batch_size=len(index), shuffle=False, verbose=0)
    for one, other in zip(weights(by_class), weights(repeated)):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.skipif(
    "ONEDNN_MAX_CPU_ISA" in os.environ,
    reason="TensorFlow asks the CPU, not oneDNN, for half precision: its own matmul crashes where oneDNN is held back",
)
@pytest.mark.parametrize(
    "policy, scaled, optimizer",
    [("mixed_bfloat16", False, "sgd"), ("mixed_float16", True, "rowwise_adagrad"), ("mixed_float16", True, "lazy_adam")],
)
def test_mixed_precision_keeps_float32_weights_and_learns(policy, scaled, optimizer):
    features, label = rows(640)
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = model_with(make_optimizer(optimizer, 0.1 if optimizer != "lazy_adam" else 0.01))
        assert isinstance(model.optimizer, tf.keras.mixed_precision.LossScaleOptimizer) == scaled
        history = model.fit(features, label, batch_size=64, epochs=5, verbose=0).history["loss"]
        logits = model(features)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    assert all(v.dtype == tf.float32 for v in model.trainable_variables) and logits.dtype == tf.float32
    assert history[-1] < history[0] and np.isfinite(history).all()
    # The same weights in float32 give nearly the same logits: what was computed in half precision was only computed so.
    plain = dlrm_tf.DLRM(CONFIG)
    plain.set_weights(model.get_weights())
    np.testing.assert_allclose(logits, plain(features), atol=0.1)
    assert np.abs(logits - plain(features)).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, optimizer",
    [
        ("embedding", "sgd"),
        ("embedding", "rowwise_adagrad"),
        ("embedding", "lazy_adam"),
        ("bottom_mlp", "sgd"),
        ("top_mlp", "adagrad"),
    ],
)
def test_frozen_parts_stay(part, optimizer):
    features, label = rows(128)
    model = dlrm_tf.DLRM(CONFIG, seed=1)
    frozen = getattr(model, part)
    frozen.trainable = False
    before = [v.numpy() for v in model.variables]
    model.compile(optimizer)
    model.fit(features, label, batch_size=64, verbose=0)
    still = {v.ref() for v in frozen.variables}
    for variable, old in zip(model.variables, before):
        if variable.dtype == tf.float32 and variable.shape.rank:
            assert np.array_equal(variable.numpy(), old) == (variable.ref() in still), variable.name


def test_own_optimizer_for_each_part():
    features, label = rows(640)
    model = model_with(make_optimizer("adagrad", 0.1, dense=legacy.Adam(0.01)))
    history = model.fit(features, label, batch_size=64, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    slots = {v.name for v in model.optimizer.variables()}
    assert any("accumulator" in n and "table" in n for n in slots) and not any("/m:" in n and "table" in n for n in slots)


def test_another_loss_is_refused(small_config):
    model = dlrm_tf.DLRM(small_config)
    with pytest.raises(ValueError, match="loss must be None: the model has its own.*Received 'mse'"):
        model.compile("sgd", loss="mse")
    model.compile("sgd", loss=None)
