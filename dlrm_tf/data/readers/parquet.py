"""ParquetReader: a Parquet file, in pieces of its row groups, within a bound of memory."""

import functools
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, Optional

from dlrm_tf.data.readers.arrow import PARQUET, PIECE_BYTES, PIECE_ROWS, ArrowReader
from dlrm_tf.data.readers.parquet_pages import Pages, read_pages
from dlrm_tf.data.readers.reader import Piece
from dlrm_tf.data.readers.storage import open_bytes
from dlrm_tf.errors import DataError, require

FOOTER_BYTES = 64 << 20
PAGES_BYTES = 256 << 20
LIST_BYTES = 1 << 30
_TAIL = 8  # the footer's length and the magic bytes
_BUFFER_BYTES = 1 << 20  # read at a time, of each column
_VALUE_BYTES = 16  # of a value besides a text's own bytes: a number, or offsets of a text


class ParquetReader(ArrowReader):
    """A Parquet file; see `ArrowReader`.

    Memory is bounded whatever the file says of itself. Before a row group is decoded, the headers of all its pages are read:
    pages and dictionaries of the columns that are read may have `PAGES_BYTES` at a time, lists of a row group `LIST_BYTES`, the
    footer `FOOTER_BYTES`. The rows of a piece have about `PIECE_BYTES`: where values are long, pieces have fewer rows.
    """

    format = "Parquet"

    def read_schema(self) -> Any:
        """See `ArrowReader`."""
        parquet = require("pyarrow.parquet", "arrow")
        with open_bytes(self.name) as file:
            file.seek(-min(_TAIL, self.size), os.SEEK_END)
            tail = file.read(_TAIL)
        footer = int.from_bytes(tail[:4], "little")
        if self.size < len(PARQUET) + _TAIL or tail[4:] != PARQUET:
            raise DataError(
                f"{self.name}: wanted a whole Parquet file. Received one without its end: it was cut, or is being written"
            )
        if footer > min(FOOTER_BYTES, self.size - len(PARQUET) - _TAIL):
            raise DataError(
                f"{self.name}: wanted a footer of at most {FOOTER_BYTES >> 20} MB within the file of {self.size:,} bytes. "
                f"Received {footer:,} bytes"
            )
        with parquet.ParquetFile(self.open_arrow(), pre_buffer=False) as opened:
            self._metadata = opened.metadata
            self.rows = opened.metadata.num_rows
            return opened.schema_arrow

    def where(self, line: int) -> str:
        """See `Reader`."""
        stop = 0
        for group in range(self._metadata.num_row_groups):
            stop += self._metadata.row_group(group).num_rows
            if line < stop:
                return f"{self.name}: row {line} (row group {group})"
        return super().where(line)

    def parts(self, size: int) -> list[tuple[int, Optional[int]]]:
        """See `Reader`: whole row groups, as many as have `size` bytes packed."""
        cuts, first, held = [0], 0, 0
        for group in range(self._metadata.num_row_groups):
            if held >= size and first > cuts[-1]:
                cuts.append(first)
                held = 0
            metadata = self._metadata.row_group(group)
            held += sum(metadata.column(i).total_compressed_size for i in range(metadata.num_columns))
            first += metadata.num_rows
        return list(zip(cuts, [*cuts[1:], None]))

    def pieces(self, offset: int = 0) -> Iterator[Piece]:
        """See `Reader`; also raises DataError where a row group takes too much memory."""
        with self.damage(), open_bytes(self.name) as file, self.open_arrow() as source:
            first = 0
            for group in range(self._metadata.num_row_groups):
                rows = self._metadata.row_group(group).num_rows
                if offset < first + rows:
                    yield from self._group(group, first, offset, file, source)
                first += rows

    def _group(self, group: int, first: int, offset: int, file: BinaryIO, source: Any) -> Iterator[Piece]:
        """The pieces of a row group from a row on; `first` is the number of its first row."""
        metadata = self._metadata.row_group(group)
        where = f"{self.name}: row group {group}"
        pages = self._pages(metadata, file, where)
        values = {leaf: self._value(group, leaf, column, source) for leaf, column in pages.items()}
        dictionaries = [self._metadata.schema.column(leaf).path for leaf, (as_dictionary, _) in values.items() if as_dictionary]
        row_bytes = sum(pages[leaf].values / metadata.num_rows * (size + _VALUE_BYTES) for leaf, (_, size) in values.items())
        rows = max(1, min(PIECE_ROWS, int(PIECE_BYTES / row_bytes)))
        packed = sum(metadata.column(leaf).total_compressed_size for leaf in pages)
        at = first
        for batch in self._open(source, dictionaries).iter_batches(
            rows, row_groups=[group], columns=self.columns, use_threads=False
        ):
            yield from self.pieces_of(batch, at, offset, packed * batch.num_rows // metadata.num_rows)
            at += batch.num_rows
        if at != first + metadata.num_rows:
            raise DataError(
                f"{where}: wanted {metadata.num_rows:,} rows. Received {at - first:,}: damaged, or cut while it was read"
            )

    def _pages(self, group: Any, file: BinaryIO, where: str) -> dict[int, Pages]:
        """By number of the leaf column, what its pages say, after a check against the limits."""
        pages = {}
        for leaf, name in self._leaves.items():
            column = group.column(leaf)
            starts = [start for start in (column.dictionary_page_offset, column.data_page_offset) if start]
            length = column.total_compressed_size
            if not starts or min(starts) < len(PARQUET) or length < 0 or min(starts) + length > self.size:
                raise DataError(f"{where}, column {name}: wanted pages within the file. Received {length:,} bytes from {starts}")
            try:
                pages[leaf] = read_pages(file, min(starts), length)
            except ValueError as e:
                raise DataError(f"{where}, column {name}: wanted pages of Parquet. Received {e}") from None
            if self._is_list(leaf):
                if pages[leaf].values * _VALUE_BYTES > LIST_BYTES:
                    raise DataError(
                        f"{where}, column {name}: wanted at most {LIST_BYTES // _VALUE_BYTES:,} items of lists in a row group. "
                        f"Received {pages[leaf].values:,}; write smaller row groups"
                    )
            elif pages[leaf].values != group.num_rows:
                raise DataError(f"{where}, column {name}: wanted {group.num_rows:,} values. Received {pages[leaf].values:,}")
        largest = sum(column.dictionary + column.largest for column in pages.values())
        if largest > PAGES_BYTES:
            raise DataError(
                f"{where}: wanted pages and dictionaries of at most {PAGES_BYTES >> 20} MB at a time. "
                f"Received {largest:,} bytes; write the file with smaller pages"
            )
        return pages

    def _value(self, group: int, leaf: int, pages: Pages, source: Any) -> tuple[bool, float]:
        """Whether to read a column as a dictionary, and how many bytes a value of it may then have."""
        column = self._metadata.schema.column(leaf)
        if column.physical_type != "BYTE_ARRAY":
            return False, max(column.length, 0)
        if pages.coded and pages.dictionary:
            return True, 0
        own = float(pages.largest if pages.prefixed else pages.densest)
        if not pages.dictionary:
            return False, own
        longest = self._longest(group, column.path, pages, source) if pages.coded_at_first and not self._is_list(leaf) else None
        if longest is None and not pages.others:
            return True, own
        value = max(own, pages.dictionary if longest is None else longest)
        # Without the dictionary is faster, but each row then has a copy of its value.
        return (False, value) if pages.others or value * PIECE_ROWS <= PIECE_BYTES else (True, own)

    def _longest(self, group: int, path: str, pages: Pages, source: Any) -> Optional[int]:
        """Bytes of the longest value of a column's dictionary; None where that is not known."""
        opened = self._open(source, [path])
        batch = next(opened.iter_batches(1, row_groups=[group], columns=[path], use_threads=False))
        dictionary = batch.column(0).dictionary
        if len(dictionary) != pages.dictionary_values or not len(dictionary):
            return None
        compute = require("pyarrow.compute", "arrow")
        return int(compute.max(compute.binary_length(dictionary)).as_py())

    def _open(self, source: Any, dictionaries: list[str]) -> Any:
        parquet = require("pyarrow.parquet", "arrow")
        return parquet.ParquetFile(
            source, metadata=self._metadata, read_dictionary=dictionaries, pre_buffer=False, buffer_size=_BUFFER_BYTES
        )

    @functools.cached_property
    def _leaves(self) -> dict[int, str]:
        """By number of each leaf column of the file that is read, its path."""
        schema = self._metadata.schema
        paths = [schema.column(leaf).path for leaf in range(len(schema))]
        wanted = tuple(f"{name}." for name in self.columns)
        return {leaf: path for leaf, path in enumerate(paths) if f"{path}.".startswith(wanted)}

    def _is_list(self, leaf: int) -> bool:
        return bool(self._metadata.schema.column(leaf).max_repetition_level)
