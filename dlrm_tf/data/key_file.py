"""The file of a vocabulary: keys of several features with a JSON header, as an uncompressed `.npz`."""

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, Union

import numpy as np

from dlrm_tf.errors import DataError, reason
from dlrm_tf.files import StrPath, atomic_file

# The keys of a feature: uint32 values of those of eight hex digits, in id order, and `(key, id)` of all others.
Keys = tuple[np.ndarray, list[tuple[bytes, int]]]
# Arrays of every file: dtype and number of dimensions.
_MEMBERS = {
    "header": (np.dtype("u1"), 1),
    "counts": (np.dtype("<i8"), 2),
    "hex_keys": (np.dtype("<u4"), 1),
    "other_ids": (np.dtype("<i4"), 1),
    "other_lengths": (np.dtype("<i4"), 1),
    "other_keys": (np.dtype("u1"), 1),
}
# Arrays that a file may have beside these, the same way.
_OPTIONAL = {"last_seen": (np.dtype("<i4"), 1)}


class KeyFile(NamedTuple):
    """What a file holds.

    Attributes:
      header: JSON values.
      parts: the keys of each feature.
      members: further arrays, by the names of `_OPTIONAL`.
    """

    header: dict[str, Any]
    parts: list[Keys]
    members: dict[str, np.ndarray]


def is_key_file(path: StrPath) -> bool:
    """Whether a file has the parts `write_keys` writes, by their names alone: it may still be damaged."""
    if not os.path.isfile(path):  # opening a pipe would wait for a writer
        return False
    try:
        with zipfile.ZipFile(path) as members:
            names = {name[: -len(".npy")] for name in members.namelist() if name.endswith(".npy")}
            return len(names) == len(members.namelist()) and set(_MEMBERS) <= names <= {*_MEMBERS, *_OPTIONAL}
    except Exception:  # not a zip file, or a damaged one: zipfile's parser raises many errors
        return False


def write_keys(
    path: StrPath,
    header: dict[str, Any],
    parts: Sequence[Keys],
    *,
    members: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Writes a `.npz`; the file appears whole or not at all.

    Args:
      path: the file.
      header: JSON values.
      parts: the keys of each feature.
      members: further arrays, by the names of `_OPTIONAL`.
    """
    others = [item for _, items in parts for item in items]
    further: dict[str, Any] = {name: array.astype(_OPTIONAL[name][0]) for name, array in members.items()}
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            header=np.frombuffer(json.dumps(header).encode(), np.uint8),
            counts=np.array([(numeric.size, len(items)) for numeric, items in parts], "<i8").reshape(-1, 2),
            hex_keys=np.concatenate([np.empty(0, np.uint32), *(numeric for numeric, _ in parts)]).astype("<u4"),
            other_ids=np.array([i for _, i in others], "<i4"),
            other_lengths=np.array([len(key) for key, _ in others], "<i4"),
            other_keys=np.frombuffer(b"".join(key for key, _ in others), np.uint8),
            **further,
        )


def read_keys(path: Union[StrPath, BinaryIO]) -> KeyFile:
    """Reads what `write_keys` wrote; nothing in the file can run code.

    Args:
      path: the file, or an open binary file.

    Raises:
      DataError: another kind of file, or damaged.
    """
    with open(path, "rb") if isinstance(path, (str, os.PathLike)) else contextlib.nullcontext(path) as file:
        try:
            _check_members(file)
            with np.load(file, allow_pickle=False) as arrays:
                members = {name: arrays[name] for name in (*_MEMBERS, *(name for name in _OPTIONAL if name in arrays))}
            for name, array in members.items():
                if (array.dtype, array.ndim) != {**_MEMBERS, **_OPTIONAL}[name]:
                    raise ValueError(f"{name} is {array.ndim}-dimensional {array.dtype}")
            header, counts, values, ids, lengths, blob = (members.pop(name) for name in _MEMBERS)
            header, blob = json.loads(header.tobytes()), blob.tobytes()
        except Exception as e:  # NumPy's and zipfile's parsers raise many kinds of errors, even tokenize.TokenError
            raise DataError(f"{path}: not a vocabulary file, or damaged ({reason(e)})") from None
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    sound = (
        isinstance(header, dict)
        and counts.shape[1] == 2
        and ids.shape == lengths.shape
        and counts.min(initial=0) >= 0
        and counts.sum(0).tolist() == [values.size, ids.size]
        and lengths.min(initial=0) >= 0
        and offsets[-1] == len(blob)
    )
    if not sound:
        raise DataError(f"{path}: damaged vocabulary file (the lengths of its parts do not fit each other)")
    keys = [blob[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist())]
    at, other_at = 0, 0
    parts: list[Keys] = []
    for count, other_count in counts.tolist():
        others = list(zip(keys[other_at : other_at + other_count], ids[other_at : other_at + other_count].tolist()))
        parts.append((values[at : at + count], others))
        at, other_at = at + count, other_at + other_count
    return KeyFile(header, parts, members)


def _check_members(file: BinaryIO) -> None:
    """Checks, before memory is taken for an array, that each member is as long as its array's header states."""
    with zipfile.ZipFile(file) as members:
        for info in members.infolist():
            with members.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                length = dtype.itemsize * math.prod(shape)
                if info.compress_type != zipfile.ZIP_STORED or member.tell() + length != info.file_size:
                    raise ValueError(f"{info.filename} has not the length it states")
    file.seek(0)
