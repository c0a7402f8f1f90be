"""A part of the ids: the configuration, table rows and id numbers of a model that keeps only these."""

import dataclasses
from collections.abc import Sequence, Sized

import numpy as np

from dlrm_tf.config import UNUSED_PLACE, DLRMConfig
from dlrm_tf.weights.layout import table_chunks
from dlrm_tf.weights.reader import WeightsReader


def subset_config(config: DLRMConfig, kept: Sequence[Sized]) -> DLRMConfig:
    """The configuration of a model in which feature f keeps the ids `kept[f]`; features of one table keep the same."""
    return dataclasses.replace(config, categorical_feature_sizes=tuple(len(ids) for ids in kept))


def subset_rows(reader: WeightsReader, kept: list[np.ndarray]) -> np.ndarray:
    """Table rows of the kept ids and of every table's OOV row, block by block.

    Args:
      reader: an open weights file; it is read once, front to back.
      kept: per feature, ascending ids (at least one).

    Returns:
      float32 `[sum(len(kept_f) + 1), D]`, the table of `subset_config`.
    """
    config = reader.config
    wanted = np.concatenate(
        [
            np.append(np.asarray(kept[f], np.int64), config.categorical_feature_sizes[f]) + config.block_offsets[f]
            for f in config.table_features
        ]
    )
    rows = np.empty((len(wanted), config.embedding_dim), np.float32)
    for start, stop in table_chunks(config):
        first, last = np.searchsorted(wanted, (start, stop))
        if first < last:
            rows[first:last] = reader.table(start, stop)[wanted[first:last] - start]
    return rows


def renumber(categorical: np.ndarray, kept: Sequence[np.ndarray], config: DLRMConfig) -> np.ndarray:
    """Ids in the numbering of a subset.

    Args:
      categorical: int `[n, id_columns]`.
      kept: per feature, ascending ids (at least one).
      config: the configuration, of the subset or of the whole model: where the columns of a feature are.

    Returns:
      int32 `[n, id_columns]`: the place of each id in `kept[f]`; `len(kept[f])`, out of vocabulary, for one that is not in it. An
      unused place of a bag stays one.
    """
    result = np.empty(categorical.shape, np.int32)
    for ids, columns in zip(kept, config.id_ranges):
        wanted = categorical[:, columns]
        place = np.searchsorted(ids, wanted)
        found = place < len(ids)
        found[found] = ids[place[found]] == wanted[found]
        result[:, columns] = np.where(found, place, len(ids))
    return np.where(categorical == UNUSED_PLACE, np.int32(UNUSED_PLACE), result) if config.has_bags else result


def seen_ids(categorical: np.ndarray, config: DLRMConfig) -> list[np.ndarray]:
    """The ids that occur, those out of vocabulary left out.

    Args:
      categorical: int `[n, id_columns]`.
      config: the configuration the ids belong to.

    Returns:
      Per feature, ascending ids; id 0 where no id of a feature occurs. Features of one table have those of all of them.
    """
    kept = []
    tables, column_tables = np.array(config.tables), np.array(config.tables)[np.array(config.column_features)]
    for table, feature in enumerate(config.table_features):
        ids = np.unique(categorical[:, column_tables == table])
        ids = ids[(ids >= 0) & (ids < config.categorical_feature_sizes[feature])]
        kept.append(ids if ids.size else np.zeros(1, ids.dtype))
    return [kept[table] for table in tables]
