"""KeyColumn: the keys of one categorical feature in many rows, in the form that arrays of them are looked up in."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dlrm_tf.data.features import is_missing
from dlrm_tf.errors import DataError

PAD = 8  # bytes around a text, so that eight bytes can be read before any field's end and after any field's start


class KeyColumn(NamedTuple):
    """Keys of `n` rows; most keys of a log are eight lower-case hex digits, and these are kept as numbers.

    Attributes:
      values: uint32 `[n]`, a key of eight lower-case hex digits as a number; 0 for any other key.
      empty: bool `[n]`, the key is ''.
      odd: `(row, key)` of every other key, rows ascending.
    """

    values: np.ndarray
    empty: np.ndarray
    odd: Sequence[tuple[int, bytes]]

    def rows(self, first: int, last: int) -> "KeyColumn":
        """The rows `[first, last)`."""
        odd = [(row - first, key) for row, key in self.odd if first <= row < last]
        return KeyColumn(self.values[first:last], self.empty[first:last], odd)

    def take(self, index: np.ndarray) -> "KeyColumn":
        """The keys at `index` (integers `[m]`, from 0), in its order."""
        if not self.odd:
            return KeyColumn(self.values[index], self.empty[index], [])
        number = np.full(len(self.values), -1, np.int64)
        number[[row for row, _ in self.odd]] = np.arange(len(self.odd))
        numbers = number[index]
        rows = np.flatnonzero(numbers >= 0)
        odd = [(row, self.odd[i][1]) for row, i in zip(rows.tolist(), numbers[rows].tolist())]
        return KeyColumn(self.values[index], self.empty[index], odd)


def u64(text: str) -> np.uint64:
    """A hexadecimal constant."""
    return np.uint64(int(text, 16))


ONES, LOW_NIBBLES, SIXES = u64("0101010101010101"), u64("0f0f0f0f0f0f0f0f"), u64("0606060606060606")
ZEROS = u64("3030303030303030")  # eight characters '0'
_SIXTEENS = u64("1010101010101010")
_BYTES, _PAIRS, _FOURS = u64("00ff00ff00ff00ff"), u64("0000ffff0000ffff"), u64("00000000ffffffff")
_4, _6, _8, _9, _16, _LETTER = (np.uint64(n) for n in (4, 6, 8, 9, 16, ord("a") - ord("0") - 10))


def words_at(characters: np.ndarray) -> np.ndarray:
    """uint64 `[c - 7]`: the eight bytes from each position on as one number, a view of `characters` (uint8 `[c]`)."""
    return np.ndarray((characters.size - 7,), "<u8", characters, strides=(1,))


def hex_keys(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes eight ASCII hex digits a word.

    Args:
      words: uint64, any shape, first character in the lowest byte.

    Returns:
      `(keys uint32, canonical bool)`, shape of `words`; a word is canonical when all eight characters are 0-9 or a-f.
    """
    digits = (words & LOW_NIBBLES) + _9 * ((words >> _6) & ONES)
    letters = ((digits + SIXES) >> _4) & ONES
    # Writing the digits back must give the same characters: upper case, ':' or 'g' do not.
    canonical = (((digits + ZEROS + _LETTER * letters) ^ words) | (digits & _SIXTEENS)) == 0
    # Two digits to a byte, then bytes to pairs, then pairs to the word; the first character is the highest digit.
    digits = ((digits << _4) | (digits >> _8)) & _BYTES
    digits = ((digits << _8) | (digits >> _16)) & _PAIRS
    digits = ((digits << _16) | (digits >> np.uint64(32))) & _FOURS
    return digits.astype(np.uint32), canonical


def hex_words(values: np.ndarray) -> np.ndarray:
    """The reverse of `hex_keys`: uint64 words of the eight lower-case hex digits of numbers, uint32 of any shape."""
    digits = values.astype(np.uint64)
    digits = (digits | (digits << _16)) & _PAIRS
    digits = (digits | (digits << _8)) & _BYTES
    # The first character is the highest digit.
    digits = ((digits | (digits << _4)) & LOW_NIBBLES).byteswap()
    return digits + ZEROS + _LETTER * (((digits + SIXES) >> _4) & ONES)


def as_column(keys: Sequence[Any], where: Callable[[int], str] = "key {}".format) -> KeyColumn:
    """Python values as a column of keys.

    Args:
      keys: str, bytes or whole numbers (the key of their decimal digits); missing ones (`is_missing`) are ''.
      where: text that names the key at an index, for errors.

    Raises:
      DataError: a value of another type.
    """
    encoded = [
        key.encode("utf-8", "surrogateescape") if type(key) is str else key if type(key) is bytes else encoded_key(key, i, where)
        for i, key in enumerate(keys)
    ]
    length = np.fromiter(map(len, encoded), np.int64, len(encoded))
    ends = np.cumsum(length)
    return keys_at(b"".join(encoded) + bytes(PAD), ends - length, ends)


def keys_at(raw: bytes, starts: np.ndarray, ends: np.ndarray) -> KeyColumn:
    """Fields of a text as a column of keys.

    Args:
      raw: the text, with at least `PAD` bytes after the last field's start.
      starts: `[n]`, position of each field's first character.
      ends: `[n]`, position after each field's last character.
    """
    length = ends - starts
    values, canonical = hex_keys(words_at(np.frombuffer(raw, np.uint8))[starts])
    canonical &= length == 8
    values[~canonical] = 0
    empty = length == 0
    odd = np.flatnonzero(~(canonical | empty))
    texts = [(row, raw[a:b]) for row, a, b in zip(odd.tolist(), starts[odd].tolist(), ends[odd].tolist())]
    return KeyColumn(values, empty, texts)


def by_row(columns: Sequence[KeyColumn], rows: Sequence[np.ndarray]) -> KeyColumn:
    """The keys of several columns as one, row after row and in a row column after column.

    Args:
      columns: the columns.
      rows: of each column the row of each key, ascending; several keys of a row are those of a bag.
    """
    order = np.argsort(np.concatenate(rows), kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    starts = np.cumsum([0, *(len(column.values) for column in columns)])
    odd = [(int(place[start + at]), key) for start, column in zip(starts, columns) for at, key in column.odd]
    values, empty = (np.concatenate([column[i] for column in columns])[order] for i in (0, 1))
    return KeyColumn(values, empty, sorted(odd))


def encoded_key(key: Any, index: int, where: Callable[[int], str]) -> bytes:
    """The bytes of a Python value's key; see `as_column`."""
    if isinstance(key, str):
        return key.encode("utf-8", "surrogateescape")
    if isinstance(key, bytes):
        return bytes(key)
    if isinstance(key, numbers.Integral) and not isinstance(key, bool):
        return b"%d" % int(key)
    if is_missing(key):
        return b""
    # 5.0 may have been '5' or '5.0' in the log: a guess could silently pick another key.
    raise DataError(
        f"{where(index)}: wanted a category as str, bytes or a whole number, or None where it is missing. "
        f"Received {str(key)[:40]!r} ({type(key).__name__}); write it exactly as in the log"
    )
