"""`LogisticRegression`: hashed ids and log dense features, in NumPy; what a DLRM must beat to be worth its table."""

from typing import Optional

import numpy as np

from dlrm_tf.config import UNUSED_PLACE, DLRMConfig
from dlrm_tf.probability import sigmoid

# 4 MB of weights, and as much of accumulators, however large the vocabulary.
BUCKETS = 1 << 20
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, The Art of Computer Programming 3, section 6.4)


class LogisticRegression:
    """p = sigmoid(bias + sum of the ids' weights + dense . its weights), trained by Adagrad on the logloss of batches.

    Of several ids of one feature, each weight counts for its share (`shares`), by the model's own pooling.

    An id's weight is that of its bucket: its number among all features' ids, hashed where there are more ids than buckets
    (Weinberger et al. 2009). Adagrad (Duchi et al. 2011) with accumulators from 1: `a += g^2; w -= rate g / sqrt(a)`, where g is
    the sum of the rows' gradients, not their mean, so that a weight moves by the rows that use it, whatever the batch.

    Args:
      config: the inputs: those of the model to beat. Its layers do not matter.
      bias: the bias to start from: the logit of the click rate.
      rate: Adagrad's learning rate.
      buckets: weights of ids, a power of two.

    Attributes:
      weights: float64, one a bucket, then one a dense feature, then the bias.
    """

    def __init__(self, config: DLRMConfig, *, bias: float = 0.0, rate: float = 0.1, buckets: int = BUCKETS) -> None:
        self._config, ids = config, config.table_rows
        self._offsets = np.array(config.block_offsets, np.int64)[np.array(config.column_features)]
        self._hashed = ids > buckets
        self._buckets, self._shift = min(ids, buckets), np.uint64(65 - buckets.bit_length())
        self._rate = rate
        self.weights = np.zeros(self._buckets + config.dense_dim + 1)
        self.weights[-1] = bias
        self._accumulators = np.ones_like(self.weights)

    def buckets(self, categorical: np.ndarray) -> np.ndarray:
        """Bucket of each id.

        Args:
          categorical: int32 `[n, id_columns]`.

        Returns:
          int64 `[n, id_columns]`; any bucket for a place that is not used, whose share is 0.
        """
        numbers = np.maximum(categorical, 0).astype(np.int64) + self._offsets
        if not self._hashed:
            return numbers
        return ((numbers.astype(np.uint64) * _MULTIPLIER) >> self._shift).astype(np.int64)

    def shares(self, categorical: np.ndarray, key_weights: Optional[np.ndarray] = None) -> np.ndarray:
        """What each id's weight counts for: 1 or the key's weight; with mean pooling that over the bag's sum, 0 where that is 0.

        Args:
          categorical: int32 `[n, id_columns]`, -1 in places that are not used, which count for 0.
          key_weights: float32 `[n, id_columns]` where keys have weights.

        Returns:
          float64 `[n, id_columns]`.
        """
        used = categorical != UNUSED_PLACE
        shares = used.astype(np.float64) if key_weights is None else np.where(used, key_weights, 0.0).astype(np.float64)
        for columns, pooling in zip(self._config.id_ranges, self._config.poolings):
            if pooling == "mean":
                total = shares[:, columns].sum(axis=1, keepdims=True)
                shares[:, columns] = np.divide(shares[:, columns], total, out=np.zeros_like(shares[:, columns]), where=total != 0)
        return shares

    def logits(self, dense: np.ndarray, categorical: np.ndarray, key_weights: Optional[np.ndarray] = None) -> np.ndarray:
        """Logits float64 `[n]`.

        Args:
          dense: float32 `[n, d]`, as a model takes them.
          categorical: int32 `[n, id_columns]`.
          key_weights: float32 `[n, id_columns]` where keys have weights.
        """
        return self._logits(dense, self.buckets(categorical), self.shares(categorical, key_weights))

    def _logits(self, dense: np.ndarray, buckets: np.ndarray, shares: np.ndarray) -> np.ndarray:
        of_dense = dense.astype(np.float64) @ self.weights[self._buckets : -1]
        return (self.weights[buckets] * shares).sum(axis=1) + of_dense + self.weights[-1]

    def step(
        self, dense: np.ndarray, categorical: np.ndarray, label: np.ndarray, key_weights: Optional[np.ndarray] = None
    ) -> None:
        """One step of Adagrad on the rows of a batch.

        Args:
          dense: float32 `[n, d]`, as a model takes them.
          categorical: int32 `[n, id_columns]`.
          label: `[n]`, 0 or 1.
          key_weights: float32 `[n, id_columns]` where keys have weights.
        """
        buckets, shares = self.buckets(categorical), self.shares(categorical, key_weights)
        error = sigmoid(self._logits(dense, buckets, shares)) - label
        used, place = np.unique(buckets, return_inverse=True)
        of_ids = np.bincount(place.reshape(-1), weights=(error[:, np.newaxis] * shares).reshape(-1))
        where = np.concatenate([used, np.arange(self._buckets, self.weights.size)])
        gradient = np.concatenate([of_ids, error @ dense.astype(np.float64), [error.sum()]])
        self._accumulators[where] += gradient**2
        self.weights[where] -= self._rate * gradient / np.sqrt(self._accumulators[where])
