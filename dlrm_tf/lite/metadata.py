"""The JSON that an export carries in the TFLite file's `Model.metadata`."""

import contextlib
import json
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

from dlrm_tf.errors import DLRMError, require

# Names of our entries in Model.metadata: the JSON, and the vocabulary file of the ids kept.
METADATA = "dlrm_tf"
VOCABULARY = "dlrm_tf.vocabulary"


@contextlib.contextmanager
def mapped(path: str) -> Iterator[Any]:
    """Yields the flatbuffer root (`schema.Model`) of a TFLite file, memory-mapped.

    Args:
      path: the file.

    Raises:
      DLRMError: not a TFLite file, or a damaged one.
    """
    schema = require("ai_edge_litert.schema_py_generated", "lite")
    with open(path, "rb") as file:
        head = file.read(8)
        if head[4:] != b"TFL3":
            raise DLRMError(f"{path}: wanted a TFLite file (bytes 4 to 8 are TFL3). Received {head[4:]!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                yield schema.Model.GetRootAs(data, 0)
            except (struct.error, IndexError, TypeError) as e:
                raise DLRMError(f"{path}: damaged TFLite file, {os.path.getsize(path):,} bytes ({e})") from e


def data_field(buffer: Any) -> int:
    """Position in the file of a `schema.Buffer`'s reference to its data vector."""
    return int(buffer._tab.Pos + buffer._tab.Offset(4))


def metadata_buffer(model: Any, name: str) -> Any:
    """The `schema.Buffer` of an entry of Model.metadata, or None."""
    for i in range(model.MetadataLength()):
        if model.Metadata(i).Name() == name.encode():
            return model.Buffers(model.Metadata(i).Buffer())
    return None


def read_entry(path: str, name: str) -> bytes:
    """The bytes of an entry of Model.metadata.

    Args:
      path: the file.
      name: the entry's name.

    Returns:
      Its bytes; b"" when there is none.

    Raises:
      DLRMError: not a TFLite file, or a damaged one.
    """
    with mapped(path) as model:
        buffer = metadata_buffer(model, name)
        try:
            # NumPy checks the announced length against the file's size. A copy: the map is closed on leaving.
            return b"" if buffer is None or buffer.DataIsNone() else bytes(buffer.DataAsNumpy().tobytes())
        except ValueError as e:
            raise DLRMError(f"{path}: damaged TFLite file, its entry {name} is cut ({e})") from e


def read_metadata(path: str) -> dict[str, Any]:
    """The JSON that `export_tflite` wrote into the file.

    Args:
      path: the file.

    Raises:
      DLRMError: not a TFLite file, or not one that dlrm_tf exported.
    """
    try:
        return dict(json.loads(read_entry(path, METADATA)))
    except (ValueError, TypeError, RecursionError) as e:  # not JSON, no object, or nested too deeply
        raise DLRMError(f"{path}: a TFLite file, but not one that dlrm_tf exported (no metadata {METADATA!r})") from e
