"""A short training that a test does in its own process and in processes with the stand-in plugin."""

import json

import numpy as np

import dlrm_tf
from dlrm_tf.keras2 import tensorflow

CONFIG = dlrm_tf.DLRMConfig.preset("tiny")
RATES = {"sgd": 0.1, "adagrad": 0.05, "rowwise_adagrad": 0.05}


def rows(count):
    """Features and labels, always the same ones."""
    generator = np.random.default_rng(5)
    ids = generator.random((count, 26)) * (np.array(CONFIG.categorical_feature_sizes) + 1)
    features = {"dense": generator.random((count, 13), np.float32), "categorical": ids.astype(np.int32)}
    return features, generator.integers(0, 2, (count, 1)).astype(np.float32)


def train(name, seed, device=None):
    """Two epochs of four batches with the optimizer `name`; returns the model."""
    from dlrm_tf.model.optimizers import make_optimizer

    tf = tensorflow()
    model = dlrm_tf.DLRM(CONFIG, seed=seed)
    optimizer = make_optimizer(name, RATES[name])
    batches = tf.data.Dataset.from_tensor_slices(rows(256)).batch(64, drop_remainder=True)
    if device is not None:
        # Twice: the second call must change nothing.
        optimizer = device.distribute(device.distribute(optimizer, model), model)
        batches = device.share(batches)
    model.compile(optimizer)
    if device is not None:
        device.broadcast(model)
    model.fit(batches, epochs=2, verbose=0)
    return model


def save(path, model):
    """The weights as an .npz."""
    np.savez(path, *[variable.numpy() for variable in model.trainable_variables])


def answer(value):
    """Tells the test a value."""
    print(json.dumps(value))
