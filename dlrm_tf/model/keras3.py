"""The same DLRM as a Keras 3 model: loads the same `.weights.h5`, gives the same logits, trains with Keras 3's own `fit`.

Runs beside `dlrm_tf.DLRM` in one process: `keras` (Keras 3) and `tf_keras` (Keras 2) are different packages. It runs on every
backend of Keras 3, so it shares no TensorFlow code with `DLRM`. Attribute names are those of the weights file, which is how
Keras finds a layer's weights in it.
"""

import os
from typing import Any, Optional

import keras
import numpy as np
from keras import ops

from dlrm_tf.config import UNUSED_PLACE, DLRMConfig
from dlrm_tf.files import StrPath
from dlrm_tf.model.bag_runs import bag_runs
from dlrm_tf.model.inputs import zero_inputs
from dlrm_tf.model.pairs import pair_positions
from dlrm_tf.model.saving import save_weights
from dlrm_tf.weights.reader import WeightsReader

if int(keras.__version__.split(".")[0]) < 3:
    raise ImportError(
        f"dlrm_tf.keras3 needs the package keras 3 or newer. Received {keras.__version__}: pip install 'keras>=3.4'"
    )


class MLP(keras.layers.Layer):
    """A stack of Dense layers with ReLU between them, as `dlrm_tf.model.mlp.MLP`.

    Args:
      units: outputs of each layer.
      final_activation: of the last layer; None for none.
    """

    def __init__(self, units: tuple[int, ...], *, final_activation: Optional[str] = None, **kwargs):
        super().__init__(**kwargs)
        self._sublayers = [keras.layers.Dense(n, activation="relu") for n in units[:-1]]
        self._sublayers.append(keras.layers.Dense(units[-1], activation=final_activation))

    def dense_layer(self, layer: int) -> keras.layers.Dense:
        """The Dense layer with this number, from 0."""
        return self._sublayers[layer]

    def call(self, x: Any) -> Any:
        """Runs all layers on `x`, `[batch_size, in]`; returns `[batch_size, units[-1]]`."""
        for layer in self._sublayers:
            x = layer(x)
        return x


