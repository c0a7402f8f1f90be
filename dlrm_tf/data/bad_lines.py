"""BadLines: how many lines were bad and why, and when there are so many that it is the spec that is wrong, not the lines."""

import ast
import re
from collections.abc import Iterable
from typing import Any, Optional

from dlrm_tf.errors import DataError

MAX_SHARE = 0.01
_FEW = 10  # fewer than so many are too many only where none is allowed: a share of a small log says little

# By a part of what is wrong, what to do about it; the first one that fits.
_ADVICE = (
    (re.compile(r"wanted 0 or 1\. Received '?-1(\.0)?'?$"), "--labels -1/1 takes such labels"),
    (re.compile(r"Received '\"|wanted no double quotes"), '"quote" in the spec says that fields are quoted'),
    (re.compile(r"wanted an integer\. Received '?[-+]?[0-9]*[.eE]"), '"float" instead of "int" in the spec takes such numbers'),
    (
        re.compile(r"wanted (?:an integer|a finite number)\. Received '(?P<marker>[^0-9']{1,12})'"),
        "--missing '{marker}' takes such cells as empty",
    ),
    (
        re.compile(r"wanted \d+ fields"),
        "separator, quote and columns must be the log's: dlrm-tf spec looks at it and writes them",
    ),
)


class BadLines:
    """Counts bad lines by reason: what was wanted, of which column.

    Attributes:
      reasons: by reason its count, and the first line of its kind.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, what: str, example: str) -> None:
        """One more bad line.

        Args:
          what: is wrong, "wanted WHAT. Received VALUE".
          example: where, with `what`.
        """
        reason = what.partition(". Received")[0]
        count, first = self.reasons.get(reason, (0, example))
        self.reasons[reason] = count + 1, first

    def update(self, reasons: Optional[dict[str, Any]]) -> None:
        """Adds counts by reason, in the form of `reasons`."""
        for reason, (count, example) in (reasons or {}).items():
            before, first = self.reasons.get(reason, (0, example))
            self.reasons[reason] = before + count, first

    def check(self, lines: int, max_share: float) -> None:
        """Raises DataError, with the commonest reason, where more than `max_share` of `lines` are bad.

        Fewer than ten bad lines pass where `max_share` is not 0.
        """
        bad = sum(count for count, _ in self.reasons.values())
        if bad <= max_share * lines or (max_share and bad < _FEW):
            return
        reason, (count, example) = max(self.reasons.items(), key=lambda item: item[1][0])
        raise DataError(
            f"wanted at most {max_share:.3g} of the lines bad. Received {bad:,} of {lines:,} ({bad / lines:.1%}), "
            f"{count:,} of them: {reason}. For example {advised(example)}; --max-bad-share allows more bad lines"
        )


def advised(example: str) -> str:
    """An example of a bad line, and after it what to do about such lines, where that is known."""
    advice = next((text.format(**_unquoted(found)) for form, text in _ADVICE if (found := form.search(example))), "")
    return f"{example}; {advice}" if advice else example


def check_notes(notes: Iterable[dict[str, Any]], max_share: float) -> None:
    """Checks the bad lines up to the end of each shard, as `Scan` does while it makes them.

    Args:
      notes: of the shards, in order.
      max_share: as `BadLines.check` takes it.

    Raises:
      DataError: too many lines are bad.
    """
    bad, lines = BadLines(), 0
    for note in notes:
        bad.update(note.get("reasons"))
        lines += note["lines"]
        bad.check(lines, max_share)


def _unquoted(found: re.Match[str]) -> dict[str, str]:
    """The named groups of a match, which are insides of Python's form of a text, as that text."""
    return {name: ast.literal_eval(f"'{text}'") for name, text in found.groupdict().items()}
