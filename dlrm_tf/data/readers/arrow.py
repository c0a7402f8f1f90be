"""Files of tables: which format a file has by its first bytes, and what readers of Parquet and Arrow files share."""

import abc
import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Optional

from dlrm_tf.data.arrow_keys import Seen
from dlrm_tf.data.arrow_schema import columns_to_read
from dlrm_tf.data.block import Block
from dlrm_tf.data.readers.reader import Piece, Reader
from dlrm_tf.data.readers.storage import identity_of, is_url, open_bytes, size_of
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.table_block import table_block
from dlrm_tf.errors import DataError, DLRMError, reason, require

PIECE_ROWS = 1 << 16
PIECE_BYTES = 64 << 20  # of the values of a piece, decoded
PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
# First bytes of files that are tables, but none that can be read.
REFUSED = {
    b"PARE": "an encrypted Parquet file",
    b"FEA1": "a Feather file of version 1; write it with version 2, which is Arrow's file format",
}


class ArrowReader(Reader):
    """A file whose rows pyarrow decodes; an offset is the number of a row, and a piece's content its rows as arrays by column.

    Args:
      path: the file, a local path or a URL.
      spec: the columns, found by their names; None to look at all there are: pieces can't be parsed then.

    Attributes:
      schema: its columns with their types, a `pyarrow.Schema`.
      columns: names of those that are read.
      rows: how many there are; None where the file does not say it before it is read.
    """

    rows: Optional[int] = None
    format: str
    schema: Any
    columns: list[str]

    def __init__(self, path: str, spec: Optional[FeatureSpec]):
        self.name, self.size = path, size_of(path)
        with self.damage():
            self.schema = self.read_schema()
        if spec is None:
            self.columns = list(dict.fromkeys(self.schema.names))
            return
        self.spec = spec
        label = any(name in self.schema.names for name, kind in spec.columns if kind == "label")
        self.columns = columns_to_read(self.schema, spec, path, labelled=label)
        self._seen = {name: Seen() for name in self.columns}

    @abc.abstractmethod
    def read_schema(self) -> Any:
        """The file's columns, a `pyarrow.Schema`; checks what of the file can be checked without its rows."""

    def identity(self) -> list[Any]:
        """See `Reader`."""
        return identity_of(self.name)

    def has_label(self, piece: Piece) -> bool:
        """See `Reader`."""
        return any(name in self.columns for name, kind in self.spec.columns if kind == "label")

    def parse(self, piece: Piece, *, labelled: bool = True) -> Block:
        """See `Reader`; also raises DataError where the label is wanted and there is none."""
        if labelled and not self.has_label(piece):
            columns_to_read(self.schema, self.spec, self.name, labelled=True)
        with self.damage():
            return table_block(piece.content, self.spec, labelled=labelled, seen=self._seen)

    def where(self, line: int) -> str:
        """See `Reader`."""
        return f"{self.name}: row {line}"

    @contextlib.contextmanager
    def damage(self) -> Iterator[None]:
        """Turns what pyarrow raises for a damaged file into one line."""
        try:
            yield
        except DLRMError:
            raise
        except FileNotFoundError:
            raise
        except Exception as e:  # a damaged file can raise any exception
            raise DataError(f"{self.name}: damaged {self.format} file, or cut while it was read ({reason(e)})") from None

    def open_arrow(self) -> Any:
        """The file as pyarrow takes it; a local one is read outside Python's global lock."""
        pa = require("pyarrow", "arrow")
        return pa.PythonFile(open_bytes(self.name), mode="r") if is_url(self.name) else pa.OSFile(self.name)

    def pieces_of(self, batch: Any, first: int, offset: int, read: int) -> Iterator[Piece]:
        """A record batch as pieces.

        Args:
          batch: a `pyarrow.RecordBatch` with the columns that are read.
          first: number of its first row.
          offset: number of the first row that is wanted.
          read: bytes that were read for it.
        """
        arrays = {name: batch.column(batch.schema.get_field_index(name)) for name in self.columns}
        for start in range(max(offset - first, 0), batch.num_rows, PIECE_ROWS):
            rows = min(PIECE_ROWS, batch.num_rows - start)
            yield Piece(first + start, {name: array.slice(start, rows) for name, array in arrays.items()}, read)
            read = 0


def starts_with(file: BinaryIO) -> bytes:
    """The first bytes of a file, as many as tell its format; the file is then at its beginning again."""
    first = file.read(len(ARROW_FILE))
    file.seek(0)
    return first
