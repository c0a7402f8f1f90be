"""KeyTable: the ids of whole raw rows in one search, for scoring row by row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlrm_tf.data.fingerprint import fingerprints
from dlrm_tf.data.hashed_keys import HashedKeys
from dlrm_tf.data.key_column import as_column
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
        self._hashed: dict[int, HashedKeys] = {}
        self._feature_bits = np.arange(len(self._sizes), dtype=np.uint64) << np.uint64(32)
        packed_parts, id_parts = [], []
        for f, name in enumerate(vocabulary.names):
            feature = vocabulary.feature(name)
            if isinstance(feature, HashedKeys):
                self._hashed[f] = feature
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
        if self._hashed:
            self._hash(values.tolist(), empty.tolist(), dict(odd), ids)
        return ids

    def _hash(self, values: list[int], empty: list[bool], odd: dict[int, bytes], ids: np.ndarray) -> None:
        """Writes the ids of hashed features into `ids`: the keys of all of them are hashed together."""
        rows, width = ids.shape
        texts = []
        for start in range(0, rows * width, width):
            for f, feature in self._hashed.items():
                at = start + f
                texts.append(feature.salt + (b"" if empty[at] else odd.get(at) or b"%08x" % values[at]))
        hashes = fingerprints(b"".join(texts), np.array(list(map(len, texts)), np.int64)).reshape(rows, -1)
        for i, (f, feature) in enumerate(self._hashed.items()):
            found = feature.of_hashes(hashes[:, i])
            ids[:, f] = np.where(found < 0, feature.size, found)
