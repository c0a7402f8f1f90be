"""The tf.data pipeline over records: large reads, rows shuffled by a seed, batches of exact size, resumable at any batch.

An epoch is a stream of blocks of neighbouring rows, in an order drawn for the epoch. The stream is cut into groups of whole
batches; a group is read at once, its rows are permuted, and it is handed out batch by batch. Which rows a group holds follows
from its number alone, so the pipeline starts at any batch without reading what comes before. Everything is TensorFlow ops (no
Python at run time), so it also runs in a remote worker.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, Optional

import numpy as np

from dlrm_tf.data.features import log_dense_tensor
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError
from dlrm_tf.keras2 import tensorflow

_BLOCK_ROWS = 4096  # rows that stay together until the group is permuted: one read, 655 KB for Criteo
_GROUP_ROWS = 131072  # rows that are permuted together: 21 MB for Criteo
_CRITEO_ROW_BYTES = 160
_FOREVER = np.iinfo(np.int64).max


def bounded_rows(rows: int, spec: FeatureSpec, row_bytes: int) -> int:
    """`rows`, or of longer rows with bags as many as have the bytes of `rows` rows of Criteo.

    Bags make rows of kilobytes (912 bytes with MLPerf's hot sizes). Without bags rows are what they are, so that the order in
    which they are read, and the shards they lie in, stay what they were.

    Args:
      rows: number of rows of 160 bytes.
      spec: the columns.
      row_bytes: bytes a row.

    Returns:
      At least 1.
    """
    return min(rows, max(1, rows * _CRITEO_ROW_BYTES // row_bytes)) if spec.bags else rows


def build(
    records: Any,
    split: str,
    batch_size: int,
    *,
    shuffle_seed: Optional[int],
    repeat: bool,
    drop_remainder: bool,
    worker: tuple[int, int],
    start_batch: Any,
    share: str,
) -> Any:
    """Builds the pipeline of `Records.dataset`, with the same arguments.

    Args:
      records: the opened `Records`; not annotated, because its module imports this one.
      split: `train`, `validation` or `test`.
      batch_size: rows a batch.
      shuffle_seed: of the order of rows; None is the order of the log.
      repeat: epoch after epoch, without end.
      drop_remainder: leave out a last batch of fewer rows.
      worker: `(index, count)`.
      start_batch: number of the first batch, int or integer tensor.
      share: what a worker gets, `"rows"` or `"files"`.

    Returns:
      A `tf.data.Dataset` of `({"dense", "categorical"}, label)`, with `"weights"` where keys have weights; without `"dense"`
      where the data has none.

    Raises:
      DataError: an argument is out of range.
    """
    tf = tensorflow()
    index, count = worker
    known = not tf.is_tensor(start_batch)  # a worker of a parameter-server run gets it as a tensor
    if batch_size < 1 or (known and start_batch < 0):
        raise DataError(f"wanted batch_size >= 1 and start_batch >= 0. Received {batch_size} and {start_batch}")
    if not 0 <= index < count:
        raise DataError(f"worker must be (index, count) with 0 <= index < count. Received {worker}")
    blocks = _blocks(records, split, index, count, share)
    rows = sum(length for _, _, length, _ in blocks)
    batches = rows // batch_size if drop_remainder else -(-rows // batch_size)
    if not batches:
        raise DataError(
            f"{records.folder}: wanted rows of {split} for a batch of {batch_size} for worker {index} of {count}. Received {rows}"
        )
    group_batches = max(1, bounded_rows(_GROUP_ROWS, records.spec, records.dtype.itemsize) // batch_size)
    groups = -(-batches // group_batches)
    stop_row = min(rows, batches * batch_size)
    read_group = _group_reader(blocks, records.dtype.itemsize, group_batches * batch_size, stop_row, shuffle_seed)

    def batches_of(table: Any) -> Any:
        size = tf.shape(table, tf.int64)[0]
        return tf.data.Dataset.range(0, size, batch_size).map(lambda at: table[at : at + batch_size])

    # Group number g of epoch e is e * groups + g.
    epoch, batch = start_batch // batches, start_batch % batches
    if not repeat and (not known or epoch):
        raise DataError(f"start_batch must be below {batches}, the batches of {split}. Received {start_batch}")
    start = epoch * groups + batch // group_batches
    dataset = tf.data.Dataset.range(start, _FOREVER if repeat else groups)
    dataset = dataset.interleave(
        lambda number: read_group(number // groups, number % groups), cycle_length=1, num_parallel_calls=1, deterministic=True
    )
    dataset = dataset.prefetch(1).flat_map(batches_of).skip(batch % group_batches)
    features = functools.partial(_features, records.spec, batch_size if drop_remainder else None, records.dtype.itemsize // 4)
    dataset = dataset.map(features, num_parallel_calls=2, deterministic=True).prefetch(4)
    left = tf.data.INFINITE_CARDINALITY if repeat else batches - batch
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(left))
    if count > 1:  # the share of this worker is cut already
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = dataset.with_options(options)
    return dataset


def _features(spec: FeatureSpec, rows: Optional[int], width: int, table: Any) -> tuple[dict[str, Any], Any]:
    """`(inputs, labels)` of a batch of records, int32 `[rows, width]`."""
    tf = tensorflow()
    table.set_shape([rows, width])
    first_id = 1 + len(spec.dense_columns)
    numbers = tf.bitcast(table[:, :first_id], tf.float32)
    inputs = {"categorical": table[:, first_id : first_id + spec.id_columns]}
    if spec.dense_columns:
        inputs = {"dense": log_dense_tensor(numbers[:, 1:], of_records=True), **inputs}
    if spec.weighted:
        inputs["weights"] = tf.bitcast(table[:, first_id + spec.id_columns :], tf.float32)
    return inputs, numbers[:, :1]


def _group_reader(
    blocks: list[tuple[str, int, int, int]], width: int, group_rows: int, stop_row: int, shuffle_seed: Optional[int]
) -> Callable[[Any, Any], Any]:
    """Function `(epoch, group) -> Dataset` of one element, the group's rows as int32 `[n, width / 4]`.

    Args:
      blocks: what `_blocks` returned.
      width: bytes a row.
      group_rows: rows a group.
      stop_row: rows of an epoch.
      shuffle_seed: of the order of rows; None is the order of the log.
    """
    tf = tensorflow()
    groups = -(-stop_row // group_rows)
    paths = tf.constant([path for path, _, _, _ in blocks], tf.string)
    first, length, shard_rows = (tf.constant([block[i] for block in blocks], tf.int64) for i in (1, 2, 3))

    first_seed = (shuffle_seed or 0) % _FOREVER

    def order(count: Any, number: Any) -> Any:
        """A permutation of `count` that belongs to `number`."""
        seed = tf.stack([tf.constant(first_seed, tf.int64), number])
        return tf.argsort(tf.random.stateless_uniform([count], seed, None, None, tf.int64))

    def read(epoch: Any, group: Any) -> Any:
        draw = epoch * (groups + 1)
        permutation = tf.range(len(blocks)) if shuffle_seed is None else order(len(blocks), draw)
        # Blocks of the epoch's stream that touch the group, and how far they reach into it.
        ends = tf.cumsum(tf.gather(length, permutation))
        starts = ends - tf.gather(length, permutation)
        begin = group * group_rows
        end = tf.minimum(begin + group_rows, stop_row)
        touched = (starts < end) & (ends > begin)
        block = permutation[touched]
        skipped = tf.maximum(begin - starts[touched], 0)
        taken = tf.minimum(end, ends[touched]) - starts[touched] - skipped
        header = tf.gather(first, block) + skipped
        footer = tf.gather(shard_rows, block) - header - taken
        pieces = tf.data.Dataset.from_tensor_slices((tf.gather(paths, block), header * width, taken * width, footer * width))
        # One record is one whole piece. A buffer as long as the piece makes it one read.
        pieces = pieces.flat_map(
            lambda path, header, size, footer: tf.data.FixedLengthRecordDataset(path, size, header, footer, size)
        )

        def join(texts: Any) -> Any:
            table = tf.reshape(tf.io.decode_raw(tf.strings.reduce_join(texts), tf.int32), [-1, width // 4])
            return table if shuffle_seed is None else tf.gather(table, order(tf.shape(table)[0], draw + 1 + group))

        return pieces.batch(_FOREVER).map(join)

    return read


def _blocks(records: Any, split: str, index: int, count: int, share: str) -> list[tuple[str, int, int, int]]:
    """A worker's share of a split as `(path, first row there, rows, rows of the whole shard)`, in the order of the log."""
    pieces, rows = records.pieces(split), records.rows(split)
    if share == "files":
        pieces, first_row, last_row = pieces[index::count], 0, rows
    elif share == "rows":
        first_row, last_row = (rows * i // count for i in (index, index + 1))
    else:
        raise DataError(f"share must be 'rows' or 'files'. Received {share!r}")
    blocks, before, block_rows = [], 0, bounded_rows(_BLOCK_ROWS, records.spec, records.dtype.itemsize)
    for piece in pieces:
        begin, end = piece.first + max(first_row - before, 0), piece.first + min(last_row - before, piece.rows)
        path = os.path.abspath(piece.path)
        blocks += [(path, at, min(block_rows, end - at), piece.file_rows) for at in range(begin, end, block_rows)]
        before += piece.rows
    return blocks
