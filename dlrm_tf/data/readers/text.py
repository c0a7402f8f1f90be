"""TextReader: a text log, plain or gzip, in pieces of whole lines, from any byte offset."""

import gzip
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Optional

from dlrm_tf.data.block import Block
from dlrm_tf.data.parse import has_label, parse_block
from dlrm_tf.data.readers.reader import Piece, Reader
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError

PIECE_BYTES = 4 << 20  # big enough for NumPy to work at full speed, small enough for the caches (measured: benchmarks/prepare.py)
_LONGEST_LINE = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"


class TextReader(Reader):
    """A file of lines; an offset is a byte after decompression, and a piece's content the lines' bytes.

    Only the last line of the file may lack its newline.

    Args:
      path: the file, plain or gzip (told by its first bytes).
      spec: the columns. With `spec.header` the first line is passed over.
    """

    def __init__(self, path: str, spec: FeatureSpec):
        self.name, self.spec, self.size = path, spec, os.path.getsize(path)
        self.first_line = 1 + spec.header

    def identity(self) -> list[Any]:
        """See `Reader`."""
        return [os.path.abspath(self.name), os.path.getsize(self.name), os.stat(self.name).st_mtime_ns]

    def has_label(self, piece: Piece) -> bool:
        """See `Reader`."""
        return has_label(piece.content, self.spec)

    def parse(self, piece: Piece, *, labelled: bool = True) -> Block:
        """See `Reader`."""
        return parse_block(piece.content, self.spec, labelled=labelled)

    def parts(self, size: int) -> list[tuple[int, Optional[int]]]:
        """See `Reader`."""
        with open(self.name, "rb") as file:
            if file.read(2) == _GZIP_MAGIC:
                return [(0, None)]
            cuts = [0]
            while cuts[-1] + size < self.size:
                file.seek(cuts[-1] + size - 1)  # a line that ends there needs no search for another
                while (text := file.readline(PIECE_BYTES)) and not text.endswith(b"\n"):
                    pass
                cuts.append(file.tell())
        if len(cuts) > 1 and cuts[-1] >= self.size:
            cuts.pop()
        return list(zip(cuts, [*cuts[1:], None]))

    def part(self, offset: int, stop: Optional[int]) -> Iterator[Piece]:
        """See `Reader`: parts end at line ends, but pieces are cut where they are read."""
        for piece in super().part(offset, stop):
            if stop is not None and piece.offset + len(piece.content) > stop:
                content = piece.content[: stop - piece.offset]
                piece = Piece(piece.offset, content, min(piece.read, len(content)))
            yield piece

    def pieces(self, offset: int = 0) -> Iterator[Piece]:
        """See `Reader`; also raises DataError where there is no line end in 64 MB."""
        with open(self.name, "rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            try:
                yield from self._pieces(stream, raw, offset)
            except (zlib.error, gzip.BadGzipFile, EOFError) as e:
                raise DataError(f"{self.name}: damaged gzip file ({e})") from None

    def _pieces(self, stream: Any, raw: BinaryIO, offset: int) -> Iterator[Piece]:
        stream.seek(offset)
        at_header = self.spec.header and offset == 0
        rest, done = b"", raw.tell() if offset else 0
        while True:
            text = stream.read(PIECE_BYTES)
            cut = text.rfind(b"\n") + 1 if text else 0
            if text and not cut:
                rest += text
                if len(rest) > _LONGEST_LINE:
                    raise DataError(
                        f"{self.name}: no line end in {_LONGEST_LINE >> 20} MB at byte {offset:,}: is this a text file?"
                    )
                continue
            whole, rest = rest + text[:cut], text[cut:]
            if at_header and whole:
                first = whole.find(b"\n") + 1 or len(whole)
                whole, offset, at_header = whole[first:], offset + first, False
            if whole:
                position = raw.tell()
                yield Piece(offset, whole, position - done)
                offset, done = offset + len(whole), position
            if not text:
                return
