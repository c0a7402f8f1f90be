"""Room for new ids in a model: every trained row stays, and the optimizer's state with it."""

from collections.abc import Sequence
from typing import Any, Optional

from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import TableAndDense, legacy, parts
from dlrm_tf.model.saving import assign_dense
from dlrm_tf.weights.grow import block_moves, grown_config

tf = tensorflow()


def grow(model: Any, sizes: Sequence[int], *, seed: Optional[int] = None) -> Any:
    """A larger copy of a `DLRM`; ids keep their rows, new ids get initial ones. Both models are in memory afterwards.

    A compiled model's optimizer is copied with its slots: those of trained rows stay, those of new rows start as in a new
    optimizer. Metrics given to `compile` are not copied.

    Args:
      model: a `dlrm_tf.DLRM`.
      sizes: the new `categorical_feature_sizes`, none smaller than before.
      seed: of the new rows.

    Returns:
      The grown `DLRM`, compiled if `model` was. Its vocabulary fingerprint is empty: set the new vocabulary's.

    Raises:
      ValueError: sizes that do not fit, or an optimizer whose state can't be copied (newer Keras ones).
    """
    compiled = getattr(model, "optimizer", None) is not None
    optimizer = _fresh_copy(model.optimizer) if compiled else None
    new = type(model)(grown_config(model.config, sizes), seed=seed)
    new.source_sha256 = model.source_sha256
    new.embedding.deduplicate = model.embedding.deduplicate
    assign_dense(new, lambda mlp, i: model.dense_layer(mlp, i).get_weights())
    moves = list(block_moves(model.config, new.config))
    _move_rows(model.embedding.table, new.embedding.table, moves)
    if compiled:
        new.compile(optimizer)
        _copy_slots(model, new, moves)
    return new


def _move_rows(source, target, moves) -> None:
    for start, stop, to in moves:
        target.scatter_update(tf.IndexedSlices(tf.gather(source, tf.range(start, stop)), tf.range(to, to + stop - start)))


def _copy_slots(model, new, moves) -> None:
    """Copies every slot the old optimizer has made so far; one that has not taken a step has none."""
    twins = dict(zip((v.ref() for v in model.trainable_variables), new.trainable_variables))
    for (old_part, _), (new_part, _) in zip(parts(model.optimizer), parts(new.optimizer)):
        held = [v for v in model.trainable_variables if all(_has_slot(old_part, v, s) for s in old_part.get_slot_names())]
        if old_part.get_slot_names():
            new_part._create_all_weights([twins[v.ref()] for v in held])
        for variable in held:
            for slot in old_part.get_slot_names():
                source, target = (part.get_slot(v, slot) for part, v in ((old_part, variable), (new_part, twins[variable.ref()])))
                if variable is model.embedding.table:
                    _move_rows(source, target, moves)
                else:
                    target.assign(source)
        new_part.iterations.assign(old_part.iterations)
    new.optimizer.iterations.assign(model.optimizer.iterations)


def _fresh_copy(optimizer):
    """The same optimizer without slots."""
    if isinstance(optimizer, TableAndDense):
        return TableAndDense(_fresh_copy(optimizer.table), _fresh_copy(optimizer.dense))
    if not isinstance(optimizer, legacy.Optimizer) or parts(optimizer)[0][0] is not optimizer:
        raise ValueError(
            f"{type(optimizer).__module__}.{type(optimizer).__name__}: its state can't be copied; grow an uncompiled model "
            "and compile the grown one, or compile with make_optimizer or tf.keras.optimizers.legacy"
        )
    config = optimizer.get_config()
    rate = optimizer._hyper.get("learning_rate")
    if callable(rate):  # a schedule: Adagrad's from_config does not rebuild one from its description
        config["learning_rate"] = rate
    copy = type(optimizer).from_config(config)
    if getattr(optimizer, "l2", 0.0):
        copy.l2 = optimizer.l2
    return copy


def _has_slot(optimizer, variable, slot) -> bool:
    try:
        optimizer.get_slot(variable, slot)
    except KeyError:
        return False
    return True
