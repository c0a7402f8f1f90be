"""Room for new ids: a larger model that keeps every trained row, and the optimizer's state with it."""

import dataclasses

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import DataError
from dlrm_tf.model.weights import CHUNK_ROWS, TABLE, WeightsReader, WeightsWriter


def grown_config(config: DLRMConfig, sizes) -> DLRMConfig:
    """`config` with larger `categorical_feature_sizes`.

    Raises:
      ValueError: another number of features, or a size smaller than before; the features are named.
    """
    sizes = tuple(int(size) for size in sizes)
    if len(sizes) != config.num_categorical:
        raise ValueError(f"sizes must have {config.num_categorical} entries, one a feature. Received {len(sizes)}")
    smaller = [
        f"feature {f} has {old} ids, wanted {new}"
        for f, (old, new) in enumerate(zip(config.categorical_feature_sizes, sizes))
        if new < old
    ]
    if smaller:
        raise ValueError(f"a model can only grow: {'; '.join(smaller)}")
    return dataclasses.replace(config, categorical_feature_sizes=sizes)


def block_moves(old: DLRMConfig, new: DLRMConfig):
    """Yields `(old start, old stop, new start)` of the table rows that move: every feature's ids, then its OOV row."""
    for size, larger, old_offset, new_offset in zip(
        old.categorical_feature_sizes, new.categorical_feature_sizes, old.block_offsets, new.block_offsets
    ):
        for start in range(0, size, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, size)
            yield old_offset + start, old_offset + stop, new_offset + start
        yield old_offset + size, old_offset + size + 1, new_offset + larger


