"""Optimizer state in a weights file: MindSpore's, put into our optimizers, and our own, written and read back bit for bit.

`dlrm-tf convert --optimizer-state` and `dlrm-tf train --save-optimizer-state` write such files (`model.optimizer_state`).
Ours has Keras's numbers. The group's attributes are `optimizer` (of the table), `dense_optimizer` and `global_step`; Adagrad
for both is written as MindSpore's, which means the same, so that `convert` takes it back. A row-wise accumulator is written
once for each column, so that every slot has its weight's shape.
"""

import numpy as np

from dlrm_tf.errors import CheckpointError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import RowwiseAdagrad, TableAndDense, is_table, legacy, parts
from dlrm_tf.model.saving import write_model
from dlrm_tf.weights.layout import TABLE, dense_path
from dlrm_tf.weights.optimizer_state import OptimizerStateReader, OptimizerStateWriter
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter

tf = tensorflow()

CHUNK_ROWS = 1 << 18
# MindSpore's optimizer -> (its slot, the slot of ours that means the same).
SLOTS = {"sgd": ("accum", "momentum"), "momentum": ("moments", "momentum"), "adagrad": ("accum", "accumulator")}
# Our optimizers by kind: their slots, each with its name in the file.
OUR_SLOTS = {"sgd": {}, "momentum": {"momentum": "momentum"}, "adagrad": {"accumulator": "accum"}, "adam": {"m": "m", "v": "v"}}
_CLASSES = ((legacy.SGD, "sgd"), ((legacy.Adagrad, RowwiseAdagrad), "adagrad"), (legacy.Adam, "adam"))


def state_kind(optimizer) -> str:
    """The kind of one of our optimizers (a key of `OUR_SLOTS`), not a `TableAndDense`.

    Raises:
      CheckpointError: its state has no place in a weights file.
    """
    kind = next((kind for classes, kind in _CLASSES if isinstance(optimizer, classes)), None)
    kind = "momentum" if kind == "sgd" and optimizer.get_slot_names() else kind
    if kind is None or not set(optimizer.get_slot_names()) <= set(OUR_SLOTS[kind]):
        raise CheckpointError(
            f"a weights file has no place for the state of {type(optimizer).__name__}; take an optimizer of make_optimizer"
        )
    return kind


def save_with_optimizer_state(model, optimizer, path) -> None:
    """Writes a weights file with the optimizer's slots and step count, which `restore_optimizer_state` reads back.

    Args:
      model: a built `DLRM`.
      optimizer: its optimizer, as `make_optimizer` makes.
      path: the `.weights.h5`.

    Raises:
      CheckpointError: an optimizer whose state has no place in the file.
    """
    table_part, dense_part = _parts(optimizer)
    table_kind, dense_kind = state_kind(table_part), state_kind(dense_part)
    attributes = {"optimizer": table_kind, "global_step": np.array([int(optimizer.iterations)], np.int32)}
    if (table_kind, dense_kind) != ("adagrad", "adagrad"):
        attributes["dense_optimizer"] = dense_kind
    _make_slots(model, table_part, dense_part)
    with WeightsWriter(path, model.config, model.source_sha256, model.vocabulary_fingerprint) as writer:
        write_model(model, writer)
        state = OptimizerStateWriter(writer, attributes)
        for slot in sorted({name for kind in (table_kind, dense_kind) for name in OUR_SLOTS[kind].values()}):
            # What is not written (the table's momentum) is zero.
            state.create(slot, np.float32(0.0))
        for weight_path, variable in _variables(model).items():
            part, kind = (table_part, table_kind) if is_table(variable) else (dense_part, dense_kind)
            for ours, slot in OUR_SLOTS[kind].items():
                _write(part.get_slot(variable, ours), variable, state, slot, weight_path)


def restore_optimizer_state(model, optimizer, path) -> list:
    """Sets an optimizer's slots and step count from a weights file with optimizer state, MindSpore's or ours.

    Ours goes back as it was. Of MindSpore's:

    * SGD and Momentum, `v = mu v + g; w -= lr v`: Keras keeps `m = -lr v`, so v is scaled by our optimizer's learning rate.
      Dampening, weight decay and Nesterov are not in MindSpore's file; they are taken to be off.
    * Adagrad, `a += g^2; w -= lr g / sqrt(a)`: the same accumulator; a row-wise one takes the mean of its row.

    Args:
      model: a built `DLRM`, its weights already loaded from the file.
      optimizer: a legacy Keras optimizer, as `make_optimizer` makes; its slots are made if need be.
      path: the `.weights.h5`.

    Returns:
      Paths of the weights for which the optimizer has no such slot; `make_optimizer("sgd", momentum=0.9)` has none for the
      table.

    Raises:
      CheckpointError: the file holds no optimizer state, or that of an optimizer that does not go with `optimizer`.
    """
    variables = _variables(model)
    table_part, dense_part = _parts(optimizer)
    _make_slots(model, table_part, dense_part)
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
    for part in {id(p): p for p in (optimizer, table_part, dense_part)}.values():
        part.iterations.assign(steps)
    return without


