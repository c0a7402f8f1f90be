"""Finds the tensors in a MindSpore `.ckpt`: notes where each one's bytes lie, without reading them.

The file is one protobuf message that may be far larger than protobuf's own limit of 2 GiB, so it is read field by field:

    message Checkpoint  { repeated Value value = 1; }
    message Value       { required string tag = 1; oneof value { TensorProto tensor = 2; MapTensor maptensor = 3; } }
    message TensorProto { repeated int64 dims = 1; required string tensor_type = 2; required bytes tensor_content = 3; }

Source: mindspore/ccsrc/utils/checkpoint.proto (https://protobuf.dev/programming-guides/encoding/ for the encoding).
A length is used only after it was checked against what is left of the message around it.
"""

from collections.abc import Iterator
from typing import BinaryIO

from dlrm_tf.checkpoints.tensor_info import STORED_DTYPES, TensorInfo, element_count, is_impossible_shape
from dlrm_tf.errors import CheckpointError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# With crc_check=True MindSpore appends this mark and the CRC32 of all before it as a 10-byte big-endian integer.
CRC_MARK = b"crc_num"
CRC_TAIL = len(CRC_MARK) + 10
# Far above anything a DLRM has. Limits the memory that a hostile file's index takes.
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 1024
MAX_DIMS = 16
# As MindSpore before 1.2 spelled them.
OLD_TYPE_NAMES = {"Uint8": "UInt8", "Uint16": "UInt16", "Uint32": "UInt32", "Uint64": "UInt64"}
_WINDOW = 1 << 12


