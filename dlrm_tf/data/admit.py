"""Admission: which keys of a log get an id of their own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Optional, Union

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Admission:
    """Which keys of a log get an id of their own, and the day that is noted at them.

    Keys that features share are counted in all of them together, and the least of their `max_ids` holds. Buckets of a hashed
    feature always stay.

    Attributes:
      min_count: least number of times that a key occurs, train and test together.
      max_ids: of each feature the most keys, or None.
      always_kept: of each feature how many first keys stay whatever their count.
      day: of the log, in days since 1970-01-01: noted at every key that occurs. None notes nothing.

    Raises:
      UsageError: `min_count` is below 1.
    """

    min_count: int
    max_ids: Sequence[Optional[int]]
    always_kept: Sequence[int]
    day: Optional[int]

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise UsageError(f"min_count must be at least 1. Received {self.min_count}")

    @property
    def counts_keys(self) -> bool:
        """Whether it must be known how often each key occurs."""
        return self.min_count > 1 or self.day is not None or any(most is not None for most in self.max_ids)

    def choose(self, vocabulary: Vocabulary, counts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Notes the day at the keys that occur, and chooses those that stay.

        Args:
          vocabulary: all keys.
          counts: of each of its `key_sets` how often each key occurs, int64 `[size]`.

        Returns:
          Of each feature which ids stay, bool `[size]`.
        """
        sets = vocabulary.spaces.key_sets
        admitted = []
        for number, (keys, count) in enumerate(zip(vocabulary.key_sets, counts)):
            if self.day is not None:
                keys.see(count > 0, self.day)
            members = [f for f, of_feature in enumerate(sets) if of_feature == number]
            bounds = [bound for bound in (self.max_ids[f] for f in members) if bound is not None]
            first = self.always_kept[members[0]]
            admitted.append(admit(count, min_count=self.min_count, max_ids=min(bounds, default=None), always_kept=first))
        return [admitted[number] for number in sets]


def count_ids(ids: np.ndarray, size: int) -> np.ndarray:
    """How often each id occurs.

    Args:
      ids: int32, any shape, 0 to `size` and of unused places of bags -1.
      size: number of keys.

    Returns:
      int64 `[size + 1]`; the last one is of out-of-vocabulary keys.
    """
    ids = ids.reshape(-1)
    return np.bincount(ids[ids != UNUSED_PLACE], minlength=size + 1)


def admit(counts: np.ndarray, *, min_count: int = 1, max_ids: Optional[int] = None, always_kept: int = 0) -> np.ndarray:
    """Chooses the keys of one feature that stay.

    Args:
      counts: how often each key occurs, int64 `[n]`, in the order of first appearance.
      min_count: keys that occur fewer times go.
      max_ids: so many of the others stay, the most frequent ones, of equally frequent ones those that appeared first; None: all.
      always_kept: the first so many keys stay whatever their count; they count towards `max_ids`.

    Returns:
      bool `[n]`.
    """
    kept = counts >= min_count
    kept[:always_kept] = True
    if max_ids is None or np.count_nonzero(kept) <= max_ids:
        return kept
    rivals = np.where(kept, counts, -1)[always_kept:]
    room = max(max_ids - always_kept, 0)
    # Above the count of the last one that stays all stay, and of those that have it the first ones, as long as there is room.
    last = np.partition(rivals, len(rivals) - room)[len(rivals) - room] if room else np.iinfo(np.int64).max
    above, equal = rivals > last, rivals == last
    kept[always_kept:] = above | (equal & (np.cumsum(equal) <= room - np.count_nonzero(above)))
    return kept


def max_ids_by_feature(max_ids: Union[None, int, Mapping[str, int]], spec: FeatureSpec) -> list[Optional[int]]:
    """The most ids that each categorical feature may have; None where there is no bound.

    Args:
      max_ids: one number for all features, or numbers by name for some.
      spec: the columns.

    Raises:
      UsageError: a number below 1, or a name that is not a categorical feature's, or that of a hashed one.
    """
    names = spec.categorical_names
    by_name = max_ids if isinstance(max_ids, Mapping) else dict.fromkeys(names, max_ids)
    for name, number in by_name.items():
        if name not in names:
            raise UsageError(f"max_ids must be of the categorical features {', '.join(names)}. Received {name!r}")
        if by_name is max_ids and name in spec.hashed:
            raise UsageError(f"max_ids must be of features with a vocabulary. Received {name!r}, which is hashed")
        if number is not None and number < 1:
            raise UsageError(f"max_ids must be at least 1. Received {number}")
    return [by_name.get(name) for name in names]
