"""Reads weights files without the HDF5 library: the part of HDF5 that they use, in plain Python, trusting nothing in the file.

The library can be made to crash or to loop for ever by a crafted file (the fuzzer in tests/fuzz found such a loop within a
minute). So a weights file from anywhere is read with this: superblock 2 or 3, object headers of version 2, hard links kept
in the header (the library does so up to eight a group), contiguous float32 datasets whose bytes lie in the file, attributes.
Anything else of HDF5 is refused by name. Layout: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

import os
from collections.abc import Mapping

import numpy as np

from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import StrPath, open_regular, read_into
from dlrm_tf.weights.hdf5_messages import CONTINUATION, Attributes, Bytes, Dataset, Message, Unreadable, parse_object
from dlrm_tf.weights.lookup3 import lookup3

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Far above what any weights file has; limits the work that a crafted one can cause.
MAX_OBJECTS, MAX_BLOCK_BYTES, MAX_DEPTH = 2000, 1 << 20, 8
# What to do with a file that Keras saved without dlrm_tf.
KERAS_ADVICE = "load it with keras.Model.load_weights into a DLRM, then save that with DLRM.save_weights"


class File:
    """An open weights file.

    Args:
      path: the file.

    Attributes:
      path: its path.
      attributes: the root's attributes, name -> str or NumPy array.
      group_attributes: the same for each group, by its path.
      datasets: path -> `Dataset` of every dataset.

    Raises:
      CheckpointError: no HDF5 file, damaged, or with something in it that weights files never have.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        self._file = open_regular(self.path, "a weights file")
        self.datasets: dict[str, Dataset] = {}
        self.group_attributes: dict[str, Attributes] = {}
        self._seen: set[int] = set()
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._read_object(self._root(), "")
        except Unreadable as e:
            self.close()
            raise CheckpointError(f"{self.path}: not a readable HDF5 file of plain weights: {e}") from e
        except BaseException:
            self.close()
            raise
        self.attributes = self.group_attributes.get("", {})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows of a dataset, float32.

        Args:
          path: the dataset.
          start: first row.
          stop: row after the last one; rows the dataset does not have are left out.

        Raises:
          CheckpointError: the file was cut off meanwhile.
        """
        dataset = self.datasets[path]
        start, stop = max(0, start), min(stop, dataset.shape[0])
        out = np.empty((max(0, stop - start), *dataset.shape[1:]), "<f4")
        if dataset.offset is None:
            out[:] = dataset.fill
        elif out.size:
            self._file.seek(dataset.offset + start * (out.nbytes // len(out)))
            read_into(self._file, out.reshape(-1).data.cast("B"), f"{self.path}: {path}")
        return out

    def faults(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """What is wrong with the datasets that a file must have, one text each; empty when all is well.

        Args:
          shapes: path -> shape of every dataset wanted.
        """
        found = []
        for path, shape in shapes.items():
            dataset = self.datasets.get(path)
            if dataset is None:
                found.append(f"{path} is missing")
            elif dataset.shape != shape:
                found.append(f"{path} wanted float32 {shape}, received float32 {dataset.shape}")
        return found

    def _bytes(self, at: int, count: int) -> bytes:
        if count > MAX_BLOCK_BYTES or at + count > self._size:
            raise Unreadable(f"{count:,} bytes at {at:,} are not there, the file has {self._size:,}: cut off or damaged")
        self._file.seek(at)
        return self._file.read(count)

    def _checked(self, at: int, count: int) -> Bytes:
        """A metadata block, without the checksum that ends it."""
        block = self._bytes(at, count)
        if count < 8 or lookup3(block[:-4]) != int.from_bytes(block[-4:], "little"):
            raise Unreadable(f"the checksum of the block at byte {at:,} is wrong: damaged")
        return Bytes(block[:-4])

    def _root(self) -> int:
        """Address of the root group's header."""
        start = self._bytes(0, min(self._size, 12))
        if not start.startswith(SIGNATURE):
            raise Unreadable("it does not begin with HDF5's signature")
        if start[8:9] in (b"\x00", b"\x01"):  # h5py's, and so Keras's, choice
            raise Unreadable(f"superblock version {start[8]}, as Keras alone writes it: {KERAS_ADVICE}")
        if len(start) < 12 or start[8] not in (2, 3) or start[9:11] != b"\x08\x08":
            raise Unreadable(f"superblock version {start[8] if len(start) > 8 else '?'}; dlrm_tf writes 3")
        block = self._checked(0, 48)
        block.take(12)
        base, _, end, root = (block.uint(8) for _ in range(4))
        if base or end > self._size:
            raise Unreadable(f"wanted {end:,} bytes, the file has {self._size:,}: cut off or damaged")
        return root

    def _read_object(self, at: int, path: str) -> None:
        """Reads the group or dataset whose header is at a byte, and everything below it."""
        where = f"/{path}"
        if at in self._seen or len(self._seen) >= MAX_OBJECTS or path.count("/") >= MAX_DEPTH:
            raise Unreadable(f"{where} is there twice, or there are too many objects")
        self._seen.add(at)
        found = parse_object(self._messages(at), where, self._size, self._heap_string)
        if isinstance(found, Dataset):
            self.datasets[path] = found
            return
        self.group_attributes[path] = found.attributes
        for name, address in found.links.items():
            self._read_object(address, f"{path}/{name}" if path else name)

    def _messages(self, at: int) -> list[Message]:
        """The messages of an object header of version 2, its continuations included."""
        head = self._bytes(at, min(64, max(0, self._size - at)))
        if len(head) < 16 or head[:5] != b"OHDR\x02":
            raise Unreadable(f"no object header of version 2 at byte {at:,}")
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
                if kind == CONTINUATION:
                    blocks.append(self._continuation(Bytes(message.data)))
                else:
                    messages.append(message)
        return messages

    def _continuation(self, place: Bytes) -> Bytes:
        """The next block of an object header, without its signature."""
        address, length = place.uint(8), place.uint(8)
        if address in self._seen:
            raise Unreadable(f"the header with a part at byte {address:,} refers to itself")
        self._seen.add(address)
        more = self._checked(address, length)
        if more.take(4) != b"OCHK":
            raise Unreadable(f"no continuation of an object header at byte {address:,}")
        return more

    def _heap_string(self, heap: int, number: int, length: int) -> str:
        """A string in a global heap collection."""
        if not length:
            return ""
        head = Bytes(self._bytes(heap, 16))
        if head.take(5) != b"GCOL\x01":
            raise Unreadable(f"no heap at byte {heap:,}")
        head.take(3)
        items = Bytes(self._bytes(heap, head.uint(8)))
        items.take(16)
        found, size = None, 0
        while found != number:
            if items.left < 16 or found == 0:
                raise Unreadable(f"string {number} of the heap at byte {heap:,} is not there")
            items.take(size + -size % 8)
            found = items.uint(2)
            items.take(6)
            size = items.uint(8)
        return items.text(min(length, size))
