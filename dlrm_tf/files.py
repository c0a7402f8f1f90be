"""Files and folders that appear whole or not at all (written beside their place, synced to the disk, renamed); SHA-256."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import Union

from dlrm_tf.errors import CheckpointError, DLRMError
from dlrm_tf.progress import Progress

# The path of a file or folder, as public functions take it.
StrPath = Union[str, os.PathLike[str]]
_BLOCK_BYTES = 4 << 20


def _sync(path: str) -> None:
    """Flushes a closed file, or a folder's list of entries, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _set_ordinary_mode(path: str, mode: int) -> None:
    """Gives a temporary file or folder, which only its owner may read, the mode that an ordinary one would have."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, mode & ~umask)


def _raise_if_full(error: BaseException, path: str) -> None:
    """Names the file when the disk is full: the system, HDF5 and TensorFlow each say it in their own way, without the name."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
    if full and not isinstance(error, DLRMError):
        raise DLRMError(
            f"{path}: no space left on the disk; what was there before is untouched, the unfinished part is removed"
        ) from error


@contextlib.contextmanager
def atomic_file(path: StrPath) -> Iterator[str]:
    """Yields a temporary path in `path`'s folder; renamed to `path` at the end, removed on any error.

    A previous file at `path` stays as it was until the new one is complete and on the disk.

    Args:
      path: the file to write. Its parent folders are made.

    Raises:
      OSError: the folder takes no files, or `path` is a folder.
      DLRMError: the disk is full.
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
        _set_ordinary_mode(temporary, 0o666)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(folder)
    except BaseException as e:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        _raise_if_full(e, path)
        raise


def write_file(path: StrPath, content: Union[str, bytes]) -> None:
    """Writes a small file; it appears whole or not at all, as with `atomic_file`.

    Args:
      path: the file. Its parent folders are made.
      content: bytes, or text that is written as UTF-8.

    Raises:
      OSError: the folder takes no files, or `path` is a folder.
      DLRMError: the disk is full.
    """
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sha256_file(path: StrPath, *, quiet: bool = True) -> str:
    """SHA-256 (hex) of a file, which is read once.

    Args:
      path: the file.
      quiet: show no progress.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file, Progress("sha256", total=os.path.getsize(path), unit="B", quiet=quiet) as progress:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            progress.update(len(block))
    return digest.hexdigest()


def open_regular(path: str, wanted: str) -> io.BufferedReader:
    """Opens a checkpoint or weights file for reading bytes.

    Args:
      path: the file.
      wanted: what it should be, for the error.

    Raises:
      CheckpointError: no such file, a folder or device, or one that may not be read.
    """
    try:
        # Checked first: opening a named pipe waits until another program writes into it.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path}: wanted {wanted}. Received {'a folder' if stat.S_ISDIR(mode) else 'a device'}")
        return open(path, "rb")
    except OSError as e:
        raise CheckpointError(f"{path}: {'no such file' if isinstance(e, FileNotFoundError) else e.strerror}") from e


def read_into(file: io.BufferedReader, view: memoryview, where: str) -> None:
    """Fills `view` with the bytes at the file's position.

    Args:
      file: opened by `open_regular`.
      view: of bytes.
      where: what is read, for the error.

    Raises:
      CheckpointError: the file ends too early.
    """
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(f"{where}: the file was cut off while it was read")
        view = view[count:]


@contextlib.contextmanager
def atomic_dir(path: StrPath) -> Iterator[str]:
    """Yields a temporary folder beside `path`; renamed to `path` at the end, removed on any error.

    Args:
      path: the folder to make. Its parent folders are made.

    Raises:
      FileExistsError: `path` is already there (a finished folder is never written over).
      DLRMError: the disk is full.
    """
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    os.makedirs(parent, exist_ok=True)
    if os.path.exists(path):
        raise FileExistsError(f"{path}: already exists; choose another name or remove it first")
    temporary = tempfile.mkdtemp(prefix=f".{os.path.basename(path)}.", suffix=".part", dir=parent)
    try:
        yield temporary
        _set_ordinary_mode(temporary, 0o777)
        for root, _, names in os.walk(temporary):
            for name in names:
                _sync(os.path.join(root, name))
            _sync(root)
        os.rename(temporary, path)
        _sync(parent)
    except BaseException as e:
        shutil.rmtree(temporary, ignore_errors=True)
        _raise_if_full(e, path)
        raise
