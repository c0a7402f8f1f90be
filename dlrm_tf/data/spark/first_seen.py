"""The keys of parts of a log, merged: which keys there are, in order of first appearance, and how often each occurs.

Each part numbers its keys in order of first appearance, as a log of its own. The place of a key in the whole log is then
`part << 32 | number`, and its first place is the smallest one: where it stands in its part need not be known.
"""

import bisect
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.data.admit import count_ids
from dlrm_tf.data.block import Block
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.key_column import KeyColumn
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.files import atomic_file

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: multiplicative hashing (Knuth, TAOCP 3, 6.4)
_PENDING = 1 << 22  # rows that are taken in before they are merged
_ROW = np.dtype([("key", "<u8"), ("first", "<i8"), ("count", "<i8")])
# (number of the key set, key), first place, count.
_Other = tuple[tuple[int, bytes], int, int]


class Share(NamedTuple):
    """Keys of one part that go to one bucket.

    Attributes:
      keys: uint64 `[n]`, `number of the key set << 32 | key` of those of eight hex digits.
      first: int64 `[n]`, first place of each.
      counts: int64 `[n]`, how often each occurs; 0 where it is not counted.
      others: all other keys.
    """

    keys: np.ndarray
    first: np.ndarray
    counts: np.ndarray
    others: list[_Other]


class PartKeys:
    """The keys of one part, numbered by the Encoder as `prepare` does on one machine.

    Args:
      spec: the columns.
      counting: also count how often each key occurs.
    """

    def __init__(self, spec: FeatureSpec, counting: bool):
        self.spec, self.counting = spec, counting
        self.vocabulary = Vocabulary.empty(spec.id_spaces)
        self.encoder = Encoder(spec, self.vocabulary)
        self.counts = [np.zeros(0, np.int64) for _ in self.vocabulary.key_sets]

    def add(self, block: Block) -> None:
        """Takes in the next rows of the part."""
        ids = np.full((len(block.label), self.spec.id_columns), UNUSED_PLACE, np.int32)
        self.encoder.write_ids(block, ids, learn=True)
        if self.counting:
            for number, places in zip(self.vocabulary.spaces.key_sets, self.spec.id_ranges):
                counted = self.counts[number]
                grown = count_ids(ids[:, places], self.vocabulary.key_sets[number].size)[:-1]
                grown[: counted.size] += counted
                self.counts[number] = grown

    def shares(self, part: int, buckets: int) -> Iterator[tuple[int, Share]]:
        """The keys by bucket; a key is in the same bucket in every part.

        Args:
          part: number of the part.
          buckets: how many buckets there are.
        """
        keys, first, count, others = [], [], [], []
        for number, key_set in enumerate(self.vocabulary.key_sets):
            values, ids = key_set.numeric()
            others_of_set = key_set.others()
            occurs = self.counts[number] if self.counting else np.zeros(len(ids) + len(others_of_set), np.int64)
            keys.append(values.astype(np.uint64) | np.uint64(number << 32))
            first.append(ids + np.int64(part << 32))
            count.append(occurs[ids])
            others += [((number, key), i + (part << 32), int(occurs[i])) for key, i in others_of_set]
        all_keys, all_first, all_count = np.concatenate(keys), np.concatenate(first), np.concatenate(count)
        bucket = ((all_keys * _GOLDEN) >> np.uint64(32)) % np.uint64(buckets)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=buckets))
        others_of: list[list[_Other]] = [[] for _ in range(buckets)]
        for other in others:
            others_of[zlib.crc32(other[0][1]) % buckets].append(other)
        for b in range(buckets):
            rows = order[ends[b - 1] if b else 0 : ends[b]]
            if rows.size or others_of[b]:
                yield b, Share(all_keys[rows], all_first[rows], all_count[rows], others_of[b])


def merge_shares(shares: Iterable[Share]) -> Share:
    """The keys of one bucket from all parts: first places are the smallest, counts are added."""
    nothing = Share(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64), [])
    merged, waiting = nothing, 0
    pending: list[Share] = []
    others: dict[tuple[int, bytes], tuple[int, int]] = {}
    for share in shares:
        pending.append(share)
        waiting += share.keys.size
        for key, first, count in share.others:
            known = others.get(key, (first, 0))
            others[key] = min(first, known[0]), count + known[1]
        if waiting > max(_PENDING, merged.keys.size):
            merged, pending, waiting = _merged([merged, *pending]), [], 0
    merged = _merged([merged, *pending])
    return merged._replace(others=[(key, first, count) for key, (first, count) in others.items()])


