"""Tables behind the rows of `synth`'s world 2 on one day: of dense numbers, of categories, of the courses of keys' effects.

Integers that come from rounded float64, looked up by random bits or by hashes of keys.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from dlrm_tf.data.row_text import LARGEST_NUMBER, number_fields
from dlrm_tf.data.world import CATEGORICAL, DENSE, zipf_ranks

UNIT = 1 << 12  # 1.0 of effects, strengths and hidden vectors
LOGIT_UNIT = UNIT**2  # 1.0 of logits
VECTOR = 2  # dimensions of a hidden vector
IMMORTAL = 16  # slots of a feature, '' and the most frequent, whose key never dies
KNOT_SHIFT, FRACTION = 20, 16  # 32 random bits: which knot, and where behind it; bits of a slot's number below the point
# Variances of the effects, by groups of features: of the most categories, fewer, the fewest. Inside a group the seed deals them.
# Few large ones, as n rows teach about v n / (v n + 6) of effects of variance v: no model learns small effects of rare keys.
_VARIANCES = (
    (0.02, 0.005, 0.002, 0.002, 0.002),
    (0.9, 0.15, 0.005, 0.002),
    (0.2, 0.1, 0.06, 0.03, 0.01, 0.005, 0.002, 0.002, 0.002),
    (0.1, 0.06, 0.04, 0.02, 0.005, 0.002, 0.002, 0.002),
)
# Features that act together, by their place in the order of categories: the vectors of these times the vectors of those.
_SIDES = ((15, 18), (17, 19))
_VECTOR_SPREAD = 0.38
# An effect is a cos(w day) + b sin(w day), w of a Cauchy distribution: those of two days d apart correlate by exp(-_DRIFT d).
_DRIFT = 0.02
_LIVES = (10, 20, 40, 80, 160)  # days a key may live
# The logit of the rate of positives swings by this, up or down first as the seed says.
_SWING, _SWING_DAYS = 0.3, 23
_SIZE = 1 << 16  # of what is looked up by 16 bits


def random_bits(bits: np.random.PCG64, dtype: type, *shape: int) -> np.ndarray:
    """Random uint16 or uint32 of `shape`."""
    count = int(np.prod(shape))
    per_word = 8 // np.dtype(dtype).itemsize
    return bits.random_raw(-(-count // per_word)).view(dtype)[:count].reshape(shape)


def _uniform(bits: np.random.PCG64, *shape: int) -> np.ndarray:
    """float64 in (0, 1)."""
    return (random_bits(bits, np.uint32, *shape) + 0.5) / 2.0**32


def _normal_quantiles() -> np.ndarray:
    """The normal distribution as 65,536 equally likely numbers."""
    upper = np.array([NormalDist().inv_cdf(0.5 + (i + 0.5) / _SIZE) for i in range(_SIZE // 2)])
    return np.concatenate([-upper[::-1], upper])


def _generations(bits: np.random.PCG64, day: int) -> tuple[np.ndarray, np.ndarray]:
    """`(how many keys have died, whether the last one did the day before)` for 65,536 ways to live and die."""
    lives = np.array(_LIVES, np.uint32)[random_bits(bits, np.uint16, _SIZE) % len(_LIVES)]
    age = np.uint32(day) + random_bits(bits, np.uint32, _SIZE) % lives
    return age // lives, age % lives == 0


class DayTables:
    """What world 2 is on one day.

    Args:
      seed: of the world.
      day: >= 0.
      cardinalities: number of categories of each feature that live at a time.
      hot_sizes: most keys of each feature in a row.

    Attributes:
      number_fields: uint64 `[13, 65536]`, texts of a dense feature, all equally likely.
      number_effects: int32 `[13, 65536]`, their share of the logit, in 1 / LOGIT_UNIT.
      slot_starts: uint64 `[26, 4096]`, slot at each knot of a feature's distribution function, with FRACTION bits below the
        point; slot 0 is '', slot r + 1 the key of rank r.
      slot_widths: uint64 `[26, 4096]`, from a knot to the next one.
      effect: int32 `[65536]`, of each course, in 1 / UNIT.
      vector: uint32 `[65536]`, the hidden vector of each course: VECTOR int16, in 1 / UNIT.
      strength: int32 `[26]`, what a feature's effects are multiplied by, in 1 / UNIT.
      side: int `[26]`, which sum of hidden vectors a feature's are part of, 0 or 1, or -1.
      generation: uint32 `[65536]`, how many keys of a slot have died, by the slot's hash.
      newborn: bool `[65536]`, whether the last one died the day before.
      life_hash: uint32 `[26]`, odd, makes a slot's hash.
      course_hash: uint32 `[26]`, odd, makes a key's course.
      multiplier, offset: uint32 `[26]`, make keys of numbers (`scramble`).
      swing: what the logit of the rate of positives is higher than on the average day.
    """

    def __init__(self, seed: int, day: int, cardinalities: Sequence[int], hot_sizes: Sequence[int]):
        bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(2,)))
        self._quantiles = _normal_quantiles()
        self._make_numbers(bits)
        self._make_slots(bits, np.array(cardinalities, np.float64))
        self._make_courses(bits, day)
        self._make_strengths(bits, cardinalities, hot_sizes)
        self.generation, self.newborn = _generations(bits, day)
        hashes = random_bits(bits, np.uint32, 4, CATEGORICAL) | np.uint32(1)
        self.life_hash, self.course_hash, self.multiplier, self.offset = hashes
        up = 1 if random_bits(bits, np.uint16, 1)[0] % 2 else -1
        self.swing = up * _SWING * float(np.sin(2 * np.pi * day / _SWING_DAYS))

    def _normal(self, bits: np.random.PCG64, *shape: int) -> np.ndarray:
        """float64, standard normal."""
        return self._quantiles[random_bits(bits, np.uint16, *shape)]

    def _make_numbers(self, bits: np.random.PCG64) -> None:
        mean, spread = 0.5 + 4 * _uniform(bits, DENSE), 0.8 + 0.7 * _uniform(bits, DENSE)
        missing = np.where(_uniform(bits, DENSE) < 0.6, 0.02 + 0.43 * _uniform(bits, DENSE), 0.0)
        slope = 0.3 * self._normal(bits, DENSE) * (np.arange(DENSE) % 2 == 0)
        curve = 0.08 * self._normal(bits, DENSE) * (np.arange(DENSE) % 4 == 0)
        numbers = np.empty((DENSE, _SIZE), np.int32)
        absent = np.arange(_SIZE) < (missing * _SIZE)[:, np.newaxis]
        for f in range(DENSE):
            numbers[f] = np.minimum(np.floor(np.exp(self._quantiles * spread[f] + mean[f])), LARGEST_NUMBER)
            # In any order, as the first ones are missing.
            numbers[f] = numbers[f][np.argsort(random_bits(bits, np.uint32, _SIZE), kind="stable")]
        # As in Criteo's log, the second feature goes down to -3.
        numbers[1, -_SIZE // 10 :] = -1 - np.arange(_SIZE)[-_SIZE // 10 :] % 3
        seen = np.log1p(np.where(absent, 0, np.maximum(numbers, 0))) - mean[:, np.newaxis]
        effects = seen * slope[:, np.newaxis] + (np.square(seen) - 1) * curve[:, np.newaxis]
        self.number_effects = np.rint(effects * LOGIT_UNIT).astype(np.int32)
        self.number_fields = number_fields(numbers, absent).view(np.uint64)[..., 0]

    def _make_slots(self, bits: np.random.PCG64, cardinalities: np.ndarray) -> None:
        knots = 1 << (32 - KNOT_SHIFT)
        missing = np.where(_uniform(bits, CATEGORICAL) < 0.5, 0.02 + 0.38 * _uniform(bits, CATEGORICAL), 0.0)
        first = np.floor(missing * knots)  # knots before it are ''
        uniform = (np.arange(knots + 1)[:, np.newaxis] - first) / (knots - first)
        ranks = np.clip(zipf_ranks(np.maximum(uniform, 0), cardinalities), 0, cardinalities)
        # Just below the number of categories, as the last knot's end is not to be reached.
        edges = np.minimum(np.rint((1 + ranks) * 2.0**FRACTION), (1 + cardinalities) * 2.0**FRACTION).astype(np.uint64).T
        is_blank = np.arange(knots) < first[:, np.newaxis]
        self.slot_starts = np.where(is_blank, np.uint64(0), edges[:, :-1])
        self.slot_widths = np.where(is_blank, np.uint64(0), edges[:, 1:] - edges[:, :-1])

    def _make_courses(self, bits: np.random.PCG64, day: int) -> None:
        shape = (_SIZE, 1 + VECTOR)
        angle = day * _DRIFT * np.tan(np.pi * (_uniform(bits, *shape) - 0.5))
        course = self._normal(bits, *shape) * np.cos(angle) + self._normal(bits, *shape) * np.sin(angle)
        self.effect = np.rint(course[:, 0] * UNIT).astype(np.int32)
        self.vector = np.rint(course[:, 1:] * (_VECTOR_SPREAD * UNIT)).astype(np.int16).view(np.uint32)[:, 0]

    def _make_strengths(self, bits: np.random.PCG64, cardinalities: Sequence[int], hot_sizes: Sequence[int]) -> None:
        variance, place = np.empty(CATEGORICAL), 0
        order = np.argsort(-np.array(cardinalities), kind="stable")
        for group in _VARIANCES:
            dealt = np.argsort(random_bits(bits, np.uint32, len(group)), kind="stable")
            variance[order[place : place + len(group)]] = np.array(group)[dealt]
            place += len(group)
        # A bag of up to n keys has about (n + 2) / 3.
        self.strength = np.rint(np.sqrt(variance * 3 / (np.array(hot_sizes) + 2)) * UNIT).astype(np.int32)
        self.side = np.full(CATEGORICAL, -1)
        for side, places in enumerate(_SIDES):
            self.side[order[list(places)]] = side
