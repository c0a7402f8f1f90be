"""Optimizer state in a weights file: MindSpore's, put into our optimizers, and our own, written and read back bit for bit.

`dlrm-tf convert --optimizer-state` and `dlrm-tf train --save-optimizer-state` write such files (`weights.optimizer_state`).
Our state keeps Keras's numbers. The group's attributes are `optimizer` (of the table), `dense_optimizer` and `global_step`.
Adagrad for table and MLPs is written as MindSpore's, which means the same, so that `convert` takes it back. A row-wise
accumulator is repeated for each column, so that every slot has its weight's shape.
"""

import os
from typing import Union

import numpy as np

from dlrm_tf.errors import CheckpointError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.model.optimizers import RowwiseAdagrad, is_table, legacy, parts
from dlrm_tf.model.saving import write_model
from dlrm_tf.weights.layout import TABLE, dense_path, row_chunks
from dlrm_tf.weights.optimizer_state import OptimizerStateReader, OptimizerStateWriter
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter

tf = tensorflow()

# MindSpore's optimizer -> (its slot, the slot of ours that means the same).
SLOTS = {"sgd": ("accum", "momentum"), "momentum": ("moments", "momentum"), "adagrad": ("accum", "accumulator")}
# Kind of our optimizer -> its slots, each with its name in the file.
OUR_SLOTS = {"sgd": {}, "momentum": {"momentum": "momentum"}, "adagrad": {"accumulator": "accum"}, "adam": {"m": "m", "v": "v"}}
_CLASSES = ((legacy.SGD, "sgd"), ((legacy.Adagrad, RowwiseAdagrad), "adagrad"), (legacy.Adam, "adam"))


def continue_with_state(model: DLRM, path: Union[str, os.PathLike], *, required: bool = False, scheduled: bool = False) -> str:
    """Restores the optimizer state of the weights file that a run starts from, if there is one that fits.

    Args:
      model: the compiled model.
      path: the `.weights.h5`.
      required: whether state that is missing or does not fit is an error.
      scheduled: whether the learning rate depends on the step, which then is counted from 0 again.

    Returns:
      One line that says whether the state was restored, or why not.

    Raises:
      CheckpointError: with `required`, the state is missing or does not fit.
    """
    optimizers = [part for part, _ in parts(model.optimizer)]
    try:
        with WeightsReader(path) as reader:
            has_state = bool(OptimizerStateReader(reader).attributes)
        if not has_state and not required:
            return f"{path}: no optimizer state in it, the optimizer starts anew"
        if has_state and scheduled and any(state_kind(part) == "adam" for part in optimizers):
            raise CheckpointError(
                f"{path}: Adam's state counts steps, and so do warm-up and decay, which begin anew: leave one out"
            )
        without = restore_optimizer_state(model, model.optimizer, path)
    except CheckpointError as e:
        if required:
            raise
        return f"the optimizer starts anew: {e}"
    steps = int(model.optimizer.iterations)
    if scheduled:
        _set_steps(model.optimizer, 0)
    left_out = f", but not for {', '.join(without)}" if without else ""
    return f"{path}: the optimizer continues with its state after {steps:,} steps{left_out}"


