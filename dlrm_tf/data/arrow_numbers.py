"""Numbers and labels from Arrow's columns, as a text log's are read."""

from typing import Any, NamedTuple

import numpy as np

from dlrm_tf.data.features import LARGEST, read_number
from dlrm_tf.errors import require


class Numbers(NamedTuple):
    """A column of `n` numbers.

    Attributes:
      values: float32 `[n]`; 0 where missing or wrong.
      missing: bool `[n]`: null, NaN or ''.
      wrong: bool `[n]`: not what its kind wants, infinity and numbers beyond float32 among it.
    """

    values: np.ndarray
    missing: np.ndarray
    wrong: np.ndarray

    def take(self, codes: np.ndarray) -> "Numbers":
        """The numbers at `codes`."""
        return Numbers(*(part[codes] for part in self))


def arrow_numbers(array: Any, kind: str, labels: tuple[int, int] = (0, 1)) -> Numbers:
    """Reads a column of numbers.

    Args:
      array: a `pyarrow.Array` of booleans, numbers, decimals, texts of numbers, nulls, or a dictionary of these.
      kind: `"int"`: whole, whatever the type; `"float"`: finite; `"label"`: one of `labels`.
      labels: the negative and the positive one, which become 0 and 1.
    """
    if kind == "label":
        found = arrow_numbers(array, "float", labels)
        wrong = found.missing | found.wrong | ~np.isin(found.values, labels)
        return Numbers((found.values == labels[1]).astype(np.float32), found.missing, wrong)
    pa = require("pyarrow", "arrow")
    kinds = pa.types
    if kinds.is_dictionary(array.type):
        # A null index and a null in the dictionary are the same: the entry after the last.
        return arrow_numbers(pa.concat_arrays([array.dictionary, pa.nulls(1, array.dictionary.type)]), kind).take(codes_of(array))
    if kinds.is_null(array.type):
        return _checked(np.full(len(array), np.nan), kind)
    if kinds.is_boolean(array.type):
        array = array.cast("uint8")
    if kinds.is_integer(array.type) or kinds.is_floating(array.type):
        numbers, missing = values_of(array)
        if kinds.is_integer(array.type) and array.type.bit_width <= 32:
            return Numbers(np.where(missing, 0, numbers).astype(np.float32), missing, np.zeros(len(numbers), bool))
        # Through float64, as the text of the same number is read.
        return _checked(np.where(missing, np.nan, numbers), kind)
    if kinds.is_decimal(array.type):
        return _of_texts(array.cast("string"), "float", kind)
    return _of_texts(array, kind, kind)


def values_of(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """The buffer of a column of numbers `[n]`, with any value where it is null, and bool `[n]`, where it is null."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    valid, content = array.buffers()
    if not len(array):
        return np.empty(0, dtype), np.zeros(0, bool)
    numbers = np.frombuffer(content, dtype, len(array), array.offset * dtype.itemsize)
    if not array.null_count:
        return numbers, np.zeros(len(array), bool)
    skipped = array.offset % 8
    bits = np.frombuffer(valid, np.uint8, (skipped + len(array) + 7) // 8, array.offset // 8)
    return numbers, np.unpackbits(bits, bitorder="little")[skipped : skipped + len(array)] == 0


def _of_texts(array: Any, text_kind: str, kind: str) -> Numbers:
    """Numbers of a column of texts, each distinct one read once."""
    coded = array.dictionary_encode()
    texts = coded.dictionary.cast("binary").to_pylist()
    numbers = np.full(len(texts) + 1, np.nan)  # and one more for null
    for i, text in enumerate(texts):
        if text:
            try:
                numbers[i] = read_number(text, text_kind)
            except (ValueError, OverflowError):
                numbers[i] = np.inf
    return _checked(numbers, kind).take(codes_of(coded))


def codes_of(array: Any) -> np.ndarray:
    """The codes of a dictionary's values, integers `[n]`; null is the code after the last."""
    codes, missing = values_of(array.indices)
    codes = np.where(missing, len(array.dictionary), codes) if missing.any() else codes
    if codes.min(initial=0) < 0 or codes.max(initial=0) > len(array.dictionary):  # pyarrow reads a damaged file's as they are
        raise ValueError(f"a code beyond its dictionary of {len(array.dictionary):,} values")
    return codes


def _checked(numbers: np.ndarray, kind: str) -> Numbers:
    """What float64 numbers become; NaN is missing."""
    missing = np.isnan(numbers)
    wrong = np.abs(numbers) > LARGEST
    if kind == "int":
        wrong |= ~missing & (numbers != np.floor(numbers))
    return Numbers(np.where(missing | wrong, 0, numbers).astype(np.float32), missing, wrong)
