"""Columns of any library as arrays of Arrow: pandas, polars, NumPy, lists of Python values."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dlrm_tf.data.features import is_missing
from dlrm_tf.data.key_column import encoded_key
from dlrm_tf.data.table import cells_of
from dlrm_tf.errors import DataError, reason, require


def as_arrow(column: Any, kind: str, where: Callable[[int], str]) -> Any:
    """One column as a `pyarrow.Array`.

    Args:
      column: an Arrow, pandas or polars column, a NumPy array, or a list of Python values; missing: None, NaN, pandas.NA.
      kind: of the column, as a feature spec has it, or `"weights"`.
      where: text that names a cell by its row, for errors.

    Raises:
      DataError: a cell is not what its kind takes.
    """
    pa = require("pyarrow", "arrow")
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(column, pa.Array):
        return column
    if hasattr(column, "to_arrow"):  # polars
        return as_arrow(column.to_arrow(), kind, where)
    try:
        array = as_arrow(pa.array(getattr(column, "array", column), from_pandas=True), kind, where)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, UnicodeError) as e:
        # Values of several types, or texts that are no UTF-8.
        if kind != "categorical":
            raise DataError(f"{where(0)} and below: wanted a column of {kind} values ({reason(e)})") from None
        return _encoded(column, where)
    # Whole numbers become floats where NumPy or pandas puts NaN among them in a column of Python values.
    of_objects = not hasattr(column, "dtype") or column.dtype == object
    return _encoded(column, where) if kind == "categorical" and of_objects and pa.types.is_floating(array.type) else array


def _encoded(column: Any, where: Callable[[int], str]) -> Any:
    """Keys of Python values, as bytes; of a bag also lists of keys."""
    pa = require("pyarrow", "arrow")
    cells = cells_of(column)
    if any(_is_list(cell) for cell in cells):
        lists = [cell if _is_list(cell) else [] if is_missing(cell) else [cell] for cell in cells]
        encoded = [[encoded_key(key, row, where) for key in keys] for row, keys in enumerate(lists)]
        return pa.array(encoded, pa.list_(pa.binary()))
    return pa.array([encoded_key(cell, row, where) for row, cell in enumerate(cells)], pa.binary())


def _is_list(cell: Any) -> bool:
    return isinstance(cell, (list, tuple)) or (isinstance(cell, np.ndarray) and cell.ndim == 1)
