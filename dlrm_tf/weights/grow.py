"""Room for new ids in a weights file: every trained row stays, and its optimizer state; memory stays small at any size."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError
from dlrm_tf.files import StrPath
from dlrm_tf.weights.layout import TABLE, row_chunks
from dlrm_tf.weights.optimizer_state import OptimizerStateReader, OptimizerStateWriter
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter


def grown_config(config: DLRMConfig, sizes: Sequence[int]) -> DLRMConfig:
    """A configuration with larger `categorical_feature_sizes`.

    Args:
      config: the configuration to start from.
      sizes: the new sizes, none smaller than before.

    Raises:
      ValueError: another number of features, or a size smaller than before; the features are named.
    """
    sizes = tuple(int(size) for size in sizes)
    if len(sizes) != config.num_categorical:
        raise ValueError(f"sizes must have {config.num_categorical} entries, one per feature. Received {len(sizes)}")
    smaller = [
        f"feature {f} has {old} ids, wanted {new}"
        for f, (old, new) in enumerate(zip(config.categorical_feature_sizes, sizes))
        if new < old
    ]
    if smaller:
        raise ValueError(f"a model can only grow: {'; '.join(smaller)}")
    return dataclasses.replace(config, categorical_feature_sizes=sizes)


def block_moves(old: DLRMConfig, new: DLRMConfig) -> Iterator[tuple[int, int, int]]:
    """Table rows that move when a model grows: every table's ids, then its OOV row.

    Args:
      old: the configuration before.
      new: the configuration after.

    Yields:
      `(old start, old stop, new start)`, row numbers in the fused table.
    """
    for f in old.table_features:
        size, larger = old.categorical_feature_sizes[f], new.categorical_feature_sizes[f]
        old_offset, new_offset = old.block_offsets[f], new.block_offsets[f]
        for start, stop in row_chunks(0, size):
            yield old_offset + start, old_offset + stop, new_offset + start
        yield old_offset + size, old_offset + size + 1, new_offset + larger


def grow_weights(source: StrPath, target: StrPath, vocabulary: Vocabulary, *, seed: Optional[int] = None) -> DLRMConfig:
    """Grows a weights file to a vocabulary that extends its own; streams, so that memory stays small at any size.

    Optimizer state in the file moves along: a new row gets what its slots hold before the first training step. Weights without a
    fingerprint (converted ones) can't be checked: their ids are taken to be the vocabulary's first.

    Args:
      source: a `.weights.h5`.
      target: the `.weights.h5` to write.
      vocabulary: the larger `dlrm_tf.Vocabulary`, as `prepare --vocabulary OLD --grow` makes it.
      seed: of the new rows, U(-sqrt(1/size_f), sqrt(1/size_f)).

    Returns:
      The grown configuration.

    Raises:
      CheckpointError: not a weights file.
      DataError: the vocabulary does not extend the one the weights were trained with.
    """
    generator = np.random.default_rng(seed)
    with WeightsReader(source) as reader:
        old = reader.config
        _check_extends(vocabulary, reader, source)
        new = grown_config(old, vocabulary.sizes)
        sha256 = reader.attributes["source_sha256"]
        with WeightsWriter(target, new, source_sha256=sha256, vocabulary_fingerprint=vocabulary.fingerprint) as writer:
            for mlp, i, _, _ in old.dense_shapes():
                writer.write_dense(mlp, i, *reader.dense(mlp, i))
            for start, stop, to in block_moves(old, new):
                writer.write_table(to, reader.table(start, stop))
            for f in old.table_features:
                size, larger = old.categorical_feature_sizes[f], new.categorical_feature_sizes[f]
                for start, stop in row_chunks(size, larger):
                    rows = generator.random((stop - start, new.embedding_dim), np.float32) - np.float32(0.5)
                    writer.write_rows(f, start, rows * np.float32(2 * larger**-0.5))
            _grow_optimizer_state(reader, writer, old, new)
    return new


def _check_extends(vocabulary: Vocabulary, reader: WeightsReader, source: StrPath) -> None:
    fingerprint = reader.attributes["vocabulary_fingerprint"]
    sizes = reader.config.categorical_feature_sizes
    if len(vocabulary.sizes) != len(sizes) or any(new < old for old, new in zip(sizes, vocabulary.sizes)):
        raise DataError(f"{source}: wanted a vocabulary with at least {list(sizes)} ids. Received {list(vocabulary.sizes)}")
    for name, old in zip(vocabulary.names, sizes):
        buckets = vocabulary.spaces.hashed.get(name, old)
        if buckets != old:
            raise DataError(f"{source}: hashed features can't grow: wanted {old:,} ids of {name}. Received {buckets:,}")
    if vocabulary.spaces.tables != reader.config.tables:
        raise DataError(f"{source}: wanted a vocabulary whose features share the same tables. Received other ones")
    if fingerprint and vocabulary.first(sizes).fingerprint != fingerprint:
        raise DataError(
            f"{source}: wanted a vocabulary that extends the one the weights were trained with (fingerprint {fingerprint}). "
            "Received one whose first ids mean other keys"
        )


def _grow_optimizer_state(reader: WeightsReader, writer: WeightsWriter, old: DLRMConfig, new: DLRMConfig) -> None:
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
            for f in old.table_features:
                for start, stop in row_chunks(old.categorical_feature_sizes[f], new.categorical_feature_sizes[f]):
                    grown.write(
                        slot, path, new.block_offsets[f] + start, np.full((stop - start, new.embedding_dim), fill, np.float32)
                    )
