"""A model cut down to the ids that are wanted: the float reference of an export, and what a size budget keeps."""

import dataclasses

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.weights.layout import table_chunks
from dlrm_tf.weights.reader import WeightsReader


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
