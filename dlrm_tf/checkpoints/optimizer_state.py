"""The state of MindSpore's optimizers: carried from a checkpoint into a weights file and back, bit for bit."""

from collections.abc import Iterable, Iterator
from typing import Optional

import numpy as np

from dlrm_tf.checkpoints.ckpt_writer import array_tensor
from dlrm_tf.checkpoints.dlrm_checkpoint import DLRMCheckpoint
from dlrm_tf.checkpoints.names import MINDSPORE, Weight, weights_of
from dlrm_tf.checkpoints.tensor_info import TensorInfo, TensorToWrite, row_chunks
from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError
from dlrm_tf.weights.layout import TABLE, dense_path
from dlrm_tf.weights.optimizer_state import OptimizerStateReader, OptimizerStateWriter
from dlrm_tf.weights.writer import WeightsWriter

# Slots that an optimizer of MindSpore keeps (mindspore/nn/optim) -> its name. SGD's `stat` is 1 until a parameter's first step.
OPTIMIZERS: dict[tuple[str, ...], str] = {("accum", "stat"): "sgd", ("moments",): "momentum", ("accum",): "adagrad"}
_KNOWN = "; ".join(f"{name}: {', '.join(slots)}" for slots, name in OPTIMIZERS.items())


def _place(config: DLRMConfig, weight: Weight) -> tuple[str, int]:
    """`(path, first row)` of a weight in a weights file."""
    if weight.part == "embedding":
        return TABLE, config.block_offsets[weight.number]
    return dense_path(weight.part, weight.number, weight.kind), 0


def carry_to_keras(source: DLRMCheckpoint, writer: WeightsWriter) -> str:
    """Copies the optimizer's state from a checkpoint into a weights file.

    Args:
      source: the open checkpoint.
      writer: the open weights file.

    Returns:
      The optimizer's name.

    Raises:
      CheckpointError: no optimizer state, of an unknown optimizer, incomplete or misshaped.
    """
    path, found, config = source.checkpoint.path, source.found, source.config
    slots = tuple(sorted({slot for slot, _ in found.state}))
    if slots not in OPTIMIZERS:
        raise CheckpointError(f"{path}: wanted optimizer state ({_KNOWN}). Received {', '.join(slots) or 'none'}")
    shapes = weights_of(config)
    faults: list[str] = []
    for slot in slots:
        for weight, shape in shapes.items():
            name = found.state.get((slot, weight))
            info = source.checkpoint.info(name) if name else None
            if info is None or (info.dtype, info.shape) != ("Float32", shape):
                received = f"received {info.dtype} {list(info.shape)}" if info else "which is missing"
                faults.append(f"{slot}.{MINDSPORE.name(weight)} wanted Float32 {list(shape)}, {received}")
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
        path, offset = _place(source.config, weight)
        for start, rows in source.checkpoint.chunks(name):
            state.write(slot, path, offset + start, rows)
            lowest = np.minimum(lowest, rows.min())
    # MindSpore has no OOV rows, so theirs start fresh: momentum at 0; an Adagrad accumulator only grows, so at the lowest value.
    untouched = np.full((1, source.config.embedding_dim), lowest if OPTIMIZERS.get((slot,)) == "adagrad" else 0, np.float32)
    for size, offset in zip(source.config.categorical_feature_sizes, source.config.block_offsets):
        state.write(slot, TABLE, offset + size, untouched)


def _constant(source: DLRMCheckpoint, names: Iterable[str]) -> Optional[np.float32]:
    """The one value that all elements of some tensors have, as SGD's state has when it trains without momentum; else None."""
    value = None
    for name in names:
        for _, rows in source.checkpoint.chunks(name):
            value = rows.flat[0] if value is None else value
            # As bits, because -0.0 == 0.0.
            if (rows.view(np.uint32) != value.view(np.uint32)).any():
                return None
    return value


def carry_to_mindspore(state: OptimizerStateReader, config: DLRMConfig) -> Iterator[TensorToWrite]:
    """Yields the optimizer's tensors as the checkpoint writers take them, in MindSpore's order.

    Args:
      state: the state in the open weights file.
      config: the model's configuration.

    Raises:
      CheckpointError: the state is of an optimizer of dlrm_tf that MindSpore has no counterpart of.
    """
    if state.slots not in OPTIMIZERS or "dense_optimizer" in state.attributes:
        raise CheckpointError(
            f"wanted optimizer state that MindSpore has ({_KNOWN}). Received dlrm_tf's ({', '.join(state.slots)})"
        )
    for name, value in sorted(state.attributes.items()):  # global_step, learning_rate, momentum: that is also MindSpore's order
        if name != "optimizer":
            yield array_tensor(name, value)
    for slot in state.slots:
        for weight, shape in weights_of(config).items():
            info = TensorInfo(f"{slot}.{MINDSPORE.name(weight)}", "Float32", shape)
            yield info, _slot_chunks(state, slot, info, *_place(config, weight))


def _slot_chunks(state: OptimizerStateReader, slot: str, info: TensorInfo, path: str, offset: int) -> Iterator[np.ndarray]:
    for start, stop in row_chunks(info):
        yield state.read(slot, path, offset + start, offset + stop)
