"""FeatureKeys: the keys of one categorical feature and their ids, growing in order of first appearance."""

import os
from collections.abc import Iterable
from typing import Any, Optional

import numpy as np

from dlrm_tf.data.days import UNKNOWN_DAY
from dlrm_tf.data.key_column import KeyColumn
from dlrm_tf.data.key_index import KeyIndex
from dlrm_tf.files import StrPath

_NO_KEYS = np.empty(0, np.uint32)
_NO_DAYS = np.empty(0, np.int32)
_32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


class FeatureKeys:
    """The keys of one feature: eight-lower-case-hex-digit keys as uint32, all others ('' among them) as bytes.

    Attributes:
      size: how many keys there are; ids are `0 … size - 1`, and `size` is the out-of-vocabulary id.
    """

    def __init__(
        self, numeric: np.ndarray = _NO_KEYS, others: Iterable[tuple[bytes, int]] = (), *, last_seen: np.ndarray = _NO_DAYS
    ):
        """Takes keys.

        Args:
          numeric: uint32 keys in id order.
          others: `(key, id)`; the numeric keys take the ids these leave free.
          last_seen: of the first keys, in id order, the day as `last_seen` gives it, int32.
        """
        self._parts = [numeric] if numeric.size else []
        self._others = dict(others)
        self._index: Optional[KeyIndex] = None
        self._new_parts: list[np.ndarray] = []
        self._new_others: list[tuple[bytes, int]] = []
        self._days = last_seen
        self.size = int(numeric.size) + len(self._others)

    @property
    def last_seen(self) -> np.ndarray:
        """Day of the last log in which each key occurred: days since 1970-01-01 or `UNKNOWN_DAY`, int32 `[size]`."""
        unknown = np.full(self.size - self._days.size, UNKNOWN_DAY, np.int32)
        return np.concatenate((self._days, unknown))

    def see(self, seen: np.ndarray, day: int) -> None:
        """Notes that keys occurred on a day; a later day that a key has already stays.

        Args:
          seen: bool `[size]`, by id.
          day: days since 1970-01-01.
        """
        days = self.last_seen
        days[seen] = np.maximum(days[seen], day)
        self._days = days

    def numeric(self) -> tuple[np.ndarray, np.ndarray]:
        """The eight-hex-digit keys: `(values uint32 [m], ids int32 [m])`, both in id order."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        free = np.ones(self.size, bool)
        free[list(self._others.values())] = False
        return (self._parts[0] if self._parts else _NO_KEYS), np.flatnonzero(free).astype(np.int32)

    def others(self) -> list[tuple[bytes, int]]:
        """The keys that are not eight hex digits, with their ids, in id order."""
        return sorted(self._others.items(), key=lambda item: item[1])

    def stored(self) -> tuple[np.ndarray, list[tuple[bytes, int]]]:
        """What a file keeps of the keys: the values of `numeric`, and `others`."""
        return self.numeric()[0], self.others()

    def rule(self) -> Any:
        """What the id of a key follows from beside `stored`'s numbers, JSON values."""
        return [[key.hex(), i] for key, i in self.others()]

    def append(self, numeric: np.ndarray, others: Iterable[tuple[bytes, int]]) -> None:
        """Adds keys with the next ids.

        Args:
          numeric: uint32 keys, as `take_new` returned them.
          others: `(key, id)`, as `take_new` returned them.
        """
        others = list(others)
        self._parts.append(numeric)
        self._others.update(others)
        self._index = None
        self.size += numeric.size + len(others)

    def take_new(self) -> tuple[np.ndarray, list[tuple[bytes, int]]]:
        """The keys that `assign` added since the last call, as `numeric` values and `others`."""
        new = (np.concatenate(self._new_parts) if self._new_parts else _NO_KEYS), self._new_others
        self._new_parts, self._new_others = [], []
        return new

    def copy(self) -> "FeatureKeys":
        """An independent copy."""
        return FeatureKeys(self.numeric()[0], self._others.items(), last_seen=self.last_seen)

    def keep(self, kept: np.ndarray) -> "FeatureKeys":
        """Only the keys whose id is True in `kept` (bool `[size]`), numbered anew in the same order."""
        numeric, ids = self.numeric()
        renumbered = np.cumsum(kept) - 1
        others = [(key, int(renumbered[i])) for key, i in self.others() if kept[i]]
        return FeatureKeys(numeric[kept[ids]], others, last_seen=self.last_seen[kept])

    def ids(self, column: KeyColumn, *, learn: bool = False) -> np.ndarray:
        """Ids of a column of keys.

        Args:
          column: the keys.
          learn: unknown keys become new ids, in order of first appearance.

        Returns:
          int32 `[n]`; `size` where a key is unknown.
        """
        found = self.assign(column) if learn else self.find(column)
        found[found < 0] = self.size
        return found

    def find(self, column: KeyColumn) -> np.ndarray:
        """Ids of a column of keys, int32 `[n]`; -1 where a key is unknown."""
        found = self._hex_index().find(column.values)
        found[column.empty] = self._others.get(b"", -1)
        for row, key in column.odd:
            found[row] = self._others.get(key, -1)
        return found

    def mapped(self, path: StrPath) -> "FeatureKeys":
        """The same keys for look-up only, in a form that many processes of a machine share; it can be pickled.

        Args:
          path: file for the index, 16 to 32 bytes a key; made here if it is not there.
        """
        if not os.path.exists(path):
            self._hex_index().save(path)
            self._index = None  # of a large vocabulary, all indexes together are much more than one
        return _MappedKeys(path, self.size, self._others)

    def ids_in(self, other: "FeatureKeys") -> np.ndarray:
        """The id that each of these keys has in `other`, int32 `[size]`; -1 where it has none."""
        numeric, ids = self.numeric()
        values, empty = np.zeros(self.size, np.uint32), np.zeros(self.size, bool)
        values[ids] = numeric
        empty[[i for key, i in self.others() if not key]] = True
        return other.find(KeyColumn(values, empty, [(i, key) for key, i in self.others() if key]))

    @property
    def missing_id(self) -> int:
        """The id of the key '', or -1."""
        return self._others.get(b"", -1)

    def key(self, number: int) -> bytes:
        """The key of an id."""
        for key, i in self._others.items():
            if i == number:
                return key
        numeric, ids = self.numeric()
        return b"%08x" % int(numeric[np.searchsorted(ids, number)])

    def _hex_index(self) -> KeyIndex:
        if self._index is None:
            numeric, ids = self.numeric()
            index = KeyIndex(numeric.size)
            index.insert(numeric, ids)
            self._index = index  # only when it is full: other threads may look up meanwhile
        return self._index

    def assign(self, column: KeyColumn) -> np.ndarray:
        """As `find`, but unknown keys become new ids, in order of first appearance."""
        found, (keys, empty, odd) = self.find(column), column
        unknown = np.flatnonzero(found < 0)
        if not unknown.size:
            return found
        # Rows at which a new key stands first: of the numeric keys, of '', of the others.
        other_first: dict[bytes, int] = {}
        numeric_row = np.ones(len(found), bool)
        for row, key in odd:
            numeric_row[row] = False
            if key not in self._others:
                other_first.setdefault(key, row)
        numeric_row[empty] = False
        if b"" not in self._others and empty.any():
            other_first[b""] = int(np.argmax(empty))
        rows = unknown[numeric_row[unknown]]
        new, first, sorted_rows, number = _first_rows(keys[rows], rows)
        others = sorted(other_first.items(), key=lambda item: item[1])
        other_rows = np.array([row for _, row in others], np.int64)
        rank = np.arange(first.size) + np.searchsorted(other_rows, first)
        other_rank = np.arange(len(others)) + np.searchsorted(first, other_rows)
        ids = (self.size + rank).astype(np.int32)
        self._hex_index().insert(new, ids)
        self._parts.append(new)
        self._new_parts.append(new)
        numbered = [(key, self.size + int(i)) for (key, _), i in zip(others, other_rank)]
        self._others.update(numbered)
        self._new_others += numbered
        self.size += first.size + len(others)
        found[sorted_rows] = ids[number]
        if others:
            found[empty] = self._others.get(b"", -1)
            for row, key in odd:
                found[row] = self._others[key]
        return found