def save_with_optimizer_state(model: DLRM, optimizer: legacy.Optimizer, path: Union[str, os.PathLike]) -> None:
    """Writes a weights file with the optimizer's slots and step count, which `restore_optimizer_state` reads back.

    Args:
      model: the model.
      optimizer: its optimizer, made by `make_optimizer`.
      path: the `.weights.h5`.

    Raises:
      CheckpointError: the file format has no place for the optimizer's state.
    """
    table_part, dense_part = _table_and_dense(optimizer)
    table_kind, dense_kind = state_kind(table_part), state_kind(dense_part)
    attributes = {"optimizer": table_kind, "global_step": np.array([int(optimizer.iterations)], np.int32)}
    if (table_kind, dense_kind) != ("adagrad", "adagrad"):
        attributes["dense_optimizer"] = dense_kind
    _make_slots(model, optimizer)
    sources = {"source_sha256": model.source_sha256, "vocabulary_fingerprint": model.vocabulary_fingerprint}
    with WeightsWriter(path, model.config, **sources) as writer:
        write_model(model, writer)
        state = OptimizerStateWriter(writer, attributes)
        for slot in sorted({name for kind in (table_kind, dense_kind) for name in OUR_SLOTS[kind].values()}):
            state.create(slot, np.float32(0.0))  # a weight without this slot (the table has no momentum) keeps zeros
        for weight_path, variable in _variables(model).items():
            part, kind = (table_part, table_kind) if is_table(variable) else (dense_part, dense_kind)
            for ours, slot in OUR_SLOTS[kind].items():
                _write(part.get_slot(variable, ours), variable, state, slot, weight_path)


def restore_optimizer_state(model: DLRM, optimizer: legacy.Optimizer, path: Union[str, os.PathLike]) -> list[str]:
    """Sets an optimizer's slots and step count from a weights file with optimizer state, MindSpore's or ours.

    Our state is restored unchanged. MindSpore's is converted:

    * SGD and Momentum, `v = mu v + g; w -= lr v`: Keras stores `m = -lr v`, so v is multiplied by our optimizer's learning
      rate. Dampening, weight decay and Nesterov are not in MindSpore's file; they are assumed to be off.
    * Adagrad, `a += g^2; w -= lr g / sqrt(a)`: the same accumulator; a row-wise one gets the mean of its row.

    Args:
      model: the model, its weights already loaded from the file.
      optimizer: its optimizer, made by `make_optimizer`; slots that do not exist yet are made.
      path: the `.weights.h5`.

    Returns:
      Paths of the weights for which the optimizer has no such slot; `make_optimizer("sgd", momentum=0.9)` has none for the
      table.

    Raises:
      CheckpointError: the file holds no optimizer state, or that of an optimizer which does not match `optimizer`.
    """
    variables = _variables(model)
    table_part, dense_part = _table_and_dense(optimizer)
    _make_slots(model, optimizer)
    with WeightsReader(path) as reader:
        state = OptimizerStateReader(reader)
        kind = str(state.attributes.get("optimizer", "none"))
        if "dense_optimizer" in state.attributes:
            without = _restore_ours(path, state, variables, table_part, dense_part)
        elif kind in SLOTS:
            without = _restore_mindspores(path, state, variables, table_part, dense_part)
        else:
            raise CheckpointError(
                f"{path}: wanted optimizer state of {', '.join(SLOTS)} (convert --optimizer-state). Received {kind}"
            )
        steps = int(np.ravel(state.attributes.get("global_step", 0))[0])
    _set_steps(optimizer, steps)
    return without


def state_kind(optimizer: legacy.Optimizer) -> str:
    """The kind of an optimizer, a key of `OUR_SLOTS`.

    Args:
      optimizer: one of our optimizers, but not a `TableAndDense`.

    Raises:
      CheckpointError: a weights file has no place for its state.
    """
    kind = next((kind for classes, kind in _CLASSES if isinstance(optimizer, classes)), None)
    kind = "momentum" if kind == "sgd" and optimizer.get_slot_names() else kind
    if kind is None or not set(optimizer.get_slot_names()) <= set(OUR_SLOTS[kind]):
        raise CheckpointError(
            f"a weights file has no place for the state of {type(optimizer).__name__}; take an optimizer of make_optimizer"
        )
    return kind


