"""synth: Criteo-format rows with labels drawn from a known probability, so that the best possible AUC and logloss are known."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Optional, Union

import numpy as np

from dlrm_tf.config import CRITEO_KAGGLE_SIZES
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.late_labels import LateLabels
from dlrm_tf.data.row_text import BAR, lines
from dlrm_tf.data.spec import CRITEO
from dlrm_tf.data.world import BLOCK, CATEGORICAL
from dlrm_tf.data.world_one import WorldOne
from dlrm_tf.data.world_two import WorldTwo
from dlrm_tf.errors import UsageError
from dlrm_tf.files import StrPath, atomic_file, write_file
from dlrm_tf.probability import histogram_auc
from dlrm_tf.progress import Progress

_CARDINALITIES = {"small": tuple(min(size, 20_000) for size in CRITEO_KAGGLE_SIZES), "criteo": CRITEO_KAGGLE_SIZES}
# Some features of many categories, as lists of an item's tags or of a user's last items.
_HOT_SIZES = {"some": tuple({2: 5, 11: 3, 15: 8, 20: 4}.get(f, 1) for f in range(CATEGORICAL))}
_BINS = 1 << 20  # of the probability, for the AUC in bounded memory
_LAST_DAY = 1_000_000


@dataclasses.dataclass(frozen=True)
class SynthReport:
    """What `synth` wrote.

    Attributes:
      path: the TSV file.
      rows: number of rows.
      seed: of the random stream.
      positive_rate: share of rows with label 1, those that come late included.
      best_auc: AUC of the true probabilities on all rows; the expectation of no model is higher.
      best_auc_test: the same on the last seventh of the rows, `prepare`'s test split.
      cardinalities: number of different categories a feature can take at a time, '' not counted.
      best_logloss: logloss of the true probabilities on all rows, in nats; the expectation of no model is lower.
      best_logloss_test: the same on the last seventh of the rows.
      world: which world.
      day: of the world.
      hot_sizes: most keys of each feature in a row; None where all have one.
      new_key_share: share of the keys of all rows that did not exist on the day before; None in world 1 and on day 0.
      late_positives: rows whose label is 0 in the file and becomes 1 later (`label_delay`).
    """

    path: str
    rows: int
    seed: int
    positive_rate: float
    best_auc: float
    best_auc_test: float
    cardinalities: tuple[int, ...]
    best_logloss: float
    best_logloss_test: float
    world: int = 1
    day: int = 0
    hot_sizes: Optional[tuple[int, ...]] = None
    new_key_share: Optional[float] = None
    late_positives: int = 0


class _Best:
    """What the true probabilities score on the rows and on their last seventh, in bounded memory.

    Args:
      rows: of the file.
    """

    def __init__(self, rows: int):
        self._rows, self._test_rows = rows, rows // 7
        self._counts = np.zeros((2, 2, _BINS), np.int64)  # split, label, bin of the probability
        self._losses = np.zeros(2)  # summed, of each split

    def add(self, start: int, probability: np.ndarray, label: np.ndarray) -> None:
        """Counts rows; `start` is the number of the first one, from 0."""
        is_test = (np.arange(start, start + len(label)) >= self._rows - self._test_rows).astype(np.int64)
        bins = np.minimum((probability * _BINS).astype(np.int64), _BINS - 1)
        np.add.at(self._counts, (is_test, label.astype(np.int64), bins), 1)
        of_label = np.where(label, probability, 1 - probability).astype(np.float64)
        self._losses += np.bincount(is_test, -np.log(of_label), 2)

    def figures(self) -> dict[str, float]:
        """The fields of `SynthReport`; NaN where there are no rows."""
        return {
            "positive_rate": float(self._counts[:, 1].sum() / self._rows),
            "best_auc": histogram_auc(self._counts.sum(0)),
            "best_auc_test": histogram_auc(self._counts[1]),
            "best_logloss": float(self._losses.sum() / self._rows),
            "best_logloss_test": float(self._losses[1] / self._test_rows) if self._test_rows else math.nan,
        }


def _numbers(name: str, value: Union[str, Sequence[int]], named: dict[str, tuple[int, ...]], largest: int) -> tuple[int, ...]:
    """26 numbers, given or by name."""
    if isinstance(value, str):
        if value not in named:
            raise UsageError(f"{name} must be {', '.join(named)} or {CATEGORICAL} numbers. Received {value!r}")
        return named[value]
    numbers = tuple(int(number) for number in value)
    if len(numbers) != CATEGORICAL or min(numbers) < 1 or max(numbers) > largest:
        raise UsageError(f"{name} must be {CATEGORICAL} numbers from 1 to {largest:,}. Received {len(numbers)}: {numbers}"[:200])
    return numbers


def _check(rows: int, seed: int, world: int, day: int, label_delay: float) -> None:
    """Raises UsageError for a number out of range."""
    if rows < 1 or seed < 0:
        raise UsageError(f"rows must be >= 1 and seed >= 0. Received {rows} and {seed}")
    if world not in (1, 2):
        raise UsageError(f"world must be 1 or 2. Received {world}")
    if not 0 <= day <= _LAST_DAY or not 0 <= label_delay < math.inf:
        raise UsageError(f"day must be 0 to {_LAST_DAY:,} and label_delay >= 0. Received {day} and {label_delay}")


def synth(
    path: StrPath,
    rows: int,
    *,
    seed: int,
    cardinalities: Union[str, Sequence[int]] = "small",
    world: int = 1,
    day: int = 0,
    hot_sizes: Union[None, str, Sequence[int]] = None,
    label_delay: float = 0.0,
    quiet: bool = True,
) -> SynthReport:
    """Writes `rows` lines in the format of Criteo Kaggle's train.txt, and a `SynthReport` of them to `path`.json.

    World 1: frequent categories have effects, rare ones none, and all days are alike. World 2: every key has an effect, effects
    and the rate of positives drift from day to day, keys are born and die. See `world_one` and `world_two`.

    Every file appears whole or not at all. The same arguments give the same bytes (in world 1 with the same NumPy random stream),
    and fewer rows are the first ones of more, but for `label_delay`.

    Args:
      path: the TSV file.
      rows: number of lines, >= 1.
      seed: >= 0. In world 2 days of the same seed are days of the same world.
      cardinalities: `"small"` (207 k categories), `"criteo"` (Criteo Kaggle's 33.8 M), or 26 numbers.
      world: 1 or 2.
      day: of world 2, >= 0.
      hot_sizes: of world 2, most keys of each feature in a row, joined with `|`: `"some"` (four features, up to 3 to 8 keys), or
        26 numbers. Writes the matching feature spec to `path`.spec.json. None: one key each.
      label_delay: of world 2, mean number of days after which a click is known, of an exponential distribution; a row's time in
        its day is its place in the file. Rows whose click comes after the day's end have label 0, and `path`.late names them:
        a header, then `line` (from 1) and `day` at which the label becomes 1. 0: every click is known at once.
      quiet: show no progress.

    Raises:
      UsageError: an argument is out of range.
    """
    cardinalities = _numbers("cardinalities", cardinalities, _CARDINALITIES, 1 << 31)
    _check(rows, seed, world, day, label_delay)
    if world == 1 and (day or hot_sizes or label_delay):
        raise UsageError("day, hot_sizes and label_delay need world 2. Received world 1")
    sizes = None if hot_sizes is None else _numbers("hot_sizes", hot_sizes, _HOT_SIZES, 1 << 10)
    source = WorldOne(seed, cardinalities) if world == 1 else WorldTwo(seed, day, cardinalities, sizes or (1,) * CATEGORICAL)

    best, late_labels = _Best(rows), LateLabels(rows, seed, day, label_delay)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(stack.enter_context(atomic_file(path)), "wb"))
        if label_delay:
            late = stack.enter_context(open(stack.enter_context(atomic_file(f"{os.fspath(path)}.late")), "wb"))
            late.write(LateLabels.HEADER)
        progress = stack.enter_context(Progress("synth", rows, "rows", quiet=quiet))
        for start in range(0, rows, BLOCK):
            size = min(BLOCK, rows - start)
            probability, label, numbers, keys = (part[:size] for part in source.draw(BLOCK))
            known = label
            if label_delay:
                known, text = late_labels.split(start, label)
                late.write(text)
            file.write(lines(known, numbers, keys))
            best.add(start, probability, label)
            progress.update(size)
    report = SynthReport(
        path=os.fspath(path),
        rows=rows,
        seed=seed,
        cardinalities=cardinalities,
        world=world,
        day=day,
        hot_sizes=sizes,
        new_key_share=source.new_keys / source.keys if isinstance(source, WorldTwo) and day else None,
        late_positives=late_labels.count,
        **best.figures(),
    )
    if sizes is not None:
        _write_spec(path, sizes)
    write_file(f"{os.fspath(path)}.json", json.dumps(dataclasses.asdict(report), indent=1))
    return report


def _write_spec(path: StrPath, hot_sizes: Sequence[int]) -> None:
    """Writes the feature spec of rows with several keys; world 2 adds up the effects of a row's keys."""
    sizes = zip(CRITEO.categorical_names, hot_sizes)
    spec = dataclasses.replace(CRITEO, bags={name: Bag(chr(BAR), size, "sum") for name, size in sizes if size > 1})
    write_file(f"{os.fspath(path)}.spec.json", json.dumps(spec.to_dict(), indent=1))
