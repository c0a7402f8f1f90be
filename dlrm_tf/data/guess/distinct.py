"""How many distinct values a whole log has, from a sample of its rows."""

from collections.abc import Iterable
from typing import NamedTuple


class Distinct(NamedTuple):
    """An estimate of the distinct values of a column.

    Attributes:
      estimate: the estimate.
      least: those of the sample.
      most: if every value that occurs once in the sample stood for `rows / sampled` different ones.
    """

    estimate: int
    least: int
    most: int


def estimate_distinct(occurrences: Iterable[int], sampled: int, rows: int) -> Distinct:
    """GEE, the Guaranteed-Error Estimator (Charikar et al. 2000, "Towards estimation error guarantees for distinct values").

    A value that occurs at least twice in the sample is counted once: it is frequent, and the sample has most of its kind. One
    that occurs once stands for between 1 and rows / sampled values; GEE takes their geometric mean:

        estimate = sqrt(rows / sampled) f1 + d - f1

    with d distinct values in the sample, of which f1 occur once. Its expected ratio error on a uniform sample is
    O(sqrt(rows / sampled)), which no estimator can better; `least` and `most` hold for nearly every sample.

    Args:
      occurrences: how often each value occurs in the sample, each at least 1.
      sampled: rows of the sample.
      rows: rows of the whole log.
    """
    times = list(occurrences)
    once, distinct = sum(n == 1 for n in times), len(times)
    ratio = max(rows / sampled, 1.0) if sampled else 1.0
    most = round(distinct - once + once * ratio)
    return Distinct(round(distinct - once + once * ratio**0.5), distinct, most)
