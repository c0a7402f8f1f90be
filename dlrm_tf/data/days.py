"""Days as whole numbers: the calendar day of a log, and of many keys at once the days on which they were last seen."""

import datetime
from typing import Any, Union

import numpy as np

from dlrm_tf.errors import UsageError

UNKNOWN_DAY = -1
"""Day of a key of which it is not known when it was last seen: before every day that is known."""

_EPOCH = datetime.date(1970, 1, 1).toordinal()


def day_number(day: Union[str, datetime.date], name: str) -> int:
    """Days from 1970-01-01 to a day.

    Args:
      day: a date, or its text as YYYY-MM-DD.
      name: the argument, named in errors.

    Raises:
      UsageError: not such a day, or one before 1970.
    """
    try:
        date = datetime.date.fromisoformat(day) if isinstance(day, str) else day
        number = date.toordinal() - _EPOCH
        # Later Pythons also take 20261125 and 2026-W48-3; one form is enough, and the same everywhere.
        if number < 0 or (isinstance(day, str) and date.isoformat() != day):
            raise ValueError
    except (ValueError, AttributeError):
        raise UsageError(f"{name} must be a day from 1970-01-01 on, written as 2026-11-25. Received {str(day)[:40]!r}") from None
    return number


def day_text(number: int) -> str:
    """A day as YYYY-MM-DD; `UNKNOWN_DAY` is "unknown"."""
    return "unknown" if number == UNKNOWN_DAY else datetime.date.fromordinal(_EPOCH + number).isoformat()


def describe_days(days: np.ndarray) -> dict[str, Any]:
    """How days are distributed.

    Args:
      days: int32 `[n]`, days since 1970-01-01 or `UNKNOWN_DAY`.

    Returns:
      `oldest`, `quarter`, `median`, `three_quarters` and `newest` of the days that are known (each is one of them; "unknown"
      where none is known), and `unknown`, how many are not.
    """
    known = np.sort(days[days != UNKNOWN_DAY])
    places = [(len(known) - 1) * quarter // 4 for quarter in range(5)]
    texts = [day_text(int(known[place])) for place in places] if len(known) else ["unknown"] * 5
    names = ("oldest", "quarter", "median", "three_quarters", "newest")
    return {**dict(zip(names, texts)), "unknown": len(days) - len(known)}
