"""A reader of weights files that believes nothing in them: the part of HDF5 they use, in plain Python.

The HDF5 library can be made to crash or to loop for ever by a crafted file (the fuzzer in tests/fuzz found such a loop within
a minute). So a weights file from anywhere is read with this: superblock 2 or 3, object headers of version 2, hard links kept
in the header (the library does so up to eight a group), contiguous float32 datasets whose bytes lie in the file, attributes.
What else HDF5 can do is refused by name. Layout: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

import dataclasses
import math
import os
from typing import NamedTuple

import numpy as np

from dlrm_tf.errors import CheckpointError
from dlrm_tf.weights.lookup3 import lookup3

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 0xFFFFFFFFFFFFFFFF
# Types of header messages (section IV.A.2).
DATASPACE, LINK_INFO, DATATYPE, FILL_VALUE, LINK, LAYOUT, ATTRIBUTE, CONTINUATION, ATTRIBUTE_INFO = 1, 2, 3, 5, 6, 8, 12, 16, 21
# External data, a filter (compression), an old-style group: nothing we write.
REFUSED = {7: "keeps its data in another file", 11: "is compressed", 17: "is an old-style group"}
# IEEE float32, little-endian, as a datatype message describes it after its first byte.
FLOAT32 = bytes.fromhex("20 1f 00 04 00 00 00 00 00 20 00 17 08 00 17 7f 00 00 00")
# A group with more entries is kept by the library in a structure of its own (a fractal heap), which is not read here.
MAX_ENTRIES = 8
# Far above what any weights file has; bounds the work that a crafted one can cause.
MAX_OBJECTS, MAX_BLOCK_BYTES, MAX_DEPTH = 2000, 1 << 20, 8


class Message(NamedTuple):
    """One message of an object header."""

    type: int
    flags: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Where a float32 dataset lies.

    Attributes:
      shape: its dimensions.
      offset: first byte in the file; None for one that was never written and is `fill` throughout.
      fill: its fill value.
    """

    shape: tuple
    offset: int
    fill: float


