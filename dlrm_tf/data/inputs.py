"""What a model takes: arrays by the names of its inputs."""

from typing import Any, Optional

import numpy as np

from dlrm_tf.errors import DataError


def int32_ids(categorical: Any, source: str) -> np.ndarray:
    """Ids as models take them, int32; an id beyond int32 becomes the largest int32, which is out of vocabulary.

    Args:
      categorical: integers of any width.
      source: named in errors.

    Raises:
      DataError: they are not integers.
    """
    given: np.ndarray = np.asarray(categorical)
    if not np.issubdtype(given.dtype, np.integer):
        raise DataError(f"{source}: categorical must be integer ids. Received {given.dtype}")
    if given.dtype == np.int32:
        return given
    limits = np.iinfo(np.int32)
    ids: np.ndarray = given.astype(np.int32)
    ids[(given < limits.min) | (given > limits.max)] = limits.max
    return ids


def model_inputs(source: str, dense: Any, categorical: Any, weights: Optional[Any] = None) -> dict[str, np.ndarray]:
    """Arrays as the inputs of a model.

    Args:
      source: named in errors.
      dense: numbers `[n, dense_dim]`, already log(max(x, 0) + 1).
      categorical: integers `[n, id_columns]`; one beyond int32 counts as out of vocabulary.
      weights: numbers `[n, id_columns]`, of a model whose keys have weights.

    Returns:
      `dense` float32, `categorical` int32, and `weights` float32 where there are any.

    Raises:
      DataError: ids that are not integers.
    """
    inputs = {"dense": np.asarray(dense, np.float32), "categorical": int32_ids(categorical, source)}
    return inputs if weights is None else {**inputs, "weights": np.asarray(weights, np.float32)}
