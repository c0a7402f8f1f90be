"""expand: the files that a user means by paths, folders, patterns and URLs."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dlrm_tf.data.readers.storage import failures_told, file_system, is_url
from dlrm_tf.errors import DataError

_PATTERN = re.compile(r"[*?\[]")


def expand(paths: Sequence[str]) -> list[str]:
    """Files, in the order of `paths`; those of a folder or pattern sorted by name, numbers by value (`day_2` before `day_10`).

    A folder stands for all files below it; names that begin with `.` or `_` (`_SUCCESS`) are left out, as in Spark. In a pattern
    `*`, `?` and `[...]` stand for part of a name, `**` for folders. A file whose name has such characters is that file.

    Args:
      paths: files, folders, patterns, URLs of each of these; `-` and pipes stay as they are.

    Raises:
      DataError: nothing is in a folder or fits a pattern, or a file is named twice, so that its rows would count twice.
    """
    found = [name for path in paths for name in (_url_names(path) if is_url(path) else _local_names(path))]
    seen: dict[str, str] = {}
    for name in found:
        place = name if is_url(name) or name == "-" else os.path.realpath(name)
        if place in seen:
            also = "" if seen[place] == name else f", also as {seen[place]}"
            raise DataError(f"{name}: wanted each input once. Received it twice{also}")
        seen[place] = name
    return found


def _local_names(path: str) -> list[str]:
    if os.path.isdir(path):
        below = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        return _visible(path, below, path)
    if _PATTERN.search(path) and not os.path.lexists(path):
        names = glob.glob(path, recursive=True)
        fixed = path[: _PATTERN.search(path).start()]  # type: ignore[union-attr]
        files = [name for name in names if not os.path.isdir(name)]
        folders = [name for name in names if os.path.isdir(name)] if "**" not in path else []
        for folder in folders:
            files += [os.path.join(at, name) for at, _, inside in os.walk(folder) for name in inside]
        return _visible(path, files, os.path.dirname(fixed))
    return [path]


def _url_names(url: str) -> list[str]:
    if url.startswith(("http://", "https://")):
        return [url]  # a web server lists nothing; `?` begins a query
    system, place = file_system(url)
    with failures_told(url):
        return _stored_names(url, system, place)


def _stored_names(url: str, system: Any, place: str) -> list[str]:
    if _PATTERN.search(place) and not system.exists(place):
        names = system.glob(place)
        names = [name for name in names if not system.isdir(name)] + [
            inside for name in names if "**" not in place and system.isdir(name) for inside in system.find(name)
        ]
        fixed = place[: _PATTERN.search(place).start()].rpartition("/")[0]  # type: ignore[union-attr]
    elif system.isdir(place):
        names, fixed = system.find(place), place
    else:
        return [url]
    return [system.unstrip_protocol(name) for name in _visible(url, names, fixed)]


def _visible(wanted: str, names: Iterable[str], folder: str) -> list[str]:
    """The names without hidden parts below `folder`, sorted."""
    skip = len(folder)
    kept = [name for name in names if not any(part[:1] in (".", "_") for part in name[skip:].strip("/").split("/"))]
    if not kept:
        raise DataError(f"{wanted}: wanted files. Received none (names that begin with . or _ are left out)")
    return sorted(set(kept), key=_natural)


def _natural(name: str) -> tuple[Any, ...]:
    # Parts alternate, texts at even places, so that like is compared with like; names that differ in zeros only by the name.
    return ([int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name)
