"""A sample of the rows of Parquet and Arrow files, and what their types say of the columns."""

import itertools
from collections.abc import Sequence
from typing import Any, Optional

from dlrm_tf.data.guess.column import LIST_MARK, LISTED, NUMBER, OTHER, TEXT, WHOLE
from dlrm_tf.data.guess.sample import PLACES, Sample, spread
from dlrm_tf.data.readers.arrow import ArrowReader
from dlrm_tf.data.readers.tables import open_table
from dlrm_tf.errors import DataError, require

SAMPLE_ROWS = 20_000


def sample_tables(paths: Sequence[str]) -> Optional[Sample]:
    """A sample of tables; None where the first file is none.

    Args:
      paths: local paths or URLs.

    Raises:
      DataError: a file is damaged, is no table, or has other columns than the first.
    """
    names: list[str] = []
    types: list[str] = []
    cells: list[list[str]] = []
    rows, files = 0.0, spread(paths)
    for path in files:
        reader = open_table(path, None)
        if reader is None:
            if not names:
                return None
            raise DataError(f"{path}: wanted a table, as {files[0]} is. Received another kind of file")
        if not names:
            names, types = reader.columns, [_type(reader.schema.field(name).type) for name in reader.columns]
            cells = [[] for _ in names]
        elif reader.columns != names:
            wanted, received = (", ".join(columns)[:200] for columns in (names, reader.columns))
            raise DataError(f"{path}: wanted the columns of {files[0]}, {wanted}. Received {received}")
        parts, whole = _parts(reader, SAMPLE_ROWS // len(files), max(1, PLACES // len(files)))
        rows += whole
        for part in parts:
            for column, name, kind in zip(cells, names, types):
                column += map(_text, part[name].to_pylist()) if kind != OTHER else [""] * len(part[name])
    if not cells or not cells[0]:
        raise DataError(f"{', '.join(paths[:3])}: wanted rows. Received none")
    return Sample(names, list(cells), types, max(len(cells[0]), round(rows * len(paths) / len(files))))


def _parts(reader: ArrowReader, most: int, places: int) -> tuple[list[dict[str, Any]], float]:
    """Rows of a file, about `most` from so many places, the first at its beginning; and how many it has, about."""
    pieces = reader.pieces()
    first = list(itertools.islice(pieces, 2))
    read, rows = sum(piece.read for piece in first), sum(map(_rows, first))
    if len(first) < 2 and rows <= most:
        return [piece.content for piece in first], rows
    whole = reader.rows or (reader.size * rows / max(read, 1) if len(first) == 2 else rows)
    parts = [_head(first[0], most // 2)]
    if reader.rows:  # else the file is a stream, of which all that comes before would be read
        for i in range(1, places):
            piece = next(reader.pieces(int(whole * i / places)), None)
            parts += [] if piece is None else [_head(piece, most // 2 // places)]
    return parts, whole


def _rows(piece: Any) -> int:
    return len(next(iter(piece.content.values())))


def _head(piece: Any, rows: int) -> dict[str, Any]:
    return {name: array.slice(0, rows) for name, array in piece.content.items()}


def _type(found: Any) -> str:
    kinds = require("pyarrow", "arrow").types
    value = found.value_type if kinds.is_dictionary(found) else found
    if kinds.is_list(value) or kinds.is_large_list(value) or kinds.is_fixed_size_list(value):
        return LISTED if _type(value.value_type) in (TEXT, WHOLE) else OTHER
    if kinds.is_integer(value):
        return WHOLE
    if kinds.is_floating(value) or kinds.is_decimal(value) or kinds.is_boolean(value):
        return NUMBER
    text = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null)
    raw = (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary)
    return TEXT if any(is_kind(value) for is_kind in (*text, *raw)) else OTHER


def _text(value: Any) -> str:
    """A value as a text log would have it; lists with `LIST_MARK`."""
    if isinstance(value, list):
        return LIST_MARK.join(map(_text, value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None or value != value else str(value)