class File:
    """An open weights file.

    Attributes:
      path: its path.
      attributes: the root's attributes, name -> str or NumPy array.
      group_attributes: the same for each group, by its path.
      datasets: path -> `Dataset` of every dataset.

    Raises:
      CheckpointError: no HDF5 file, damaged, or with something in it that a weights file has no use for.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise CheckpointError(f"{self.path}: wanted a weights file. Received a folder or device")
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 - closed by close()
        except OSError as e:
            raise CheckpointError(f"{self.path}: {'no such file' if isinstance(e, FileNotFoundError) else e.strerror}") from e
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self.datasets, self.group_attributes, self._seen = {}, {}, set()
            self._object(self._root(), "")
            self.attributes = self.group_attributes.get("", {})
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a dataset, float32.

        Raises:
          CheckpointError: the file was cut off meanwhile.
        """
        dataset = self.datasets[path]
        start, stop = max(0, start), min(stop, dataset.shape[0])
        out = np.empty((max(0, stop - start), *dataset.shape[1:]), "<f4")
        if dataset.offset is None:
            out[:] = dataset.fill
        elif out.size:
            view, done = memoryview(out.reshape(-1)).cast("B"), 0
            self._file.seek(dataset.offset + start * (out.nbytes // len(out)))
            while done < len(view):
                count = self._file.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{self.path}: {path}: the file was cut off while it was read")
                done += count
        return out

    def _fail(self, what: str):
        raise CheckpointError(f"{self.path}: not a readable HDF5 file of plain weights: {what}")

    def _bytes(self, at: int, count: int) -> bytes:
        if count > MAX_BLOCK_BYTES or at + count > self._size:
            self._fail(f"{count:,} bytes at {at:,} are not there, the file has {self._size:,}: cut off or damaged")
        self._file.seek(at)
        return self._file.read(count)

    def _checked(self, at: int, count: int) -> "_Bytes":
        """A metadata block, without the checksum that ends it."""
        block = self._bytes(at, count)
        if count < 8 or lookup3(block[:-4]) != int.from_bytes(block[-4:], "little"):
            self._fail(f"the checksum of the block at byte {at:,} is wrong: damaged")
        return _Bytes(block[:-4], self)

    def _root(self) -> int:
        start = self._bytes(0, min(self._size, 12))
        if not start.startswith(SIGNATURE):
            self._fail("it does not begin like one")
        if len(start) < 12 or start[8] not in (2, 3) or start[9:11] != b"\x08\x08":
            self._fail(f"superblock version {start[8] if len(start) > 8 else '?'}; dlrm_tf writes 3")
        block = self._checked(0, 48)
        block.take(12)
        base, _, end, root = (block.uint(8) for _ in range(4))
        if base or end > self._size:
            self._fail(f"wanted {end:,} bytes, the file has {self._size:,}: cut off or damaged")
        return root

    def _object(self, at: int, path: str) -> None:
        """Reads the group or dataset whose header is at a byte, and everything below it."""
        if at in self._seen or len(self._seen) >= MAX_OBJECTS or path.count("/") >= MAX_DEPTH:
            self._fail(f"/{path} is there twice, or there are too many objects")
        self._seen.add(at)
        messages = self._messages(at)
        for message in messages:
            if message.type in REFUSED or (message.flags & 2 and message.type in (DATASPACE, DATATYPE, FILL_VALUE, LAYOUT, LINK)):
                self._fail(f"/{path} {REFUSED.get(message.type, 'has a shared message')}")
        if any(m.type == LAYOUT for m in messages):
            self.datasets[path] = self._dataset(path, {m.type: _Bytes(m.data, self) for m in messages})
            return
        attributes = [self._attribute(_Bytes(m.data, self)) for m in messages if m.type == ATTRIBUTE and not m.flags & 2]
        self.group_attributes[path] = dict(a for a in attributes if a)
        for message in messages:
            if message.type == LINK:
                name, address = self._link(_Bytes(message.data, self), path)
                if address is not None:
                    self._object(address, f"{path}/{name}" if path else name)
            elif message.type in (LINK_INFO, ATTRIBUTE_INFO):
                self._kept_in_header(_Bytes(message.data, self), message.type, path)

    def _messages(self, at: int) -> list:
        """The messages of an object header of version 2, its continuations included."""
        head = self._bytes(at, min(64, max(0, self._size - at)))
        if len(head) < 16 or head[:5] != b"OHDR\x02":
            self._fail(f"no object header of version 2 at byte {at:,}")
        flags = head[5]
        before = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        length = int.from_bytes(head[before : before + width], "little")
        block = self._checked(at, before + width + length + 4)
        block.take(before + width)
        messages, blocks = [], [block]
        for block in blocks:
            while block.left >= (6 if flags & 4 else 4):
                kind, count, message_flags = block.uint(1), block.uint(2), block.uint(1)
                if flags & 4:
                    block.take(2)
                message = Message(kind, message_flags, block.take(count))
                if kind != CONTINUATION:
                    messages.append(message)
                    continue
                where = _Bytes(message.data, self)
                address, length = where.uint(8), where.uint(8)
                if address in self._seen:
                    self._fail(f"the header at byte {at:,} runs in a circle")
                self._seen.add(address)
                more = self._checked(address, length)
                if more.take(4) != b"OCHK":
                    self._fail(f"no continuation of an object header at byte {address:,}")
                blocks.append(more)
        return messages

    def _link(self, data: "_Bytes", path: str) -> tuple:
        """`(name, address)` of an entry of a group; the address is None for a link that leads elsewhere: not followed."""
        version, flags = data.uint(1), data.uint(1)
        kind = data.uint(1) if flags & 8 else 0
        if version != 1:
            self._fail(f"/{path} has a link of version {version}")
        data.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
        name = data.text(data.uint(1 << (flags & 3)))
        if not name or "/" in name or not name.isprintable():
            self._fail(f"/{path} has an entry with an impossible name")
        return name, data.uint(8) if kind == 0 else None

    def _kept_in_header(self, data: "_Bytes", kind: int, path: str) -> None:
        _, flags = data.uint(1), data.uint(1)
        if flags & 1:
            data.take(8 if kind == LINK_INFO else 2)
        if data.uint(8) != UNDEFINED:
            self._fail(f"/{path} has more than {MAX_ENTRIES} entries")

    def _dataset(self, path: str, messages: dict) -> Dataset:
        wanted = (DATASPACE, DATATYPE, LAYOUT)
        if any(kind not in messages for kind in wanted):
            self._fail(f"/{path} has no shape, type or place")
        shape = self._shape(messages[DATASPACE])
        datatype = messages[DATATYPE].take(messages[DATATYPE].left)
        if shape is None or datatype[:1] not in (b"\x11", b"\x21", b"\x31", b"\x41") or datatype[1:20] != FLOAT32:
            self._fail(f"/{path} is not float32")
        nbytes = 4 * math.prod(shape)
        version, kind = messages[LAYOUT].uint(1), messages[LAYOUT].uint(1)
        if version not in (3, 4) or kind != 1:
            self._fail(f"/{path} is not stored as one contiguous block")
        offset, stored = messages[LAYOUT].uint(8), messages[LAYOUT].uint(8)
        if stored != nbytes or (offset != UNDEFINED and offset + nbytes > self._size):
            self._fail(f"/{path} {list(shape)} wants {nbytes:,} bytes, {stored:,} at {offset:,} are said to be there: damaged")
        fill = self._fill(messages[FILL_VALUE]) if FILL_VALUE in messages else 0.0
        return Dataset(shape, None if offset == UNDEFINED else offset, fill)

    def _shape(self, data: "_Bytes"):
        """Dimensions of a dataspace, None for the null space."""
        version, rank, _, kind = (data.uint(1) for _ in range(4))
        if version != 2 or kind not in (0, 1, 2) or rank > 4:
            self._fail(f"dataspace version {version}, type {kind}, {rank} dimensions")
        shape = tuple(data.uint(8) for _ in range(rank))
        if math.prod(max(dim, 1) for dim in shape) >= 1 << 48:
            self._fail(f"impossible dimensions {list(shape)}")
        return None if kind == 2 else shape

    def _fill(self, data: "_Bytes") -> float:
        version, flags = data.uint(1), data.uint(1)
        if version != 3:
            self._fail(f"fill value version {version}")
        if not flags & 0x20:
            return 0.0
        if data.uint(4) != 4:
            self._fail("a fill value that is not float32")
        return float(np.frombuffer(data.take(4), "<f4")[0])

    def _attribute(self, data: "_Bytes"):
        """`(name, str or array)`; None for one of a kind we have no use for."""
        version, flags = data.uint(1), data.uint(1)
        if version != 3 or flags:
            return None
        name_length, type_length, space_length = data.uint(2), data.uint(2), data.uint(2)
        data.take(1)
        name = data.text(name_length).rstrip("\0")
        datatype = _Bytes(data.take(type_length), self)
        shape = self._shape(_Bytes(data.take(space_length), self))
        kind, bits, size = datatype.uint(1) & 15, datatype.take(3), datatype.uint(4)
        if shape is None:
            return None
        if kind == 9 and bits[0] & 15 == 1 and shape == ():  # a string of variable length
            length, heap, number = data.uint(4), data.uint(8), data.uint(4)
            return name, self._string(heap, number, length)
        if kind == 3 and shape == ():
            return name, _Bytes(data.take(size), self).text(size).rstrip("\0")
        if kind in (0, 1) and not bits[0] & 1 and size in (1, 2, 4, 8) and (kind == 0 or size > 1):
            code = "f" if kind == 1 else "i" if bits[0] & 8 else "u"
            values = np.frombuffer(data.take(size * math.prod(shape)), f"<{code}{size}")
            return name, values.reshape(shape)
        return None

    def _string(self, heap: int, number: int, length: int) -> str:
        """A string in a global heap collection."""
        if not length:
            return ""
        head = _Bytes(self._bytes(heap, 16), self)
        if head.take(5) != b"GCOL\x01":
            self._fail(f"no heap at byte {heap:,}")
        head.take(3)
        items = _Bytes(self._bytes(heap, head.uint(8)), self)
        items.take(16)
        found, size = None, 0
        while found != number:
            if items.left < 16 or found == 0:
                self._fail(f"string {number} of the heap at byte {heap:,} is not there")
            items.take(size + -size % 8)
            found = items.uint(2)
            items.take(6)
            size = items.uint(8)
        return items.text(min(length, size))


class _Bytes:
    """Takes pieces off the front of a block; a block that is too short is a damaged file."""

    def __init__(self, data: bytes, file: File):
        self._data, self._at, self._file = data, 0, file

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            self._file._fail("a field runs past the end of its block: damaged")
        self._at += count
        return self._data[self._at - count : self._at]

    def uint(self, count: int) -> int:
        """The next `count` bytes as a little-endian number."""
        return int.from_bytes(self.take(count), "little")

    def text(self, count: int) -> str:
        """The next `count` bytes as UTF-8."""
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            return self._file._fail("a name or text that is not UTF-8: damaged")