def _first_rows(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The different keys of some rows.

    Args:
      keys: uint32 `[n]`.
      rows: `[n]`, the row of each key, below 2^32.

    Returns:
      `(different keys [m] by the row in which each stands first; that row [m]; rows [n]; of each its key's number [n])`.
    """
    # Key and row as one number: NumPy sorts numbers several times faster than it finds the order of some.
    by_key = np.sort(_joined(keys, rows))
    is_first = np.ones(len(by_key), bool)
    is_first[1:] = (by_key[1:] ^ by_key[:-1]) >> _32 != 0
    key, row = by_key >> _32, by_key & _LOW
    first = row[is_first]
    order = np.sort(_joined(first, np.arange(len(first))))
    by_row = (order & _LOW).astype(np.intp)
    number = np.empty(len(order), np.intp)
    number[by_row] = np.arange(len(order))
    new, first = key[is_first][by_row].astype(np.uint32), (order >> _32).astype(np.intp)
    return new, first, row.astype(np.intp), number[np.cumsum(is_first) - 1]


def _joined(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    joined: np.ndarray = (high.astype(np.uint64) << _32) | low.astype(np.uint64)
    return joined


class _MappedKeys(FeatureKeys):
    """What `FeatureKeys.mapped` gives: `find`, `ids` without `learn`, and `size`."""

    def __init__(self, path: StrPath, size: int, others: dict[bytes, int]):
        super().__init__(others=others.items())
        self.size, self._path = size, path

    def copy(self) -> FeatureKeys:
        """Itself: it does not change."""
        return self

    def _hex_index(self) -> KeyIndex:
        if self._index is None:
            self._index = KeyIndex.open(self._path, self.size - len(self._others))
        return self._index

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None}
