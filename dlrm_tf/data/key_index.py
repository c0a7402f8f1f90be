"""KeyIndex: a hash table from 32-bit keys to ids that finds and inserts whole arrays at once, in NumPy."""

import numpy as np

from dlrm_tf.files import StrPath, atomic_file

_EMPTY = np.uint64(0xFFFFFFFF)  # key 0, id -1: no key has this id, so it marks a free slot
_GOLDEN = np.uint32(2654435769)  # 2^32 / golden ratio: multiplicative hashing (Knuth, TAOCP 3, 6.4)


class KeyIndex:
    """Maps uint32 keys to int32 ids >= 0: open addressing, linear probing, at most half full.

    A slot is one uint64, `key << 32 | id`, so that a probe costs one cache miss. Eight bytes a slot: 10 M keys take 268 MB.
    """

    def __init__(self, capacity: int = 0):
        """`capacity`: how many keys will come, when known; the table grows by itself anyway."""
        self._count = 0
        self._allocate(max(10, int(2 * max(capacity, 1) - 1).bit_length()))

    def __len__(self) -> int:
        return self._count

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Ids of `keys` (uint32 `[n]`) as int32 `[n]`; -1 where a key is unknown."""
        slots = self._home(keys)
        found = self._slots.take(slots)
        ids, held = _halves(found)
        result = ids.copy()
        # A free slot says -1 already; the search continues only where another key holds the slot.
        pending = np.flatnonzero((held != keys) & (ids >= 0))
        slots = slots[pending]
        while pending.size:
            slots = (slots + 1) & self._mask
            ids, held = _halves(self._slots.take(slots))
            result[pending] = ids
            onward = np.flatnonzero((held != keys[pending]) & (ids >= 0))
            pending, slots = pending[onward], slots[onward]
        return result

    def insert(self, keys: np.ndarray, ids: np.ndarray) -> None:
        """Adds `keys` (uint32 `[n]`, all different, none of them known yet) with `ids` (int32 `[n]`, >= 0)."""
        needed = 2 * (self._count + keys.size)
        if needed > self._slots.size:
            held = self._slots[self._slots != _EMPTY]
            self._allocate(int(needed - 1).bit_length())
            self._place(held)
        self._place((keys.astype(np.uint64) << np.uint64(32)) | ids.astype(np.uint64))
        self._count += keys.size

    def save(self, path: StrPath) -> None:
        """Writes the table as a `.npy` file; it appears whole or not at all."""
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.save(file, self._slots)

    @classmethod
    def open(cls, path: StrPath, count: int) -> "KeyIndex":
        """Maps a file of `save` into memory, for finding only: processes of one machine share it, and nothing is read ahead.

        Args:
          path: the file.
          count: how many keys it has.
        """
        index = cls.__new__(cls)
        index._slots = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        index._count = count
        index._measure()
        return index

    def _allocate(self, bits: int) -> None:
        self._slots = np.full(1 << bits, _EMPTY, np.uint64)
        self._measure()

    def _measure(self) -> None:
        self._mask = self._slots.size - 1
        self._shift = np.uint32(32 - self._mask.bit_length())

    def _home(self, keys: np.ndarray) -> np.ndarray:
        return ((keys * _GOLDEN) >> self._shift).astype(np.intp)

    def _place(self, packed: np.ndarray) -> None:
        slots = self._home((packed >> np.uint64(32)).astype(np.uint32))
        while packed.size:
            free = self._slots[slots] == _EMPTY
            # Several keys may want one free slot: all write, the last one stays, and the others try the next slot.
            self._slots[slots[free]] = packed[free]
            left = self._slots[slots] != packed
            packed, slots = packed[left], (slots[left] + 1) & self._mask


def _halves(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slots' ids (int32) and keys (uint32), as views of the little-endian uint64 array `found`."""
    return found.view(np.int32)[0::2], found.view(np.uint32)[1::2]