def go_on_with_state(model, path: str, must: bool, scheduled: bool) -> str:
    """Restores the optimizer state of the weights file a run starts from; returns a line that tells what came of it.

    Args:
      model: the compiled `DLRM`.
      path: the `.weights.h5`.
      must: whether state that is missing or does not fit is an error.
      scheduled: whether the learning rate has a schedule, which begins anew.

    Raises:
      CheckpointError: with `must`.
    """
    try:
        with WeightsReader(path) as reader:
            has_state = bool(OptimizerStateReader(reader).attributes)
        if not has_state and not must:
            return f"{path}: no optimizer state in it, the optimizer starts anew"
        if scheduled and any(state_kind(part) == "adam" for part, _ in parts(model.optimizer)):
            raise CheckpointError(
                f"{path}: Adam's state counts steps, and so do warm-up and decay, which begin anew: leave one out"
            )
        without = restore_optimizer_state(model, model.optimizer, path)
    except CheckpointError as e:
        if must:
            raise
        return f"the optimizer starts anew: {e}"
    steps = int(model.optimizer.iterations)
    if scheduled:
        for part, _ in parts(model.optimizer):
            part.iterations.assign(0)
    left_out = f", but not for {', '.join(without)}" if without else ""
    return f"{path}: the optimizer goes on with its state after {steps:,} steps{left_out}"


def _restore_ours(path, state: OptimizerStateReader, variables: dict, table_part, dense_part) -> list:
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


def _restore_mindspores(path, state: OptimizerStateReader, variables: dict, table_part, dense_part) -> list:
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
    for mlp, i, _, _ in model.config.dense_shapes():
        layer = model.dense_layer(mlp, i)
        variables[dense_path(mlp, i, "kernel")], variables[dense_path(mlp, i, "bias")] = layer.kernel, layer.bias
    return variables


def _make_slots(model, table_part, dense_part) -> None:
    """Makes the slots that are not there before an optimizer's first step."""
    variables = list(_variables(model).values())
    by_part = {id(table_part): [], id(dense_part): []}
    for variable in variables:
        by_part[id(table_part if is_table(variable) else dense_part)].append(variable)
    for part in (table_part, dense_part):
        part._create_all_weights(by_part[id(part)])


def _parts(optimizer) -> tuple:
    """`(optimizer of the table, optimizer of the MLPs)`."""
    if isinstance(optimizer, TableAndDense):
        return optimizer.table, optimizer.dense
    return optimizer, optimizer


def _fill(slot, state: OptimizerStateReader, name: str, path: str, scale: float) -> None:
    rows = int(slot.shape[0])
    by_row = len(slot.shape) == 1 and len(state.shape(path)) == 2
    for start in range(0, rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, rows)
        values = state.read(name, path, start, stop)
        # In float64, so that the mean of equal numbers is that number.
        values = values.mean(axis=1, dtype=np.float64).astype(np.float32) if by_row else values
        slot.scatter_update(tf.IndexedSlices(tf.constant(values * np.float32(scale)), tf.range(start, stop)))


def _write(slot, variable, state: OptimizerStateWriter, name: str, path: str) -> None:
    by_row = len(slot.shape) == 1 and len(variable.shape) == 2
    for start in range(0, int(slot.shape[0]), CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, int(slot.shape[0]))
        values = tf.gather(slot, tf.range(start, stop)).numpy()
        state.write(name, path, start, np.repeat(values[:, np.newaxis], int(variable.shape[1]), axis=1) if by_row else values)


def _has_values(state: OptimizerStateReader, name: str) -> bool:
    """Whether any of a slot's numbers is not zero: SGD without momentum keeps zeros, and losing them loses nothing."""
    for path in state.paths:
        rows = state.shape(path)[0]
        if any(state.read(name, path, i, min(i + CHUNK_ROWS, rows)).any() for i in range(0, rows, CHUNK_ROWS)):
            return True
    return False
