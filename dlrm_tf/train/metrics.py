"""Quality of predicted click probabilities, in float64 NumPy: accuracy, AUC, logloss, normalized entropy, calibration."""

import math
from typing import Union

import numpy as np

from dlrm_tf.errors import DataError
from dlrm_tf.probability import constant_logloss, histogram_auc, sigmoid

# Cells of the histogram of probabilities. With 200, Keras's default, the AUC of small click rates is wrong in the second digit.
AUC_THRESHOLDS = 8000
CALIBRATION_BINS = 10


class NonFiniteLogits(DataError):
    """A model's logits are NaN or infinite: there is nothing to measure."""


def exact_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney U), tied scores counted half.

    Args:
      labels: `[n]`, 0 or 1.
      scores: `[n]`, any monotone score.

    Returns:
      AUC in [0, 1]; NaN when all labels are equal.
    """
    positive = np.asarray(labels) > 0.5
    positives = int(positive.sum())
    negatives = positive.size - positives
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_rank = last_rank - (counts - 1) / 2.0
    rank_sum = mean_rank[inverse.reshape(-1)[positive]].sum()
    return float((rank_sum - positives * (positives + 1) / 2.0) / (positives * float(negatives)))


class ClickMetrics:
    """Collects batches of labels and logits and computes all metrics of them.

    Args:
      exact: keep every score (12 bytes per row), for an exact AUC, the ROC curve and calibration bins. Otherwise memory is
        constant: the AUC comes from a histogram of `AUC_THRESHOLDS` cells, right to four digits, and there are no curves.

    Attributes:
      rows: rows added so far.

    Example:
      metrics = ClickMetrics()
      metrics.update([0, 1], [-1.0, 2.0])
      metrics.result()["auc"]      # 1.0
    """

    def __init__(self, *, exact: bool = True):
        self._exact = exact
        self._kept: list[tuple[np.ndarray, ...]] = []
        self._histogram = np.zeros((2, AUC_THRESHOLDS), np.int64)
        self.rows = self._not_finite = 0
        self._correct = self._positives = 0
        self._loss_sum = self._probability_sum = 0.0

    def update(self, labels: Union[np.ndarray, list], logits: Union[np.ndarray, list]) -> None:
        """Adds rows.

        Args:
          labels: `[n]` or `[n, 1]`, 0 or 1.
          logits: `[n]` or `[n, 1]`.

        Raises:
          ValueError: not as many labels as logits.
        """
        labels = np.asarray(labels, np.float64).reshape(-1)
        logits = np.asarray(logits, np.float64).reshape(-1)
        if labels.shape != logits.shape:
            raise ValueError(f"labels and logits must have as many rows. Received {labels.size} labels, {logits.size} logits")
        self.rows += labels.size
        finite = np.isfinite(logits)
        self._not_finite += int(finite.size - finite.sum())
        if self._not_finite:  # `result` will raise, with the number of such rows
            return
        probability = sigmoid(logits)
        self._correct += int(((logits > 0) == (labels > 0.5)).sum())
        self._positives += int((labels > 0.5).sum())
        # log(1 + e^x) - y x, the cross-entropy of a logit: exact also where the probability is rounded to 0 or 1.
        self._loss_sum += float((np.logaddexp(0.0, logits) - labels * logits).sum())
        self._probability_sum += float(probability.sum())
        if self._exact:
            self._kept.append((labels.astype(np.float32), logits))
        else:
            cell = np.minimum((probability * AUC_THRESHOLDS).astype(np.int64), AUC_THRESHOLDS - 1)
            for value in (0, 1):
                self._histogram[value] += np.bincount(cell[(labels > 0.5) == value], minlength=AUC_THRESHOLDS)

    def result(self) -> dict[str, Union[int, float, None]]:
        """The metrics of all rows so far.

        Returns:
          `rows`; `accuracy` at probability 0.5; `auc`; `logloss`, mean cross-entropy in nats; `normalized_entropy`, logloss
          divided by the entropy of the mean click rate (He et al. 2014, section 3.1: below 1 beats predicting that rate);
          `calibration`, mean prediction divided by mean label (1 is right); `mean_label`; `mean_prediction`.
          A metric that is undefined for these rows (the AUC when all labels are equal) is None.

        Raises:
          NonFiniteLogits: a logit is NaN or infinite.
          ValueError: no rows.
        """
        self._check()
        if not self.rows:
            raise ValueError("there are no rows to measure")
        rate = self._positives / self.rows
        logloss = self._loss_sum / self.rows
        entropy = (
            constant_logloss(rate, rate) or math.nan
        )  # without a click, or with nothing else, there is nothing to normalize by
        values = {
            "rows": self.rows,
            "accuracy": self._correct / self.rows,
            "auc": exact_auc(*self.scores()) if self._exact else histogram_auc(self._histogram),
            "logloss": logloss,
            "normalized_entropy": logloss / entropy,
            "calibration": self._probability_sum / self._positives if self._positives else math.nan,
            "mean_label": rate,
            "mean_prediction": self._probability_sum / self.rows,
        }
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """All `(labels float32 [n], logits float64 [n])`, in the order they were added.

        Raises:
          NonFiniteLogits: a logit is NaN or infinite.
          ValueError: without `exact`.
        """
        self._check()
        if not self._exact:
            raise ValueError("scores are kept only with exact=True")
        labels, logits = (np.concatenate(part) for part in zip(*self._kept))
        self._kept = [(labels, logits)]
        return labels, logits

    def calibration_bins(self, bins: int = CALIBRATION_BINS) -> list[dict[str, Union[int, float]]]:
        """Rows sorted by prediction and divided into bins of equal counts.

        Args:
          bins: number of bins.

        Returns:
          One dict per bin: `rows`, `mean_prediction`, `mean_label`.

        Raises:
          NonFiniteLogits: a logit is NaN or infinite.
          ValueError: without `exact`.
        """
        labels, logits = self.scores()
        order = np.argsort(logits, kind="stable")
        parts = [part for part in np.array_split(order, bins) if part.size]
        return [
            {
                "rows": int(part.size),
                "mean_prediction": float(sigmoid(logits[part]).mean()),
                "mean_label": float(labels[part].mean(dtype=np.float64)),
            }
            for part in parts
        ]

    def _check(self) -> None:
        if self._not_finite:
            raise NonFiniteLogits(
                f"{self._not_finite:,} of {self.rows:,} rows have a NaN or infinite logit: look for non-finite values in the "
                "model's weights and in the data's dense features"
            )
