"""Quoted fields (RFC 4180) of a text, a whole piece at once in NumPy: where fields end, and the text without its quotes.

A quote opens a field at its very beginning and closes it at its very end; two of them inside a field are one, and separators and
line ends inside are text. With an escape character, one before a quote, separator, line end or another one takes that as text,
within quotes and without; before any other character it is text itself (`\\N`).

A line whose quotes are not so is bad, and no more than that line: whatever it opens, the next line starts afresh. What is bad
depends on the text alone, not on the pieces it is read in.
"""

from typing import NamedTuple, Optional

import numpy as np

from dlrm_tf.data.bag_column import shown

LONGEST_QUOTED = 1 << 20
"""Bytes from a quote to the next one of its field, at most; a field that is not closed by then was never meant to be."""

_SEPARATOR, _NEWLINE, _RETURN, _QUOTE = 1, 2, 3, 4
_WHOLE_FIELDS = "wanted quotes around whole fields only, with those inside doubled"
_CLOSED = f"wanted a closing quote within {LONGEST_QUOTED >> 20} MB"


class Fields(NamedTuple):
    """The fields of a text.

    Attributes:
      text: without what only quotes, escapes and does not belong to a field: quotes, escapes, the return before a newline.
      ends: int64, ascending, position in `text` after each field.
      last: int64, which of `ends` end a line.
      faults: by number of the line what is wrong with its quotes; such a line counts as one field.
    """

    text: np.ndarray
    ends: np.ndarray
    last: np.ndarray
    faults: dict[int, str]


class Quoting(NamedTuple):
    """How fields are separated and quoted; each one ASCII character, `escape` may be None."""

    separator: str
    quote: str
    escape: Optional[str] = None

    def fields(self, text: bytes) -> Fields:
        """Splits whole lines; the last one need not end in a newline."""
        marks = _Marks(self, text, final=True)
        bad = marks.bad_lines(final=True)
        at, kind, ends, lines = marks.structure(bad)
        quote = np.flatnonzero(marks.read_quotes(at, kind, bad))
        # The second quote of two inside a field stays: it would open right behind one that closes.
        second = np.diff(at[quote], prepend=-2) == 1
        second[1::2] = False
        dropped = np.zeros(at.size, bool)
        dropped[quote[~second]] = True
        dropped[lines - 1] |= (kind[lines - 1] == _RETURN) & (at[lines] - at[lines - 1] == 1) & (kind[lines] == _NEWLINE)
        shift = np.cumsum(dropped, dtype=np.int32)[ends]
        keep = np.ones(marks.characters.size, bool)
        keep[at[dropped]] = False
        if marks.escapes.size:
            keep[marks.escapes] = False
            shift = shift + np.searchsorted(marks.escapes, at[ends])
        faults = {int(np.searchsorted(at[lines], start)): what for start, _, what in bad}
        return Fields(marks.characters[keep], at[ends] - shift, np.searchsorted(ends, lines), faults)

    def end_of_lines(self, text: bytes) -> int:
        """Where the last line ends that is whole whatever follows `text`, which begins with a line; 0 where none is."""
        if self.quote.encode() not in text and (self.escape is None or self.escape.encode() not in text):
            return text.rfind(b"\n") + 1
        marks = _Marks(self, text, final=False)
        bad = marks.bad_lines(final=False)
        newlines = np.flatnonzero(marks.kind == _NEWLINE)
        quotes = marks.quotes[~_within(marks.quotes, bad)] if bad else marks.quotes
        newlines = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
        return int(newlines[-1]) + 1 if newlines.size else 0


