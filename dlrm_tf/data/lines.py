"""Reads text files, plain or gzip, in pieces of whole lines, from any byte offset."""

import dataclasses
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from dlrm_tf.errors import DataError

PIECE_BYTES = 4 << 20  # big enough for NumPy to work at full speed, small enough for the caches (measured: benchmarks/prepare.py)
_LONGEST_LINE = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class Piece:
    """Whole lines of one file.

    Attributes:
      file: number of the file, 0-based.
      offset: where `text` starts in the (decompressed) file, in bytes.
      text: the lines; only the last line of a file may lack its newline.
      read: bytes of the file on disk that were read for it, for progress.
    """

    file: int
    offset: int
    text: bytes
    read: int


def read_pieces(paths: Sequence[str], *, header: bool = False, file: int = 0, offset: int = 0) -> Iterator[Piece]:
    """Yields all pieces from `offset` of file number `file` on, file after file.

    Args:
      paths: files, plain or gzip (told by their first bytes).
      header: skip the first line of each file.
      file: number of the file to begin with.
      offset: where to begin in it, in bytes after decompression; a piece's `offset`.

    Raises:
      DataError: a gzip file is damaged, or there is no line end in 64 MB.
    """
    for number in range(file, len(paths)):
        path = paths[number]
        with open(path, "rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            try:
                yield from _pieces_of(stream, raw, path, number, header, offset if number == file else 0)
            except (zlib.error, gzip.BadGzipFile, EOFError) as e:
                raise DataError(f"{path}: damaged gzip file ({e})") from None


def _pieces_of(stream: Any, raw: BinaryIO, path: str, number: int, header: bool, offset: int) -> Iterator[Piece]:
    stream.seek(offset)
    at_header = header and offset == 0
    rest, done = b"", raw.tell() if offset else 0
    while True:
        text = stream.read(PIECE_BYTES)
        cut = text.rfind(b"\n") + 1 if text else 0
        if text and not cut:
            rest += text
            if len(rest) > _LONGEST_LINE:
                raise DataError(f"{path}: no line end in {_LONGEST_LINE >> 20} MB at byte {offset:,}: is this a text file?")
            continue
        whole, rest = rest + text[:cut], text[cut:]
        if at_header and whole:
            first = whole.find(b"\n") + 1 or len(whole)
            whole, offset, at_header = whole[first:], offset + first, False
        if whole:
            position = raw.tell()
            yield Piece(number, offset, whole, position - done)
            offset, done = offset + len(whole), position
        if not text:
            return


def total_bytes(paths: Sequence[str]) -> int:
    """Bytes of the files on disk."""
    return sum(os.path.getsize(path) for path in paths)
