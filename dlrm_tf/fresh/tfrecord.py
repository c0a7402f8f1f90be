"""Records of TFRecord files, plain or gzip, in bounded memory however hostile the file is.

TensorFlow's reader checks all checksums, but takes memory for whatever length a record states. So the lengths are checked first.
"""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Union

from dlrm_tf.errors import DataError, reason
from dlrm_tf.keras2 import any_keras_tensorflow

MAX_RECORD_BYTES = 256 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER, _FOOTER_BYTES = struct.Struct("<QI"), 4  # length, its checksum; the record; its checksum


def record_files(path: str) -> list[str]:
    """The TFRecord files of a path, sorted by name: itself where it is a file, else its `.tfrecord` and `.tfrecord.gz` files.

    Args:
      path: a file or a folder. A folder's hidden files, which are not finished, are left out.
    """
    if not os.path.isdir(path):
        return [path]
    names = sorted(name for name in os.listdir(path) if name.endswith((".tfrecord", ".tfrecord.gz")) and name[0] != ".")
    return [os.path.join(path, name) for name in names]


def count_records(path: str) -> int:
    """How many records a file has.

    Args:
      path: the file.

    Raises:
      DataError: not a TFRecord file, a cut one, or a record of more than `MAX_RECORD_BYTES`.
    """
    records = 0
    with open(path, "rb") as raw:
        stream: Union[BinaryIO, gzip.GzipFile] = gzip.GzipFile(fileobj=raw) if _is_gzip(path) else raw
        try:
            while header := stream.read(_HEADER.size):
                length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else None
                if length is None or length > MAX_RECORD_BYTES:
                    found = "a cut one" if length is None else f"one of {length:,} bytes: not a TFRecord file, or damaged"
                    raise DataError(
                        f"{path}: wanted a record {records + 1} of up to {MAX_RECORD_BYTES:,} bytes. Received {found}"
                    )
                if not _skip(stream, length + _FOOTER_BYTES):
                    raise DataError(f"{path}: record {records + 1} is cut off")
                records += 1
        except (zlib.error, gzip.BadGzipFile, EOFError) as e:
            raise DataError(f"{path}: damaged gzip file ({reason(e)})") from None
    return records


def read_records(path: str) -> Iterator[bytes]:
    """The records of a file that `count_records` has passed.

    Args:
      path: the file.

    Raises:
      DataError: a checksum does not fit.
    """
    tf = any_keras_tensorflow()
    try:
        yield from tf.data.TFRecordDataset(path, "GZIP" if _is_gzip(path) else "").as_numpy_iterator()
    except tf.errors.OpError as e:
        raise DataError(f"{path}: damaged TFRecord file ({reason(e)})") from None


def _is_gzip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == _GZIP_MAGIC


def _skip(stream: Union[BinaryIO, gzip.GzipFile], count: int) -> bool:
    """Reads `count` bytes and forgets them; False where there are fewer."""
    while count:
        read = len(stream.read(min(count, 1 << 20)))
        if not read:
            return False
        count -= read
    return True
