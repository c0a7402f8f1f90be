"""open_readers: the readers of what a user names as input."""

import os
from collections.abc import Sequence
from typing import Union

from dlrm_tf.data.readers.names import expand
from dlrm_tf.data.readers.reader import Reader
from dlrm_tf.data.readers.text import TextReader
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import UsageError
from dlrm_tf.files import StrPath


def open_readers(inputs: Union[StrPath, Sequence[StrPath]], spec: FeatureSpec) -> list[Reader]:
    """One reader a file, in order.

    Args:
      inputs: files, folders, patterns with `*`, URLs, `-`: see `expand`.
      spec: the columns.

    Raises:
      DataError: an input is not a file, a pattern or folder has none, or a file is named twice.
      UsageError: there is none.
    """
    paths = [os.fspath(path) for path in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    if not paths:
        raise UsageError("inputs must be at least one file. Received none")
    return [TextReader(path, spec) for path in expand(paths)]
