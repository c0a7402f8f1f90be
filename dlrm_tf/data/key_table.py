"""KeyTable: the ids of whole raw rows in one search, for scoring row by row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlrm_tf.data.key_column import KeyColumn, as_column
from dlrm_tf.data.vocabulary import Vocabulary


class KeyTable:
    """All features' keys in one sorted array (12 bytes a key).

    `Vocabulary.lookup` takes one feature at a time, right for columns of a data set; a single row would pay for 26 lookups.
    """

    def __init__(self, vocabulary: Vocabulary):
        """Reads the keys out of `vocabulary`, in the order of its features."""
        self._names, self._sizes = vocabulary.names, np.asarray(vocabulary.sizes, np.int32)
        self._empty = self._sizes.copy()
        self._others: dict[tuple[int, bytes], int] = {}
        self._hashed = {
            f: vocabulary.feature(name) for f, name in enumerate(vocabulary.names) if name in vocabulary.spaces.hashed
        }
        self._feature_bits = np.arange(len(self._sizes), dtype=np.uint64) << np.uint64(32)
        packed_parts, id_parts = [], []
        for f, name in enumerate(vocabulary.names):
            feature = vocabulary.feature(name)
            values, value_ids = feature.numeric()
            packed_parts.append(self._feature_bits[f] | values.astype(np.uint64))
            id_parts.append(value_ids)
            for key, i in feature.others():
                if key:
                    self._others[f, key] = i
                else:
                    self._empty[f] = i
        # A last key that no row has, so that every search ends at a place there is.
        packed, ids = np.concatenate([*packed_parts, [np.uint64(2**64 - 1)]]), np.concatenate([*id_parts, [0]])
        order = np.argsort(packed)
        self._packed, self._ids = packed[order], ids[order].astype(np.int32)

    def ids(self, keys: Sequence[Any], source: str = "categorical", first_row: int = 0) -> np.ndarray:
        """Ids of whole rows of keys.

        Args:
          keys: `n * F` keys, row by row, as `as_column` takes them.
          source: what the rows are, named in errors.
          first_row: number of the first row in errors.

        Returns:
          int32 `[n, F]`; an unknown key gives its feature's size.

        Raises:
          DataError: a key of another type.
        """
        width = len(self._sizes)

        def where(i: int) -> str:
            return f"{source}: row {first_row + i // width}, {self._names[i % width]}"

        values, empty, odd = as_column(keys, where)
        wanted = values.reshape(-1, width) | self._feature_bits
        places = np.searchsorted(self._packed, wanted)
        ids = np.where(self._packed[places] == wanted, self._ids[places], self._sizes)
        ids = np.where(empty.reshape(-1, width), self._empty, ids)
        for at, key in odd:
            row, f = divmod(at, width)
            ids[row, f] = self._others.get((f, key), self._sizes[f])
        for f, feature in self._hashed.items():
            ids[:, f] = feature.ids(
                KeyColumn(values[f::width], empty[f::width], [(at // width, key) for at, key in odd if at % width == f])
            )
        return ids
