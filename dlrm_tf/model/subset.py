"""Models without the whole table in memory: of only those ids that occur, or around a table that is kept elsewhere."""

from collections.abc import Sequence
from typing import Any, Callable, Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.inputs import model_inputs
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.model.saving import assign_dense
from dlrm_tf.weights.layout import row_chunks
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber, seen_ids, subset_config, subset_rows

tf = tensorflow()

# Rows of a small table that stands in for the real one in an exported graph, where it is replaced; a prime number, so that no
# other constant is likely to have as many.
STAND_IN_ROWS = 9973
_BATCH_SIZE = 8192


def subset_model(reader: WeightsReader, kept: list[np.ndarray]) -> DLRM:
    """The `DLRM` of the kept ids.

    Args:
      reader: an open weights file.
      kept: per feature, the ascending ids to keep (at least one).

    Returns:
      A model that takes ids as `dlrm_tf.weights.subset.renumber` numbers them.
    """
    model = DLRM(subset_config(reader.config, kept), initializer="zeros")
    model.embedding.table.assign(subset_rows(reader, kept))
    assign_dense(model, reader.dense)
    return model


def model_around(
    embedding: Callable[..., Any],
    config: DLRMConfig,
    dense_weights: Callable[[str, int], Sequence[np.ndarray]],
) -> DLRM:
    """A `DLRM` for a graph that holds the embedding table in its own way.

    Args:
      embedding: function or layer, called with `categorical` int32 `[batch_size, id_columns]` and of a weighted model `weights`,
        -> float32 `[batch_size, F, D]`. It is not called here: its table may still be smaller than `config` says.
      config: the architecture.
      dense_weights: function `(mlp, layer) -> (kernel [in, out], bias [out] if there is one)`, such as `WeightsReader.dense`.
    """
    # Built with one id per feature: a table of the real size may not fit into memory.
    model = DLRM(subset_config(config, [[0]] * config.num_categorical), initializer="zeros")
    model.embedding = embedding
    assign_dense(model, dense_weights)
    return model


def float_probabilities(
    weights: str, dense: np.ndarray, categorical: np.ndarray, key_weights: Optional[np.ndarray] = None
) -> np.ndarray:
    """What the Keras model predicts, with only those table rows in memory that the ids name.

    Args:
      weights: a `.weights.h5` file.
      dense: float32 `[n, dense_dim]`, already log(max(x, 0) + 1).
      categorical: int32 `[n, id_columns]`.
      key_weights: float32 `[n, id_columns]`, the input `weights` of a weighted model.

    Returns:
      Probabilities float32 `[n]`.
    """
    with WeightsReader(weights) as reader:
        kept = seen_ids(categorical, reader.config)
        model = subset_model(reader, kept)
    inputs = model_inputs(weights, dense, renumber(categorical, kept, model.config), key_weights)
    logits = [
        model({name: values[start:stop] for name, values in inputs.items()}).numpy()
        for start, stop in row_chunks(0, len(dense), _BATCH_SIZE)
    ]
    return tf.sigmoid(np.concatenate(logits)).numpy().reshape(-1)
