"""World 1 of `synth`: the categories of frequent ranks have effects, rare ones have none, and days are alike.

A row's logit is a bias, smooth functions of some dense features, effects of the frequent categories of some categorical features,
and products of hidden factors of two pairs of them. All of it is a function of what is written to the file, so a model can learn
all of it; rare categories have no effect, so some 100,000 rows are enough to learn it.
"""

from collections.abc import Sequence

import numpy as np

from dlrm_tf.data.row_text import LARGEST_NUMBER, TAB, key_fields, number_fields
from dlrm_tf.data.world import BLOCK, CATEGORICAL, DENSE, POSITIVE_RATE, Block, bias_for_rate, scramble, zipf_ranks
from dlrm_tf.probability import sigmoid

_FREQUENT = 8  # categories of a feature that have an effect
_TELLING = (0, 2, 5, 8, 11, 13, 16, 19, 21, 24)  # positions of the categorical features that have an effect
_PAIRS = ((5, 16), (8, 19))  # positions of categorical features (of few categories) that act together


class WorldOne:
    """Rows one block after another, from a seed.

    Args:
      seed: >= 0.
      cardinalities: number of categories of each feature.
    """

    def __init__(self, seed: int, cardinalities: Sequence[int]):
        rng = self._rng = np.random.default_rng(seed)
        self.mean = rng.uniform(0.5, 4.5, DENSE)  # of the logarithm of a dense feature
        self.spread = rng.uniform(0.8, 1.5, DENSE)
        self.dense_missing = np.where(rng.random(DENSE) < 0.6, rng.uniform(0.02, 0.45, DENSE), 0.0)
        self.negative = np.zeros(DENSE)
        self.negative[1] = 0.1  # Criteo's second integer feature goes down to -3
        self.slope = rng.normal(0, 0.3, DENSE) * (np.arange(DENSE) % 2 == 0)
        self.curve = rng.normal(0, 0.08, DENSE) * (np.arange(DENSE) % 4 == 0)
        self.missing = np.where(rng.random(CATEGORICAL) < 0.5, rng.uniform(0.02, 0.4, CATEGORICAL), 0.0)
        # Column 0 is the effect of '', column r + 1 that of rank r; the last one, of all rare categories, is 0.
        self.effect = np.zeros((CATEGORICAL, _FREQUENT + 2), np.float32)
        self.effect[_TELLING, :-1] = rng.normal(0, 0.4, (len(_TELLING), _FREQUENT + 1))
        self.factor = np.zeros((len(_PAIRS), 2, _FREQUENT + 2), np.float32)
        self.factor[:, :, :-1] = rng.normal(0, 0.5, (len(_PAIRS), 2, _FREQUENT + 1))
        self.cardinalities = np.array(cardinalities, np.float64)
        # Odd multipliers and offsets: rank -> key is a bijection of 32-bit numbers, another one for each feature.
        self.multiplier = rng.integers(0, 1 << 31, CATEGORICAL, np.uint32) * np.uint32(2) + np.uint32(1)
        self.offset = rng.integers(0, 1 << 32, CATEGORICAL, np.uint32)
        self.bias = 0.0
        self.bias = bias_for_rate(self._features(BLOCK)[0], POSITIVE_RATE)

    def draw(self, rows: int) -> Block:
        """The next `rows` rows."""
        logit, numbers, absent, rank, blank = self._features(rows)
        probability = sigmoid(logit)
        label = self._rng.random(rows, np.float32) < probability
        keys = scramble(rank, self.multiplier, self.offset)
        return Block(probability, label, number_fields(numbers, absent), key_fields(keys, ~blank, TAB))

    def _features(self, rows: int) -> tuple[np.ndarray, ...]:
        """`(logit, dense numbers, which of them are missing, rank of each category, which of them are missing)`."""
        rng, logit = self._rng, np.full(rows, self.bias, np.float32)
        numbers = np.floor(np.exp(rng.standard_normal((rows, DENSE), np.float32) * self.spread + self.mean))
        numbers = np.minimum(numbers, LARGEST_NUMBER).astype(np.int32)
        numbers = np.where(
            rng.random((rows, DENSE), np.float32) < self.negative, -rng.integers(1, 4, (rows, DENSE), np.int32), numbers
        )
        absent = rng.random((rows, DENSE), np.float32) < self.dense_missing
        # In float64, unlike `log_dense`: what a seed gives must stay the same bytes.
        seen = np.log1p(np.where(absent, 0, np.maximum(numbers, 0))) - self.mean
        logit += (seen * self.slope + (np.square(seen) - 1) * self.curve).sum(1).astype(np.float32)

        rank = zipf_ranks(rng.random((rows, CATEGORICAL)), self.cardinalities).astype(np.uint32)
        rank = np.minimum(rank, (self.cardinalities - 1).astype(np.uint32))
        blank = rng.random((rows, CATEGORICAL), np.float32) < self.missing
        column = np.where(blank, 0, np.minimum(rank, _FREQUENT) + 1)
        logit += self.effect[np.arange(CATEGORICAL), column].sum(1)
        for (left, right), factor in zip(_PAIRS, self.factor):
            logit += factor[0][column[:, left]] * factor[1][column[:, right]]
        return logit, numbers, absent, rank, blank
