"""A model cut down to the ids that are wanted: the float reference of an export, and what a size budget keeps."""

import dataclasses

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.model.weights import WeightsReader, table_chunks


def subset_config(config: DLRMConfig, kept: list) -> DLRMConfig:
    """The configuration that remains when feature f keeps the ids `kept[f]`."""
    return dataclasses.replace(config, categorical_feature_sizes=tuple(len(ids) for ids in kept))


def subset_rows(reader: WeightsReader, kept: list) -> np.ndarray:
    """Table rows of the kept ids and of every feature's OOV row, block by block.

    Args:
      reader: an open weights file; it is read once, front to back.
      kept: per feature, ascending ids (at least one).

    Returns:
      float32 `[sum(len(kept_f) + 1), D]`, the table of `subset_config`.
    """
    config = reader.config
    wanted = np.concatenate(
        [
            np.append(np.asarray(ids, np.int64), size) + offset
            for ids, size, offset in zip(kept, config.categorical_feature_sizes, config.block_offsets)
        ]
    )
    rows = np.empty((len(wanted), config.embedding_dim), np.float32)
    for start, stop in table_chunks(config):
        first, last = np.searchsorted(wanted, (start, stop))
        if first < last:
            rows[first:last] = reader.table(start, stop)[wanted[first:last] - start]
    return rows


def renumber(categorical: np.ndarray, kept: list) -> np.ndarray:
    """Ids int32 `[n, F]` in the numbering of the subset; an id that was not kept becomes its feature's OOV id `len(kept_f)`."""
    result = np.empty(categorical.shape, np.int32)
    for f, ids in enumerate(kept):
        column = categorical[:, f]
        place = np.searchsorted(ids, column)
        found = place < len(ids)
        found[found] = ids[place[found]] == column[found]
        result[:, f] = np.where(found, place, len(ids))
    return result


def seen_ids(categorical: np.ndarray, config: DLRMConfig) -> list:
    """Per feature, the ascending in-vocabulary ids of `categorical` `[n, F]`; id 0 where a feature has none."""
    kept = []
    for f, size in enumerate(config.categorical_feature_sizes):
        ids = np.unique(categorical[:, f])
        ids = ids[(ids >= 0) & (ids < size)]
        kept.append(ids if ids.size else np.zeros(1, ids.dtype))
    return kept


def subset_model(reader: WeightsReader, kept: list):
    """The Keras `DLRM` of the kept ids; ids must be renumbered."""
    from dlrm_tf.model.dlrm import DLRM

    model = DLRM(subset_config(reader.config, kept), initializer="zeros")
    model.embedding.table.assign(subset_rows(reader, kept))
    for mlp, i, _, _ in reader.config.dense_shapes():
        layer = model.dense_layer(mlp, i)
        kernel, bias = reader.dense(mlp, i)
        layer.kernel.assign(kernel)
        layer.bias.assign(bias)
    return model


def float_probabilities(weights: str, dense: np.ndarray, categorical: np.ndarray, batch_size: int = 8192) -> np.ndarray:
    """Probabilities float32 `[n]` of the Keras model, with only those table rows in memory that the rows touch.

    Args:
      weights: a `.weights.h5` file.
      dense: float32 `[n, dense_dim]`, already log(max(x, 0) + 1).
      categorical: int32 `[n, F]`.
      batch_size: rows scored at a time.
    """
    import tensorflow as tf

    with WeightsReader(weights) as reader:
        kept = seen_ids(categorical, reader.config)
        model = subset_model(reader, kept)
    ids = renumber(categorical, kept)
    logits = [
        model({"dense": dense[i : i + batch_size], "categorical": ids[i : i + batch_size]}).numpy()
        for i in range(0, len(dense), batch_size)
    ]
    return tf.sigmoid(np.concatenate(logits)).numpy().reshape(-1)