class FusedEmbedding(keras.layers.Layer):
    """All features in one table with an OOV row each, as in `dlrm_tf.model.embedding.FusedEmbedding`.

    Args:
      config: the model's configuration.
    """

    def __init__(self, config: DLRMConfig, **kwargs):
        super().__init__(**kwargs)
        self._config, self._features = config, np.asarray(config.column_features)
        self._sizes = np.asarray(config.categorical_feature_sizes, np.int32)[self._features]
        self._offsets = np.asarray(config.block_offsets, np.int32)[self._features]
        bound = float(np.sqrt(1.0 / np.mean(config.categorical_feature_sizes)))
        self.table = self.add_weight(
            name="table",
            shape=(config.table_rows, config.embedding_dim),
            initializer=keras.initializers.RandomUniform(-bound, bound),
        )

    def call(self, categorical: Any, weights: Any = None) -> Any:
        """Looks ids up, and pools those of a bag; an id outside `[0, size_f)` reads its own feature's OOV row.

        Args:
          categorical: int32 `[batch_size, id_columns]`.
          weights: float32 `[batch_size, id_columns]`, of a weighted model.

        Returns:
          `[batch_size, F, D]`.
        """
        known = ops.logical_and(categorical >= 0, categorical < self._sizes)
        rows = ops.where(known, categorical, self._sizes) + self._offsets
        vectors = ops.take(self.table, rows, axis=0)
        if not self._config.has_bags:
            return vectors
        return self._sum_places(vectors * ops.expand_dims(self._place_weights(categorical, weights), 2))

    def _place_weights(self, categorical: Any, weights: Any) -> Any:
        """As `dlrm_tf.model.bags.place_weights`."""
        used = ops.not_equal(categorical, UNUSED_PLACE)
        counts = ops.cast(used, "float32")
        counts = counts if weights is None else ops.where(used, weights, ops.zeros_like(counts))
        totals = ops.take(self._sum_places(ops.expand_dims(counts, 2))[:, :, 0], self._features, axis=1)
        empty = ops.equal(totals, 0.0)
        shares = ops.where(empty, 0.0, counts / ops.where(empty, 1.0, totals))
        return ops.where(np.array(self._config.poolings)[self._features] == "mean", shares, counts)

    def _sum_places(self, vectors: Any) -> Any:
        """As `dlrm_tf.model.bags.sum_places`."""
        sums = []
        for column, features, size in bag_runs(self._config):
            run = vectors[:, column : column + features * size]
            sums.append(ops.sum(ops.reshape(run, (-1, features, size, vectors.shape[-1])), axis=2))
        return ops.concatenate(sums, axis=1)

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `[stop - start, D]` of the table as NumPy."""
        return ops.convert_to_numpy(ops.take(self.table, np.arange(start, stop), axis=0))


class CrossNetwork(keras.layers.Layer):
    """Cross layers one after another, as in `dlrm_tf.model.cross`.

    Args:
      config: a configuration with cross interaction.
    """

    def __init__(self, config: DLRMConfig, **kwargs):
        super().__init__(**kwargs)
        layers, self._rank = config.cross_layers, config.cross_rank
        self._sublayers = [keras.layers.Dense(config.interaction_dim) for _ in range(layers)]
        self._projections = [keras.layers.Dense(self._rank, use_bias=False) for _ in range(layers if self._rank else 0)]

    def dense_layer(self, part: str, layer: int) -> keras.layers.Dense:
        """The Dense layer `part`, `"cross"` or `"cross_projection"`, of cross layer number `layer`."""
        return (self._sublayers if part == "cross" else self._projections)[layer]

    def call(self, x0: Any) -> Any:
        """Runs all layers on `x0`, `[batch_size, V D]`; returns the same shape."""
        x = x0
        for i, layer in enumerate(self._sublayers):
            x = x0 * layer(self._projections[i](x) if self._rank else x) + x
        return x


class DLRM(keras.Model):
    """The network of `dlrm_tf.DLRM`.

    Inputs: arrays by name, as `DLRMConfig.inputs` says. Output: logits float32 `[batch_size, 1]`.

    Args:
      config: the architecture.
    """

    def __init__(self, config: DLRMConfig, **kwargs):
        super().__init__(**kwargs)
        self.config = config
        if config.dense_dim:
            self.bottom_mlp = MLP(config.bottom_mlp, final_activation="relu")
        self.embedding = FusedEmbedding(config)
        self.top_mlp = MLP(config.top_mlp)
        if config.interaction == "cross":
            self.cross = CrossNetwork(config)
        self._positions = pair_positions(config.num_vectors, config.self_interaction)

    def call(self, inputs: dict) -> Any:
        """The network: embedding table, then head.

        Args:
          inputs: arrays by name, as `DLRMConfig.inputs` says.

        Returns:
          Logits float32 `[batch_size, 1]`.
        """
        keys = [inputs[name] for name in ("categorical", "weights") if name in inputs]
        return self.head(inputs["dense"] if self.config.dense_dim else None, self.embedding(*keys))

    def head(self, dense: Optional[Any], embedded: Any) -> Any:
        """The network behind the embedding table: both MLPs and what is between them.

        Args:
          dense: float32 `[batch_size, dense_dim]`; None without dense features.
          embedded: float32 `[batch_size, F, D]`, what `embedding` returns.

        Returns:
          Logits float32 `[batch_size, 1]`.
        """
        config, stack, features = self.config, embedded, None
        if config.dense_dim:
            features = self.bottom_mlp(dense)
            stack = ops.concatenate([ops.expand_dims(features, 1), embedded], axis=1)
        if features is None or config.interaction != "dot":
            features = ops.reshape(stack, (-1, config.num_vectors * config.embedding_dim))
        if config.num_pairs:
            gram = ops.matmul(stack, ops.transpose(stack, (0, 2, 1)))
            pairs = ops.take(ops.reshape(gram, (-1, config.num_vectors**2)), self._positions, axis=1)
            features = ops.concatenate([features, pairs], axis=1)
        if config.interaction == "cross":
            features = self.cross(features)
        return self.top_mlp(features)

    def dense_layer(self, mlp: str, layer: int) -> keras.layers.Dense:
        """The Dense layer number `layer` of a part of the network, as in `DLRMConfig.dense_shapes`."""
        if mlp.startswith("cross"):
            return self.cross.dense_layer(mlp, layer)
        return getattr(self, mlp).dense_layer(layer)

    def save_weights(self, filepath: StrPath, overwrite: bool = True) -> None:
        """Writes the file that `dlrm_tf.load` and `dlrm_tf.keras3.load` read; Keras 3 alone names the top MLP otherwise.

        Args:
          filepath: the `.weights.h5` file.
          overwrite: whether a file that is there may be replaced.

        Raises:
          FileExistsError: it is there and may not.
        """
        if not overwrite and os.path.exists(filepath):
            raise FileExistsError(f"{filepath}: already exists")
        save_weights(self, filepath)


def build(config: DLRMConfig) -> DLRM:
    """A built, uncompiled Keras 3 DLRM; compile it with `keras.losses.BinaryCrossentropy(from_logits=True)`.

    Args:
      config: the architecture.

    Example:
      model = dlrm_tf.keras3.build(dlrm_tf.DLRMConfig.preset("tiny"))
      model.load_weights("dlrm.weights.h5")
    """
    model = DLRM(config)
    model(zero_inputs(config, 1))
    return model


def load(path: StrPath) -> DLRM:
    """Rebuilds the Keras 3 model from one weights file, configuration included.

    Args:
      path: a `.weights.h5` file.

    Raises:
      CheckpointError: not such a file.
    """
    with WeightsReader(path) as reader:
        config = reader.config
    model = build(config)
    model.load_weights(path)
    return model