def grow(model, sizes, seed=None):
    """A larger copy of a `DLRM`; ids keep their rows, new ids get initial ones. Both models are in memory until you drop one.

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
    for mlp, i, _, _ in model.config.dense_shapes():
        new.dense_layer(mlp, i).set_weights(model.dense_layer(mlp, i).get_weights())
    moves = list(block_moves(model.config, new.config))
    _move_rows(model.embedding.table, new.embedding.table, moves)
    if compiled:
        new.compile(optimizer)
        _copy_slots(model, new, moves)
    return new


def _move_rows(source, target, moves) -> None:
    from dlrm_tf.keras2 import tensorflow

    tf = tensorflow()
    for start, stop, to in moves:
        target.scatter_update(tf.IndexedSlices(tf.gather(source, tf.range(start, stop)), tf.range(to, to + stop - start)))


def _copy_slots(model, new, moves) -> None:
    """Copies every slot the old optimizer has made so far; one that has not taken a step has none."""
    twins = dict(zip((v.ref() for v in model.trainable_variables), new.trainable_variables))
    for old_part, new_part in zip(_parts(model.optimizer), _parts(new.optimizer)):
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


def _parts(optimizer) -> list:
    return list(getattr(optimizer, "optimizers", [optimizer]))


def _fresh_copy(optimizer):
    """The same optimizer without slots."""
    if hasattr(optimizer, "parts_of"):
        dense, table = map(_fresh_copy, optimizer.optimizers)
        return type(optimizer)(table, dense)
    if not hasattr(optimizer, "get_slot_names"):
        raise ValueError(
            f"{type(optimizer).__module__}.{type(optimizer).__name__}: its state can't be copied; grow an uncompiled model, "
            "or compiled with an optimizer of dlrm_tf or tf.keras.optimizers.legacy, and compile the grown one"
        )
    config = optimizer.get_config()
    rate = optimizer._hyper.get("learning_rate")
    if callable(rate):  # a schedule: Adagrad's from_config does not rebuild one from its description
        config["learning_rate"] = rate
    return type(optimizer).from_config(config)


def _has_slot(optimizer, variable, slot) -> bool:
    try:
        optimizer.get_slot(variable, slot)
    except KeyError:
        return False
    return True


def grow_weights(source, target, vocabulary, seed=None) -> DLRMConfig:
    """Grows a weights file to a vocabulary that extends its own; streams, so that memory stays small at any size.

    Optimizer state in the file moves along: new rows get the state of the feature's OOV row before any step, which is what a
    slot holds where nothing was trained.

    Args:
      source: a `.weights.h5`.
      target: the `.weights.h5` to write.
      vocabulary: the larger `dlrm_tf.Vocabulary`, as `prepare --vocabulary OLD --grow` makes it.
      seed: of the new rows, U(-sqrt(1/size_f), sqrt(1/size_f)).

    Returns:
      The grown configuration.

    Weights without a fingerprint (converted ones) can't be checked: their ids are taken to be the vocabulary's first.

    Raises:
      CheckpointError: not a weights file.
      DataError: the vocabulary does not extend the one the weights were trained with.
    """
    generator = np.random.default_rng(seed)
    with WeightsReader(source) as reader:
        old = reader.config
        _check_extends(vocabulary, reader, source)
        new = grown_config(old, vocabulary.sizes)
        attributes = reader.attributes
        with WeightsWriter(target, new, attributes["source_sha256"], vocabulary.fingerprint) as writer:
            for mlp, i, _, _ in old.dense_shapes():
                writer.write_dense(mlp, i, *reader.dense(mlp, i))
            for start, stop, to in block_moves(old, new):
                writer.write_table(to, reader.table(start, stop))
            for f, (size, larger) in enumerate(zip(old.categorical_feature_sizes, new.categorical_feature_sizes)):
                for start in range(size, larger, CHUNK_ROWS):
                    shape = (min(start + CHUNK_ROWS, larger) - start, new.embedding_dim)
                    rows = (generator.random(shape, np.float32) - np.float32(0.5)) * np.float32(2 * larger**-0.5)
                    writer.write_rows(f, start, rows)
            _grow_optimizer_state(reader, writer, old, new)
    return new


def _check_extends(vocabulary, reader: WeightsReader, source) -> None:
    fingerprint = reader.attributes["vocabulary_fingerprint"]
    sizes = reader.config.categorical_feature_sizes
    if len(vocabulary.sizes) != len(sizes) or any(new < old for old, new in zip(sizes, vocabulary.sizes)):
        raise DataError(f"{source}: wanted a vocabulary with at least {list(sizes)} ids, came {list(vocabulary.sizes)}")
    if fingerprint and vocabulary.first(sizes).fingerprint != fingerprint:
        raise DataError(
            f"{source}: wanted a vocabulary that extends the one the weights were trained with (fingerprint {fingerprint}), "
            "came one whose first ids mean other keys"
        )


def _grow_optimizer_state(reader: WeightsReader, writer: WeightsWriter, old: DLRMConfig, new: DLRMConfig) -> None:
    from dlrm_tf.model.optimizer_state import OptimizerStateReader, OptimizerStateWriter

    state = OptimizerStateReader(reader)
    if not state.slots:
        return
    grown = OptimizerStateWriter(writer, state.attributes)
    for slot in state.slots:
        grown.create(slot)
        for path in state.paths:
            rows = state.shape(path)[0]
            if path != TABLE:
                grown.write(slot, path, 0, state.read(slot, path, 0, rows))
                continue
            untouched = np.full(new.embedding_dim, np.inf, np.float32)
            for start, stop, to in block_moves(old, new):
                values = state.read(slot, path, start, stop)
                untouched = np.minimum(untouched, values.min(axis=0))
                grown.write(slot, path, to, values)
            # An Adagrad accumulator only grows, so the lowest is its start; a momentum of an unused row is zero.
            fill = untouched.min() if state.attributes.get("optimizer") == "adagrad" else np.float32(slot == "stat")
            for size, larger, offset in zip(old.categorical_feature_sizes, new.categorical_feature_sizes, new.block_offsets):
                for start in range(size, larger, CHUNK_ROWS):
                    stop = min(start + CHUNK_ROWS, larger)
                    grown.write(slot, path, offset + start, np.full((stop - start, new.embedding_dim), fill, np.float32))
