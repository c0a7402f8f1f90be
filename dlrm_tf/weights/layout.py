"""Where the weights of a DLRM stand in a `.weights.h5` file, and their shapes.

The layout is Keras 3's own, so that the Keras 3 twin's `load_weights` reads it; tf_keras reads it through `dlrm_tf.DLRM`.
"""

from collections.abc import Iterator
from typing import Optional

from dlrm_tf.config import DLRMConfig
from dlrm_tf.weights.hdf5_messages import MAX_ENTRIES

FORMAT = "dlrm_tf.weights.1"
TABLE = "embedding/vars/0"
# The group of an MLP's layers has one entry per layer, and Keras's empty `vars`.
MAX_LAYERS = MAX_ENTRIES - 1
# Rows moved at a time: 64 MiB of a 16-wide float32 table.
CHUNK_ROWS = 1 << 20


def dense_path(mlp: str, layer: int, part: str) -> str:
    """Path of a dense layer's weight in the file; Keras numbers the layers of a list by their class's name.

    Args:
      mlp: part of the network, as in `DLRMConfig.dense_shapes`.
      layer: number of the layer, from 0.
      part: `"kernel"` or `"bias"`.
    """
    name = "dense" if layer == 0 else f"dense_{layer}"
    layers = "cross/_projections" if mlp == "cross_projection" else f"{mlp}/_sublayers"
    return f"{layers}/{name}/vars/{('kernel', 'bias').index(part)}"


def weight_shapes(config: DLRMConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every weight a file of this configuration holds; all are float32."""
    shapes: dict[str, tuple[int, ...]] = {TABLE: (config.table_rows, config.embedding_dim)}
    for mlp, i, kind, shape in config.dense_weights():
        shapes[dense_path(mlp, i, kind)] = shape
    return shapes


def row_chunks(start: int, stop: int, size: Optional[int] = None) -> Iterator[tuple[int, int]]:
    """Divides the rows from `start` to `stop` into chunks.

    Args:
      start: first row.
      stop: row after the last one.
      size: rows of a chunk; `CHUNK_ROWS` when None.

    Yields:
      `(first row, row after the last one)` of each chunk.
    """
    size = size or CHUNK_ROWS
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def table_chunks(config: DLRMConfig) -> Iterator[tuple[int, int]]:
    """Yields `(start, stop)` over the fused table's rows, `CHUNK_ROWS` at a time."""
    return row_chunks(0, config.table_rows)
