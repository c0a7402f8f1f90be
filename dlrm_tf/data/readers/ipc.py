"""IpcReader: Arrow's own files (Feather, version 2) and streams, in pieces of their record batches, within a bound of memory."""

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from dlrm_tf.data.readers.arrow import ARROW_FILE, ArrowReader, starts_with
from dlrm_tf.data.readers.ipc_messages import BATCH, DICTIONARY, next_message
from dlrm_tf.data.readers.reader import Piece
from dlrm_tf.data.readers.storage import open_bytes
from dlrm_tf.errors import DataError, require

MESSAGE_BYTES = 1 << 30
_FILE_HEAD = 8  # bytes before the stream that a file holds


class IpcReader(ArrowReader):
    """An Arrow file or stream; see `ArrowReader`. A file is read as the stream it holds.

    A record batch, and all dictionaries together, may have `MESSAGE_BYTES` of values; what they say of themselves is read first.
    """

    format = "Arrow"

    def read_schema(self) -> Any:
        """See `ArrowReader`."""
        with open_bytes(self.name) as file:
            first = starts_with(file)
            self._start = _FILE_HEAD if first == ARROW_FILE else 0
            if self._start:
                file.seek(-min(len(ARROW_FILE), self.size), os.SEEK_END)
                if file.read() != ARROW_FILE or self.size < 2 * _FILE_HEAD:
                    raise DataError(
                        f"{self.name}: wanted a whole Arrow file. Received one without its end: it was cut, or is being written"
                    )
            file.seek(self._start)
            if next_message(file, self.size) is None:
                raise ValueError("it has no schema")
        with self._stream() as stream:
            return stream.schema

    def _stream(self, columns: Any = None) -> Any:
        """The stream; of columns only those that `columns` numbers."""
        ipc = require("pyarrow.ipc", "arrow")
        source = self.open_arrow()
        source.seek(self._start)
        options = ipc.IpcReadOptions(included_fields=columns) if columns is not None else None
        return ipc.open_stream(source, options=options)

    def pieces(self, offset: int = 0) -> Iterator[Piece]:
        """See `Reader`; also raises DataError where a record batch takes too much memory."""
        numbers = [self.schema.get_field_index(name) for name in self.columns]
        with self.damage(), open_bytes(self.name) as file, self._stream(numbers) as stream:
            file.seek(self._start)
            next_message(file, self.size)  # the schema
            dictionaries: dict[int, int] = {}
            first = 0
            while read := self._check_batch(file, dictionaries):
                batch = stream.read_next_batch()
                if first + batch.num_rows > offset:
                    batch.validate(full=True)  # unlike Parquet's, its buffers are the file's own
                    yield from self.pieces_of(batch, first, offset, read)
                first += batch.num_rows

    def _check_batch(self, file: BinaryIO, dictionaries: dict[int, int]) -> int:
        """Reads the descriptions of the next record batch and of the dictionaries before it.

        Args:
          file: where the stream is read up to now.
          dictionaries: bytes of each, written to.

        Returns:
          Bytes of all of them in the file; 0 where the stream ends.
        """
        read = 0
        while message := next_message(file, self.size):
            read += message.stored
            if message.kind == DICTIONARY:
                before = dictionaries.get(message.dictionary, 0) if message.is_delta else 0
                dictionaries[message.dictionary] = before + message.size
            size = sum(dictionaries.values()) if message.kind == DICTIONARY else message.size
            if size > MESSAGE_BYTES:
                what = "dictionaries" if message.kind == DICTIONARY else "a record batch"
                raise DataError(
                    f"{self.name}: wanted {what} of at most {MESSAGE_BYTES >> 20} MB. Received {size:,} bytes; "
                    f"write smaller batches"
                )
            if message.kind == BATCH:
                return read
        return 0
