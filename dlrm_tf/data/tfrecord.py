"""TFRecord files of tf.Example, both ways: for pipelines that already read or write them.

An Example has `label` (float, 1 value), `dense` (float, raw values before log(x + 1), as in records) and `categorical` (int64
ids; an id equal to the size of the vocabulary is out of vocabulary). Records are many times faster to read.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np

from dlrm_tf.data.finish import describe_rows
from dlrm_tf.data.records import SPLITS, VOCABULARY, Records, row_dtype, write_manifest, write_rows
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError
from dlrm_tf.files import atomic_dir, atomic_file
from dlrm_tf.keras2 import tensorflow

_BATCH = 8192
_SHARD_ROWS = 1 << 17


def write_tfrecord(records: Records, split: str, path: str, compression: Optional[str] = None) -> int:
    """Writes a split as one TFRecord file, which appears whole or not at all.

    Args:
      records: the data set.
      split: `train` or `test`.
      path: the file.
      compression: None or `"GZIP"`.

    Returns:
      number of rows.
    """
    tf = tensorflow()
    rows = records.rows(split)
    with atomic_file(path) as temporary, tf.io.TFRecordWriter(temporary, compression) as writer:
        for start in range(0, rows, _BATCH):
            for dense, categorical, label in zip(*records.numpy(split, start, start + _BATCH)):
                feature = {
                    "label": tf.train.Feature(float_list=tf.train.FloatList(value=label)),
                    "dense": tf.train.Feature(float_list=tf.train.FloatList(value=dense)),
                    "categorical": tf.train.Feature(int64_list=tf.train.Int64List(value=categorical)),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return rows


def tfrecord_dataset(
    paths: Sequence[str], spec: FeatureSpec, batch_size: int, compression: Optional[str] = None, drop_remainder: bool = False
):
    """A `tf.data.Dataset` over TFRecord files that gives what `Records.dataset` gives, in the order of the files.

    Raises:
      tf.errors.InvalidArgumentError, DataLossError: while reading, when an Example lacks a feature or a file is damaged.
    """
    tf = tensorflow()

    def features(parsed):
        dense, categorical = tf.math.log1p(parsed["dense"]), tf.cast(parsed["categorical"], tf.int32)
        return {"dense": dense, "categorical": categorical}, parsed["label"]

    return _parsed(paths, spec, batch_size, compression, drop_remainder).map(features).prefetch(4)


def read_tfrecord(
    paths: Mapping[str, Sequence[str]],
    out_dir: str,
    spec: FeatureSpec,
    vocabulary: Vocabulary,
    compression: Optional[str] = None,
) -> Records:
    """Makes a data folder of TFRecord files; it appears whole or not at all.

    Args:
      paths: files of each split, in order: `{"train": [...], "test": [...]}`.
      out_dir: the folder to make.
      spec: names of the features; the number of dense and categorical ones must fit the Examples.
      vocabulary: what the ids belong to.
      compression: None or `"GZIP"`.

    Raises:
      DataError: an Example lacks a feature or has a value out of range, or a file is damaged.
    """
    tf = tensorflow()
    shards: dict[str, list[dict]] = {split: [] for split in SPLITS}
    unknown = np.zeros(len(spec.categorical_columns), np.int64)
    with atomic_dir(out_dir) as temporary:
        for split in SPLITS:
            os.makedirs(os.path.join(temporary, split))
            batches = _parsed(paths.get(split, ()), spec, _SHARD_ROWS, compression, False)
            try:
                for number, parsed in enumerate(batches.as_numpy_iterator()):
                    rows = np.empty(len(parsed["label"]), row_dtype(spec))
                    rows["label"], rows["dense"], rows["categorical"] = (
                        parsed["label"][:, 0],
                        parsed["dense"],
                        parsed["categorical"],
                    )
                    _check_rows(f"{split}, Examples {number * _SHARD_ROWS} and on", parsed, vocabulary.sizes)
                    unknown += (rows["categorical"] == vocabulary.sizes).sum(0)
                    name = f"{split}/{number:05d}.bin"
                    write_rows(os.path.join(temporary, name), rows)
                    shards[split].append({"path": name, **describe_rows(rows)})
            except tf.errors.OpError as e:
                raise DataError(f"{split}: not TFRecord files of such Examples ({e.message.splitlines()[0][:300]})") from None
        vocabulary.save(os.path.join(temporary, VOCABULARY))
        counts = {
            "lines": sum(shard["rows"] for split in SPLITS for shard in shards[split]),
            "bad_lines": 0,
            "bad_examples": [],
            "missing": dict.fromkeys((*spec.dense_names, *spec.categorical_names)),  # an Example does not tell
            "out_of_vocabulary": dict(zip(spec.categorical_names, unknown.tolist())),
        }
        write_manifest(temporary, spec, counts, vocabulary, shards)
    return Records.open(out_dir)


def _parsed(paths, spec: FeatureSpec, batch_size: int, compression: Optional[str], drop_remainder: bool):
    """Batches of the three features as they stand in the Examples."""
    tf = tensorflow()
    features = {
        "label": tf.io.FixedLenFeature([1], tf.float32),
        "dense": tf.io.FixedLenFeature([len(spec.dense_columns)], tf.float32),
        "categorical": tf.io.FixedLenFeature([len(spec.categorical_columns)], tf.int64),
    }
    examples = tf.data.TFRecordDataset([os.fspath(path) for path in paths], compression, buffer_size=8 << 20)
    examples = examples.batch(batch_size, drop_remainder)
    return examples.map(lambda texts: tf.io.parse_example(texts, features), num_parallel_calls=2, deterministic=True)


def _check_rows(where: str, parsed: dict, sizes: tuple[int, ...]) -> None:
    ids, dense, label = parsed["categorical"], parsed["dense"], parsed["label"]
    if ((ids < 0) | (ids > np.array(sizes))).any():
        row, feature = np.argwhere((ids < 0) | (ids > np.array(sizes)))[0]
        raise DataError(f"{where}: categorical[{feature}] is {ids[row, feature]}, wanted 0 to {sizes[feature]}")
    if not (np.isfinite(dense) & (dense >= 0)).all():
        raise DataError(f"{where}: dense must be finite and >= 0, got {dense[~(np.isfinite(dense) & (dense >= 0))][0]}")
    if not ((label == 0) | (label == 1)).all():
        raise DataError(f"{where}: label must be 0 or 1, got {label[(label != 0) & (label != 1)][0]}")
