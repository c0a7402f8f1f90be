"""The rows that `verify` scores: generated ones, or those of a file or data folder."""

import os
from typing import Union

import numpy as np

from dlrm_tf.config import UNUSED_PLACE, DLRMConfig
from dlrm_tf.data.features import log_dense
from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError, reason
from dlrm_tf.files import StrPath

ROWS_OF_A_FOLDER = 4096
MOST_GENERATED_ROWS = 1_000_000
# A number of rows, or the path of a file or folder.
Sample = Union[int, StrPath]


def read_sample(sample: Sample, config: DLRMConfig) -> tuple[np.ndarray, ...]:
    """The rows of a sample.

    Args:
      sample: a number (that many generated rows, always the same), an .npz with `dense` (already log(x + 1)) and
        `categorical` (of a weighted model also `weights`), or a data folder (the first rows of its test split).
      config: the model's configuration.

    Returns:
      `(dense float32 [n, dense_dim], categorical int32 [n, id_columns])`, and of a weighted model `weights float32
      [n, id_columns]`: the inputs of `DLRMConfig.inputs`.

    Raises:
      DataError: none of these, or its rows are not of this configuration.
    """
    sample = str(sample)
    if sample.isascii() and sample.isdigit():
        if len(sample) > 9 or not 0 < int(sample) <= MOST_GENERATED_ROWS:
            raise DataError(f"{sample[:30]}: wanted 1 to {MOST_GENERATED_ROWS:,} generated rows")
        return _generated(int(sample), config)
    if os.path.isdir(sample):
        dense, categorical, _, *key_weights = Records.open(sample).numpy("test", 0, ROWS_OF_A_FOLDER)
        arrays = [log_dense(dense), categorical, *key_weights]
    else:
        try:
            with np.load(sample, allow_pickle=False) as file:
                arrays = [file[name] for name in config.inputs]
        except Exception as e:  # NumPy's and zipfile's parsers raise errors of many kinds
            raise DataError(
                f"{sample}: wanted a number of rows, an .npz with {' and '.join(config.inputs)}, or a data folder ({reason(e)})"
            ) from e
    types, shapes = [array.dtype for array in arrays], [array.shape for array in arrays]
    if any(dtype.kind not in ("iu" if i == 1 else "fiu") for i, dtype in enumerate(types)):
        received = " and ".join(map(str, types))
        raise DataError(f"{sample}: wanted dense of numbers and categorical of integers. Received {received}")
    rows = arrays[0].shape[:1] or (0,)
    wanted = [(*rows, columns) for _, columns in config.inputs.values()]
    if not rows[0] or shapes != wanted:
        received = " and ".join(map(str, shapes))
        raise DataError(f"{sample}: wanted {' and '.join(config.inputs)} of shapes {tuple(wanted)}. Received {received}")
    if arrays[1].min() < (UNUSED_PLACE if config.has_bags else 0) or (arrays[1] > _column_sizes(config)).any():
        raise DataError(f"{sample}: has ids outside their feature's 0 to size (size: out of vocabulary)")
    return tuple(array.astype(dtype) for array, (dtype, _) in zip(arrays, config.inputs.values()))


def _column_sizes(config: DLRMConfig) -> np.ndarray:
    """The ids of the feature of each column of `categorical`."""
    return np.array(config.categorical_feature_sizes)[np.array(config.column_features)]


def _generated(rows: int, config: DLRMConfig) -> tuple[np.ndarray, ...]:
    """Seeded rows: dense values like Criteo's counts; ids uniform over each feature, its first and last always among them; bags
    of every length from one key on."""
    random = np.random.default_rng(0)
    dense = log_dense(random.geometric(0.1, (rows, config.dense_dim)) - 1.0)
    sizes = _column_sizes(config)
    categorical = random.integers(0, sizes, (rows, len(sizes)), np.int64).astype(np.int32)
    categorical[0], categorical[-1] = 0, sizes - 1
    if config.has_bags:
        place = np.concatenate([np.arange(size) for size in config.bag_sizes])
        lengths = random.integers(1, config.bag_sizes, (rows, config.num_categorical), endpoint=True)
        categorical[place >= lengths[:, np.array(config.column_features)]] = UNUSED_PLACE
    weights = [random.exponential(1.0, categorical.shape).astype(np.float32)] if config.weighted else []
    return dense, categorical, *weights
