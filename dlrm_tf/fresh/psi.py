"""The population stability index of two histograms.

Siddiqi, Credit Risk Scorecards (2006), on scorecard reporting. The same number is the divergence J of Jeffreys (1946) and of
Kullback and Leibler (1951).
"""

import numpy as np

SOME, LARGE = 0.1, 0.25
"""The usual rule of thumb: below 0.1 little has changed, above 0.25 much has."""

# The smallest share that counts: a bin that is empty on one side adds a finite number, the same for any number of rows.
_FLOOR = 1e-4


def psi(reference: np.ndarray, other: np.ndarray) -> float:
    """`sum((q - p) * log(q / p))` over the bins; `p` and `q` are their shares of the two sides, at least 0.0001.

    Args:
      reference: rows in each bin, `[bins]`, not all 0.
      other: the same of the rows that are compared.

    Returns:
      At least 0, in nats; 0 where the shares are the same.
    """
    return float(psi_parts(reference, other).sum())


def psi_parts(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What each bin adds to `psi`, at least 0, float64 `[bins]`."""
    p, q = (np.maximum(counts / counts.sum(), _FLOOR) for counts in (reference, other))
    parts: np.ndarray = (q - p) * np.log(q / p)
    return parts


def expected_noise(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean of `psi` where both are samples of the same rows: `(bins - 1) (1 / rows + 1 / other rows)`.

    The index divided by the sum in brackets then has about a chi-square distribution (Yurdakul, Statistical Properties of
    Population Stability Index, 2018).

    Args:
      reference: rows in each bin, `[bins]`, not all 0.
      other: the same of the rows that are compared.

    Returns:
      The mean; bins that are empty on both sides do not count.
    """
    bins = np.count_nonzero((reference > 0) | (other > 0))
    return float((bins - 1) * (1 / int(reference.sum()) + 1 / int(other.sum())))
