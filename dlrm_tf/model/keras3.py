"""The same DLRM as a Keras 3 model: loads the same `.weights.h5`, gives the same logits, trains with Keras 3's own `fit`.

Runs beside `dlrm_tf.DLRM` in one process: `keras` (Keras 3) and `tf_keras` (Keras 2) are different packages. Any backend of
Keras 3 works; attribute names are those of the weights file, which is how Keras finds a layer's weights in it.
"""

import os

import keras
import numpy as np
from keras import ops

from dlrm_tf.config import DLRMConfig
from dlrm_tf.model.saving import save_weights
from dlrm_tf.weights.reader import WeightsReader

if int(keras.__version__.split(".")[0]) < 3:
    raise ImportError(
        f"dlrm_tf.keras3 needs the package keras 3 or newer. Received {keras.__version__}: pip install 'keras>=3.4'"
    )


class MLP(keras.layers.Layer):
    """A stack of Dense layers, ReLU on all but (with `final_activation=None`) the last."""

    def __init__(self, units, final_activation=None, **kwargs):
        super().__init__(**kwargs)
        self._sublayers = [keras.layers.Dense(n, activation="relu") for n in units[:-1]]
        self._sublayers.append(keras.layers.Dense(units[-1], activation=final_activation))

    def call(self, x):
        """`[batch_size, in]` -> `[batch_size, units[-1]]`."""
        for layer in self._sublayers:
            x = layer(x)
        return x


class FusedEmbedding(keras.layers.Layer):
    """See `dlrm_tf.model.embedding.FusedEmbedding`: one table, an OOV row a feature."""

    def __init__(self, config: DLRMConfig, **kwargs):
        super().__init__(**kwargs)
        self._sizes = np.asarray(config.categorical_feature_sizes, np.int32)
        self._offsets = np.asarray(config.block_offsets, np.int32)
        bound = float(np.sqrt(1.0 / np.mean(self._sizes)))
        self.table = self.add_weight(
            name="table",
            shape=(config.table_rows, config.embedding_dim),
            initializer=keras.initializers.RandomUniform(-bound, bound),
        )

    def call(self, categorical):
        """Ids `[batch_size, F]` -> `[batch_size, F, D]`."""
        known = ops.logical_and(categorical >= 0, categorical < self._sizes)
        rows = ops.where(known, categorical, self._sizes) + self._offsets
        return ops.take(self.table, rows, axis=0)

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `[stop - start, D]` of the table as NumPy."""
        return ops.convert_to_numpy(ops.take(self.table, np.arange(start, stop), axis=0))


class DLRM(keras.Model):
    """See `dlrm_tf.DLRM`: inputs `{"dense": [B, dense_dim], "categorical": int32 [B, F]}`, output logits `[B, 1]`."""

    def __init__(self, config: DLRMConfig, **kwargs):
        super().__init__(**kwargs)
        self.config = config
        self.bottom_mlp = MLP(config.bottom_mlp, "relu")
        self.embedding = FusedEmbedding(config)
        self.top_mlp = MLP(config.top_mlp)
        vectors = config.num_categorical + 1
        rows, columns = np.tril_indices(vectors, 0 if config.self_interaction else -1)
        self._flat = (rows * vectors + columns).astype(np.int32)

    def call(self, inputs):
        """Logits `[batch_size, 1]`."""
        bottom = self.bottom_mlp(inputs["dense"])
        embedded = self.embedding(inputs["categorical"])
        if self.config.interaction == "cat":
            crossed = ops.reshape(embedded, (-1, self.config.num_categorical * self.config.embedding_dim))
        else:
            stack = ops.concatenate([ops.expand_dims(bottom, 1), embedded], axis=1)
            gram = ops.matmul(stack, ops.transpose(stack, (0, 2, 1)))
            crossed = ops.take(ops.reshape(gram, (-1, stack.shape[1] ** 2)), self._flat, axis=1)
        return self.top_mlp(ops.concatenate([bottom, crossed], axis=1))

    def dense_layer(self, mlp: str, layer: int):
        """The Dense layer number `layer` of `"bottom_mlp"` or `"top_mlp"`."""
        return getattr(self, mlp)._sublayers[layer]

    def save_weights(self, filepath, overwrite=True):
        """Writes the file that `dlrm_tf.load` and `dlrm_tf.keras3.load` read (Keras 3 alone would file the top MLP elsewhere)."""
        if not overwrite and os.path.exists(filepath):
            raise FileExistsError(f"{filepath}: already exists")
        save_weights(self, filepath)


def build(config: DLRMConfig) -> DLRM:
    """A built, uncompiled Keras 3 DLRM; compile it with `keras.losses.BinaryCrossentropy(from_logits=True)`.

    Example:
      model = dlrm_tf.keras3.build(dlrm_tf.DLRMConfig.preset("tiny"))
      model.load_weights("dlrm.weights.h5")
    """
    model = DLRM(config)
    model({"dense": np.zeros((1, config.dense_dim), np.float32), "categorical": np.zeros((1, config.num_categorical), np.int32)})
    return model


def load(path) -> DLRM:
    """Rebuilds the Keras 3 model from one weights file, configuration included."""
    with WeightsReader(path) as reader:
        config = reader.config
    model = build(config)
    model.load_weights(path)
    return model
