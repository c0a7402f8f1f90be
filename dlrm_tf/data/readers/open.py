"""open_readers: the readers of what a user names as input."""

import os
from collections.abc import Iterable
from typing import Any

from dlrm_tf.data.readers.frames import open_frames
from dlrm_tf.data.readers.names import expand
from dlrm_tf.data.readers.reader import Reader
from dlrm_tf.data.readers.tables import open_table
from dlrm_tf.data.readers.text import TextReader, is_pipe
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import UsageError


def open_readers(inputs: Any, spec: FeatureSpec) -> list[Reader]:
    """One reader a file, in order.

    Args:
      inputs: files, folders, patterns with `*`, URLs, `-`: see `expand`; or rows in memory, as `open_frames` takes them.
      spec: the columns.

    Raises:
      DataError: an input is not a file, a pattern or folder has none, or a file is named twice.
      UsageError: there is none.
    """
    frames = open_frames(inputs, spec)
    if frames is not None:
        return [frames]
    if not isinstance(inputs, (str, os.PathLike, Iterable)):
        raise UsageError(f"inputs must be files or tables. Received {inputs!r}")
    paths = [os.fspath(path) for path in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    if not paths:
        raise UsageError("inputs must be at least one file. Received none")
    return [(None if is_pipe(path) else open_table(path, spec)) or TextReader(path, spec) for path in expand(paths)]
