"""What the messages of an Arrow stream say of themselves: read before they are decoded, so that memory can be bounded.

A compressed buffer states its own length, and pyarrow takes as much memory. Messages are FlatBuffers, as Apache Arrow's format
has them (format/Message.fbs, "Encapsulated message format").
"""

import struct
from typing import BinaryIO, NamedTuple, Optional

import numpy as np

METADATA_BYTES = 64 << 20
_CONTINUES = 0xFFFFFFFF
# Numbers of Message.fbs: types of a message's header, and fields of its tables.
DICTIONARY, BATCH = 2, 3
_HEADER_TYPE, _HEADER, _BODY = 1, 2, 3
_ROWS, _BUFFERS, _COMPRESSION = 0, 2, 3
_ID, _DATA, _IS_DELTA = 0, 1, 2
_NOT_COMPRESSED = -1


class Message(NamedTuple):
    """One message.

    Attributes:
      kind: `DICTIONARY`, `BATCH`, or another number.
      rows: of a batch or a dictionary.
      stored: bytes of the message in the file.
      size: bytes of its values, decompressed.
      dictionary: number of the dictionary.
      is_delta: its values come after those that the dictionary has.
    """

    kind: int
    rows: int
    stored: int
    size: int
    dictionary: int
    is_delta: bool


def next_message(file: BinaryIO, end: int) -> Optional[Message]:
    """Reads what a message says of itself; the file is then after it.

    Args:
      file: at the beginning of a message.
      end: length of the file.

    Returns:
      None where the stream ends.

    Raises:
      ValueError: not a message of Arrow, or it is longer than the file.
    """
    start = file.tell()
    mark = file.read(8)
    if not mark or mark in (b"\0\0\0\0", b"\xff\xff\xff\xff\0\0\0\0"):
        return None
    if len(mark) < 8 or int.from_bytes(mark[:4], "little") != _CONTINUES:
        raise ValueError(f"wanted a message at byte {start:,}. Received {mark.hex()}")
    length = int.from_bytes(mark[4:], "little", signed=True)
    if not length:
        return None
    if not 0 < length <= min(METADATA_BYTES, end - start - 8):
        raise ValueError(
            f"wanted a message's description of at most {METADATA_BYTES >> 20} MB in the file. Received {length:,} bytes"
        )
    try:
        message = _Table.root(file.read(length))
        kind, body = message.number(_HEADER_TYPE, "<B"), message.number(_BODY, "<q")
        at = start + 8 + length
        if not 0 <= body <= end - at:
            raise ValueError(f"wanted a message within the file. Received one of {body:,} bytes, {end - at:,} are there")
        header = message.table(_HEADER)
        batch = header.table(_DATA) if kind == DICTIONARY and header else header
        rows, size = (
            (batch.number(_ROWS, "<q"), _size(batch, file, at, body)) if kind in (DICTIONARY, BATCH) and batch else (0, 0)
        )
        of = (header.number(_ID, "<q"), bool(header.number(_IS_DELTA, "<B"))) if kind == DICTIONARY and header else (0, False)
    except struct.error as e:
        raise ValueError(f"a damaged message at byte {start:,} ({e})") from None
    file.seek(at + body)
    return Message(kind, rows, at + body - start, size, *of)


def _size(batch: "_Table", file: BinaryIO, start: int, body: int) -> int:
    """Bytes of the values of a batch, whose body starts at `start`."""
    if batch.table(_COMPRESSION) is None:
        return body
    total = 0
    for offset, length in batch.structs(_BUFFERS).tolist():
        if length:
            if offset < 0 or length < 8 or offset + length > body:
                raise ValueError(f"wanted a buffer within its message. Received {length:,} bytes at {offset:,} of {body:,}")
            file.seek(start + offset)
            stated = int.from_bytes(file.read(8), "little", signed=True)
            total += length if stated == _NOT_COMPRESSED else max(stated, 0)
    return total


class _Table:
    """A table of FlatBuffers; struct.error where it leads out of the bytes."""

    def __init__(self, content: bytes, at: int):
        self._content, self._at = content, at
        self._fields = at - self._read("<i", at)

    @classmethod
    def root(cls, content: bytes) -> "_Table":
        return cls(content, struct.unpack_from("<I", content)[0])

    def _read(self, form: str, at: int) -> int:
        if at < 0:  # struct would count it from the end
            raise struct.error("a place before the message")
        return int(struct.unpack_from(form, self._content, at)[0])

    def _place(self, field: int) -> int:
        """Where a field is; 0 where it is left out."""
        at = 4 + 2 * field
        offset = self._read("<H", self._fields + at) if at < self._read("<H", self._fields) else 0
        return self._at + offset if offset else 0

    def number(self, field: int, form: str) -> int:
        """A number, 0 where it is left out."""
        place = self._place(field)
        return self._read(form, place) if place else 0

    def table(self, field: int) -> Optional["_Table"]:
        """A table within this one."""
        place = self._place(field)
        return _Table(self._content, place + self._read("<I", place)) if place else None

    def structs(self, field: int) -> np.ndarray:
        """A vector of structs of two int64, `[n, 2]`."""
        place = self._place(field)
        if not place:
            return np.empty((0, 2), np.int64)
        at = place + self._read("<I", place)
        count = self._read("<I", at)
        if at + 4 + 16 * count > len(self._content):
            raise struct.error("a list beyond the message")
        return np.frombuffer(self._content, "<i8", 2 * count, at + 4).reshape(-1, 2)
