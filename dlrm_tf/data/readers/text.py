"""TextReader: a text log, plain or compressed, in pieces of whole lines, from any byte offset."""

import contextlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Optional, cast

from dlrm_tf.data.block import Block
from dlrm_tf.data.layout import Layout
from dlrm_tf.data.parse import first_line, has_label, parse_block
from dlrm_tf.data.readers.compression import HEAD_BYTES, check_text, unpacked
from dlrm_tf.data.readers.reader import Piece, Reader
from dlrm_tf.data.readers.storage import identity_of, is_url, open_bytes, size_of
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError

PIECE_BYTES = 4 << 20  # big enough for NumPy to work at full speed, small enough for the caches (measured: benchmarks/prepare.py)
STANDARD_INPUT = "-"
_LONGEST_LINE = 64 << 20
_BOM = b"\xef\xbb\xbf"


class TextReader(Reader):
    """A file of lines; an offset is a byte after decompression, and a piece's content the lines' bytes.

    Only the last line of the file may lack its newline. A byte-order mark at its beginning is passed over.

    Args:
      path: the file, plain or compressed with gzip, zstd, bz2 or xz (told by its first bytes); a URL; or, both read once only, a
        named pipe and `-`, which is standard input.
      spec: the columns. With `spec.header` the first line is passed over; if it is True, columns are where it names them.
    """

    def __init__(self, path: str, spec: FeatureSpec):
        self.name, self.spec = path, spec
        self.resumable = not is_pipe(path)
        self.size = size_of(path) if self.resumable else 0
        self.first_line = 1 + bool(spec.header)
        self._names: Optional[list[str]] = None

    def identity(self) -> list[Any]:
        """See `Reader`."""
        return identity_of(self.name) if self.resumable else [self.name]

    def has_label(self, piece: Piece) -> bool:
        """See `Reader`."""
        if self._names is None:
            return has_label(piece.content, self.spec)
        label = self.spec.label_column
        return label is not None and self.spec.columns[label][0] in self._names

    def parse(self, piece: Piece, *, labelled: bool = True) -> Block:
        """See `Reader`; raises DataError where the header lacks a column of the spec."""
        if self._names is None and self.spec.header is True:  # a piece that another process has read
            self._read_header()
        with self._named():
            return parse_block(piece.content, self.spec, labelled=labelled, names=self._names)

    def pieces(self, offset: int = 0) -> Iterator[Piece]:
        """See `Reader`; also raises DataError where there is no line end in 64 MB."""
        if offset and self._names is None and self.spec.header is True:
            self._read_header()
        with self._open() as (stream, tell):
            yield from self._pieces(stream, tell, offset)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
        """The text, and what says how many stored bytes were read for it."""
        with contextlib.ExitStack() as stack:
            if self.resumable:
                stored = stack.enter_context(open_bytes(self.name))
                head = stored.read(HEAD_BYTES)
                stored.seek(0)
            else:
                pipe = sys.stdin.buffer if self.name == STANDARD_INPUT else stack.enter_context(open(self.name, "rb"))
                head = pipe.read(HEAD_BYTES)
                stored = cast(BinaryIO, io.BufferedReader(_Pipe(head, pipe), 1 << 20))
            yield stack.enter_context(unpacked(stored, head, self.name)), stored.tell

    def _read_header(self) -> None:
        with self._open() as (stream, tell):
            next(self._pieces(stream, tell, 0), None)

    def _take_header(self, text: bytes) -> int:
        """Keeps the names that the first line gives; returns where the next line begins."""
        names, end = first_line(text, self.spec)
        if self.spec.header is True:
            self._names = [name.decode("utf-8", "backslashreplace") for name in names]
            with self._named():
                Layout.of(self.spec, labelled=self.has_label(Piece(0, b"", 0)), names=self._names)
        return end

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Puts the file's name before what is wrong with its header."""
        try:
            yield
        except DataError as e:
            raise DataError(f"{self.name}: {e}") from None

    def _pieces(self, stream: BinaryIO, tell: Callable[[], int], offset: int) -> Iterator[Piece]:
        at_header, rest, done = offset == 0 and bool(self.spec.header), b"", 0
        if offset:
            stream.seek(offset)
            done = tell()
            text = stream.read(PIECE_BYTES)
        else:
            text = stream.read(max(PIECE_BYTES, HEAD_BYTES))
            check_text(text[:HEAD_BYTES], self.name)
            if text.startswith(_BOM):
                text, offset = text[len(_BOM) :], len(_BOM)
        while True:
            whole, rest = self._cut(rest, text)
            if len(rest) > _LONGEST_LINE:
                raise DataError(f"{self.name}: no line end in {_LONGEST_LINE >> 20} MB at byte {offset:,}: is this a text file?")
            if at_header and whole:
                first = self._take_header(whole)
                whole, offset, at_header = whole[first:], offset + first, False
            if whole:
                position = tell()
                yield Piece(offset, whole, position - done)
                offset, done = offset + len(whole), position
            if not text:
                return
            text = stream.read(PIECE_BYTES)

    def _cut(self, rest: bytes, text: bytes) -> tuple[bytes, bytes]:
        """Whole lines, and what is left, of the rest of the last piece and the text after it, which is empty at the end."""
        if not text:
            return rest, b""
        quoting = self.spec.quoting
        if quoting is None:
            cut = text.rfind(b"\n") + 1
            return (rest + text[:cut], text[cut:]) if cut else (b"", rest + text)
        rest += text
        cut = quoting.end_of_lines(rest)
        return rest[:cut], rest[cut:]


def is_pipe(path: str) -> bool:
    """Whether an input can be read once only: standard input (`-`), or a named pipe."""
    if path == STANDARD_INPUT:
        return True
    return not is_url(path) and os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


class _Pipe(io.RawIOBase):
    """What comes out of a pipe, from its first byte, of which the first ones were read before."""

    def __init__(self, head: bytes, pipe: BinaryIO):
        self._head, self._pipe, self._at = head, pipe, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._head[: len(buffer)] or self._pipe.read(len(buffer))
        self._head = self._head[len(content) :]
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
