"""Parses the messages of an HDF5 object header: links, shapes, types, storage and attributes. The bytes may be hostile.

Only what weights files use is understood; the error for anything else names it. Nothing here reads a file.
Layout: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, section IV.A.2.
"""

import dataclasses
import math
from typing import Callable, NamedTuple, Optional, Union

import numpy as np

UNDEFINED = 0xFFFFFFFFFFFFFFFF
# Types of messages.
DATASPACE, LINK_INFO, DATATYPE, FILL_VALUE, LINK, LAYOUT, ATTRIBUTE, CONTINUATION, ATTRIBUTE_INFO = 1, 2, 3, 5, 6, 8, 12, 16, 21
# External data, a filter (compression), an old-style group: nothing we write.
REFUSED = {7: "keeps its data in another file", 11: "is compressed", 17: "is an old-style group"}
# IEEE float32, little-endian, as a datatype message describes it after its first byte.
FLOAT32 = bytes.fromhex("20 1f 00 04 00 00 00 00 00 20 00 17 08 00 17 7f 00 00 00")
Attributes = dict[str, Union[str, np.ndarray]]
# Function (address of a heap, number in it, length) -> text.
HeapString = Callable[[int, int, int], str]
# A group with more entries is kept by the library in a structure of its own (a fractal heap), which is not read here.
MAX_ENTRIES = 8


class Unreadable(Exception):
    """Why a file can't be read, without its name."""


class Bytes:
    """Takes pieces off the front of a block.

    Args:
      data: the block.

    Raises:
      Unreadable: by its methods, where the block is too short.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise Unreadable("a field runs past the end of its block: damaged")
        self._at += count
        return self._data[self._at - count : self._at]

    def uint(self, count: int) -> int:
        """The next `count` bytes as a little-endian number."""
        return int.from_bytes(self.take(count), "little")

    def text(self, count: int) -> str:
        """The next `count` bytes as UTF-8."""
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError as e:
            raise Unreadable("a name or text that is not UTF-8: damaged") from e


class Message(NamedTuple):
    """One message of an object header."""

    type: int
    flags: int
    data: bytes

    @property
    def shared(self) -> bool:
        """Whether the content stands elsewhere in the file."""
        return bool(self.flags & 2)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Where a float32 dataset lies.

    Attributes:
      shape: its dimensions.
      offset: first byte in the file; None for one that was never written and is `fill` throughout.
      fill: its fill value.
    """

    shape: tuple[int, ...]
    offset: Optional[int]
    fill: float


class Group(NamedTuple):
    """What a group holds.

    Attributes:
      attributes: name -> str or NumPy array.
      links: name -> address of the header of the object in it.
    """

    attributes: Attributes
    links: dict[str, int]


def parse_object(messages: list[Message], where: str, file_size: int, heap_string: HeapString) -> Union[Dataset, Group]:
    """The dataset or group whose header holds these messages.

    Args:
      messages: the messages.
      where: its path, for errors.
      file_size: bytes in the file.
      heap_string: reads an attribute's string of variable length.

    Raises:
      Unreadable: damaged, or with something in it that weights files never have.
    """
    for message in messages:
        if message.type in REFUSED:
            raise Unreadable(f"{where} {REFUSED[message.type]}")
        if message.shared and message.type in (DATASPACE, DATATYPE, FILL_VALUE, LAYOUT, LINK):
            raise Unreadable(f"{where} has a shared message")
    if any(message.type == LAYOUT for message in messages):
        return _dataset({message.type: Bytes(message.data) for message in messages}, where, file_size)
    group = Group({}, {})
    for message in messages:
        data = Bytes(message.data)
        if message.type == ATTRIBUTE and not message.shared:
            group.attributes.update(_attribute(data, heap_string))
        elif message.type == LINK:
            group.links.update(_link(data, where))
        elif message.type in (LINK_INFO, ATTRIBUTE_INFO):
            _, flags = data.uint(1), data.uint(1)
            if flags & 1:
                data.take(8 if message.type == LINK_INFO else 2)
            if data.uint(8) != UNDEFINED:
                raise Unreadable(f"{where} has more than {MAX_ENTRIES} entries")
    return group


