"""A checkpoint as MindSpore writes one for a freshly initialized DLRM: same tensors, order and layout, seeded random weights."""

from collections.abc import Iterator

import numpy as np

from dlrm_tf.checkpoints.ckpt_writer import array_tensor, write_checkpoint
from dlrm_tf.checkpoints.names import MINDSPORE, Weight, weights_of
from dlrm_tf.checkpoints.tensor_info import CHUNK_BYTES, TensorInfo
from dlrm_tf.config import DLRMConfig

# What MindSpore's SGD starts its state at: zero momentum, and a one that says "first step".
SGD_STATE = {"accum": 0.0, "stat": 1.0}


def write_initial_checkpoint(path, config: DLRMConfig, seed: int = 0, learning_rate: float = 0.15) -> None:
    """Writes a `.ckpt` of a new network with SGD's state, streaming; of `criteo_kaggle` it has the size of the Hub's, 6.49 GB.

    Kernels are N(0, 2 / (in + out)), biases N(0, 1 / out) (variances), table f uniform in +-sqrt(1 / size_f), as upstream's
    (MindSpore models, research/recommend/dlrm/src/dlrm.py).

    Args:
      path: file to write.
      config: architecture.
      seed: of the random numbers.
      learning_rate: the value of the tensor `learning_rate`.
    """
    write_checkpoint(path, _tensors(config, np.random.default_rng(seed), learning_rate))


def _tensors(config: DLRMConfig, random: np.random.Generator, learning_rate: float) -> Iterator:
    shapes = weights_of(config)
    for weight, shape in shapes.items():
        yield TensorInfo(MINDSPORE.name(weight), "Float32", shape), _initial(weight, shape, random)
    yield array_tensor("global_step", np.zeros(1, np.int32))
    yield array_tensor("learning_rate", np.float32(learning_rate))
    yield array_tensor("momentum", np.float32(0))
    for slot, value in SGD_STATE.items():
        for weight, shape in shapes.items():
            yield TensorInfo(f"{slot}.{MINDSPORE.name(weight)}", "Float32", shape), _constant(shape, value)


def _initial(weight: Weight, shape: tuple, random: np.random.Generator) -> Iterator[np.ndarray]:
    if weight.kind == "table":
        limit = np.float32(np.sqrt(1 / shape[0]))
        for count in _counts(shape):
            yield (random.random(count, dtype=np.float32) * 2 - 1) * limit
    else:
        deviation = np.sqrt(2 / sum(shape) if weight.kind == "kernel" else 1 / shape[0])
        yield random.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


def _constant(shape: tuple, value: float) -> Iterator[np.ndarray]:
    for count in _counts(shape):
        yield np.full(count, value, np.float32)


def _counts(shape: tuple) -> Iterator[int]:
    """Sizes of the chunks a float32 tensor is made in."""
    left = int(np.prod(shape, dtype=np.int64))
    while left:
        count = min(left, CHUNK_BYTES // 4)
        yield count
        left -= count
