"""The files of a version folder, looked at before anything opens them: opening a FIFO would wait for ever."""

import os
import stat
from collections.abc import Iterator

from dlrm_tf.errors import ServingError

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_version_files(path: str) -> None:
    """Refuses a version folder that has anything but files and folders in it, symbolic links followed.

    Raises:
      ServingError: a FIFO, socket or device, links in a circle, or a folder that can't be read.
    """
    seen = set()
    folders = [path]
    try:
        while folders:
            for file in _entries(folders.pop()):
                status = os.stat(file)
                kind = stat.S_IFMT(status.st_mode)
                if kind in _KINDS:
                    raise ServingError(f"{file}: wanted a regular file or a folder. Received {_KINDS[kind]}")
                if stat.S_ISDIR(kind) and (status.st_dev, status.st_ino) not in seen:  # a link may lead to a folder above
                    seen.add((status.st_dev, status.st_ino))
                    folders.append(file)
    except OSError as e:
        raise ServingError(f"{e.filename}: wanted a readable file or folder ({e.strerror})") from e


def _entries(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.path
