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
        marks = _Marks(self, text, ended=text.endswith(b"\n"))
        bad = marks.bad_lines(final=True)
        structure, ends_line = marks.structure(bad)
        dropped = marks.dropped(bad)
        keep = np.ones(marks.characters.size, bool)
        keep[dropped] = False
        ends = marks.at[structure]
        lines = marks.at[ends_line]
        faults = {int(np.searchsorted(lines, start)): what for start, _, what in bad}
        last = np.searchsorted(ends, lines)
        return Fields(marks.characters[keep], ends - np.searchsorted(dropped, ends), last, faults)

    def end_of_lines(self, text: bytes) -> int:
        """Where the last line ends that is whole whatever follows `text`, which begins with a line; 0 where none is."""
        if self.quote.encode() not in text and (self.escape is None or self.escape.encode() not in text):
            return text.rfind(b"\n") + 1
        marks = _Marks(self, text, ended=True)
        _, ends_line = marks.structure(marks.bad_lines(final=False))
        newlines = ends_line[marks.kind[ends_line] == _NEWLINE]
        return int(marks.at[newlines[-1]]) + 1 if newlines.size else 0


class _Marks:
    """The special characters of a text that no escape takes as text.

    Attributes:
      characters: uint8, the text, with a newline added where the last line lacks it.
      at: int64, positions of the marks, ascending.
      kind: uint8, what each is.
      line_end: int64, which marks would end a line outside of quotes.
      quote: int64, which marks are quotes.
      position: int64, where the quotes are.
      escapes: int64, positions of the escapes that take what follows as text.
    """

    def __init__(self, quoting: Quoting, text: bytes, ended: bool):
        table = np.zeros(256, np.uint8)
        table[[ord(quoting.separator), ord("\n"), ord("\r"), ord(quoting.quote)]] = _SEPARATOR, _NEWLINE, _RETURN, _QUOTE
        self.characters = np.frombuffer(text if ended else text + b"\n", np.uint8)
        kind = table[self.characters]
        self.escapes = np.zeros(0, np.int64)
        if quoting.escape is not None and quoting.escape.encode() in text:
            self.escapes = _escapes(np.frombuffer(text, np.uint8), ord(quoting.escape), table)
            kind[self.escapes + 1] = 0
        self.at = np.flatnonzero(kind)
        self.kind = kind[self.at]
        # Whether the mark after each stands right behind it.
        self._adjacent = np.append(np.diff(self.at) == 1, False)
        is_end = self.kind == _NEWLINE
        is_end |= (self.kind == _RETURN) & ~(self._adjacent & np.append(is_end[1:], False))
        self.line_end = np.flatnonzero(is_end)
        self.quote = np.flatnonzero(self.kind == _QUOTE)
        self.position = self.at[self.quote]

    def bad_lines(self, final: bool) -> list[tuple[int, int, str]]:
        """`(start, stop, what is wrong)` of lines whose quotes are not as they should be.

        Args:
          final: the text ends here; else more of it follows, and what that decides is left open.
        """
        quotes, size = len(self.quote), self.characters.size
        if not quotes:
            return []
        # A quote may open where a mark or nothing stands before it, and close where a mark or nothing follows it.
        opens = np.append(self.position[0] == 0, self._adjacent[self.quote[1:] - 1])
        if self.quote[0] > 0:
            opens[0] = self._adjacent[self.quote[0] - 1]
        closes = self._adjacent[self.quote] | (self.position == size - 1)
        closes &= np.diff(self.position, prepend=self.position[0]) <= LONGEST_QUOTED
        odd = np.arange(quotes) % 2 == 1
        # Where the first quote of what is read has an even number, the even ones open; and the other way round.
        wrong = [np.flatnonzero(np.where(odd == first, ~opens, ~closes)) for first in (False, True)]
        if not wrong[0].size and quotes % 2 == 0:
            return []
        ends = self.at[self.line_end]
        before = np.searchsorted(self.position, ends) % 2
        outside = [ends[before == first] for first in (0, 1)]
        bad: list[tuple[int, int, str]] = []
        start, first = 0, 0
        while first < quotes:
            parity = first % 2
            place = np.searchsorted(wrong[parity], first)
            found = int(wrong[parity][place]) if place < len(wrong[parity]) else quotes
            opening = found - (found - first) % 2
            if found == quotes:
                opening = quotes - 1
                unclosed = (quotes - first) % 2 and (final or size - self.position[-1] > LONGEST_QUOTED)
                if not unclosed:
                    break
            x = int(self.position[opening])
            line = np.searchsorted(outside[parity], x) - 1
            line_start = max(start, int(outside[parity][line]) + 1) if line >= 0 else start
            stop = np.searchsorted(ends, line_start)
            if stop == len(ends):
                break  # the rest of the line is not there yet
            open_end = found == quotes or (opening < found and self.position[found] - x > LONGEST_QUOTED)
            start = int(ends[stop]) + 1
            around = self.characters[max(line_start, x - 20) : min(x + 20, start - 1)].tobytes()
            bad.append((line_start, start, f"{_CLOSED if open_end else _WHOLE_FIELDS}. Received {shown(around)}"))
            first = int(np.searchsorted(self.position, start))
        return bad

    def structure(self, bad: list[tuple[int, int, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Which marks end fields, and which of them lines; a bad line is one field."""
        quote = self.kind == _QUOTE
        if bad:
            quote &= ~self._within(self.at, bad)
        outside = (np.cumsum(quote, dtype=np.int32) & 1) == 0
        lines = self.line_end[outside[self.line_end]]
        ends = self.kind == _SEPARATOR
        if bad:
            ends &= ~self._within(self.at, bad)
        ends &= outside
        ends[lines] = True
        return np.flatnonzero(ends), lines

    def dropped(self, bad: list[tuple[int, int, str]]) -> np.ndarray:
        """Positions of what is no part of a field, ascending."""
        quote = self.quote
        if bad:
            quote = quote[~self._within(self.position, bad)]
        position = self.at[quote]
        # The second quote of two inside a field stays: it would open right behind one that closes.
        second = np.diff(position, prepend=-2) == 1
        second[1::2] = False
        returns = np.flatnonzero(self.kind == _RETURN)
        returns = returns[self._adjacent[returns]]
        returns = self.at[returns[self.kind[returns + 1] == _NEWLINE]]
        returns = returns[np.searchsorted(position, returns) % 2 == 0]
        return np.sort(np.concatenate((position[~second], returns, self.escapes)))

    @staticmethod
    def _within(positions: np.ndarray, bad: list[tuple[int, int, str]]) -> np.ndarray:
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
