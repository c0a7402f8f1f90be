"""What the worlds of `synth` share: the shape of Criteo's rows, frequencies of categories, keys, the rate of positives."""

from typing import NamedTuple

import numpy as np

from dlrm_tf.data.spec import CRITEO
from dlrm_tf.probability import sigmoid

DENSE, CATEGORICAL = len(CRITEO.dense_columns), len(CRITEO.categorical_columns)
BLOCK = 65536  # rows made at once; part of the format of the random stream, so of what a seed gives
POSITIVE_RATE = 0.256  # Criteo Kaggle's
# The category of rank r has a frequency of about 1 / (r + 2)^exponent. Features of a million categories and more have the smaller
# exponent: as in Criteo's log, 45.8 million rows then show most of the 33.8 million categories (a long tail seen once).
_EXPONENT, _EXPONENT_OF_MILLIONS = 1.1, 0.85


class Block(NamedTuple):
    """Rows that a world has made.

    Attributes:
      probability: float `[rows]`, of label 1.
      label: bool `[rows]`, drawn from it.
      numbers: dense features as `row_text.number_fields` gives them.
      keys: categorical features as `row_text.key_fields` gives them.
    """

    probability: np.ndarray
    label: np.ndarray
    numbers: np.ndarray
    keys: np.ndarray


def zipf_ranks(uniform: np.ndarray, cardinalities: np.ndarray) -> np.ndarray:
    """Ranks by the inverse of the continuous distribution function on [2, cardinality + 2).

    Args:
      uniform: float64 in [0, 1], `[..., features]`.
      cardinalities: float64 `[features]`.

    Returns:
      float64 in [0, cardinality], of the shape of `uniform`; the rank is its whole part.
    """
    power = 1 - np.where(cardinalities < 1e6, _EXPONENT, _EXPONENT_OF_MILLIONS)
    low, high = 2.0**power, (cardinalities + 2) ** power
    ranks: np.ndarray = np.power(low + uniform * (high - low), 1 / power) - 2
    return ranks


def scramble(number: np.ndarray, multiplier: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Keys that look like hashes: with an odd multiplier each step is a bijection of uint32."""
    key: np.ndarray = number * multiplier + offset
    key ^= key >> np.uint32(16)
    key *= np.uint32(0x45D9F3B)
    key ^= key >> np.uint32(16)
    return key


def bias_for_rate(logit: np.ndarray, rate: float) -> float:
    """What to add to the logits for a mean probability of `rate`, by Newton's method."""
    bias = 0.0
    for _ in range(30):
        probability = sigmoid(logit + bias)
        bias += float((rate - probability.mean()) / (probability * (1 - probability)).mean())
    return bias
