"""The estimate of distinct values: the formula by hand, and its bounds."""

import math

from hypothesis import given
from hypothesis import strategies as st

from dlrm_tf.data.guess.distinct import estimate_distinct


def test_by_hand():
    # 3 of 5 values occur once in 10 of 90 rows: 2 + 3 * sqrt(9), between 5 and 2 + 3 * 9.
    assert estimate_distinct([1, 1, 1, 2, 5], 10, 90) == (11, 5, 29)
    assert estimate_distinct([1, 9], 10, 10) == (2, 2, 2)
    assert estimate_distinct([], 10, 90) == (0, 0, 0)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 10**9))
def test_the_estimate_is_within_its_bounds_by_the_promised_factor(occurrences, factor):
    sampled = sum(occurrences) or 1
    estimate, least, most = estimate_distinct(occurrences, sampled, sampled * factor)
    assert least <= estimate <= most
    if least:
        assert max(estimate / least, most / estimate) <= math.sqrt(factor) * (1 + 1 / least)  # rounding
