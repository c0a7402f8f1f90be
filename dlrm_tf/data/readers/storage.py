"""Storage: bytes of inputs by path or URL; what is no local file (`s3://`, `gs://`, `hdfs://`, `http://`) goes through fsspec."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, Optional, cast

from dlrm_tf.errors import DataError, DLRMError, MissingExtraError, reason, require

# What changes when an object does, by the names that file systems have for it.
_VERSIONS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")


def is_url(path: str) -> bool:
    """Whether `path` has a protocol, as in `s3://bucket/log.tsv`."""
    return "://" in path


def open_bytes(path: str) -> BinaryIO:
    """Opens an input for reading, from its first byte, without decompression.

    Args:
      path: a local path, or a URL.

    Returns:
      A buffered binary file that can seek, of a URL by ranged requests.

    Raises:
      FileNotFoundError: there is no such file or object.
      DataError: a folder, a device, or a URL whose server gives no size.
      MissingExtraError: a URL, and fsspec or the package of its protocol is not installed.
      DLRMError: a URL can't be read now.
    """
    if not is_url(path):
        _check_regular(path, os.stat(path).st_mode)
        return open(path, "rb")
    system, place = file_system(path)
    size_of(path)
    with failures_told(path):
        return cast(BinaryIO, io.BufferedReader(_Remote(path, system.open(place, "rb")), 1 << 16))


def size_of(path: str) -> int:
    """Bytes of an input, as it is stored; raises as `open_bytes`."""
    if not is_url(path):
        status = os.stat(path)
        _check_regular(path, status.st_mode)
        return status.st_size
    size: Optional[int] = _info(path).get("size")
    if size is None:
        raise DataError(f"{path}: wanted a server that says the size of its files. Received none; download the file first")
    return size


def identity_of(path: str) -> list[Any]:
    """Path, size and version or time of change, JSON values: the same exactly when the input is the same; raises as `open_bytes`.

    Args:
      path: a local path, or a URL.
    """
    if not is_url(path):
        status = os.stat(path)
        return [os.path.abspath(path), status.st_size, status.st_mtime_ns]
    info = _info(path)
    return [path, info.get("size"), *(str(info[name]) for name in _VERSIONS if info.get(name) is not None)]


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the URL's path in it; raises as `open_bytes`."""
    fsspec = require("fsspec", "storage")
    try:
        with failures_told(url):
            system, place = fsspec.core.url_to_fs(url)
    except ImportError as e:  # of the protocol's own package, which fsspec names
        raise MissingExtraError(f"{url}: {reason(e)}") from e
    return system, place


def _info(url: str) -> dict[str, Any]:
    system, place = file_system(url)
    with failures_told(url):
        info: dict[str, Any] = system.info(place)
    if info.get("type") == "directory":
        raise DataError(f"{url}: wanted a file. Received a folder")
    return info


def _check_regular(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: wanted a file. Received {'a folder' if stat.S_ISDIR(mode) else 'a pipe or device'}")


@contextlib.contextmanager
def failures_told(url: str) -> Iterator[None]:
    """Turns what libraries of object stores raise into one line. No DataError: the same call may work a minute later."""
    try:
        yield
    except FileNotFoundError as e:
        raise FileNotFoundError(2, "no such file or object", url) from e
    except (DLRMError, ImportError):
        raise
    except Exception as e:  # each protocol's package has errors of its own
        raise DLRMError(f"{url}: can't be read ({reason(e)})") from e


class _Remote(io.RawIOBase):
    """An fsspec file whose errors name it."""

    def __init__(self, url: str, file: Any):
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with failures_told(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with failures_told(self._url):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
