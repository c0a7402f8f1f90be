"""FramesReader: tables in memory, or an iterator of them, as rows of a log."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, Optional

from dlrm_tf.data.arrow_array import as_arrow
from dlrm_tf.data.arrow_schema import columns_to_read
from dlrm_tf.data.bag import WEIGHTS
from dlrm_tf.data.block import Block
from dlrm_tf.data.readers.arrow import PIECE_ROWS
from dlrm_tf.data.readers.reader import Piece, Reader
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.table import column_of, has_column
from dlrm_tf.data.table_block import table_block
from dlrm_tf.errors import DataError, require


def is_table(value: Any) -> bool:
    """Whether `value` gives columns by their names: a dict of columns, a pandas or polars DataFrame, an Arrow table or batch."""
    return isinstance(value, Mapping) or (hasattr(value, "columns") and hasattr(value, "__getitem__"))


def open_frames(inputs: Any, spec: FeatureSpec) -> Optional["FramesReader"]:
    """The reader of inputs that are rows in memory; None where they are names of files.

    Args:
      inputs: a table (`is_table`), a list or another iterable of tables, or the name of a file or a list of names.
      spec: the columns.
    """
    if is_table(inputs):
        return FramesReader([inputs], spec)
    if isinstance(inputs, (str, bytes, os.PathLike)) or not hasattr(inputs, "__iter__"):
        return None
    if isinstance(inputs, (list, tuple)):
        return FramesReader(inputs, spec) if inputs and not isinstance(inputs[0], (str, bytes, os.PathLike)) else None
    return FramesReader(inputs, spec)


class FramesReader(Reader):
    """Tables in memory; a piece's content is a table of few rows.

    An iterator is consumed once, a table at a time: its rows can't be read again, so an interrupted job can't be resumed.

    Args:
      tables: an iterable of tables (`is_table`), such as a generator or a `pyarrow.RecordBatchReader`.
      spec: the columns, found by their names.
    """

    resumable = False

    def __init__(self, tables: Any, spec: FeatureSpec):
        self.name, self.spec, self.size = "rows", spec, 0
        self._tables = iter(tables)

    def identity(self) -> list[Any]:
        """See `Reader`."""
        return ["rows in memory"]

    def pieces(self, offset: int = 0) -> Iterator[Piece]:
        """See `Reader`; offsets are numbers of rows, and only 0 can be read from."""
        first = 0
        for table in self._tables:
            if not is_table(table):
                raise DataError(
                    f"{self.name}: wanted tables: DataFrames, Arrow tables or dicts of columns. Received {type(table).__name__}"
                )
            columns = self._columns(table, first)
            rows = len(next(iter(columns.values())))
            for start in range(0, rows, PIECE_ROWS):
                part = {name: column.slice(start, PIECE_ROWS) for name, column in columns.items()}
                yield Piece(first + start, part, 0)
            first += rows

    def _columns(self, table: Any, first: int) -> dict[str, Any]:
        """The columns that are read, as arrays of Arrow."""
        pa = require("pyarrow", "arrow")
        kinds = {name: kind for name, kind in self.spec.columns if kind != "skip"}
        kinds.update({name + WEIGHTS: "weights" for name in self.spec.bags if has_column(table, name + WEIGHTS)})
        columns = {}
        for name, kind in kinds.items():
            if kind != "label" or has_column(table, name):

                def where(row: int, name: str = name) -> str:
                    return f"{self.where(first + row)}, {name}"

                columns[name] = as_arrow(column_of(table, name, self.name), kind, where)
        names = list(columns)
        other = next((name for name in names if len(columns[name]) != len(columns[names[0]])), None)
        if other is not None:
            raise DataError(
                f"{self.name}: wanted columns of one length. Received {len(columns[names[0]]):,} rows of {names[0]}, "
                f"{len(columns[other]):,} of {other}"
            )
        schema = pa.schema([(name, column.type) for name, column in columns.items()])
        label = any(kind == "label" and name in columns for name, kind in self.spec.columns)
        return {name: columns[name] for name in columns_to_read(schema, self.spec, self.name, labelled=label)}

    def has_label(self, piece: Piece) -> bool:
        """See `Reader`."""
        return any(kind == "label" and name in piece.content for name, kind in self.spec.columns)

    def parse(self, piece: Piece, *, labelled: bool = True) -> Block:
        """See `Reader`; also raises DataError where the label is wanted and there is none."""
        if labelled and not self.has_label(piece):
            raise DataError(f"{self.name}: wanted the label's column. Received {', '.join(piece.content)}")
        return table_block(piece.content, self.spec, labelled=labelled)

    def where(self, line: int) -> str:
        """See `Reader`."""
        return f"{self.name}: row {line}"
