"""Admission: which keys of a log get an id of their own."""

from collections.abc import Mapping
from typing import Optional, Union

import numpy as np

from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import UsageError


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