def _restore_ours(path, state: OptimizerStateReader, variables: dict, table_part, dense_part) -> list[str]:
    came = tuple(str(state.attributes[name]) for name in ("optimizer", "dense_optimizer"))
    wanted = (state_kind(table_part), state_kind(dense_part))
    if came != wanted:
        raise CheckpointError(
            f"{path}: wanted optimizer state of {wanted[0]} for the table and {wanted[1]} for the MLPs. "
            f"Received {came[0]} and {came[1]}"
        )
    lacking = {slot for kind in wanted for slot in OUR_SLOTS[kind].values()} - set(state.slots)
    if lacking:
        raise CheckpointError(f"{path}: optimizer state: the slot {', '.join(sorted(lacking))} is missing")
    for weight_path, variable in variables.items():
        part, kind = (table_part, wanted[0]) if is_table(variable) else (dense_part, wanted[1])
        for ours, slot in OUR_SLOTS[kind].items():
            _fill(part.get_slot(variable, ours), state, slot, weight_path, 1.0)
    return []


def _restore_mindspores(path, state: OptimizerStateReader, variables: dict, table_part, dense_part) -> list[str]:
    kind = str(state.attributes["optimizer"])
    theirs, ours = SLOTS[kind]
    if theirs not in state.slots:
        raise CheckpointError(f"{path}: optimizer state of {kind}: the slot {theirs} is missing")
    without = []
    for weight_path, variable in variables.items():
        part = table_part if is_table(variable) else dense_part
        if ours not in part.get_slot_names():
            without.append(weight_path)
            continue
        scale = -float(part._decayed_lr(tf.float32)) if ours == "momentum" else 1.0
        _fill(part.get_slot(variable, ours), state, theirs, weight_path, scale)
    if len(without) == len(variables) and _has_values(state, theirs):
        raise CheckpointError(
            f"{path}: holds the state of MindSpore's {kind}, which {type(table_part).__name__} has no place for"
        )
    return without


def _variables(model) -> dict:
    """Path in a weights file -> variable."""
    variables = {TABLE: model.embedding.table}
    for mlp, i, kind, _ in model.config.dense_weights():
        variables[dense_path(mlp, i, kind)] = getattr(model.dense_layer(mlp, i), kind)
    return variables


def _make_slots(model, optimizer) -> None:
    """Makes the slots; an optimizer by itself makes them in its first step."""
    for part, variables in parts(optimizer, _variables(model).values()):
        part._create_all_weights(variables)


def _set_steps(optimizer, steps: int) -> None:
    for part in (optimizer, *(part for part, _ in parts(optimizer))):
        part.iterations.assign(steps)


def _table_and_dense(optimizer) -> tuple:
    """`(optimizer of the table, optimizer of the MLPs)`, which may be the same."""
    found = [part for part, _ in parts(optimizer)]
    return found[-1], found[0]


def _fill(slot, state: OptimizerStateReader, name: str, path: str, scale: float) -> None:
    by_row = len(slot.shape) == 1 and len(state.shape(path)) == 2
    for start, stop in row_chunks(0, int(slot.shape[0])):
        values = state.read(name, path, start, stop)
        # In float64, so that the mean of equal numbers is that number.
        values = values.mean(axis=1, dtype=np.float64).astype(np.float32) if by_row else values
        slot.scatter_update(tf.IndexedSlices(tf.constant(values * np.float32(scale)), tf.range(start, stop)))


def _write(slot, variable, state: OptimizerStateWriter, name: str, path: str) -> None:
    by_row = len(slot.shape) == 1 and len(variable.shape) == 2
    for start, stop in row_chunks(0, int(slot.shape[0])):
        values = tf.gather(slot, tf.range(start, stop)).numpy()
        state.write(name, path, start, np.repeat(values[:, np.newaxis], int(variable.shape[1]), axis=1) if by_row else values)


def _has_values(state: OptimizerStateReader, name: str) -> bool:
    """Whether any of a slot's numbers is not zero: SGD without momentum keeps zeros, and losing them loses nothing."""
    return any(
        state.read(name, path, start, stop).any() for path in state.paths for start, stop in row_chunks(0, state.shape(path)[0])
    )
