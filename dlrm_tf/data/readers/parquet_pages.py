"""What the pages of a Parquet column chunk say of themselves: read before they are decoded, so that memory can be bounded.

A file's footer may state other sizes than its pages have, and pyarrow takes memory as the pages ask. Page headers follow Apache
Parquet's parquet.thrift in Thrift's compact protocol (parquet-format, src/main/thrift/parquet.thrift).
"""

import dataclasses
from typing import Any, BinaryIO

# Numbers of parquet.thrift: fields of PageHeader, and of the headers within it.
_TYPE, _UNPACKED, _PACKED, _DATA, _DICTIONARY, _DATA_V2 = 1, 2, 3, 5, 7, 8
_NUM_VALUES, _ENCODING, _ENCODING_V2 = 1, 2, 4
_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = range(4)
_PLAIN, _DICTIONARY_ENCODINGS = 0, (2, 8)
_DELTA_BYTE_ARRAY = 7
_PEEK = 256  # bytes that hold most headers
_LONGEST_HEADER = 8 << 20  # statistics in it may have long texts
_DEEPEST = 8


@dataclasses.dataclass
class Pages:
    """The pages of a column chunk.

    Attributes:
      values: in all data pages, nulls counted; of lists each item.
      dictionary: bytes of the dictionary page, decompressed.
      dictionary_values: how many it has.
      largest: bytes of the largest data page, compressed and decompressed together.
      densest: most decompressed bytes a value of a data page.
      coded: all data pages have numbers of the dictionary's values.
      coded_at_first: the first data page has.
      others: data pages that have neither those nor plain values.
      prefixed: a page leaves out what a text has in common with the one before (DELTA_BYTE_ARRAY): a value may be as long as its
        page is.
    """

    values: int = 0
    dictionary: int = 0
    dictionary_values: int = 0
    largest: int = 0
    densest: float = 0.0
    coded: bool = True
    coded_at_first: bool = False
    others: int = 0
    prefixed: bool = False


def read_pages(file: BinaryIO, start: int, length: int) -> Pages:
    """Reads the headers of all pages of a column chunk, and nothing of what is in them.

    Args:
      file: the Parquet file.
      start: position of the first page.
      length: bytes of all pages with their headers.

    Raises:
      ValueError: the pages are not as Parquet has them.
    """
    pages, at, stop = Pages(), start, start + length
    while at < stop:
        header, size = _header(file, at, stop)
        packed, unpacked = header.get(_PACKED, -1), header.get(_UNPACKED, -1)
        at += size + packed
        if packed < 0 or unpacked < 0 or at > stop:
            raise ValueError(f"a page of {packed} bytes, {unpacked} decompressed, in {length} bytes of its column")
        kind = header.get(_TYPE)
        if kind == _DICTIONARY_PAGE:
            pages.dictionary += unpacked
            pages.dictionary_values += header.get(_DICTIONARY, {}).get(_NUM_VALUES, 0)
        elif kind in (_DATA_PAGE, _DATA_PAGE_V2):
            details = header.get(_DATA if kind == _DATA_PAGE else _DATA_V2, {})
            values, encoding = details.get(_NUM_VALUES, -1), details.get(_ENCODING if kind == _DATA_PAGE else _ENCODING_V2)
            if values < 0:
                raise ValueError(f"a page of {values} values")
            coded = encoding in _DICTIONARY_ENCODINGS
            pages.coded_at_first |= coded and not pages.values
            pages.values += values
            pages.largest = max(pages.largest, packed + unpacked)
            pages.densest = max(pages.densest, unpacked / max(values, 1))
            pages.coded &= coded
            pages.others += not coded and encoding != _PLAIN
            pages.prefixed |= encoding == _DELTA_BYTE_ARRAY
        elif kind != _INDEX_PAGE:
            raise ValueError(f"a page of the unknown type {kind}")
    return pages


def _header(file: BinaryIO, at: int, stop: int) -> tuple[dict[int, Any], int]:
    """`(fields by number, bytes)` of the header at a position; ValueError where there is none before `stop`."""
    peek = _PEEK
    while True:
        file.seek(at)
        content = file.read(min(peek, stop - at))
        try:
            return _Compact(content).struct()
        except IndexError:
            if peek >= min(_LONGEST_HEADER, stop - at):
                raise ValueError("a page's header does not end") from None
            peek *= 8


class _Compact:
    """Reads Thrift's compact protocol; IndexError at the end of the bytes."""

    def __init__(self, content: bytes):
        self._content, self._at = content, 0

    def struct(self, depth: int = 0) -> tuple[dict[int, Any], int]:
        """`(fields by number: numbers, booleans and structs; position after it)`; texts and lists are passed over."""
        if depth > _DEEPEST:
            raise ValueError("a page's header has structs too deep within each other")
        fields: dict[int, Any] = {}
        number = 0
        while True:
            head = self._byte()
            if not head:
                return fields, self._at
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth, of_struct=True)

    def _value(self, kind: int, depth: int, *, of_struct: bool = False) -> Any:
        if kind in (1, 2):  # a field's boolean is its type; an item of a list has a byte
            return kind == 1 if of_struct else self._byte()
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind in (9, 10):
            head = self._byte()
            for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
                self._value(head & 15, depth + 1)
            return None
        if kind == 12:
            return self.struct(depth + 1)[0]
        raise ValueError(f"a page's header has a value of the unknown type {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._content):
            raise IndexError

    def _varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a page's header has a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
