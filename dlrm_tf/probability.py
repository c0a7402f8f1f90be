"""Formulas about probabilities that several rooms use."""

import math

import numpy as np


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), any shape, without overflow and exact for small probabilities."""
    small = np.exp(-np.abs(logits))  # of a negative number only
    probability: np.ndarray = np.where(np.asarray(logits) >= 0, 1.0, small) / (1.0 + small)
    return probability


def histogram_auc(counts: np.ndarray) -> float:
    """Area under the ROC curve from a histogram of scores.

    Args:
      counts: `[2, cells]`, negatives and positives by score; scores in one cell count as tied, half.

    Returns:
      AUC in [0, 1]; NaN when only one class is there.
    """
    negatives, positives = counts.astype(np.float64)
    below = np.cumsum(negatives) - negatives
    pairs = negatives.sum() * positives.sum()
    return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else math.nan
