"""Which ids a size budget keeps: ranked on training rows by how much the loss would grow without them."""

import re
from collections.abc import Sequence
from typing import Optional

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.data.inputs import model_inputs
from dlrm_tf.data.records import Records
from dlrm_tf.errors import UsageError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.bags import place_weights
from dlrm_tf.model.embedding import row_numbers
from dlrm_tf.model.inputs import input_specs
from dlrm_tf.model.subset import subset_model
from dlrm_tf.progress import Progress
from dlrm_tf.weights.layout import row_chunks
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber, seen_ids, subset_config
from dlrm_tf.weights.writer import WeightsWriter

tf = tensorflow()

# Rows of a feature moved at a time, and rows of data per step.
_CHUNK_ROWS, _BATCH_SIZE = 1 << 18, 4096
# Occurrences at which an id's own mean cost counts as much as its feature's. Chosen on held-out rows: the divergence of a pruned
# model from the whole one is up to 40 % lower than without (0), and half of that of ranking by frequency.
_SHRINKAGE = 100
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """A size in bytes.

    Args:
      text: such as `"20MB"`, `"1.5 GB"`, `"64KiB"` or a plain number.

    Raises:
      UsageError: not such a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Z]*)", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if size < 1:
        raise UsageError(f"wanted a size such as 20MB, 64KiB or a number of bytes. Received {text!r}")
    return size


def count_ids(records: Records, *, quiet: bool = False) -> list[np.ndarray]:
    """How often each id occurs in the train split of prepared data, chunk by chunk.

    Args:
      records: the prepared data.
      quiet: show no progress.

    Returns:
      Per feature int64 `[size_f + 1]`; the last entry counts what is out of vocabulary. Features of one table have one array, of
      all that occurs in them.
    """
    counts = _by_table(records.spec.id_spaces.tables, [size + 1 for size in records.sizes], np.int64)
    total = records.rows("train")
    with Progress("count ids", total, "rows", quiet=quiet) as progress:
        for start in range(0, total, _CHUNK_ROWS):
            _, categorical, *_ = records.numpy("train", start, start + _CHUNK_ROWS)
            for f, (size, columns) in enumerate(zip(records.sizes, records.spec.id_ranges)):
                ids = categorical[:, columns]
                if records.spec.bags:
                    ids = ids[ids != UNUSED_PLACE]
                # Not bincount over the whole block: that would touch every row of a large vocabulary for each chunk.
                seen, times = np.unique(np.where((ids >= 0) & (ids < size), ids, size), return_counts=True)
                counts[f][seen] += times
            progress.update(len(categorical))
    return counts


def _by_table(tables: Sequence[int], sizes: Sequence[int], dtype: type) -> list[np.ndarray]:
    """Zeros `[sizes[f]]` of each feature, the same array for features of one table."""
    arrays: dict[int, np.ndarray] = {table: np.zeros(size, dtype) for table, size in zip(tables, sizes)}
    return [arrays[table] for table in tables]


def loss_of_dropping(
    weights: str,
    dense: np.ndarray,
    categorical: np.ndarray,
    counts: list[np.ndarray],
    *,
    key_weights: Optional[np.ndarray] = None,
    quiet: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By how much the summed loss of these rows is expected to grow when an id is taken for out of vocabulary.

    Replacing row e by the mean row o of its feature moves the logit z by d = dz/de (o - e); a probability p then gives up
    p (1 - p) d^2 / 2 of log-likelihood, to second order and averaged over the label that p predicts. The label itself plays no
    part: on rows the model was trained on it would overrate ids that are overfitted. Of a bag, dz/de is that of the pooled vector
    times what the key's place counts for in it.

    Args:
      weights: a `.weights.h5` file; only rows that occur are read.
      dense: float32 `[n, dense_dim]`, already log(max(x, 0) + 1).
      categorical: int32 `[n, id_columns]`.
      counts: what `count_ids` gave: weights of the feature's mean row.
      key_weights: float32 `[n, id_columns]`, the input `weights` of a weighted model.
      quiet: show no progress.

    Returns:
      `(costs, occurrences)`: per feature float64 `[size_f]`, the summed growth and how many of these rows it is the sum of.
      Features of one table have one array of each.
    """
    with WeightsReader(weights) as reader:
        config = reader.config
        kept = seen_ids(categorical, config)
        model = subset_model(reader, kept)
    inputs = model_inputs(weights, dense, renumber(categorical, kept, config), key_weights)
    features = np.array(config.column_features)
    table = model.embedding.table.numpy()
    means = np.empty((config.num_categorical, config.embedding_dim), np.float32)
    for f, (offset, seen) in enumerate(zip(model.config.block_offsets, kept)):
        occurring = counts[f][seen]
        rows = table[offset : offset + len(seen)]
        means[f] = np.average(rows, axis=0, weights=occurring) if occurring.sum() else rows.mean(axis=0)

    @tf.function(input_signature=[input_specs(config)])
    def cost(inputs):
        dense, ids, key_weights = (inputs.get(name) for name in ("dense", "categorical", "weights"))
        embedded = model.embedding(ids) if key_weights is None else model.embedding(ids, key_weights)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(embedded)
            logit = model.head(dense, embedded)
        gradient = tape.gradient(logit, embedded)
        if config.has_bags:
            # B X id_columns X D
            embedded = tf.gather(model.embedding.table, row_numbers(model.config, ids))
            share = place_weights(config, ids, key_weights)
            gradient = tf.gather(gradient, features, axis=1) * share[:, :, tf.newaxis]
        # B X id_columns
        moved = tf.reduce_sum(gradient * (means[features] - embedded), axis=2)
        p = tf.sigmoid(logit)
        return p * (1 - p) * moved**2 / 2

    costs, occurrences = (_by_table(config.tables, config.categorical_feature_sizes, np.float64) for _ in range(2))
    with Progress("rank ids", len(dense), "rows", quiet=quiet) as progress:
        for start, stop in row_chunks(0, len(dense), _BATCH_SIZE):
            part = {name: values[start:stop] for name, values in inputs.items()}
            batch = cost(part).numpy()
            for f, (seen, columns) in enumerate(zip(kept, config.id_ranges)):
                ids = part["categorical"][:, columns]
                known = (ids >= 0) & (ids < len(seen))
                places = seen[ids[known]]
                np.add.at(costs[f], places, batch[:, columns][known])
                np.add.at(occurrences[f], places, 1)
            progress.update(stop - start)
    return costs, occurrences


