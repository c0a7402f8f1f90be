"""The model as the TFLite converter gets it: `DLRM` with a quantized table in place of its embedding layer."""

import tempfile
from typing import Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.export.tflite.quantize import RowQuantizer
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.bags import place_weights, sum_places
from dlrm_tf.model.inputs import input_specs
from dlrm_tf.model.subset import STAND_IN_ROWS, model_around

tf = tensorflow()


def table_offsets(config: DLRMConfig) -> np.ndarray:
    """int32 `[F]`: row of each feature's id 0 in the device's table, where a block starts with an OOV row."""
    return np.asarray(config.block_offsets, np.int32) + np.asarray(config.tables, np.int32) + 1


def table_rows(config: DLRMConfig) -> int:
    """Rows of the device's table: ids, and two OOV rows for each table of the model."""
    return config.table_rows + len(config.table_features)


def convert(config: DLRMConfig, dense_layers: dict, quantizer: RowQuantizer) -> bytes:
    """The graph as a float TFLite model, with a stand-in int8 table `[STAND_IN_ROWS, quantizer.width(D)]`.

    Args:
      config: the architecture.
      dense_layers: `(mlp, layer)` -> `(kernel [in, out], bias [out] if there is one)`.
      quantizer: how table rows are decoded.

    Returns:
      The flatbuffer; signature `score`: the inputs of `DLRMConfig.inputs` -> `probability` float32 `[batch_size, 1]`.
    """
    embedding = QuantizedEmbedding(config, quantizer)
    model = model_around(embedding, config, lambda mlp, i: dense_layers[mlp, i])
    module = tf.Module()
    # Not the model itself: Keras would trace and save its layers too, and the losses and metrics with them.
    module.weights = model.weights

    def score(**inputs):
        return {"probability": tf.sigmoid(model(inputs))}

    score = tf.function(score).get_concrete_function(**input_specs(config))
    with tempfile.TemporaryDirectory(prefix="dlrm_tf_lite_") as folder:
        tf.saved_model.save(module, folder, signatures={"score": score})
        return tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["score"]).convert()


class QuantizedEmbedding(tf.keras.layers.Layer):
    """The embedding table of a TFLite file: rows of integers with a scale each, decoded after the look-up by plain operators.

    Its table is a stand-in of `STAND_IN_ROWS` rows, so the layer can be traced but not run. A block of the device's table is OOV
    row, ids, OOV row: clamping an id to [-1, size_f] sends every unknown one to an OOV row of its own feature.

    Args:
      config: the model's configuration.
      quantizer: how rows are decoded.
    """

    def __init__(self, config: DLRMConfig, quantizer: RowQuantizer):
        super().__init__(name="embedding")
        self._config, self._quantizer, features = config, quantizer, np.array(config.column_features)
        self._sizes, self._offsets = (
            np.array(config.categorical_feature_sizes, np.int32)[features],
            table_offsets(config)[features],
        )
        # A variable, and of different bytes: the converter must not fold a look-up.
        rows = np.arange(STAND_IN_ROWS * quantizer.width(config.embedding_dim), dtype=np.int64) % 251 - 125
        self.table = tf.Variable(rows.reshape(STAND_IN_ROWS, -1).astype(np.int8), trainable=False)

    def call(self, categorical: tf.Tensor, weights: Optional[tf.Tensor] = None) -> tf.Tensor:
        """Looks ids up, and pools those of a bag; an id outside `[0, size_f)` reads its own feature's OOV row.

        Args:
          categorical: int32 `[batch_size, id_columns]`.
          weights: float32 `[batch_size, id_columns]`, of a weighted model.

        Returns:
          float32 `[batch_size, F, D]`.
        """
        rows = tf.maximum(tf.minimum(categorical, self._sizes), -1) + self._offsets
        # B X id_columns X width
        packed = tf.cast(tf.gather(self.table, rows), tf.float32)
        scales = tf.exp(packed[:, :, :1] * np.float32(self._quantizer.step) + np.float32(self._quantizer.mid))
        integers = packed[:, :, 1:]
        if self._quantizer.bits == 4:
            high = tf.floor(integers * np.float32(1 / 16))
            integers = tf.concat([high, integers - (16 * high + 8)], axis=2)
        if not self._config.has_bags:
            # B X F X D
            return integers * scales
        share = place_weights(self._config, categorical, weights)
        # A number a place is multiplied into the scale first: D times less work than into the row.
        return sum_places(self._config, integers * (scales * share[:, :, tf.newaxis]))
