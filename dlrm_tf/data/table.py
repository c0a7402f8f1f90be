"""Columns and cells of tables in any library's form: dicts of lists, NumPy, pandas, polars, Arrow."""

from typing import Any

import numpy as np

from dlrm_tf.errors import DataError, reason


def column_of(table: Any, name: str, source: str) -> Any:
    """One column of a table.

    Args:
      table: whatever gives a column by its name, `table["C1"]`.
      name: of the column.
      source: what the table is, named in errors.

    Raises:
      DataError: no such column, or not one column.
    """
    try:
        column = table[name]
        len(column)
    except Exception as e:  # KeyError, TypeError of a single value, or an error of the table's own library
        raise DataError(f"{source}: wanted a column {name!r} ({reason(e)})") from e
    if getattr(column, "ndim", 1) != 1 or isinstance(column, (str, bytes)):
        raise DataError(f"{source}: wanted one column {name!r}. Received {str(column)[:40]!r} ({type(column).__name__})")
    return column


def has_column(table: Any, name: str) -> bool:
    """Whether a table has a column."""
    try:
        table[name]
    except Exception:  # as in `column_of`
        return False
    return True


def cells_of(column: Any) -> list[Any]:
    """A column's cells as Python values, by the method that its library has for it."""
    for method in ("tolist", "to_list", "to_pylist"):  # NumPy and pandas, polars, Arrow
        if hasattr(column, method):
            return list(getattr(column, method)())
    return list(column)


def object_matrix(rows: Any) -> np.ndarray:
    """Rows of cells as an object array `[n, width]` whose cells may be lists; ValueError where rows have several lengths."""
    cells = [list(row) for row in rows]
    width = len(cells[0]) if cells else np.asarray(rows).shape[-1]
    matrix = np.empty((len(cells), width), object)
    for i, row in enumerate(cells):
        if len(row) != width:
            raise ValueError(f"row 0 has {width} cells, row {i} {len(row)}")
        for j, cell in enumerate(row):
            matrix[i, j] = cell
    return matrix
