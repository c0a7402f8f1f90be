"""The scorer as a TensorFlow function that the TFLite converter turns into plain operators."""

import tempfile

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.export.tflite.quantize import RowQuantizer
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()

# Rows of the table that stands in for the real one while the graph is converted; a number no other dimension has.
STAND_IN_ROWS = 9973


def table_offsets(config: DLRMConfig) -> np.ndarray:
    """int32 `[F]`: row of every feature's id 0 in the device's table.

    A block of the device's table is OOV row, ids, OOV row: clamping an id to [-1, size] sends every unknown one to an OOV
    row of its own feature with two operators instead of five.
    """
    return np.asarray(config.block_offsets, np.int32) + np.arange(config.num_categorical, dtype=np.int32) + 1


def table_rows(config: DLRMConfig) -> int:
    """Rows of the device's table."""
    return config.table_rows + config.num_categorical


def convert(config: DLRMConfig, dense_layers: dict, quantizer: RowQuantizer) -> bytes:
    """The graph as a float TFLite model, with a stand-in int8 table `[STAND_IN_ROWS, quantizer.width(D)]`.

    Args:
      config: the architecture.
      dense_layers: `(mlp, layer)` -> `(kernel [in, out], bias [out])`.
      quantizer: how table rows are decoded.

    Returns:
      The flatbuffer; signature `score`: `dense` float32 `[batch_size, dense_dim]`, `categorical` int32 `[batch_size, F]`
      -> `probability` float32 `[batch_size, 1]`.
    """
    module = _Scorer(config, dense_layers, quantizer)
    score = tf.function(module.score).get_concrete_function(
        tf.TensorSpec([None, config.dense_dim], tf.float32, name="dense"),
        tf.TensorSpec([None, config.num_categorical], tf.int32, name="categorical"),
    )
    with tempfile.TemporaryDirectory(prefix="dlrm_tf_lite_") as folder:
        tf.saved_model.save(module, folder, signatures={"score": score})
        return tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["score"]).convert()


class _Scorer(tf.Module):
    def __init__(self, config, dense_layers, quantizer):
        super().__init__()
        self._config, self._quantizer = config, quantizer
        # Not constant: the converter must not fold a lookup.
        rows = np.arange(STAND_IN_ROWS * quantizer.width(config.embedding_dim), dtype=np.int64) % 251 - 125
        self.table = tf.Variable(rows.reshape(STAND_IN_ROWS, -1).astype(np.int8), trainable=False)
        self.dense_layers = {
            f"{mlp}/{i}": [tf.Variable(array, trainable=False) for array in arrays] for (mlp, i), arrays in dense_layers.items()
        }

    def score(self, dense, categorical):
        config = self._config
        bottom = self._mlp("bottom_mlp", len(config.bottom_mlp), dense)
        stack = tf.concat([tf.expand_dims(bottom, 1), self._embedding(categorical)], axis=1)
        logit = self._mlp("top_mlp", len(config.top_mlp), tf.concat([bottom, self._interaction(stack)], axis=1))
        return {"probability": tf.sigmoid(logit)}

    def _mlp(self, name, layers, x):
        for i in range(layers):
            kernel, bias = self.dense_layers[f"{name}/{i}"]
            x = tf.matmul(x, kernel) + bias
            # The last layer of the top MLP gives the logit.
            if name == "bottom_mlp" or i < layers - 1:
                x = tf.nn.relu(x)
        return x

    def _embedding(self, categorical):
        sizes = np.asarray(self._config.categorical_feature_sizes, np.int32)
        rows = tf.maximum(tf.minimum(categorical, sizes), -1) + table_offsets(self._config)
        # B X F X width
        packed = tf.cast(tf.gather(self.table, rows), tf.float32)
        scales = tf.exp(packed[:, :, :1] * np.float32(self._quantizer.step) + np.float32(self._quantizer.mid))
        integers = packed[:, :, 1:]
        if self._quantizer.bits == 4:
            high = tf.floor(integers * np.float32(1 / 16))
            integers = tf.concat([high, integers - (16 * high + 8)], axis=2)
        # B X F X D
        return integers * scales

    def _interaction(self, stack):
        config = self._config
        vectors = config.num_categorical + 1
        if config.interaction == "cat":
            return tf.reshape(stack[:, 1:], [-1, config.num_categorical * config.embedding_dim])
        gram = tf.matmul(stack, stack, transpose_b=True)
        rows, columns = np.tril_indices(vectors, 0 if config.self_interaction else -1)
        return tf.gather(tf.reshape(gram, [-1, vectors * vectors]), (rows * vectors + columns).astype(np.int32), axis=1)
