"""`.safetensors`, as MindSpore and others write it: where a file's tensors lie, without reading them, and a writer.

The format is eight bytes of header length, a JSON header, then the tensors' bytes (https://github.com/huggingface/safetensors).
"""

import json
import zlib
from collections.abc import Iterable
from typing import Any, BinaryIO

from dlrm_tf.checkpoints.ckpt_reader import MAX_DIMS, MAX_NAME_BYTES, MAX_TENSORS
from dlrm_tf.checkpoints.ckpt_writer import content_blocks
from dlrm_tf.checkpoints.tensor_info import TensorInfo, TensorToWrite, is_impossible_shape
from dlrm_tf.errors import CheckpointError, reason
from dlrm_tf.files import StrPath, atomic_file

# safetensors' dtype -> MindSpore's name of it.
DTYPES = {
    "BOOL": "Bool",
    "I8": "Int8",
    "U8": "UInt8",
    "I16": "Int16",
    "U16": "UInt16",
    "I32": "Int32",
    "U32": "UInt32",
    "I64": "Int64",
    "U64": "UInt64",
    "F16": "Float16",
    "BF16": "BFloat16",
    "F32": "Float32",
    "F64": "Float64",
    "C64": "Complex64",
}
# A header of MAX_TENSORS entries is smaller. Limits the memory that a hostile header's JSON takes.
MAX_HEADER_BYTES = 16 << 20
# A decimal CRC32 padded to its longest, so that it can be filled in after the tensors were written.
_CRC_DIGITS = 10


def read_index(file: BinaryIO, size: int, path: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of an open `.safetensors`, in file order.

    Args:
      file: the file, opened for reading bytes.
      size: its size in bytes.
      path: its name, for errors.

    Returns:
      Tensor name -> `TensorInfo`, and the header's `__metadata__`.

    Raises:
      CheckpointError: cut off, damaged or foreign; the tensor is named where known.
    """
    header, begin = _header(file, size, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ of the header must map names to strings")
    if not header or len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path}: holds {len(header):,} tensors; wanted 1 to {MAX_TENSORS:,}")
    found = {}
    for name, entry in header.items():
        if not 0 < len(name) <= MAX_NAME_BYTES or not name.isprintable():
            raise CheckpointError(f"{path}: a tensor's name is empty, too long or not text: {name[:40]!r}")
        found[name] = _entry(name, entry, begin, size, path)
    found = dict(sorted(found.items(), key=lambda item: item[1].slices[0]))
    end = begin
    for info in found.values():
        offset, nbytes = info.slices[0]
        if offset != end:
            raise CheckpointError(f"{path}: tensor {info.name}: begins at byte {offset:,}, the one before it ends at {end:,}")
        end = offset + nbytes
    if end != size:
        raise CheckpointError(f"{path}: the tensors end at byte {end:,}, the file has {size:,}: damaged or foreign")
    return found, metadata


def _header(file: BinaryIO, size: int, path: str) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset of the first tensor byte."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > size - 8:
        raise CheckpointError(f"{path}: the header's length is {length:,} bytes, the file has {size:,}: cut off or foreign")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: the header has {length:,} bytes; more than {MAX_HEADER_BYTES:,} is not read")
    text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: the header is not a JSON object ({reason(e)})") from e
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key occurs twice")
    return keys


def _entry(name: str, entry: Any, begin: int, size: int, path: str) -> TensorInfo:
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: wanted dtype, shape and data_offsets in the header. Received {str(entry)[:80]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: unknown dtype {str(dtype)[:40]!r}; known are {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > MAX_DIMS or is_impossible_shape(shape):
        raise CheckpointError(f"{where}: impossible shape {str(shape)[:80]}")
    if not _naturals(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - begin:
        raise CheckpointError(
            f"{where}: its bytes are said to be at {str(offsets)[:80]}, but {size - begin:,} bytes follow the header: "
            "the file is cut off or damaged"
        )
    info = TensorInfo(name, DTYPES[dtype], tuple(shape), ((begin + offsets[0], offsets[1] - offsets[0]),))
    if info.nbytes != offsets[1] - offsets[0]:
        raise CheckpointError(f"{where}: {dtype} {shape} wants {info.nbytes:,} bytes. Received {offsets[1] - offsets[0]:,}")
    return info


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)


def write_safetensors(path: StrPath, tensors: Iterable[TensorToWrite], *, crc: bool = False) -> None:
    """Writes a `.safetensors` as MindSpore does: tensors ordered by name, `format: ms` in the metadata.

    One chunk at a time is in memory, and the file appears whole or not at all.

    Args:
      path: file to write.
      tensors: pairs `(TensorInfo, iterable of arrays)`; `array_tensor` makes one from an array.
      crc: put MindSpore's checksum (over names and contents) into the metadata.

    Raises:
      ValueError: a tensor's chunks don't add up to its size.
    """
    tensors = sorted(tensors, key=lambda pair: pair[0].name)
    to_safetensors = {name: dtype for dtype, name in DTYPES.items()}
    metadata = {"format": "ms", **({"crc_num": "0" * _CRC_DIGITS} if crc else {})}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for info, _ in tensors:
        header[info.name] = {
            "dtype": to_safetensors[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [at, at + info.nbytes],
        }
        at += info.nbytes
    checksum = 0
    with atomic_file(path) as temporary, open(temporary, "wb") as out:
        out.write(_encode_header(header))
        for info, chunks in tensors:
            checksum = zlib.crc32(info.name.encode(), checksum) if crc else 0
            for block in content_blocks(info, chunks):
                out.write(block)
                checksum = zlib.crc32(block, checksum) if crc else 0
        if crc:
            metadata["crc_num"] = str(checksum).zfill(_CRC_DIGITS)
            out.seek(0)
            out.write(_encode_header(header))


def _encode_header(header: dict[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text
