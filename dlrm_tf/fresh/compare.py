"""One feature's counts on two sides, compared."""

from collections.abc import Callable, Sequence

import numpy as np

from dlrm_tf.data.admit import admit
from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.fresh.figures import Bin, FeatureDrift
from dlrm_tf.fresh.psi import expected_noise, psi, psi_parts

_MOVED = 3  # bins that are named as those that moved most
_REST = ("other keys", "missing", "new or unknown keys")


def range_names(edges: np.ndarray) -> list[str]:
    """Names of the bins between ascending edges, of which there is one more."""
    texts = [f"{edge:.4g}" for edge in edges]
    if not texts:
        return ["any"]
    between = [f"{low} to {high}" for low, high in zip(texts, texts[1:])]
    return [f"below {texts[0]}", *between, f"above {texts[-1]}"]


def dense_drift(
    name: str, edges: np.ndarray, reference: np.ndarray, other: np.ndarray, missing_known: tuple[bool, bool]
) -> FeatureDrift:
    """Compares a dense feature.

    Args:
      name: of the feature.
      edges: between bins of log(x + 1).
      reference: rows of A in each bin, as `Counts.dense`.
      other: rows of B.
      missing_known: whether the counts of each side tell missing numbers from 0. Where one does not, both are one bin.
    """
    ranges = [f"above 0, {text}" for text in range_names(np.expm1(edges))]
    missing = [int(counts[0]) / int(counts.sum()) if known else None for counts, known in zip((reference, other), missing_known)]
    names = ["missing", "0 or below", *ranges]
    if not all(missing_known):
        names = ["0, below or missing", *ranges]
        reference, other = (np.append(counts[0] + counts[1], counts[2:]) for counts in (reference, other))
    index, noise, moved = _compared(reference, other, names.__getitem__)
    return FeatureDrift(name, "dense", index, noise, (missing[0], missing[1]), moved=moved)


def categorical_drift(
    name: str,
    keys: tuple[FeatureKeys, FeatureKeys],
    counts: tuple[np.ndarray, np.ndarray],
    ids: np.ndarray,
    *,
    top_keys: int,
) -> FeatureDrift:
    """Compares a categorical feature.

    Args:
      name: of the feature.
      keys: A's and B's.
      counts: how often each id occurs on each side, `[size + 1]`; the last are keys out of vocabulary.
      ids: A's id of each of B's keys, or -1.
      top_keys: how many of A's keys have bins of their own.
    """
    totals = [int(side.sum()) for side in counts]
    different = int(np.count_nonzero(counts[0][:-1])), int(np.count_nonzero(counts[1][:-1]))
    (reference, missing), (other, other_missing) = (_without(side, feature.missing_id) for side, feature in zip(counts, keys))
    known = ids >= 0
    # B's counts by A's ids; as floats they are exact.
    translated = np.bincount(ids[known], other[:-1][known], minlength=keys[0].size).astype(np.int64)
    unknown = int(other.sum() - translated.sum())
    unseen = reference[:-1] == 0
    new = unknown + int(translated[unseen].sum())
    translated[unseen] = 0
    top = np.flatnonzero(admit(reference[:-1], max_ids=top_keys))

    def histogram(side: np.ndarray, empty: int, rest: int) -> np.ndarray:
        return np.append(side[top], [side.sum() - side[top].sum(), empty, rest])

    def bin_name(number: int) -> str:
        if number >= len(top):
            return _REST[number - len(top)]
        return f"key {keys[0].key(int(top[number])).decode('utf-8', 'backslashreplace')}"

    histograms = histogram(reference[:-1], missing, int(reference[-1])), histogram(translated, other_missing, new)
    index, noise, moved = _compared(*histograms, bin_name)
    shares = missing / totals[0], other_missing / totals[1]
    return FeatureDrift(
        name, "categorical", index, noise, shares, new=new / totals[1], unknown=unknown / totals[1], keys=different, moved=moved
    )


def bins_of(reference: np.ndarray, other: np.ndarray, numbers: Sequence[int], name: Callable[[int], str]) -> tuple[Bin, ...]:
    """Some bins with their shares of both sides.

    Args:
      reference: counts of A, `[bins]`.
      other: counts of B.
      numbers: which bins.
      name: the name of a bin by its number.
    """
    total, other_total = int(reference.sum()), int(other.sum())
    return tuple(Bin(name(i), (int(reference[i]) / total, int(other[i]) / other_total)) for i in numbers)


def _compared(reference: np.ndarray, other: np.ndarray, name: Callable[[int], str]) -> tuple[float, float, tuple[Bin, ...]]:
    """The index, its noise, and the bins that moved."""
    parts = psi_parts(reference, other)
    largest = [int(i) for i in np.argsort(-parts, kind="stable")[:_MOVED] if parts[i] > 0]
    return psi(reference, other), expected_noise(reference, other), bins_of(reference, other, largest, name)


def _without(counts: np.ndarray, number: int) -> tuple[np.ndarray, int]:
    """Counts without those of an id, and how many these are; of id -1 there are none."""
    if number < 0:
        return counts, 0
    rest = counts.copy()
    rest[number] = 0
    return rest, int(counts[number])
