"""HashedKeys: a categorical feature without a vocabulary, whose ids are hashes of its keys."""

from collections.abc import Iterable
from typing import Any, Optional

import numpy as np

from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.fingerprint import fingerprints, hex_fingerprints
from dlrm_tf.data.key_column import KeyColumn
from dlrm_tf.files import StrPath


class HashedKeys(FeatureKeys):
    """`FeatureKeys` without keys: the id of a key is FarmHash's Fingerprint64 of `salt` and the key, modulo `buckets`.

    No key is unknown, unless only a part of the buckets is kept; there is nothing to learn, to count, or to forget.

    Args:
      buckets: how many ids there are.
      salt: stands before the key.
      kept: the buckets that are kept, ascending, numbered anew from 0; None: all.

    Attributes:
      size: how many ids there are; `size` is the out-of-vocabulary id.
      buckets: as given.
      salt: as given.
    """

    def __init__(self, buckets: int, salt: bytes = b"", *, kept: Optional[np.ndarray] = None):
        super().__init__()
        self.buckets, self.salt, self._kept = buckets, salt, None if kept is None else kept.astype(np.int32)
        self.size = buckets if kept is None else len(kept)

    def numeric(self) -> tuple[np.ndarray, np.ndarray]:
        """No keys."""
        return np.empty(0, np.uint32), np.empty(0, np.int32)

    def stored(self) -> tuple[np.ndarray, list[tuple[bytes, int]]]:
        """The kept buckets in place of keys; none where all are kept."""
        return (np.empty(0, np.uint32) if self._kept is None else self._kept.astype(np.uint32)), []

    def rule(self) -> Any:
        """What the id of a key follows from beside `stored`, JSON values."""
        return {"fingerprint64": self.buckets, "salt": self.salt.hex()}

    @property
    def last_seen(self) -> np.ndarray:
        """No days, int32 `[0]`: a bucket does not tell which of its keys occurred."""
        return np.empty(0, np.int32)

    def see(self, seen: np.ndarray, day: int) -> None:
        """Notes nothing; see `last_seen`."""

    def append(self, numeric: np.ndarray, others: Iterable[tuple[bytes, int]]) -> None:
        """Adds nothing: `take_new` returns no keys."""

    def copy(self) -> "HashedKeys":
        """Itself: it never changes."""
        return self

    def mapped(self, path: StrPath) -> "HashedKeys":
        """Itself: it has no index."""
        return self

    def keep(self, kept: np.ndarray) -> "HashedKeys":
        """Only the ids that are True in `kept` (bool `[size]`), numbered anew in the same order."""
        if kept.all():
            return self
        buckets = np.flatnonzero(kept)
        return HashedKeys(self.buckets, self.salt, kept=buckets if self._kept is None else self._kept[buckets])

    def find(self, column: KeyColumn) -> np.ndarray:
        """Ids of a column of keys, int32 `[n]`; -1 where a key's bucket is not kept."""
        hashes = hex_fingerprints(column.values, self.salt)
        if column.empty.any():
            hashes[column.empty] = fingerprints(self.salt, np.array([len(self.salt)]))
        if column.odd:
            texts = [self.salt + key for _, key in column.odd]
            hashes[[row for row, _ in column.odd]] = fingerprints(b"".join(texts), np.array([len(text) for text in texts]))
        return self.of_hashes(hashes)

    def of_hashes(self, hashes: np.ndarray) -> np.ndarray:
        """As `find`, of keys whose fingerprints behind the salt are known, uint64 `[n]`."""
        buckets = (hashes % np.uint64(self.buckets)).astype(np.int32)
        if self._kept is None:
            return buckets
        places = np.minimum(np.searchsorted(self._kept, buckets), self.size - 1)
        return np.where(self._kept[places] == buckets, places, -1).astype(np.int32)

    def ids_in(self, other: FeatureKeys) -> np.ndarray:
        """The ids themselves, int32 `[size]`: `other` must have the same hash."""
        return np.arange(self.size, dtype=np.int32)

    @property
    def missing_id(self) -> int:
        """The id of the key '', which other keys may have too."""
        return int(self.find(KeyColumn(np.zeros(1, np.uint32), np.ones(1, bool), []))[0])

    def key(self, number: int) -> bytes:
        """What stands for the keys of an id: the name of its bucket."""
        return b"bucket %d" % (number if self._kept is None else int(self._kept[number]))

    def assign(self, column: KeyColumn) -> np.ndarray:
        """As `find`: no key is new."""
        return self.find(column)
