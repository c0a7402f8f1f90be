"""The population stability index by hand, and its properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_tf.fresh.counts import quantile_edges
from dlrm_tf.fresh.psi import expected_noise, psi, psi_parts

histogram = st.lists(st.integers(0, 1000), min_size=2, max_size=12).filter(any)


def test_by_hand():
    """Shares 0.5, 0.3, 0.2 against 0.4, 0.2, 0.4: -0.1 ln 0.8 - 0.1 ln (2/3) + 0.2 ln 2 = 0.022314 + 0.040547 + 0.138629."""
    found = psi_parts(np.array([50, 30, 20]), np.array([400, 200, 400]))
    assert found == pytest.approx([0.02231436, 0.04054651, 0.13862944], abs=1e-8)
    assert psi(np.array([50, 30, 20]), np.array([400, 200, 400])) == pytest.approx(0.20149030, abs=1e-8)


def test_an_empty_bin_counts_as_a_share_of_one_in_ten_thousand():
    wanted = 0.0999 * math.log(1000) + (0.9 - 1) * math.log(0.9)
    assert psi(np.array([500, 0]), np.array([900, 100])) == pytest.approx(wanted, rel=1e-12)


@given(histogram, st.integers(1, 50), st.data())
def test_properties(counts, times, data):
    reference = np.array(counts)
    assert psi(reference, reference * times) == pytest.approx(0, abs=1e-12)
    other = np.array(data.draw(st.lists(st.integers(0, 1000), min_size=len(counts), max_size=len(counts)).filter(any)))
    assert psi(reference, other) >= 0
    assert psi(reference, other) == pytest.approx(psi(other, reference))


def test_expected_noise_is_the_mean_of_samples():
    """2000 pairs of samples of one distribution; the mean of 2000 numbers of relative deviation sqrt(2 / 9) is right to 1 %."""
    rng = np.random.default_rng(1)
    shares = np.arange(1, 11) / 55
    pairs = [(rng.multinomial(3000, shares), rng.multinomial(5000, shares)) for _ in range(2000)]
    mean = np.mean([psi(*pair) for pair in pairs])
    assert expected_noise(*pairs[0]) == pytest.approx(9 * (1 / 3000 + 1 / 5000))
    assert mean == pytest.approx(expected_noise(*pairs[0]), rel=0.05)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 12))
def test_quantile_edges(numbers, bins):
    numbers = np.array(numbers, np.float32)
    edges = quantile_edges(numbers, bins)
    assert (np.diff(edges) > 0).all()
    assert len(edges) <= bins - 1
    counts = np.bincount(np.searchsorted(edges, numbers), minlength=len(edges) + 1)
    assert (counts > 0).all()
    # Rounding moves no number to another bin.
    nudged = np.nextafter(numbers, np.float32(np.inf))
    assert np.bincount(np.searchsorted(edges, nudged), minlength=len(edges) + 1).tolist() == counts.tolist()
    if len(set(numbers.tolist())) == len(numbers) >= bins:
        assert counts.max() - counts.min() <= 1


def test_quantile_edges_of_equal_numbers():
    assert quantile_edges(np.array([3.0] * 5, np.float32), 10).size == 0
    assert quantile_edges(np.empty(0, np.float32), 10).size == 0
    # Half of the numbers are 1: one bin for them, whatever the quantiles say.
    assert quantile_edges(np.array([1] * 50 + list(range(2, 52)), np.float32), 4).tolist() == [1.5, 26.5]
