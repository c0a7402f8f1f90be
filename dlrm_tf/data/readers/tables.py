"""open_table: the reader of a file of a table, told by its first bytes."""

from typing import Optional

from dlrm_tf.data.readers.arrow import ARROW_FILE, ARROW_STREAM, PARQUET, REFUSED, ArrowReader, starts_with
from dlrm_tf.data.readers.ipc import IpcReader
from dlrm_tf.data.readers.parquet import ParquetReader
from dlrm_tf.data.readers.storage import open_bytes
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError


def open_table(path: str, spec: Optional[FeatureSpec]) -> Optional[ArrowReader]:
    """The reader of a Parquet file, an Arrow file or an Arrow stream; None where the file begins as none of these.

    Args:
      path: the file, a local path or a URL.
      spec: the columns; None to look at all there are.

    Raises:
      DataError: the file is damaged, has other columns than `spec`, or has a format that is like these.
    """
    with open_bytes(path) as file:
        first = starts_with(file)
    if first[:4] in REFUSED:
        raise DataError(f"{path}: wanted a Parquet or an Arrow file. Received {REFUSED[first[:4]]}")
    if first[:4] == PARQUET:
        return ParquetReader(path, spec)
    if first == ARROW_FILE or first[:4] == ARROW_STREAM:
        return IpcReader(path, spec)
    return None
