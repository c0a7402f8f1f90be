"""Goes on training where MindSpore stopped: its optimizer's state, carried in a weights file, put into our optimizers.

`dlrm-tf convert --optimizer-state` writes such a file (`model.optimizer_state`).
"""

import numpy as np

from dlrm_tf.errors import CheckpointError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizer_state import OptimizerStateReader
from dlrm_tf.model.weights import TABLE, WeightsReader, dense_path
from dlrm_tf.train.optimizers import TableAndDense, is_table

tf = tensorflow()

CHUNK_ROWS = 1 << 18
# MindSpore's optimizer -> (its slot, the slot of ours that means the same).
SLOTS = {"sgd": ("accum", "momentum"), "momentum": ("moments", "momentum"), "adagrad": ("accum", "accumulator")}


def restore_optimizer_state(model, optimizer, path) -> list:
    """Sets an optimizer's slots and step count from a weights file with MindSpore's optimizer state.

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
    variables = {TABLE: model.embedding.table}
    for mlp, i, _, _ in model.config.dense_shapes():
        layer = model.dense_layer(mlp, i)
        variables[dense_path(mlp, i, "kernel")], variables[dense_path(mlp, i, "bias")] = layer.kernel, layer.bias
    table_part, dense_part = _parts(optimizer)
    by_part = {id(table_part): [], id(dense_part): []}
    for variable in variables.values():
        by_part[id(table_part if is_table(variable) else dense_part)].append(variable)
    for part in (table_part, dense_part):
        part._create_all_weights(by_part[id(part)])
    with WeightsReader(path) as reader:
        state = OptimizerStateReader(reader)
        kind = str(state.attributes.get("optimizer", "none"))
        if kind not in SLOTS:
            raise CheckpointError(
                f"{path}: wanted optimizer state of {', '.join(SLOTS)} (convert --optimizer-state), came {kind}"
            )
        theirs, ours = SLOTS[kind]
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
                f"{path}: holds the state of MindSpore's {kind}, which {type(optimizer).__name__} has no place for"
            )
        steps = int(np.ravel(state.attributes.get("global_step", 0))[0])
    for part in {id(p): p for p in (optimizer, table_part, dense_part)}.values():
        part.iterations.assign(steps)
    return without


def _parts(optimizer) -> tuple:
    """`(optimizer of the table, optimizer of the MLPs)`."""
    if isinstance(optimizer, TableAndDense):
        dense, table = optimizer.optimizers
        return table, dense
    return optimizer, optimizer


def _fill(slot, state: OptimizerStateReader, name: str, path: str, scale: float) -> None:
    rows = int(slot.shape[0])
    by_row = len(slot.shape) == 1 and len(state.shape(path)) == 2
    for start in range(0, rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, rows)
        values = state.read(name, path, start, stop)
        values = values.mean(axis=1) if by_row else values
        slot.scatter_update(tf.IndexedSlices(tf.constant(values * np.float32(scale)), tf.range(start, stop)))


def _has_values(state: OptimizerStateReader, name: str) -> bool:
    """Whether any of a slot's numbers is not zero: SGD without momentum keeps zeros, and losing them loses nothing."""
    for path in state.paths:
        rows = state.shape(path)[0]
        if any(state.read(name, path, i, min(i + CHUNK_ROWS, rows)).any() for i in range(0, rows, CHUNK_ROWS)):
            return True
    return False