class _Cursor:
    """Reads bytes and numbers of `file` at a position, through a small window, as field headers lie close together."""

    def __init__(self, file: BinaryIO, size: int, path: str) -> None:
        self.file, self.size, self.path = file, size, path
        self.at = 0
        self._start, self._window = 0, b""

    def bytes(self, count: int) -> bytes:
        begin = self.at - self._start
        if begin < 0 or begin + count > len(self._window):
            self.file.seek(self.at)
            self._start, self._window = self.at, self.file.read(max(count, _WINDOW))
            begin = 0
        data = self._window[begin : begin + count]
        if len(data) < count:
            raise CheckpointError(f"{self.path}: the file ends at byte {self.at + len(data)} inside a field: it is cut off")
        self.at += count
        return data

    def varint(self, end: int) -> int:
        value = 0
        for shift in range(0, 70, 7):
            if self.at >= end:
                raise CheckpointError(f"{self.path}: byte {self.at}: a number runs past the end of its message")
            byte = self.bytes(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF
        raise CheckpointError(f"{self.path}: byte {self.at}: a number of more than ten bytes; this is not a MindSpore checkpoint")

    def fields(self, end: int, what: str) -> Iterator[tuple[int, int, int, int]]:
        """Yields `(field number, wire type, content begin, content end)` up to `end`; the caller may move the cursor."""
        while self.at < end:
            begin = self.at
            key = self.varint(end)
            number, wire = key >> 3, key & 7
            if wire == VARINT:
                at = self.at
                self.varint(end)
                stop = self.at
            elif wire in (FIXED64, FIXED32):
                at, stop = self.at, self.at + (8 if wire == FIXED64 else 4)
            elif wire == BYTES:
                length = self.varint(end)
                at, stop = self.at, self.at + length
            else:
                at = stop = -1
            if number == 0 or stop < 0:
                raise CheckpointError(f"{self.path}: byte {begin}: no protobuf field in {what}: the file is damaged or foreign")
            if stop > end:
                missing = f"the file ends {stop - end} bytes too early: it is cut off" if what == "the file" else "it is damaged"
                raise CheckpointError(
                    f"{self.path}: byte {begin}: a field of {stop - at} bytes does not fit into {what}; {missing}"
                )
            yield number, wire, at, stop
            self.at = stop


def read_index(file: BinaryIO, size: int, path: str) -> dict[str, TensorInfo]:
    """Tensors of an open `.ckpt`, in file order; slices of one tensor are joined.

    Args:
      file: the file, opened for reading bytes.
      size: its size in bytes.
      path: its name, for errors.

    Raises:
      CheckpointError: the file is cut off, damaged, foreign or encrypted; the byte and, where known, the tensor are named.
    """
    cursor = _Cursor(file, size, path)
    found: dict[str, TensorInfo] = {}
    end = size - CRC_TAIL if has_crc(file, size) else size
    last = None
    for number, wire, at, stop in cursor.fields(end, "the file"):
        if number != 1 or wire != BYTES:
            raise CheckpointError(
                f"{path}: byte {at}: wanted a tensor entry. Received field {number} of wire type {wire}: "
                "not a MindSpore checkpoint, or an encrypted one (decrypt it with MindSpore first)"
            )
        piece = _value(cursor, at, stop)
        before = found.get(piece.name)
        if before is not None:
            if piece.name != last or (before.dtype, before.shape) != (piece.dtype, piece.shape):
                raise CheckpointError(f"{path}: tensor {piece.name}: occurs twice, or its slices differ in dtype or shape")
            piece = TensorInfo(piece.name, piece.dtype, piece.shape, before.slices + piece.slices)
        elif len(found) >= MAX_TENSORS:
            raise CheckpointError(f"{path}: has more than {MAX_TENSORS:,} tensors: not a checkpoint of a DLRM")
        found[piece.name], last = piece, piece.name
    if not found:
        raise CheckpointError(f"{path}: holds no tensor: not a MindSpore checkpoint")
    return {name: _whole(info, path) for name, info in found.items()}


def has_crc(file: BinaryIO, size: int) -> bool:
    """Whether the file ends in MindSpore's CRC mark."""
    if size < CRC_TAIL:
        return False
    file.seek(size - CRC_TAIL)
    return file.read(len(CRC_MARK)) == CRC_MARK


def _value(cursor: _Cursor, at: int, end: int) -> TensorInfo:
    """One `Value` as a `TensorInfo` whose slices are only this piece."""
    path = cursor.path
    name = tensor = None
    for number, wire, begin, stop in cursor.fields(end, "a tensor entry"):
        if number == 1 and wire == BYTES:
            name = _text(cursor, begin, stop, "a tensor's name")
        elif number == 2 and wire == BYTES:
            tensor = (begin, stop)
        elif number == 3 and wire == BYTES:
            raise CheckpointError(
                f"{path}: {name or 'a parameter'} is a MapParameter (hash table); only plain tensors can be read"
            )
    if name is None or tensor is None:
        raise CheckpointError(f"{path}: byte {at}: an entry without {'name' if name is None else 'tensor'}: damaged or foreign")
    dims, dtype, content = [], None, None
    cursor.at = tensor[0]
    for number, wire, begin, stop in cursor.fields(tensor[1], f"tensor {name}"):
        if number == 1 and wire in (VARINT, BYTES):  # unpacked or packed
            cursor.at = begin
            while cursor.at < stop:
                dims.append(cursor.varint(stop))
                if len(dims) > MAX_DIMS or is_impossible_shape(dims):
                    raise CheckpointError(f"{path}: tensor {name}: impossible dimensions {dims}")
        elif number == 2 and wire == BYTES:
            dtype = _text(cursor, begin, stop, f"the type of tensor {name}")
        elif number == 3 and wire == BYTES:
            content = (begin, stop - begin)
    if dtype is None or content is None:
        raise CheckpointError(f"{path}: tensor {name}: has no {'type' if dtype is None else 'content'}: damaged or foreign")
    dtype = OLD_TYPE_NAMES.get(dtype, dtype)
    if dtype not in STORED_DTYPES:
        raise CheckpointError(f"{path}: tensor {name}: unknown type {dtype!r}; known are {', '.join(STORED_DTYPES)}")
    return TensorInfo(name, dtype, tuple(dims), (content,))


def _text(cursor: _Cursor, begin: int, stop: int, what: str) -> str:
    path = cursor.path
    if not 0 < stop - begin <= MAX_NAME_BYTES:
        raise CheckpointError(f"{path}: byte {begin}: {what} has {stop - begin} bytes; wanted 1 to {MAX_NAME_BYTES}")
    cursor.at = begin
    text = cursor.bytes(stop - begin).decode("utf-8", errors="replace")
    if not text.isprintable() or "\ufffd" in text:
        raise CheckpointError(f"{path}: byte {begin}: {what} is not text: damaged, foreign or encrypted")
    return text


def _whole(info: TensorInfo, path: str) -> TensorInfo:
    """`info` with its final shape, after its bytes were counted against it."""
    received = sum(nbytes for _, nbytes in info.slices)
    itemsize = STORED_DTYPES[info.dtype].itemsize
    # MindSpore writes a scalar with no dims or, in other versions, with dims [0], and one element.
    shape = () if info.shape == (0,) and received == itemsize else info.shape
    if info.dtype == "str":  # an entry of append_dict; its dims say nothing
        shape = (received // itemsize,)
    if received != element_count(shape) * itemsize:
        raise CheckpointError(
            f"{path}: tensor {info.name}: shape {list(shape)} of {info.dtype} wants {element_count(shape) * itemsize:,} bytes. "
            f"Received {received:,}: the file is damaged or a slice is missing"
        )
    return TensorInfo(info.name, info.dtype, shape, info.slices)
