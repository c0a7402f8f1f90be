"""Reading datasets of an HDF5 file that anybody may have made: nothing outside the file is opened, no size is believed."""

import contextlib
import math
import os

import numpy as np

from dlrm_tf.errors import CheckpointError


@contextlib.contextmanager
def damage_reported(path: str):
    """Turns what h5py raises on a damaged file (KeyError, OSError, RuntimeError, ValueError, TypeError) into CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, OSError, RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as e:
        reason = "".join(c if c.isprintable() else " " for c in str(e))
        raise CheckpointError(f"{path}: damaged HDF5 file ({' '.join(reason.split())[:200]})") from e


SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_file(path: str):
    """Opens an HDF5 file for reading.

    Raises:
      CheckpointError: there is none, or it is another kind of file.
    """
    import h5py

    try:
        with open(path, "rb") as f:
            signature = f.read(len(SIGNATURE))
    except OSError as e:
        raise CheckpointError(f"{path}: {'no such file' if isinstance(e, FileNotFoundError) else e.strerror}") from e
    if signature != SIGNATURE:
        raise CheckpointError(f"{path}: not a readable HDF5 file, as a weights file (NAME.weights.h5) is")
    with damage_reported(path):
        return h5py.File(path, "r")


def find(group, path: str):
    """The object at `path` below `group`, or None; links that lead elsewhere (soft, external) are not followed."""
    import h5py

    for name in path.split("/"):
        # get(getlink=True) looks at the link itself and opens nothing.
        if not isinstance(group, h5py.Group) or not isinstance(group.get(name, getlink=True), h5py.HardLink):
            return None
        group = group[name]
    return group


def fault(group, path: str, shape: tuple, may_be_constant: bool = False) -> str:
    """What is wrong with the float32 dataset at `path`, `""` if nothing is.

    Its bytes must all lie in the file: a compressed dataset, or one that was declared and never written, could make a few bytes
    on the disk into any amount of memory.

    Args:
      group: HDF5 group or file.
      path: path of the dataset below it.
      shape: the shape wanted.
      may_be_constant: accept a dataset without bytes, whose value is its fill value.
    """
    import h5py

    dataset = find(group, path)
    if not isinstance(dataset, h5py.Dataset):
        return f"{path} is missing"
    if dataset.shape != shape or dataset.dtype != np.float32:
        return f"{path} wanted float32 {shape}, came {dataset.dtype} {dataset.shape}"
    if dataset.external or dataset.is_virtual:
        return f"{path} keeps its data in another file"
    stored = dataset.id.get_storage_size()
    if may_be_constant and not stored and dataset.chunks is None:
        return ""
    nbytes = 4 * math.prod(shape)
    offset = dataset.id.get_offset()
    if stored != nbytes or dataset.chunks is not None:
        return f"{path} wanted {nbytes:,} plain bytes, came {stored:,}: compressed, chunked or never written"
    if offset is not None and offset + nbytes > os.fstat(_descriptor(group)).st_size:
        return f"{path} ends after the end of the file"
    return ""


def _descriptor(group) -> int:
    return group.file.id.get_vfd_handle()
