"""Writes MindSpore's `.ckpt` piece by piece: byte for byte what MindSpore 2.10's save_checkpoint writes."""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Union

import numpy as np

from dlrm_tf.checkpoints.ckpt_reader import CRC_MARK
from dlrm_tf.checkpoints.tensor_info import TensorInfo, TensorToWrite, dtype_name
from dlrm_tf.files import StrPath, atomic_file

# MindSpore's SLICE_SIZE: a larger tensor is written in pieces of this size.
SLICE_BYTES = 512 << 20


def array_tensor(name: str, array: Any) -> TensorToWrite:
    """The pair that the writers take, of an array or number in memory.

    Args:
      name: the tensor's name.
      array: anything that `np.asarray` takes.

    Raises:
      ValueError: MindSpore has no such dtype.
    """
    array = np.asarray(array)
    return TensorInfo(name, dtype_name(array.dtype), array.shape), [array]


def write_checkpoint(
    path: StrPath, tensors: Iterable[TensorToWrite], *, slice_bytes: int = SLICE_BYTES, crc: bool = False
) -> None:
    """Writes a `.ckpt`; one chunk at a time is in memory, and the file appears whole or not at all.

    Args:
      path: file to write.
      tensors: pairs `(TensorInfo, iterable of arrays)` in file order; `array_tensor` makes one from an array.
      slice_bytes: a larger tensor is written as several entries of this many bytes.
      crc: append MindSpore's CRC32, as its `crc_check=True` does.

    Raises:
      ValueError: a tensor's chunks don't add up to its size.
    """
    checksum = 0
    with atomic_file(path) as temporary, open(temporary, "wb") as out:

        def write(data: Union[bytes, memoryview]) -> None:
            nonlocal checksum
            out.write(data)
            checksum = zlib.crc32(data, checksum) if crc else 0

        for info, chunks in tensors:
            write(_entry_header(info, min(slice_bytes, info.nbytes)))
            written = 0
            for block in content_blocks(info, chunks, slice_bytes):
                if written and written % slice_bytes == 0:
                    write(_entry_header(info, min(slice_bytes, info.nbytes - written)))
                write(block)
                written += len(block)
        if crc:
            out.write(CRC_MARK + checksum.to_bytes(10, "big"))


def content_blocks(info: TensorInfo, chunks: Iterable[np.ndarray], slice_bytes: int = SLICE_BYTES) -> Iterator[memoryview]:
    """Yields the bytes of a tensor as they are stored, cut where a slice of it ends.

    Args:
      info: the tensor.
      chunks: its elements in order, in arrays of any shape.
      slice_bytes: size of a slice.

    Raises:
      ValueError: the chunks hold more or fewer bytes than `info` says.
    """
    written = 0
    for chunk in chunks:
        # A memoryview of no elements can't be cast to bytes.
        data = np.ascontiguousarray(chunk, dtype=info.stored_dtype).data.cast("B") if np.size(chunk) else memoryview(b"")
        if written + len(data) > info.nbytes:
            raise ValueError(f"tensor {info.name}: wanted {info.nbytes:,} bytes. Received more")
        at = 0
        while at < len(data):
            stop = min(len(data), at + slice_bytes - written % slice_bytes)
            yield data[at:stop]
            written += stop - at
            at = stop
    if written != info.nbytes:
        raise ValueError(f"tensor {info.name}: wanted {info.nbytes:,} bytes. Received {written:,}")


def _entry_header(info: TensorInfo, length: int) -> bytes:
    """A `Checkpoint` message with one `Value`, up to where its `length` content bytes follow."""
    content = b"\x1a" + varint(length)
    tensor = b"".join(b"\x08" + varint(dim) for dim in info.shape) + _text(0x12, info.dtype) + content
    value = _text(0x0A, info.name) + b"\x12" + varint(len(tensor) + length) + tensor
    return b"\x0a" + varint(len(value) + length) + value


def _text(key: int, text: str) -> bytes:
    encoded = text.encode()
    return bytes([key]) + varint(len(encoded)) + encoded


def varint(number: int) -> bytes:
    """A non-negative number as protobuf writes it: seven bits a byte, the lowest first, the top bit set on all but the last."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