def _merged(shares: Sequence[Share]) -> Share:
    """Different keys, ascending."""
    keys, first, count = (np.concatenate([share[i] for share in shares]) for i in range(3))
    if not keys.size:
        return Share(keys, first, count, [])
    order = np.argsort(keys, kind="stable")
    keys, first, count = keys[order], first[order], count[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return Share(keys[starts], np.minimum.reduceat(first, starts), np.add.reduceat(count, starts), [])


def save_share(path: str, share: Share) -> None:
    """Writes a merged share as two files, `path` with `.npy` and `.npz` added; each appears whole or not at all."""
    rows = np.empty(share.keys.size, _ROW)
    rows["key"], rows["first"], rows["count"] = share.keys, share.first, share.counts
    with atomic_file(path + ".npy") as temporary, open(temporary, "wb") as file:
        np.save(file, rows)
    names = [key for (_, key), _, _ in share.others]
    numbers = np.array([(f, len(key), first, count) for (f, key), first, count in share.others], "<i8").reshape(-1, 4)
    with atomic_file(path + ".npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, numbers=numbers, keys=np.frombuffer(b"".join(names), np.uint8))


class MergedKeys:
    """The keys of a whole log, read from the files of all buckets, a key set at a time.

    Args:
      paths: of `save_share`.
    """

    def __init__(self, paths: Sequence[str]):
        self._rows = [np.load(path + ".npy", mmap_mode="r", allow_pickle=False) for path in paths]
        self._others: dict[int, list[tuple[int, bytes, int]]] = {}
        for path in paths:
            with np.load(path + ".npz", allow_pickle=False) as arrays:
                numbers, blob = arrays["numbers"], arrays["keys"].tobytes()
            ends = np.cumsum(numbers[:, 1]).tolist()
            for (f, length, first, count), end in zip(numbers.tolist(), ends):
                self._others.setdefault(f, []).append((first, blob[end - length : end], count))

    def append_to(self, keys: FeatureKeys, number: int, *, learning: bool) -> np.ndarray:
        """Appends the keys that a key set does not have, in order of first appearance.

        Args:
          keys: the keys before the log; more are appended.
          number: of the key set.
          learning: False appends nothing: keys are only counted.

        Returns:
          int64 `[size]`, how often each of its keys occurs in the log.
        """
        low, high = (np.uint64(n << 32) for n in (number, number + 1))
        # Not NumPy's search, which would read the mapped files whole.
        parts = [rows[bisect.bisect_left(rows["key"], low) : bisect.bisect_left(rows["key"], high)] for rows in self._rows]
        rows = np.concatenate([np.empty(0, _ROW), *parts])
        rows = rows[np.argsort(rows["first"])]
        others = sorted(self._others.get(number, []))
        values = (rows["key"] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        ids = keys.find(KeyColumn(values, np.zeros(values.size, bool), ()))
        names = [key for _, key, _ in others]
        empty = np.array([not key for key in names], bool)
        odd = [(i, key) for i, key in enumerate(names) if key]
        other_ids = keys.find(KeyColumn(np.zeros(len(names), np.uint32), empty, odd))
        if learning:
            new, other_new = np.flatnonzero(ids < 0), np.flatnonzero(other_ids < 0)
            first, other_first = rows["first"][new], np.array([others[i][0] for i in other_new], np.int64)
            ids[new] = keys.size + np.arange(new.size) + np.searchsorted(other_first, first)
            other_ids[other_new] = keys.size + np.arange(other_new.size) + np.searchsorted(first, other_first)
            keys.append(values[new], [(names[i], int(other_ids[i])) for i in other_new])
        counts = np.zeros(keys.size, np.int64)
        known, other_known = ids >= 0, other_ids >= 0
        counts[ids[known]] = rows["count"][known]
        counts[other_ids[other_known]] = np.array([count for _, _, count in others], np.int64)[other_known]
        return counts
