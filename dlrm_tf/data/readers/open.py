"""open_readers: the readers of what a user names as input."""

import os
from typing import Any

from dlrm_tf.data.readers.frames import open_frames
from dlrm_tf.data.readers.reader import Reader
from dlrm_tf.data.readers.tables import open_table
from dlrm_tf.data.readers.text import TextReader
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError, UsageError


def open_readers(inputs: Any, spec: FeatureSpec) -> list[Reader]:
    """One reader an input, in order.

    Args:
      inputs: one file or several; or rows in memory, as `open_frames` takes them.
      spec: the columns.

    Raises:
      DataError: an input is not a file.
      UsageError: there is none.
    """
    frames = open_frames(inputs, spec)
    if frames is not None:
        return [frames]
    paths = [os.fspath(path) for path in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    if not paths:
        raise UsageError("inputs must be at least one file. Received none")
    for path in paths:
        # Resuming reads a file again, which a pipe does not allow. A missing file raises when its size is read.
        if os.path.exists(path) and not os.path.isfile(path):
            raise DataError(f"{path}: wanted a file. Received {'a folder' if os.path.isdir(path) else 'a pipe or device'}")
    return [open_table(path, spec) or TextReader(path, spec) for path in paths]
