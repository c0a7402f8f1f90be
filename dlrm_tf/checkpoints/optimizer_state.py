"""MindSpore's optimizer state, carried from a checkpoint into a weights file and back, bit for bit."""

from collections.abc import Iterator
from typing import Optional

import numpy as np

from dlrm_tf.checkpoints.ckpt_writer import array_tensor
from dlrm_tf.checkpoints.dlrm_checkpoint import DLRMCheckpoint
from dlrm_tf.checkpoints.names import MINDSPORE, Weight, weights_of
from dlrm_tf.checkpoints.tensor_info import TensorInfo, row_chunks
from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError
from dlrm_tf.weights.layout import TABLE, dense_path
from dlrm_tf.weights.optimizer_state import OptimizerStateReader, OptimizerStateWriter
from dlrm_tf.weights.writer import WeightsWriter

# MindSpore's optimizers by the slots they keep (mindspore/nn/optim): SGD's `stat` is one until a parameter's first step.
OPTIMIZERS = {("accum", "stat"): "sgd", ("moments",): "momentum", ("accum",): "adagrad"}


def place(config: DLRMConfig, weight: Weight) -> tuple[str, int]:
    """`(path, first row)` of a weight in a weights file."""
    if weight.part == "embedding":
        return TABLE, config.block_offsets[weight.index]
    return dense_path(weight.part, weight.index, weight.kind), 0


def carry_to_keras(source: DLRMCheckpoint, writer: WeightsWriter) -> str:
    """Copies every slot of the source's optimizer into the weights file; returns the optimizer's name.

    Raises:
      CheckpointError: no optimizer state, of an unknown optimizer, incomplete or misshaped.
    """
    path, found, config = source.checkpoint.path, source.found, source.config
    slots = tuple(sorted({slot for slot, _ in found.state}))
    if slots not in OPTIMIZERS:
        known = "; ".join(f"{name}: {', '.join(keys)}" for keys, name in OPTIMIZERS.items())
        raise CheckpointError(f"{path}: optimizer state wanted ({known}). Received {', '.join(slots) or 'none'}")
    shapes = weights_of(config)
    faults = []
    for slot in slots:
        for weight, shape in shapes.items():
            name = found.state.get((slot, weight))
            info = name and source.checkpoint.info(name)
            if not name or (info.dtype, info.shape) != ("Float32", shape):
                came = f"received {info.dtype} {list(info.shape)}" if name else "which is missing"
                faults.append(f"{slot}.{MINDSPORE.name(weight)} wanted Float32 {list(shape)}, {came}")
    if faults:
        raise CheckpointError(f"{path}: incomplete optimizer state: {'; '.join(faults[:8])}")
    scalars = {name: source.checkpoint.read(name) for name in found.other if source.checkpoint.info(name).size == 1}
    state = OptimizerStateWriter(writer, {**scalars, "optimizer": OPTIMIZERS[slots]})
    for slot in slots:
        _carry_slot(source, state, slot)
    return OPTIMIZERS[slots]


def _carry_slot(source: DLRMCheckpoint, state: OptimizerStateWriter, slot: str) -> None:
    names = {weight: source.found.state[slot, weight] for weight in weights_of(source.config)}
    constant = _constant(source, names.values())
    state.create(slot, constant)
    if constant is not None:
        return
    lowest = np.float32(np.inf)
    for weight, name in names.items():
        path, offset = place(source.config, weight)
        for start, rows in source.checkpoint.chunks(name):
            state.write(slot, path, offset + start, rows)
            lowest = np.minimum(lowest, rows.min())
    # MindSpore has no OOV rows. Theirs are untouched: momentum 0; an Adagrad accumulator only grows, so the lowest is its start.
    untouched = np.full((1, source.config.embedding_dim), lowest if OPTIMIZERS.get((slot,)) == "adagrad" else 0, np.float32)
    for size, offset in zip(source.config.categorical_feature_sizes, source.config.block_offsets):
        state.write(slot, TABLE, offset + size, untouched)


def _constant(source: DLRMCheckpoint, names) -> Optional[np.float32]:
    """The value of all elements of some tensors, if it is only one: SGD's state is, when it trains without momentum."""
    value = None
    for name in names:
        for _, rows in source.checkpoint.chunks(name):
            value = rows.flat[0] if value is None else value
            # Compared as bits: -0.0 equals 0.0, but is not the same.
            if (rows.view(np.uint32) != value.view(np.uint32)).any():
                return None
    return value


def carry_to_mindspore(state: OptimizerStateReader, config: DLRMConfig) -> Iterator:
    """Yields the optimizer's tensors as the pairs the checkpoint writers take, in MindSpore's order.

    Raises:
      CheckpointError: the state of an optimizer of ours that MindSpore's checkpoints don't know.
    """
    if state.slots not in OPTIMIZERS or "dense_optimizer" in state.attributes:
        known = "; ".join(f"{name}: {', '.join(keys)}" for keys, name in OPTIMIZERS.items())
        raise CheckpointError(
            f"optimizer state that MindSpore knows wanted ({known}). Received dlrm_tf's own ({', '.join(state.slots)})"
        )
    for name, value in sorted(state.attributes.items()):  # global_step, learning_rate, momentum: MindSpore's order too
        if name != "optimizer":
            yield array_tensor(name, value)
    for slot in state.slots:
        for weight, shape in weights_of(config).items():
            info = TensorInfo(f"{slot}.{MINDSPORE.name(weight)}", "Float32", shape)
            yield info, _slot_chunks(state, slot, info, *place(config, weight))


def _slot_chunks(state: OptimizerStateReader, slot: str, info: TensorInfo, path: str, offset: int) -> Iterator[np.ndarray]:
    for start, stop in row_chunks(info):
        yield state.read(slot, path, offset + start, offset + stop)
