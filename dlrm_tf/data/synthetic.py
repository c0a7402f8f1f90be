"""synth: Criteo-format rows whose labels are drawn from a known probability, so that the best possible AUC is known.

A row's logit is a bias, smooth functions of some dense features, effects of the frequent categories of some categorical features,
and products of hidden factors of two pairs of them. All of it is a function of what is written to the file, so a model can learn
all of it; rare categories have no effect, so some 100,000 rows are enough to learn it.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Union

import numpy as np

from dlrm_tf.config import CRITEO_KAGGLE_SIZES
from dlrm_tf.data.spec import CRITEO
from dlrm_tf.errors import UsageError
from dlrm_tf.files import StrPath, atomic_file, write_file
from dlrm_tf.probability import histogram_auc, sigmoid
from dlrm_tf.progress import Progress

_SMALL = tuple(min(size, 20_000) for size in CRITEO_KAGGLE_SIZES)  # 207 k categories in all
_DENSE, _CATEGORICAL = len(CRITEO.dense_columns), len(CRITEO.categorical_columns)
_BLOCK = 65536  # rows made at once; part of the format of the random stream, so of what a seed gives
_BINS = 1 << 20  # of the probability, for the AUC in bounded memory
_FREQUENT = 8  # categories of a feature that have an effect
# The category of rank r has a frequency of about 1 / (r + 2)^exponent. Features of a million categories and more have the smaller
# exponent: as in Criteo's log, 45.8 million rows then show most of the 33.8 million categories (a long tail seen once).
_EXPONENT, _EXPONENT_OF_MILLIONS = 1.1, 0.85
_TELLING = (0, 2, 5, 8, 11, 13, 16, 19, 21, 24)  # positions of the categorical features that have an effect
_PAIRS = ((5, 16), (8, 19))  # positions of categorical features (of few categories) that act together
_DIGITS = 7  # of the largest dense value
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_POSITIVE_RATE = 0.256  # Criteo Kaggle's


@dataclasses.dataclass(frozen=True)
class SynthReport:
    """What `synth` wrote.

    Attributes:
      path: the TSV file.
      rows: number of rows.
      seed: of the random stream.
      positive_rate: share of rows with label 1.
      best_auc: AUC of the true probabilities on all rows; the expectation of no model is higher.
      best_auc_test: the same on the last seventh of the rows, `prepare`'s test split.
      cardinalities: number of different categories a feature can take, '' not counted.
    """

    path: str
    rows: int
    seed: int
    positive_rate: float
    best_auc: float
    best_auc_test: float
    cardinalities: tuple[int, ...]


class _Signal:
    """The parameters behind the labels, drawn once from the seed."""

    def __init__(self, rng: np.random.Generator, cardinalities: Sequence[int]):
        self.mean = rng.uniform(0.5, 4.5, _DENSE)  # of the logarithm of a dense feature
        self.spread = rng.uniform(0.8, 1.5, _DENSE)
        self.dense_missing = np.where(rng.random(_DENSE) < 0.6, rng.uniform(0.02, 0.45, _DENSE), 0.0)
        self.negative = np.zeros(_DENSE)
        self.negative[1] = 0.1  # Criteo's second integer feature goes down to -3
        self.slope = rng.normal(0, 0.3, _DENSE) * (np.arange(_DENSE) % 2 == 0)
        self.curve = rng.normal(0, 0.08, _DENSE) * (np.arange(_DENSE) % 4 == 0)
        self.missing = np.where(rng.random(_CATEGORICAL) < 0.5, rng.uniform(0.02, 0.4, _CATEGORICAL), 0.0)
        # Column 0 is the effect of '', column r + 1 that of rank r; the last one, of all rare categories, is 0.
        self.effect = np.zeros((_CATEGORICAL, _FREQUENT + 2), np.float32)
        self.effect[_TELLING, :-1] = rng.normal(0, 0.4, (len(_TELLING), _FREQUENT + 1))
        self.factor = np.zeros((len(_PAIRS), 2, _FREQUENT + 2), np.float32)
        self.factor[:, :, :-1] = rng.normal(0, 0.5, (len(_PAIRS), 2, _FREQUENT + 1))
        self.cardinalities = np.array(cardinalities, np.float64)
        # Odd multipliers and offsets: rank -> key is a bijection of 32-bit numbers, another one for each feature.
        self.multiplier = rng.integers(0, 1 << 31, _CATEGORICAL, np.uint32) * np.uint32(2) + np.uint32(1)
        self.offset = rng.integers(0, 1 << 32, _CATEGORICAL, np.uint32)
        self.bias = 0.0
        logit = self._features(rng, _BLOCK)[0]
        for _ in range(30):  # the bias that gives the wanted rate of positives, by Newton's method
            probability = sigmoid(logit + self.bias)
            self.bias += float((_POSITIVE_RATE - probability.mean()) / (probability * (1 - probability)).mean())

    def draw(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(text uint8 matrix with zero bytes to be left out, probability, label)` of `rows` rows."""
        logit, numbers, absent, rank, blank = self._features(rng, rows)
        probability = sigmoid(logit)
        label = rng.random(rows, np.float32) < probability
        return _text(label, numbers, absent, _scramble(rank, self.multiplier, self.offset), blank), probability, label

    def _features(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, ...]:
        """`(logit, dense numbers, which of them are missing, rank of each category, which of them are missing)`."""
        logit = np.full(rows, self.bias, np.float32)
        numbers = np.floor(np.exp(rng.standard_normal((rows, _DENSE), np.float32) * self.spread + self.mean))
        numbers = np.minimum(numbers, 10**_DIGITS - 1).astype(np.int32)
        numbers = np.where(
            rng.random((rows, _DENSE), np.float32) < self.negative, -rng.integers(1, 4, (rows, _DENSE), np.int32), numbers
        )
        absent = rng.random((rows, _DENSE), np.float32) < self.dense_missing
        # In float64, unlike `log_dense`: what a seed gives must stay the same bytes.
        seen = np.log1p(np.where(absent, 0, np.maximum(numbers, 0))) - self.mean
        logit += (seen * self.slope + (np.square(seen) - 1) * self.curve).sum(1).astype(np.float32)

        # Zipf by the inverse of the continuous distribution function on [2, cardinality + 2).
        power = 1 - np.where(self.cardinalities < 1e6, _EXPONENT, _EXPONENT_OF_MILLIONS)
        low, high = 2.0**power, (self.cardinalities + 2) ** power
        uniform = rng.random((rows, _CATEGORICAL))
        rank = (np.power(low + uniform * (high - low), 1 / power) - 2).astype(np.uint32)
        rank = np.minimum(rank, (self.cardinalities - 1).astype(np.uint32))
        blank = rng.random((rows, _CATEGORICAL), np.float32) < self.missing
        column = np.where(blank, 0, np.minimum(rank, _FREQUENT) + 1)
        logit += self.effect[np.arange(_CATEGORICAL), column].sum(1)
        for (left, right), factor in zip(_PAIRS, self.factor):
            logit += factor[0][column[:, left]] * factor[1][column[:, right]]
        return logit, numbers, absent, rank, blank


