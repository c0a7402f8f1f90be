"""Compression: a stored text as its own bytes, whatever it is packed in; told by the first bytes, not by the name."""

import contextlib
import gzip
import importlib
import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Optional

from dlrm_tf.errors import DataError, require

_GZIP, _XZ, _BZ2 = b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh"
_BZ2_BLOCKS = (
    b"1AY&SY",
    b"\x17rE8P\x90",
)  # after the level, so that a text which begins with BZh is a text; the second has no data
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPED = b"\x2a\x4d\x18"  # after one of 0x50...0x5f: a frame without data, with which pzstd begins
# Of 4 KB of a hostile zstd file at most 128 MB come out at once (blocks of 4 bytes hold up to 128 KB).
_ZSTD_INPUT = 4096
# What can't be read as text, and would lose rows or all of them. First bytes, what it is, what to do.
_REFUSED = (
    (b"PK\x03\x04", "a zip archive", "unpack it, or pipe it: unzip -p FILE | dlrm-tf ... -"),
    (b"PK\x05\x06", "an empty zip archive", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"\x04\x22\x4d\x18", "an lz4 file", "pipe it: lz4 -dc FILE | dlrm-tf ... -"),
    (b"\xff\xfe", "text in UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
)
_TAR = 257, b"ustar"
HEAD_BYTES = _TAR[0] + len(_TAR[1])
"""How many first bytes tell what a file is."""


def compression_of(head: bytes) -> str:
    """What a file is packed in, `gzip`, `zstd`, `bz2` or `xz`, by its first `HEAD_BYTES` bytes; '' for anything else."""
    if head.startswith(_BZ2) and head[4:10] in _BZ2_BLOCKS:
        return "bz2"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPED and head[0] >> 4 == 5):
        return "zstd"
    return "gzip" if head.startswith(_GZIP) else "xz" if head.startswith(_XZ) else ""


@contextlib.contextmanager
def unpacked(stored: BinaryIO, head: bytes, name: str) -> Iterator[BinaryIO]:
    """The bytes that a stored file holds: of gzip, zstd, bz2 and xz (several streams one after the other too) what is packed.

    Args:
      stored: the file, at its first byte.
      head: its first `HEAD_BYTES` bytes.
      name: the file in errors.

    Yields:
      A file that can seek forward where `stored` can seek.

    Raises:
      DataError: the file is damaged, an archive, or text in UTF-16.
      MissingExtraError: a zstd file, and zstandard is not installed.
    """
    kind = compression_of(head)
    if not kind:
        check_text(head, name)
        yield stored
        return
    openers: dict[str, Callable[[], Any]] = {
        "gzip": lambda: gzip.GzipFile(fileobj=stored),
        "zstd": lambda: io.BufferedReader(_Zstd(stored), 1 << 20),
        # Imported here: a Python can be built without them.
        "bz2": lambda: importlib.import_module("bz2").BZ2File(stored),
        "xz": lambda: importlib.import_module("lzma").LZMAFile(stored),
    }
    try:
        yield openers[kind]()
    except EOFError:
        raise DataError(f"{name}: damaged {kind} file (it is cut off)") from None
    except Exception as e:
        # Of gzip and bz2 it is an OSError without the number that those of the system have.
        damaged = e.errno is None if isinstance(e, OSError) else isinstance(e, zlib.error) or type(e).__name__ == "LZMAError"
        if not damaged:
            raise
        raise DataError(f"{name}: damaged {kind} file ({e})") from None


def check_text(head: bytes, name: str) -> None:
    """Raises DataError, which says what to do, where a text's first `HEAD_BYTES` bytes are those of another kind of file."""
    for magic, kind, advice in _REFUSED:
        if head.startswith(magic):
            raise DataError(f"{name}: wanted text in UTF-8. Received {kind}; {advice}")
    if head[_TAR[0] :].startswith(_TAR[1]):
        raise DataError(f"{name}: wanted text in UTF-8. Received a tar archive; unpack it, or pipe it: tar -xOf FILE | ... -")


class _Zstd(io.RawIOBase):
    """A zstd file; unlike zstandard's own reader it tells a file that is cut off."""

    def __init__(self, stored: BinaryIO):
        self._stored, self._zstandard = stored, require("zstandard", "storage")
        self._frame: Optional[Any] = None  # what decompresses the frame at hand; None between two frames
        self._packed, self._ready, self._at = b"", memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._at:
            raise io.UnsupportedOperation("a zstd file is read forwards only")
        while self._at < offset and self.read(min(offset - self._at, 1 << 20)):
            pass
        return self._at

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._stored.read(_ZSTD_INPUT)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError
                return 0
            if self._frame is None:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(self._packed))
            except self._zstandard.ZstdError as e:
                raise zlib.error(str(e)) from None
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready, self._at = self._ready[count:], self._at + count
        return count
