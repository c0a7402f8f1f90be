"""What a raw number becomes before the model sees it: log(max(x, 0) + 1), and 0 where it is missing.

The one definition, in NumPy and in TensorFlow. Upstream: MindSpore models, research/recommend/dlrm/src/preprocess_data.py.

Missing is None, NaN, pandas.NA, the empty cell of a text, and a text that the spec names as such (`FeatureSpec.missing`); for a
category all of them are the key ''.

Infinity, and a number beyond float32, is an error: in text it makes a bad line, among Python values it raises DataError with row
and column. Only inside a graph it counts as missing. A server scores rows of several callers in one batch; an error there
would fail the rows of all of them, and a NaN probability would be no better.
"""

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.errors import DataError
from dlrm_tf.keras2 import any_keras_tensorflow

# Text in the metadata of exported models.
DENSE_PREPROCESSING = "log(max(x, 0) + 1), missing = 0"
LARGEST = float(np.finfo(np.float32).max)


def recorded(x: Any) -> np.ndarray:
    """The number that records hold: max(x, 0), and 0 where `x` is NaN or infinite; float32, any shape."""
    numbers = _float32(np.asarray(x))
    known: np.ndarray = np.where((numbers > 0) & (numbers <= LARGEST), numbers, np.float32(0))
    return known


def log_dense(x: Any) -> np.ndarray:
    """Raw numbers as the model takes them.

    Args:
      x: numbers, any shape; NaN is a missing one.

    Returns:
      float32, shape of `x`: log(max(x, 0) + 1), and 0 where `x` is not finite.
    """
    logarithm: np.ndarray = np.log1p(recorded(x))
    return logarithm


def log_dense_tensor(x: Any, *, of_records: bool = False) -> Any:
    """`log_dense` as TensorFlow operations, for a graph.

    Args:
      x: float32 tensor, any shape.
      of_records: `x` holds `recorded` numbers, so only the logarithm is applied. A NaN in damaged records stays NaN, and
        training stops at it.

    Returns:
      float32 tensor, shape of `x`.
    """
    tf = any_keras_tensorflow()
    return tf.math.log1p(x if of_records else tf.where((x > 0.0) & (x <= LARGEST), x, tf.zeros_like(x)))


def is_missing(cell: object) -> bool:
    """Whether a Python value stands for a missing cell: None, NaN, NaT or pandas.NA."""
    if cell is None:
        return True
    pandas = sys.modules.get("pandas")  # pandas.NA can exist only where pandas is loaded
    if pandas is not None and cell is pandas.NA:
        return True
    try:
        return bool(cell != cell)
    except (TypeError, ValueError):  # of an array, for one
        return False


def without_markers(cells: Iterable[Any], markers: Collection[str]) -> list[Any]:
    """Python values with None in place of each text, str or bytes, that is one of `markers` (`FeatureSpec.missing`)."""
    known = {*markers, *(marker.encode() for marker in markers)}
    return [None if isinstance(cell, (str, bytes)) and cell in known else cell for cell in cells]


def without_markers_tensor(strings: Any, markers: Collection[str]) -> Any:
    """`without_markers` as TensorFlow operations, for a graph: '' in place of each string that is one of `markers`."""
    tf = any_keras_tensorflow()
    for marker in markers:
        strings = tf.where(tf.equal(strings, marker), tf.zeros_like(strings), strings)
    return strings


def read_number(text: Union[str, bytes], kind: str = "float") -> float:
    """One number as Python reads it.

    Args:
      text: not empty.
      kind: `"int"` admits whole numbers only; else `"float"`.

    Raises:
      ValueError: not a number, or not a finite float32.
      OverflowError: a whole number beyond float64.
    """
    value = float(text) if kind == "float" else float(int(text))
    if not -LARGEST <= value <= LARGEST:  # False for NaN, too
        raise ValueError
    return value


def dense_numbers(values: Any, names: Optional[Sequence[str]] = None, source: str = "dense", first_row: int = 0) -> np.ndarray:
    """Checks Python numbers and converts them to float32.

    Args:
      values: `[n]` or `[n, d]` numbers, or texts of numbers; missing where `is_missing`, or ''.
      names: of the `d` columns, for errors; None numbers them.
      source: what the values are, named in errors.
      first_row: number of the first row in errors.

    Returns:
      float32, shape of `values`; NaN where missing.

    Raises:
      DataError: a value that is neither missing nor a finite float32; names row and column.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind in "US":  # of a list that mixes texts with other values, NumPy makes texts of all
            array = np.asarray(values, object)
    except ValueError as e:  # rows of several lengths
        raise DataError(f"{source}: wanted an array of numbers ({e})") from e
    if array.dtype.kind in "fiub":
        numbers = _float32(array)
        wrong = np.isinf(numbers)
        fault = int(np.argmax(wrong)) if wrong.any() else None
    elif array.dtype.kind in "cmM":  # NumPy would drop the imaginary part, or take a date for a number
        numbers, fault = np.empty(array.shape, np.float32), 0
    else:
        numbers, fault = np.empty(array.shape, np.float32), None
        for i, cell in enumerate(array.reshape(-1).tolist()):
            try:
                numbers.flat[i] = _number(cell)
            except (TypeError, ValueError, OverflowError):
                fault = i
                break
    if fault is None:
        return numbers
    row, column = divmod(fault, array.shape[1] if array.ndim > 1 else 1)
    where = f"column {column}" if names is None else names[column]
    raise DataError(
        f"{source}: row {first_row + row}, {where}: wanted a finite number, or None, NaN or '' where it is missing. "
        f"Received {str(array.reshape(-1)[fault])[:40]!r}"
    )


def _float32(array: np.ndarray) -> np.ndarray:
    """As float32; beyond its range infinite, without a warning."""
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _number(cell: Any) -> float:
    if isinstance(cell, (str, bytes)):
        return read_number(cell) if cell else np.nan
    if is_missing(cell):
        return np.nan
    value = float(cell)
    if not -LARGEST <= value <= LARGEST:
        raise ValueError
    return value
