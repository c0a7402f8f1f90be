"""What one column of a log is for, guessed from a sample of its cells."""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

from dlrm_tf.data.bag import Bag
from dlrm_tf.data.guess.distinct import Distinct, estimate_distinct

UNKNOWN, TEXT, WHOLE, NUMBER, LISTED, OTHER = "unknown", "text", "whole numbers", "numbers", "lists", "other"
"""What a file says of a column's type: a log of text nothing; lists are of keys; others are no features."""
LIST_MARK = "|"
"""What stands between the keys of a list in a cell of the sample."""
MARKERS = ("NULL", "null", "\\N", "NA", "N/A", "#N/A", "nan", "NaN", "None", "none", "(null)", "undefined", "-", "?")
"""Texts that stand for a missing number in logs of other programs."""
_KEY_NAME = re.compile(
    r"(?i)(^|[_.\s])(id|ids|type|code|cat|category|class|group|zip|postcode|hour|weekday|country|region|brand|site|app|device|user"
    r"|item|ad|campaign|position|pos|slot)($|[_.\s])|^C\d+$"
)
_NUMBER_NAME = re.compile(
    r"(?i)(^|[_.\s])(num|number|count|cnt|price|amount|age|sum|avg|mean|total|qty|quantity|score|duration|seconds|size|days)"
    r"($|[_.\s])|^I\d+$"
)
# Fewer rows say too little of whether a value ever comes again.
_ENOUGH_ROWS = 1000
# An embedding row for each of so few numbers costs nothing, and says more than their size.
_FEW_NUMBERS = 16
_BAG_SEPARATORS = "|;,^"


class ColumnGuess(NamedTuple):
    """What a column is taken for.

    Attributes:
      name: of the column.
      kind: a kind of `FeatureSpec`.
      why: the reason, a few words.
      distinct: the distinct values of the whole log.
      missing: share of missing cells in the sample.
      examples: the commonest values.
      markers: texts besides the empty one that stand for missing cells.
      bag: how several keys in a cell are told apart; None where a cell is one key.
    """

    name: str
    kind: str
    why: str
    distinct: Distinct
    missing: float
    examples: tuple[str, ...]
    markers: tuple[str, ...] = ()
    bag: Optional[Bag] = None


def guess_column(name: str, cells: Sequence[str], rows: int, *, declared: str = UNKNOWN, separator: str = "") -> ColumnGuess:
    """Guesses the kind of a column that is not the label.

    Args:
      name: of the column.
      cells: the sample, '' where missing.
      rows: rows of the whole log.
      declared: what the file says of its type, one of those above.
      separator: of columns, which no bag can have.
    """
    counts = collections.Counter(cells)
    del counts[""]
    markers: tuple[str, ...] = ()
    if declared == UNKNOWN:
        declared, markers = _type_of_text(counts)
    known = {value: times for value, times in counts.items() if value not in markers}
    present, bag = sum(known.values()), None
    if declared == OTHER:
        kind, why = "skip", "no type of a feature"
    elif len(known) <= 1 and present in (0, len(cells)) and len(cells) >= _ENOUGH_ROWS:
        kind, why = "skip", "the same in every row"
    elif declared != NUMBER and len(known) == present >= _ENOUGH_ROWS:
        kind, why = "skip", "another value in every row"
    elif declared == NUMBER:
        kind, why = "float", "numbers"
    elif declared == WHOLE:
        kind, why = _whole(name, list(known))
    else:
        kind, why = "categorical", "text"
        bag = Bag(LIST_MARK, _longest(known), pooling="mean") if declared == LISTED else _bag(known, separator)
    keys = collections.Counter(known)
    if bag:
        why, keys = f"several keys a cell, separated by {bag.separator}", collections.Counter()
        for cell, times in known.items():
            keys.update(dict.fromkeys(cell.split(bag.separator), times))
    examples = tuple(value for value, _ in keys.most_common(3))
    distinct = estimate_distinct(keys.values(), len(cells), rows)
    return ColumnGuess(name, kind, why, distinct, (len(cells) - present) / max(len(cells), 1), examples, markers, bag)


def _type_of_text(counts: Mapping[str, int]) -> tuple[str, tuple[str, ...]]:
    """The type of a column of a text log, and the markers of missing cells: among words there are none, each is a key."""
    markers = tuple(sorted(value for value in counts if value in MARKERS and _number(value) is None))
    numbers = [value for value in counts if value not in markers]
    if not numbers or any(_number(value) is None for value in numbers):
        return TEXT, ()
    return WHOLE if all(re.fullmatch(r"[+-]?\d+", value) for value in numbers) else NUMBER, markers


def _number(value: str) -> Optional[float]:
    """As a log's cell is read; None for what is no finite number."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in value else None


def _whole(name: str, values: Sequence[str]) -> tuple[str, str]:
    """The kind of a column of whole numbers, and why: a size, or the name of something."""
    if any(re.match(r"[+-]?0\d", value) for value in values):
        return "categorical", "numbers with leading zeros"
    if _KEY_NAME.search(name):
        return "categorical", "whole numbers, the name of a key"
    if _NUMBER_NAME.search(name):
        return "int", "whole numbers, the name of a number"
    if len(values) <= _FEW_NUMBERS:
        return "categorical", f"only {len(values)} whole numbers"
    numbers = sorted(map(int, values))
    if numbers[0] > _ENOUGH_ROWS and numbers[-1] < 10 * numbers[0]:
        return "categorical", "whole numbers of one size: codes"
    return "int", "whole numbers"


def _bag(known: Mapping[str, int], separator: str) -> Optional[Bag]:
    """A bag, where a fifth of the cells have a separator and what it separates comes again in other cells."""
    for mark in _BAG_SEPARATORS.replace(separator, ""):
        several = [value.split(mark) for value in known if mark in value]
        cells = sum(times for value, times in known.items() if mark in value)
        keys = [key for parts in several for key in parts]
        if several and 5 * cells >= sum(known.values()) and 2 * len(set(keys)) <= len(keys):
            return Bag(mark, max(map(len, several)), pooling="mean")
    return None


def _longest(known: Mapping[str, int]) -> int:
    return max((cell.count(LIST_MARK) + 1 for cell in known), default=1)
