"""The rows that `verify` scores: generated ones, or those of a file or data folder."""

import os
from typing import Union

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.features import log_dense
from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError, reason
from dlrm_tf.files import StrPath

ROWS_OF_A_FOLDER = 4096
MOST_GENERATED_ROWS = 1_000_000
# A number of rows, or the path of a file or folder.
Sample = Union[int, StrPath]


def read_sample(sample: Sample, config: DLRMConfig) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a sample.

    Args:
      sample: a number (that many generated rows, always the same), an .npz with `dense` (already log(x + 1)) and
        `categorical`, or a data folder (the first rows of its test split).
      config: the model's configuration.

    Returns:
      `(dense float32 [n, dense_dim], categorical int32 [n, F])`.

    Raises:
      DataError: none of these, or its rows are not of this configuration.
    """
    sample = str(sample)
    if sample.isascii() and sample.isdigit():
        if len(sample) > 9 or not 0 < int(sample) <= MOST_GENERATED_ROWS:
            raise DataError(f"{sample[:30]}: wanted 1 to {MOST_GENERATED_ROWS:,} generated rows")
        return _generated(int(sample), config)
    if os.path.isdir(sample):
        dense, categorical, *_ = Records.open(sample).numpy("test", 0, ROWS_OF_A_FOLDER)
        dense = log_dense(dense)
    else:
        try:
            with np.load(sample, allow_pickle=False) as arrays:
                dense, categorical = arrays["dense"], arrays["categorical"]
        except Exception as e:  # NumPy's and zipfile's parsers raise errors of many kinds
            raise DataError(
                f"{sample}: wanted a number of rows, an .npz with dense and categorical, or a data folder ({reason(e)})"
            ) from e
    if dense.dtype.kind not in "fiu" or categorical.dtype.kind not in "iu":
        received = f"{dense.dtype} and {categorical.dtype}"
        raise DataError(f"{sample}: wanted dense of numbers and categorical of integers. Received {received}")
    rows = dense.shape[:1] or (0,)
    wanted = ((*rows, config.dense_dim), (*rows, config.num_categorical))
    if not rows[0] or (dense.shape, categorical.shape) != wanted:
        raise DataError(
            f"{sample}: wanted dense and categorical of shapes {wanted}. Received {dense.shape} and {categorical.shape}"
        )
    sizes = np.array(config.categorical_feature_sizes)
    if categorical.min() < 0 or (categorical > sizes).any():
        raise DataError(f"{sample}: has ids outside their feature's 0 to size (size: out of vocabulary)")
    return dense.astype(np.float32), categorical.astype(np.int32)


def _generated(rows: int, config: DLRMConfig) -> tuple[np.ndarray, np.ndarray]:
    """Seeded rows: dense values like Criteo's counts; ids uniform over each feature, its first and last always among them."""
    random = np.random.default_rng(0)
    dense = log_dense(random.geometric(0.1, (rows, config.dense_dim)) - 1.0)
    sizes = np.array(config.categorical_feature_sizes)
    categorical = random.integers(0, sizes, (rows, len(sizes)), np.int64).astype(np.int32)
    categorical[0], categorical[-1] = 0, sizes - 1
    return dense, categorical
