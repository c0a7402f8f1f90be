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


def zero_inputs(config: DLRMConfig, rows: int) -> dict[str, np.ndarray]:
    """`rows` valid rows of zeros, `[rows, columns]` by input.

    Args:
      config: the model's configuration.
      rows: rows of the batch.
    """
    return {name: np.zeros((rows, columns), dtype) for name, (dtype, columns) in config.inputs.items()}