def id_values(costs: list[np.ndarray], occurrences: list[np.ndarray], counts: list[np.ndarray]) -> list[np.ndarray]:
    """What each id is worth on new rows: how often it occurs times the mean cost of one occurrence.

    A mean over few occurrences is noisy, and overfitted ids have too large a one: the mean is shrunk towards that of the feature,
    which also is the mean of ids that do not occur in the measured rows.

    Args:
      costs: summed costs, what `loss_of_dropping` gave.
      occurrences: occurrences, what `loss_of_dropping` gave.
      counts: what `count_ids` gave, for all training rows.

    Returns:
      Per feature float64 `[size_f]`.
    """
    values = []
    for cost, occurring, count in zip(costs, occurrences, counts):
        seen = occurring > 0
        mean = np.average(cost[seen] / occurring[seen], weights=np.sqrt(occurring[seen])) if seen.any() else 0.0
        values.append(count[:-1] * (cost + _SHRINKAGE * mean) / (occurring + _SHRINKAGE))
    return values


class IdRanking:
    """Ids of all tables, the most valuable first.

    Args:
      values: float `[size_f]` a feature: what `id_values` gave.
      tables: number of each feature's table, `DLRMConfig.tables`; None: each has its own.
    """

    def __init__(self, values: list[np.ndarray], tables: Optional[Sequence[int]] = None):
        self._tables = range(len(values)) if tables is None else tables
        values = list(dict(zip(self._tables, values)).values())
        self._sizes = [len(v) for v in values]
        self._starts = np.cumsum([0, *self._sizes[:-1]])
        # Stable: of equal values the lower id stays, which is the one that appeared first.
        flat = np.concatenate(values)
        order = np.argsort(-flat, kind="stable")
        # Every table keeps its best id: a configuration has no empty features.
        best = np.array([start + int(np.argmax(v)) for start, v in zip(self._starts, values)])
        self._order = np.concatenate([best, order[~np.isin(order, best)]])

    @property
    def minimum(self) -> int:
        """The fewest ids that can be kept: one per table."""
        return len(self._sizes)

    @property
    def total(self) -> int:
        """All ids."""
        return len(self._order)

    def keep(self, n: int) -> list[np.ndarray]:
        """Ascending ids int64 of every feature among the `n` most valuable ones."""
        chosen = np.sort(self._order[:n])
        edges = np.searchsorted(chosen, [*self._starts, self.total])
        kept = [chosen[a:b] - start for a, b, start in zip(edges[:-1], edges[1:], self._starts)]
        return [kept[table] for table in self._tables]


def prune_weights(weights: str, path: str, *, kept: list[np.ndarray], counts: list[np.ndarray], quiet: bool = False) -> None:
    """Writes a weights file with only the ids `kept`.

    The OOV row becomes the mean of the dropped rows and of the old OOV row, weighted by how often each occurs.

    Args:
      weights: a `.weights.h5` file; read once, chunk by chunk.
      path: the `.weights.h5` file to write.
      kept: per feature, ascending ids (at least one).
      counts: what `count_ids` gave.
      quiet: show no progress.
    """
    with WeightsReader(weights) as reader:
        config = reader.config
        writer = WeightsWriter(path, subset_config(config, kept), source_sha256=reader.attributes["source_sha256"])
        with writer, Progress("prune", config.table_rows, "rows", quiet=quiet) as progress:
            for mlp, i, _, _ in config.dense_shapes():
                writer.write_dense(mlp, i, *reader.dense(mlp, i))
            for f in config.table_features:
                size = config.categorical_feature_sizes[f]
                dropped = np.ones(size + 1, bool)
                dropped[kept[f]] = False
                weight = np.where(dropped, counts[f], 0)
                total, written = np.zeros(config.embedding_dim), 0
                for start in range(0, size + 1, _CHUNK_ROWS):
                    rows = reader.rows(f, start, start + _CHUNK_ROWS)
                    span = slice(start, start + len(rows))
                    total += weight[span].astype(np.float64) @ rows
                    stay = rows[~dropped[span]]
                    writer.write_rows(f, written, stay)
                    written += len(stay)
                    progress.update(len(rows))
                mean = total / weight.sum() if weight.sum() else reader.rows(f, size, size + 1)[0]
                writer.write_rows(f, written, mean.astype(np.float32)[np.newaxis])
