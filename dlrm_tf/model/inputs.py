"""The model's inputs as arrays, in one place for all signatures; `DLRMConfig.inputs` says what they are."""

from typing import Any, Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.keras2 import any_keras_tensorflow


def input_specs(config: DLRMConfig, rows: Optional[int] = None) -> dict[str, Any]:
    """A `tf.TensorSpec` `[rows, columns]` by the name of each input; any number of rows when None.

    Args:
      config: the model's configuration.
      rows: rows of a batch.
    """
    tf = any_keras_tensorflow()
    return {name: tf.TensorSpec([rows, columns], dtype, name=name) for name, (dtype, columns) in config.inputs.items()}


def named_inputs(dense: np.ndarray, categorical: np.ndarray, weights: Optional[np.ndarray] = None) -> dict[str, np.ndarray]:
    """Arrays by input.

    Args:
      dense: float32 `[rows, dense_dim]`.
      categorical: int32 `[rows, id_columns]`.
      weights: float32 `[rows, id_columns]`, of a weighted model.
    """
    inputs = {"dense": dense, "categorical": categorical}
    return inputs if weights is None else {**inputs, "weights": weights}


def zero_inputs(config: DLRMConfig, rows: int) -> dict[str, np.ndarray]:
    """`rows` valid rows of zeros, `[rows, columns]` by input.

    Args:
      config: the model's configuration.
      rows: rows of the batch.
    """
    return {name: np.zeros((rows, columns), dtype) for name, (dtype, columns) in config.inputs.items()}
