"""What a model takes: arrays by the names of its inputs."""

from typing import Any, Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
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


def model_inputs(
    source: str, dense: Any, categorical: Any, weights: Optional[Any] = None, *, config: Optional[DLRMConfig] = None
) -> dict[str, np.ndarray]:
    """Arrays as the inputs of a model.

    Args:
      source: named in errors.
      dense: numbers `[n, dense_dim]`, already log(max(x, 0) + 1); `[n, 0]` without dense features.
      categorical: integers `[n, id_columns]`; one beyond int32 counts as out of vocabulary.
      weights: numbers `[n, id_columns]`, of a model whose keys have weights.
      config: the model's, where it is known.

    Returns:
      `dense` float32 where it has columns, `categorical` int32, and `weights` float32 where there are any.

    Raises:
      DataError: ids that are not integers, or arrays of other shapes than the model takes.
    """
    arrays = {"dense": np.asarray(dense, np.float32), "categorical": int32_ids(categorical, source)}
    if weights is not None:
        arrays["weights"] = np.asarray(weights, np.float32)
    if config is not None:
        wanted = {name: (len(arrays["dense"]), columns) for name, (_, columns) in config.arrays.items()}
        received = {name: array.shape for name, array in arrays.items()}
        if wanted != received:
            raise DataError(f"{source}: wanted arrays of the shapes {wanted}. Received {received}")
    return {name: array for name, array in arrays.items() if array.shape[1:] != (0,)}
