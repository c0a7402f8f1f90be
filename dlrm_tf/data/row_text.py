"""Lines of Criteo's format from arrays: a matrix of bytes with fields of fixed width, in which zero bytes are left out."""

from typing import Union

import numpy as np

_DIGITS = 7  # of the largest number
LARGEST_NUMBER = 10**_DIGITS - 1
KEY_BYTES = 9  # the separator and eight hex digits
TAB, BAR, _ZERO, _MINUS = (np.uint8(ord(character)) for character in "\t|0-")
# The four hex digits of every 16-bit number.
_HEX = np.frombuffer(b"".join(b"%04x" % i for i in range(1 << 16)), np.uint32)


def number_fields(numbers: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Dense numbers as text.

    Args:
      numbers: int32 `[rows, d]`, from -999,999 to `LARGEST_NUMBER`.
      absent: bool `[rows, d]`, where the field is empty.

    Returns:
      uint8 `[rows, d, 8]`: a tab, then the number with zero bytes among its characters.
    """
    fields = np.zeros((*numbers.shape, _DIGITS + 1), np.uint8)
    left, shown = np.abs(numbers).astype(np.uint32), ~absent
    for i in range(_DIGITS, 0, -1):
        left, digit = left // np.uint32(10), left % np.uint32(10)
        fields[..., i] = (digit.astype(np.uint8) + _ZERO) * shown
        shown = shown & (left > 0)
    fields[..., 1][(numbers < 0) & ~absent] = _MINUS
    fields[..., 0] = TAB
    return fields


def key_fields(keys: np.ndarray, shown: np.ndarray, separators: Union[np.ndarray, np.uint8]) -> np.ndarray:
    """Keys as text.

    Args:
      keys: uint32 `[rows, c]`.
      shown: bool `[rows, c]`; where it is false, the digits are left out.
      separators: uint8, what stands before each key, of a shape that broadcasts to `[rows, c]`; a zero is left out.

    Returns:
      uint8 `[rows, c, 9]`: the separator, then eight hex digits.
    """
    digits = np.empty((*keys.shape, 2), np.uint32)
    digits[..., 0] = _HEX[keys >> np.uint32(16)]
    digits[..., 1] = _HEX[keys & np.uint32(0xFFFF)]
    digits *= shown[..., np.newaxis]
    fields = np.empty((*keys.shape, KEY_BYTES), np.uint8)
    fields[..., 0] = separators
    fields[..., 1:] = digits.view(np.uint8)
    return fields


def lines(labels: np.ndarray, numbers: np.ndarray, keys: np.ndarray) -> bytes:
    """The text of rows.

    Args:
      labels: bool `[rows]`.
      numbers: what `number_fields` gave, `[rows, d, 8]`.
      keys: what `key_fields` gave, `[rows, c, 9]`.

    Returns:
      One line a row, each with its line end.
    """
    rows = len(labels)
    text = np.empty((rows, 2 + numbers[0].size + keys[0].size), np.uint8)
    text[:, 0] = labels + _ZERO
    text[:, 1 : 1 + numbers[0].size] = numbers.reshape(rows, -1)
    text[:, 1 + numbers[0].size : -1] = keys.reshape(rows, -1)
    text[:, -1] = ord("\n")
    return text[text != 0].tobytes()