def _dataset(found: dict[int, Bytes], where: str, file_size: int) -> Dataset:
    if not {DATASPACE, DATATYPE, LAYOUT} <= set(found):
        raise Unreadable(f"{where} has no shape, type or storage")
    shape = _shape(found[DATASPACE])
    datatype = found[DATATYPE].take(found[DATATYPE].left)
    if shape is None or datatype[:1] not in (b"\x11", b"\x21", b"\x31", b"\x41") or datatype[1:20] != FLOAT32:
        raise Unreadable(f"{where} is not float32")
    layout = found[LAYOUT]
    version, kind = layout.uint(1), layout.uint(1)
    if version not in (3, 4) or kind != 1:
        raise Unreadable(f"{where} is not stored as one contiguous block")
    nbytes, offset, stored = 4 * math.prod(shape), layout.uint(8), layout.uint(8)
    if stored != nbytes or (offset != UNDEFINED and offset + nbytes > file_size):
        raise Unreadable(f"{where} {list(shape)} wants {nbytes:,} bytes, {stored:,} at {offset:,} are said to be there: damaged")
    fill = _fill(found[FILL_VALUE]) if FILL_VALUE in found else 0.0
    return Dataset(shape, None if offset == UNDEFINED else offset, fill)


def _shape(data: Bytes) -> Optional[tuple[int, ...]]:
    """Dimensions of a dataspace, None for the null space."""
    version, rank, _, kind = (data.uint(1) for _ in range(4))
    if version != 2 or kind not in (0, 1, 2) or rank > 4:
        raise Unreadable(f"dataspace version {version}, type {kind}, {rank} dimensions")
    shape = tuple(data.uint(8) for _ in range(rank))
    if math.prod(max(dim, 1) for dim in shape) >= 1 << 48:
        raise Unreadable(f"impossible dimensions {list(shape)}")
    return None if kind == 2 else shape


def _fill(data: Bytes) -> float:
    version, flags = data.uint(1), data.uint(1)
    if version != 3:
        raise Unreadable(f"fill value version {version}")
    if not flags & 0x20:
        return 0.0
    if data.uint(4) != 4:
        raise Unreadable("a fill value that is not float32")
    return float(np.frombuffer(data.take(4), "<f4")[0])


def _link(data: Bytes, where: str) -> dict[str, int]:
    """Name -> address of an entry of a group; empty for a link that leads elsewhere, which is not followed."""
    version, flags = data.uint(1), data.uint(1)
    kind = data.uint(1) if flags & 8 else 0
    if version != 1:
        raise Unreadable(f"{where} has a link of version {version}")
    data.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
    name = data.text(data.uint(1 << (flags & 3)))
    if not name or "/" in name or not name.isprintable():
        raise Unreadable(f"{where} has an entry with an impossible name")
    return {name: data.uint(8)} if kind == 0 else {}


def _attribute(data: Bytes, heap_string: HeapString) -> Attributes:
    """Name -> value of an attribute; empty for one of another type than text, integers and floats."""
    version, flags = data.uint(1), data.uint(1)
    if version != 3 or flags:
        return {}
    name_length, type_length, space_length = data.uint(2), data.uint(2), data.uint(2)
    data.take(1)
    name = data.text(name_length).rstrip("\0")
    datatype = Bytes(data.take(type_length))
    shape = _shape(Bytes(data.take(space_length)))
    kind, bits, size = datatype.uint(1) & 15, datatype.take(3), datatype.uint(4)
    if shape is None:
        return {}
    if kind == 9 and bits[0] & 15 == 1 and shape == ():  # a string of variable length
        length, heap, number = data.uint(4), data.uint(8), data.uint(4)
        return {name: heap_string(heap, number, length)}
    if kind == 3 and shape == ():
        return {name: Bytes(data.take(size)).text(size).rstrip("\0")}
    if kind in (0, 1) and not bits[0] & 1 and size in (1, 2, 4, 8) and (kind == 0 or size > 1):
        code = "f" if kind == 1 else "i" if bits[0] & 8 else "u"
        values = np.frombuffer(data.take(size * math.prod(shape)), f"<{code}{size}")
        return {name: values.reshape(shape)}
    return {}
