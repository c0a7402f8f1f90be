"""A model of only those ids that rows touch: the float reference of an export, in little memory."""

import numpy as np

from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber, seen_ids, subset_config, subset_rows

tf = tensorflow()


def subset_model(reader: WeightsReader, kept: list):
    """The Keras `DLRM` of the kept ids; ids must be renumbered."""
    model = DLRM(subset_config(reader.config, kept), initializer="zeros")
    model.embedding.table.assign(subset_rows(reader, kept))
    for mlp, i, _, _ in reader.config.dense_shapes():
        layer = model.dense_layer(mlp, i)
        kernel, bias = reader.dense(mlp, i)
        layer.kernel.assign(kernel)
        layer.bias.assign(bias)
    return model


def float_probabilities(weights: str, dense: np.ndarray, categorical: np.ndarray, batch_size: int = 8192) -> np.ndarray:
    """Probabilities float32 `[n]` of the Keras model, with only those table rows in memory that the rows touch.

    Args:
      weights: a `.weights.h5` file.
      dense: float32 `[n, dense_dim]`, already log(max(x, 0) + 1).
      categorical: int32 `[n, F]`.
      batch_size: rows scored at a time.
    """
    with WeightsReader(weights) as reader:
        kept = seen_ids(categorical, reader.config)
        model = subset_model(reader, kept)
    ids = renumber(categorical, kept)
    logits = [
        model({"dense": dense[i : i + batch_size], "categorical": ids[i : i + batch_size]}).numpy()
        for i in range(0, len(dense), batch_size)
    ]
    return tf.sigmoid(np.concatenate(logits)).numpy().reshape(-1)
