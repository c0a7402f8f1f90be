"""Files and directories that appear whole or not at all: written beside, synced, then renamed."""

import contextlib
import errno
import os
import shutil
import tempfile
from typing import Union

from dlrm_tf.errors import DLRMError

# The path of a file or folder, as public functions take it.
StrPath = Union[str, os.PathLike[str]]


def _fsync_dir(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: str) -> None:
    """Flushes a closed file to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _raise_if_full(error: BaseException, path: str) -> None:
    """Names the file when the disk is full: the system, HDF5 and TensorFlow each say it in their own way, without the name."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
    if full and not isinstance(error, DLRMError):
        raise DLRMError(
            f"{path}: no space left on the disk; what was there before is untouched, the unfinished part is removed"
        ) from error


@contextlib.contextmanager
def atomic_file(path: str):
    """Yields a temporary path in `path`'s folder; renamed to `path` at the end, removed on any error.

    A previous file at `path` stays as it was until the new one is complete and on the disk. Parent folders are made.
    """
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "wanted a file's name. Received a folder", path)
    os.makedirs(folder, exist_ok=True)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", suffix=".part", dir=folder)
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from e  # the user knows this name, not the temporary one
    os.close(fd)
    try:
        yield temporary
        # mkstemp makes 0600; give the file the mode an ordinary open would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        sync_file(temporary)
        os.replace(temporary, path)
        _fsync_dir(folder)
    except BaseException as e:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        _raise_if_full(e, path)
        raise


@contextlib.contextmanager
def atomic_dir(path: str):
    """Yields a temporary folder beside `path`; renamed to `path` at the end, removed on any error.

    Raises:
      FileExistsError: `path` is already there (a finished directory is never written over).
    """
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    os.makedirs(parent, exist_ok=True)
    if os.path.exists(path):
        raise FileExistsError(f"{path}: already exists; choose another name or remove it first")
    temporary = tempfile.mkdtemp(prefix=f".{os.path.basename(path)}.", suffix=".part", dir=parent)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)
        for root, _, names in os.walk(temporary):
            for name in names:
                sync_file(os.path.join(root, name))
            _fsync_dir(root)
        os.rename(temporary, path)
        _fsync_dir(parent)
    except BaseException as e:
        shutil.rmtree(temporary, ignore_errors=True)
        _raise_if_full(e, path)
        raise
