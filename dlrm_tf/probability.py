"""Click probabilities in NumPy: from logits and back, and how well they rank."""

import math

import numpy as np


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities `1 / (1 + exp(-x))`, of the shape and float type of `logits`; no warning however large they are."""
    # Where exp overflows, the probability is 0 to the last bit.
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits))


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Logits `log(p / (1 - p))` of probabilities in (0, 1), of their shape and float type."""
    return np.log(probabilities) - np.log1p(-probabilities)


def constant_logloss(rate: float, label_rate: float) -> float:
    """Logloss of one and the same prediction for all rows; with `rate == label_rate`, the entropy of the labels.

    Args:
      rate: the prediction, in [0, 1].
      label_rate: mean label of the rows.

    Returns:
      Mean cross-entropy in nats; infinite when a label is impossible by the prediction.
    """
    total = 0.0
    for share, probability in ((label_rate, rate), (1.0 - label_rate, 1.0 - rate)):
        if share > 0:
            total -= share * math.log(probability) if probability > 0 else -math.inf
    return total


def histogram_auc(counts: np.ndarray) -> float:
    """Area under the ROC curve from a histogram of the scores.

    Args:
      counts: int `[2, bins]`, rows of label 0 and of label 1 in each bin of ascending scores.

    Returns:
      AUC in [0, 1], rows in one bin counted as ties (half); NaN when only one label occurs.
    """
    negatives, positives = counts.astype(np.float64)
    below = np.cumsum(negatives) - negatives
    pairs = negatives.sum() * positives.sum()
    return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else math.nan
