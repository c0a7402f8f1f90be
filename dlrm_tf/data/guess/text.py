"""How a text log is written, guessed from its first lines: separator, quotes, header."""

import collections
import contextlib
import csv
import io
import re
from typing import Any, NamedTuple, Optional, Union

from dlrm_tf.errors import DataError

_SEPARATORS = "\t,;|\x01"
_LINES = 500
_NAME = re.compile(r"[A-Za-z_][\w .:/()-]*")


class TextFormat(NamedTuple):
    """How lines become cells.

    Attributes:
      separator: between two columns.
      quote: around cells, None where there is none.
      names: of the columns, as the first line has them; None without a header.
      header: as a spec has it: `"skip"` where the first line leaves columns without a name of their own.
      width: number of columns.
    """

    separator: str
    quote: Optional[str]
    names: Optional[list[str]]
    header: Union[bool, str]
    width: int


def guess_format(head: str, source: str) -> TextFormat:
    """Guesses a format.

    The separator is the character that gives most lines the same number of columns, at least two; of several the one that gives
    more columns.

    Args:
      head: the first lines.
      source: named in errors.

    Raises:
      DataError: no character separates the lines into columns.
    """
    head = "\n".join(head.split("\n")[:_LINES])
    best, found = (0.0, 1), None
    for separator in _SEPARATORS:
        quoted = re.search(rf'(^|{re.escape(separator)})"', head, re.MULTILINE)
        quote = '"' if quoted else None
        rows = cells_of(head, separator, quote)
        width, lines = collections.Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
        # Nearly all lines: a damaged one must not hide the separator.
        score = round(lines / max(len(rows), 1), 1), width
        if width > 1 and score > best:
            best, found = score, (separator, quote, rows, width)
    if found is None:
        raise DataError(
            f"{source}: wanted lines of at least two columns, separated by a tab, comma, semicolon, | or \\x01. Received "
            f"{head[:60]!r}"
        )
    separator, quote, rows, width = found
    names = _header([row for row in rows if len(row) == width])
    if names is None:
        return TextFormat(separator, quote, None, False, width)
    own = [name if name and names.count(name) == 1 else f"column_{i + 1}" for i, name in enumerate(names)]
    return TextFormat(separator, quote, own, True if own == names else "skip", width)


def cells_of(text: str, separator: str, quote: Optional[str]) -> list[list[str]]:
    """The cells of each line that is not empty."""
    options: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if quote is None else {"quotechar": quote}
    rows: list[list[str]] = []
    # What csv refuses, a cell of more than 128 KB, is a quote that is never closed: what follows it says nothing.
    with contextlib.suppress(csv.Error):
        rows += (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, **options) if row)
    return rows


def _header(rows: list[list[str]]) -> Optional[list[str]]:
    """The first row, where it has names and the column of at least one has something else below."""
    first, rest = rows[0], rows[1:]
    if not any(first) or not all(_NAME.fullmatch(name.strip()) for name in first if name):
        return None
    below = list(zip(*rest))
    # A column without a name, as a table's row numbers have none, says nothing.
    different = [name not in column and any(map(_is_number, column)) for name, column in zip(first, below) if name]
    unseen = all(name not in column for name, column in zip(first, below) if name)
    return first if any(different) or (unseen and len(rest) > 20) else None


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", cell) is not None