class _Marks:
    """The special characters of a text that no escape takes as text.

    Attributes:
      characters: uint8, the text, with a newline added where the last line lacks it.
      kind: uint8, what each character is; 0 for what is text.
      quotes: int64, positions of the quotes, ascending.
      escapes: int64, positions of the escapes that take what follows as text.
    """

    def __init__(self, quoting: Quoting, text: bytes, final: bool):
        table = np.zeros(256, np.uint8)
        table[[ord(quoting.separator), ord("\n"), ord("\r"), ord(quoting.quote)]] = _SEPARATOR, _NEWLINE, _RETURN, _QUOTE
        self.escapes = np.zeros(0, np.int64)
        if quoting.escape is not None and quoting.escape.encode() in text:
            self.escapes = _escapes(np.frombuffer(text, np.uint8), ord(quoting.escape), table)
        if final and (not text.endswith(b"\n") or len(text) - 2 in self.escapes[-1:]):
            text += b"\n"
        self.characters = np.frombuffer(text, np.uint8)
        self.kind = np.frombuffer(text.translate(table.tobytes()), np.uint8)
        if self.escapes.size:
            self.kind = self.kind.copy()
            self.kind[self.escapes + 1] = 0
        self.quotes = np.flatnonzero(self.kind == _QUOTE)

    def bad_lines(self, final: bool) -> list[tuple[int, int, str]]:
        """`(start, stop, what is wrong)` of lines whose quotes are not as they should be.

        Args:
          final: the text ends here; else more of it follows, and what that decides is left open.
        """
        quotes, count, size = self.quotes, len(self.quotes), self.characters.size
        if not count:
            return []
        # A quote may open where a mark or nothing stands before it, and close where a mark or nothing follows it.
        opens = self.kind[quotes - 1] > 0
        opens[0] |= quotes[0] == 0
        closes = self.kind[np.minimum(quotes + 1, size - 1)] > 0
        closes[1:] &= np.diff(quotes) <= LONGEST_QUOTED
        if count % 2 == 0 and opens[::2].all() and closes[1::2].all():
            return []
        # Where the first quote of what is read has an even number, the even ones open; and the other way round.
        odd = np.arange(count) % 2 == 1
        wrong = [np.flatnonzero(np.where(odd == first, ~opens, ~closes)) for first in (False, True)]
        ends = self._line_ends()
        before = np.searchsorted(quotes, ends) % 2
        outside = [ends[before == first] for first in (0, 1)]
        bad: list[tuple[int, int, str]] = []
        start, first = 0, 0
        while first < count:
            parity = first % 2
            place = np.searchsorted(wrong[parity], first)
            found = int(wrong[parity][place]) if place < len(wrong[parity]) else count
            if found == count and ((count - first) % 2 == 0 or not (final or size - quotes[-1] > LONGEST_QUOTED)):
                break
            opening = found - 1 if (found - first) % 2 else found
            at = int(quotes[opening])
            line = np.searchsorted(outside[parity], at) - 1
            line_start = max(start, int(outside[parity][line]) + 1) if line >= 0 else start
            stop = np.searchsorted(ends, line_start)
            if stop == len(ends):
                break  # the rest of the line is not there yet
            is_open = found == count or (opening < found and quotes[found] - at > LONGEST_QUOTED)
            start = int(ends[stop]) + 1
            around = self.characters[max(line_start, at - 20) : min(at + 20, start - 1)].tobytes()
            bad.append((line_start, start, f"{_CLOSED if is_open else _WHOLE_FIELDS}. Received {shown(around)}"))
            first = int(np.searchsorted(quotes, start))
        return bad

    def _line_ends(self) -> np.ndarray:
        """Positions of what would end a line outside of quotes."""
        is_end = self.kind == _NEWLINE
        returns = np.flatnonzero(self.kind == _RETURN)
        is_end[returns] = self.kind[np.minimum(returns + 1, self.kind.size - 1)] != _NEWLINE
        return np.flatnonzero(is_end)

    def structure(self, bad: list[tuple[int, int, str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`(positions of all marks, kind of each, which of them end fields, which lines)`; a bad line is one field."""
        at = np.flatnonzero(self.kind > 0)
        kind = self.kind[at]
        outside = (np.cumsum(self.read_quotes(at, kind, bad), dtype=np.int32) & 1) == 0
        line_end = kind == _NEWLINE
        returns = np.flatnonzero(kind == _RETURN)
        if returns.size:
            line_end[returns] = self.kind[np.minimum(at[returns] + 1, self.kind.size - 1)] != _NEWLINE
        ends = kind == _SEPARATOR
        if bad:
            ends &= ~_within(at, bad)
        return at, kind, np.flatnonzero((ends | line_end) & outside), np.flatnonzero(line_end & outside)

    def read_quotes(self, at: np.ndarray, kind: np.ndarray, bad: list[tuple[int, int, str]]) -> np.ndarray:
        """bool, which marks are quotes of lines that are not bad."""
        quote: np.ndarray = kind == _QUOTE
        return quote & ~_within(at, bad) if bad else quote


def _within(positions: np.ndarray, bad: list[tuple[int, int, str]]) -> np.ndarray:
    """bool, which positions are in bad lines."""
    starts, stops = (np.array([line[i] for line in bad]) for i in (0, 1))
    line = np.searchsorted(starts, positions, "right") - 1
    within: np.ndarray = (line >= 0) & (positions < stops[line])
    return within


def _escapes(characters: np.ndarray, escape: int, table: np.ndarray) -> np.ndarray:
    """Positions of the escapes that take the character after them as text, where `table` says which can be taken."""
    at = np.flatnonzero(characters == escape)
    number = np.arange(at.size)
    begins = np.diff(at, prepend=-2) != 1
    # Of several in a row, every second one is text.
    in_row = number - np.maximum.accumulate(np.where(begins, number, 0))
    following = np.append(characters, np.uint8(0))[at + 1]
    return at[(in_row % 2 == 0) & ((following == escape) | (table[following] > 0))]
