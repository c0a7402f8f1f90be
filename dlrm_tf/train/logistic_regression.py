"""`LogisticRegression`: hashed ids and log dense features, in NumPy; what a DLRM must beat to be worth its table."""

from collections.abc import Sequence

import numpy as np

from dlrm_tf.probability import sigmoid

# 4 MB of weights, and as much of accumulators, however large the vocabulary.
BUCKETS = 1 << 20
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, The Art of Computer Programming 3, section 6.4)


class LogisticRegression:
    """p = sigmoid(bias + sum of the ids' weights + dense . its weights), trained by Adagrad on the logloss of batches.

    An id's weight is that of its bucket: its number among all features' ids, hashed where there are more ids than buckets
    (Weinberger et al. 2009). Adagrad (Duchi et al. 2011) with accumulators from 1: `a += g^2; w -= rate g / sqrt(a)`, where g is
    the sum of the rows' gradients, not their mean, so that a weight moves by the rows that use it, whatever the batch.

    Args:
      sizes: ids a categorical feature, without out of vocabulary, which is the id after the last.
      dense_dim: number of dense features.
      bias: the bias to start from: the logit of the click rate.
      rate: Adagrad's learning rate.
      buckets: weights of ids, a power of two.

    Attributes:
      weights: float64, one a bucket, then one a dense feature, then the bias.
    """

    def __init__(
        self, sizes: Sequence[int], dense_dim: int, *, bias: float = 0.0, rate: float = 0.1, buckets: int = BUCKETS
    ) -> None:
        numbers = np.cumsum([0, *(size + 1 for size in sizes)])
        self._offsets, ids = numbers[:-1], int(numbers[-1])
        self._hashed = ids > buckets
        self._buckets, self._shift = min(ids, buckets), np.uint64(65 - buckets.bit_length())
        self._rate = rate
        self.weights = np.zeros(self._buckets + dense_dim + 1)
        self.weights[-1] = bias
        self._accumulators = np.ones_like(self.weights)

    def buckets(self, categorical: np.ndarray) -> np.ndarray:
        """Bucket of each id.

        Args:
          categorical: int32 `[n, F]`.

        Returns:
          int64 `[n, F]`.
        """
        numbers = categorical.astype(np.int64) + self._offsets
        if not self._hashed:
            return numbers
        return ((numbers.astype(np.uint64) * _MULTIPLIER) >> self._shift).astype(np.int64)

    def logits(self, dense: np.ndarray, categorical: np.ndarray) -> np.ndarray:
        """Logits float64 `[n]`.

        Args:
          dense: float32 `[n, d]`, as a model takes them.
          categorical: int32 `[n, F]`.
        """
        of_dense = dense.astype(np.float64) @ self.weights[self._buckets : -1]
        return self.weights[self.buckets(categorical)].sum(axis=1) + of_dense + self.weights[-1]

    def step(self, dense: np.ndarray, categorical: np.ndarray, label: np.ndarray) -> None:
        """One step of Adagrad on the rows of a batch.

        Args:
          dense: float32 `[n, d]`, as a model takes them.
          categorical: int32 `[n, F]`.
          label: `[n]`, 0 or 1.
        """
        error = sigmoid(self.logits(dense, categorical)) - label
        used, place = np.unique(self.buckets(categorical), return_inverse=True)
        of_ids = np.bincount(place.reshape(-1), weights=np.repeat(error, categorical.shape[1]))
        where = np.concatenate([used, np.arange(self._buckets, self.weights.size)])
        gradient = np.concatenate([of_ids, error @ dense.astype(np.float64), [error.sum()]])
        self._accumulators[where] += gradient**2
        self.weights[where] -= self._rate * gradient / np.sqrt(self._accumulators[where])
