"""Counts: how often each key and each range of numbers occurs on one side, in one pass over its rows."""

from collections.abc import Iterator, Sequence

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.fresh.sample import Sample
from dlrm_tf.fresh.side import Side
from dlrm_tf.progress import Progress


def quantile_edges(numbers: np.ndarray, bins: int) -> np.ndarray:
    """Edges that divide numbers into bins of about equal counts.

    Each edge is halfway between two neighbouring numbers, so that rounding in a number's last bits moves it to no other bin.

    Args:
      numbers: of one feature, `[n]`, no NaN.
      bins: how many, at most: equal numbers stay together.

    Returns:
      float64, ascending, up to `bins - 1` of them.
    """
    distinct, counts = np.unique(numbers, return_counts=True)
    if len(distinct) < 2:
        return np.empty(0)
    wanted, below = np.arange(1, bins) * len(numbers) / bins, np.cumsum(counts)[:-1]
    # Of the two edges around the wanted count the one that leaves a count nearer to it below.
    right = np.minimum(np.searchsorted(below, wanted), len(below) - 1)
    left = np.maximum(right - 1, 0)
    places = np.unique(np.where(wanted - below[left] <= below[right] - wanted, left, right))
    return (distinct[places].astype(np.float64) + distinct[places + 1]) / 2


class Counts:
    """What one pass over a side's rows counts.

    Memory: 8 bytes a key of the side's vocabulary, and the sample.

    Args:
      side: the rows.
      edges: of each dense feature the edges between bins of log(x + 1), above 0.
      sample_rows: rows of `sample`, see `Sample`.
      quiet: show no progress.

    Attributes:
      rows: how many there are.
      positives: sum of the labels that are known.
      labelled: how many labels are known.
      dense: of each dense feature int64 `[2 + bins]`: missing, 0 or below, and each range above 0. Missing ones count as 0
        where it is not known which are.
      keys: of each categorical feature int64 `[size + 1]`, by id; the last are keys out of vocabulary.
      sample: some of the rows, a `Sample`.
    """

    def __init__(self, side: Side, edges: Sequence[np.ndarray], *, sample_rows: int, quiet: bool):
        self.sample = Sample(sample_rows)
        self.rows, self.positives, self.labelled = 0, 0.0, 0
        self.dense = [np.zeros(3 + len(part), np.int64) for part in edges]
        self.keys = [np.zeros(size + 1, np.int64) for size in side.vocabulary.sizes]
        with Progress(f"drift: {side.name}", side.total, "rows", quiet=quiet) as progress:
            for rows in side.batches():
                self.rows += len(rows.label)
                known = ~np.isnan(rows.label)
                self.labelled += int(known.sum())
                self.positives += float(rows.label[known].sum(dtype=np.float64))
                for count, numbers, part in zip(self.dense, rows.dense.T, edges):
                    count += _dense_counts(numbers, part)
                for count, ids in zip(self.keys, known_ids(rows.ids, side)):
                    _add_ids(count, ids[ids != UNUSED_PLACE])
                self.sample.add(rows)
                progress.update(len(rows.label))
        if side.missing is not None:
            for count, missing in zip(self.dense, side.missing):
                moved = min(int(missing), int(count[1]))  # never below 0, whatever a manifest says
                count[:2] += moved, -moved


def known_ids(ids: np.ndarray, side: Side) -> Iterator[np.ndarray]:
    """The ids of each feature, int32 `[n, places]`, with its size in place of what is no id; -1 stays in bags, an unused place.

    Args:
      ids: int32 `[n, id_columns]`, whatever a client sent.
      side: whose ids they are.
    """
    for name, size, places in zip(side.spec.categorical_names, side.vocabulary.sizes, side.spec.id_ranges):
        least = UNUSED_PLACE if name in side.spec.bags else 0
        given = ids[:, places]
        yield np.where((given >= least) & (given < size), given, np.int32(size))


def _dense_counts(numbers: np.ndarray, edges: np.ndarray) -> np.ndarray:
    missing = np.isnan(numbers)
    positive = numbers[numbers > 0]
    ranges = np.bincount(np.searchsorted(edges, positive, side="right"), minlength=len(edges) + 1)
    return np.concatenate(([missing.sum(), len(numbers) - missing.sum() - len(positive)], ranges))


def _add_ids(count: np.ndarray, ids: np.ndarray) -> None:
    """Counts ids into `count`."""
    if len(count) <= 4 * len(ids):
        count += np.bincount(ids, minlength=len(count))
    else:  # a pass over all ids of the vocabulary would take longer than sorting those that are there
        some, times = np.unique(ids, return_counts=True)
        count[some] += times
