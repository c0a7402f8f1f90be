"""What a user names by the name of a preset, or by the path of a JSON file."""

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from dlrm_tf.errors import DataError
from dlrm_tf.files import StrPath

_T = TypeVar("_T")
# Far beyond any use, so that what is not such a file takes no memory.
_MAX_CHARACTERS = 16 << 20


def preset_or_file(name_or_path: StrPath, presets: Mapping[str, _T], load: Callable[[str], _T]) -> _T:
    """What a preset's name or a file's path stands for; the name of a preset comes first.

    Args:
      name_or_path: the name, or the path.
      presets: by name.
      load: function of a path that reads a file.

    Raises:
      DataError: neither; or what `load` raises.
    """
    name = os.fspath(name_or_path)
    if name in presets:
        return presets[name]
    if not os.path.exists(name):
        raise DataError(f"{name}: wanted a preset ({', '.join(presets)}) or a JSON file. Received neither")
    return load(name)


def json_text(path: StrPath) -> str:
    """The text of a JSON file.

    Raises:
      DataError: bytes that are not UTF-8.
    """
    with open(path, encoding="utf-8") as file:
        try:
            return file.read(_MAX_CHARACTERS)
        except UnicodeDecodeError as e:
            raise DataError(f"{path}: wanted a JSON file. Received bytes that are not UTF-8") from e