def _scramble(rank: np.ndarray, multiplier: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Keys that look like hashes: each step is a bijection of uint32."""
    key: np.ndarray = rank * multiplier + offset
    key ^= key >> np.uint32(16)
    key *= np.uint32(0x45D9F3B)
    key ^= key >> np.uint32(16)
    return key


def _text(label: np.ndarray, numbers: np.ndarray, absent: np.ndarray, keys: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Rows as a uint8 matrix of fixed-width fields, in which zero bytes are left out when the text is written."""
    rows = len(label)
    zero, tab = ord("0"), ord("\t")
    text = np.zeros((rows, 1 + _DENSE * (_DIGITS + 2) + _CATEGORICAL * 9 + 1), np.uint8)
    text[:, 0] = label + np.uint8(zero)
    text[:, -1] = ord("\n")
    fields = text[:, 1 : 1 + _DENSE * (_DIGITS + 2)].reshape(rows, _DENSE, _DIGITS + 2)  # tab, sign, digits
    fields[:, :, 0] = tab
    fields[:, :, 1] = np.where((numbers < 0) & ~absent, ord("-"), 0)
    left = np.abs(numbers).astype(np.uint32)
    shown = ~absent
    for i in range(_DIGITS + 1, 1, -1):
        left, digit = left // np.uint32(10), left % np.uint32(10)
        fields[:, :, i] = (digit.astype(np.uint8) + np.uint8(zero)) * shown
        shown &= left > 0
    fields = text[:, 1 + _DENSE * (_DIGITS + 2) : -1].reshape(rows, _CATEGORICAL, 9)  # tab, eight hex digits
    fields[:, :, 0] = tab
    for i in range(8):
        nibble = ((keys >> np.uint32(28 - 4 * i)) & np.uint32(15)).astype(np.uint8)
        fields[:, :, 1 + i] = _HEX[nibble] * ~blank
    return text


def synth(
    path: StrPath,
    rows: int,
    *,
    seed: int,
    cardinalities: Union[str, Sequence[int]] = "small",
    quiet: bool = True,
) -> SynthReport:
    """Writes `rows` lines in the format of Criteo Kaggle's train.txt, and a `SynthReport` of them to `path`.json.

    Both files appear whole or not at all. The same arguments give the same bytes (with the same NumPy random stream).

    Args:
      path: the TSV file.
      rows: number of lines, >= 1.
      seed: >= 0.
      cardinalities: `"small"` (207 k categories), `"criteo"` (Criteo Kaggle's 33.8 M), or 26 numbers.
      quiet: show no progress.

    Raises:
      UsageError: an argument is out of range.
    """
    named = {"small": _SMALL, "criteo": CRITEO_KAGGLE_SIZES}
    if isinstance(cardinalities, str):
        if cardinalities not in named:
            raise UsageError(f"cardinalities must be small, criteo or {_CATEGORICAL} numbers. Received {cardinalities!r}")
        cardinalities = named[cardinalities]
    cardinalities = tuple(int(size) for size in cardinalities)
    if len(cardinalities) != _CATEGORICAL or min(cardinalities) < 1 or max(cardinalities) > 1 << 31:
        raise UsageError(
            f"cardinalities must be {_CATEGORICAL} numbers >= 1. Received {len(cardinalities)}: {cardinalities}"[:200]
        )
    if rows < 1 or seed < 0:
        raise UsageError(f"rows must be >= 1 and seed >= 0. Received {rows} and {seed}")

    rng = np.random.default_rng(seed)
    signal = _Signal(rng, cardinalities)
    test_start = rows - rows // 7
    counts = np.zeros((2, 2, _BINS), np.int64)  # split, label, bin of the probability
    progress = Progress("synth", rows, "rows", quiet=quiet)
    with atomic_file(path) as temporary, open(temporary, "wb") as file, progress:
        for start in range(0, rows, _BLOCK):
            size = min(_BLOCK, rows - start)
            text, probability, label = (part[:size] for part in signal.draw(rng, _BLOCK))
            file.write(text[text != 0].tobytes())
            bins = np.minimum((probability * _BINS).astype(np.int64), _BINS - 1)
            is_test = np.arange(start, start + size) >= test_start
            np.add.at(counts, (is_test.astype(np.int64), label.astype(np.int64), bins), 1)
            progress.update(size)
    report = SynthReport(
        path=os.fspath(path),
        rows=rows,
        seed=seed,
        positive_rate=float(counts[:, 1].sum() / rows),
        best_auc=histogram_auc(counts.sum(0)),
        best_auc_test=histogram_auc(counts[1]),
        cardinalities=cardinalities,
    )
    write_file(f"{os.fspath(path)}.json", json.dumps(dataclasses.asdict(report), indent=1))
    return report
