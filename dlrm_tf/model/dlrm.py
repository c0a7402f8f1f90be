"""The Keras DLRM, built on TensorFlow Recommenders components."""

import functools
from collections.abc import Sequence
from typing import Any, Callable, Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.files import StrPath
from dlrm_tf.keras2 import recommenders, tensorflow
from dlrm_tf.model.cross import CrossNetwork
from dlrm_tf.model.embedding import FusedEmbedding
from dlrm_tf.model.grow import grow
from dlrm_tf.model.inputs import zero_inputs
from dlrm_tf.model.interaction import DotInteraction
from dlrm_tf.model.mlp import MLP
from dlrm_tf.model.optimizers import sparse_safe
from dlrm_tf.model.regularization import Regularization
from dlrm_tf.model.saving import load_weights, save_weights
from dlrm_tf.weights.reader import WeightsReader

tf = tensorflow()
tfrs = recommenders()


class DLRM(tfrs.models.Model):
    """Deep Learning Recommendation Model (Naumov et al. 2019, https://arxiv.org/abs/1906.00091), as MindSpore's Hub has it.

    Inputs: `{"dense": float32 [batch_size, dense_dim], "categorical": int32 [batch_size, F]}`, where `dense` already is
    log(max(x, 0) + 1); of a model without dense features, or with several keys per feature, what `DLRMConfig.inputs` says.
    Output: logits, float32 `[batch_size, 1]`; the probability is their sigmoid.

    Args:
      config: the architecture.
      initializer: `"mindspore"`: kernels N(0, 2/(in+out) variance), biases N(0, 1/out), tables U(+-sqrt(1/size_f));
        `"zeros"`: for a model whose weights are loaded next.
      table_init_scale: what the tables' range is multiplied by.
      seed: makes the initial weights repeatable.
      embedding: a layer in place of `FusedEmbedding`, called with `categorical` and, where the inputs have them, `weights`, for
        `[batch_size, F, D]`: a TPU holds the table in another way.
      name: the Keras model's name.

    Attributes:
      regularization: dropout, label smoothing and clipping of training steps (`Regularization`), none at first; set it before
        the first step.

    Raises:
      ValueError: an unknown initializer.

    Example:
      model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"))
      model.compile("sgd")
      model.fit(dataset)      # of ({"dense": ..., "categorical": ...}, label [batch_size, 1])
    """

    def __init__(
        self,
        config: DLRMConfig,
        *,
        initializer: str = "mindspore",
        table_init_scale: float = 1.0,
        seed: Optional[int] = None,
        embedding: Any = None,
        name: str = "dlrm",
    ):
        super().__init__(name=name)
        if initializer not in ("mindspore", "zeros"):
            raise ValueError(f"initializer must be 'mindspore' or 'zeros'. Received {initializer!r}")
        self.config = config
        self.source_sha256 = self.vocabulary_fingerprint = ""
        self.regularization = Regularization()
        if config.dense_dim:
            self.bottom_mlp = MLP(config.bottom_mlp, activation="relu", final_activation="relu")
        self.embedding = embedding
        if embedding is None:
            drawn = "zeros" if initializer == "zeros" else "uniform"
            self.embedding = FusedEmbedding(config, initializer=drawn, scale=table_init_scale, seed=seed)
        if config.num_pairs:
            self.interaction = DotInteraction(config.num_vectors, config.self_interaction)
        elif config.interaction == "cross":
            self.cross = CrossNetwork(config)
        self.top_mlp = MLP(config.top_mlp, activation="relu", final_activation=None)
        for k, (mlp, i, fan_in, fan_out) in enumerate(config.dense_shapes()):
            layer = self.dense_layer(mlp, i)
            draw_seed = None if seed is None else seed + 1 + k
            layer.kernel_initializer = _normal(2.0 / (fan_in + fan_out), draw_seed, initializer)
            # Those of cross layers start at 0, as in TFRS and torchrec.
            layer.bias_initializer = _normal(1.0 / fan_out, draw_seed, "zeros" if mlp.startswith("cross") else initializer)
        self._task = tfrs.tasks.Ranking(
            loss=tf.keras.losses.BinaryCrossentropy(from_logits=True, reduction=tf.keras.losses.Reduction.NONE)
        )
        # A metric's result already is that of all replicas; Keras would sum it over workers once more.
        self.distribute_reduction_method = "first"
        self._loss_mean = tf.keras.metrics.Mean(name="loss")
        # Makes every variable now, so that weights can be loaded and strategies see them in their scope.
        self({name: tf.constant(zeros) for name, zeros in zero_inputs(config, 1).items()})

    def dense_layer(self, mlp: str, layer: int) -> tf.keras.layers.Dense:
        """The Keras Dense layer number `layer` of a part of the network, as in `DLRMConfig.dense_shapes`."""
        if mlp.startswith("cross"):
            return self.cross.dense_layer(mlp, layer)
        return getattr(self, mlp).dense_layer(layer)

    def call(self, inputs: dict, training: Optional[bool] = None) -> tf.Tensor:
        """The network: embedding table, then head.

        Args:
          inputs: tensors by name, as `DLRMConfig.inputs` says.
          training: whether a gradient will be asked for; the logits are the same.

        Returns:
          Logits float32 `[batch_size, 1]`.
        """
        keys = [inputs[name] for name in ("categorical", "weights") if name in inputs]
        return self.head(inputs["dense"] if self.config.dense_dim else None, self.embedding(*keys), training=training)

    def head(
        self,
        dense: Optional[tf.Tensor],
        embedded: tf.Tensor,
        *,
        training: Optional[bool] = None,
        observe: Optional[Callable[[str, int, tf.Tensor], None]] = None,
    ) -> tf.Tensor:
        """The network behind the embedding table: both MLPs and what is between them.

        Args:
          dense: float32 `[batch_size, dense_dim]`; None without dense features.
          embedded: float32 `[batch_size, F, D]`, what `embedding` returns.
          training: whether a gradient will be asked for; the logits are the same.
          observe: function `(mlp, layer, input [batch_size, in])`, called with what each Dense layer reads, before it runs. `mlp`
            and `layer` are those of `dense_layer`.

        Returns:
          Logits float32 `[batch_size, 1]`.
        """
        config, stack, direct = self.config, embedded, None
        if config.dense_dim:
            # B X D
            direct = self.bottom_mlp(dense, observe=observe and functools.partial(observe, "bottom_mlp"))
            # B X V X D
            # A reshape, because a new axis is two operators in TFLite.
            stack = tf.concat([tf.reshape(direct, [-1, 1, config.embedding_dim]), embedded], axis=1)
        if direct is None or config.interaction != "dot":
            # B X V D
            direct = tf.reshape(stack, [-1, config.num_vectors * config.embedding_dim])
        # B X interaction_dim
        features = tf.concat([direct, self.interaction(stack, training=training)], axis=1) if config.num_pairs else direct
        if config.interaction == "cross":
            features = self.cross(features, observe=observe)
        # B X 1
        drop = self._drop if training and self.regularization.dropout else None
        logits = self.top_mlp(features, observe=observe and functools.partial(observe, "top_mlp"), drop=drop)
        return tf.cast(logits, tf.float32)

    def _drop(self, layer, values):
        return self.regularization.drop(layer, values, self.optimizer.iterations)

    def compile(self, optimizer: Any = "sgd", loss: None = None, **kwargs) -> None:
        """Keras's `compile`; the loss is the model's own (`compute_loss`).

        Args:
          optimizer: `"sgd"`, `"adagrad"`, `"rowwise_adagrad"`, `"lazy_adam"` (`dlrm_tf.model.optimizers`), or a Keras optimizer.
          loss: None.
          **kwargs: as for Keras: `metrics` (they see logits), `steps_per_execution`, `run_eagerly`, ...

        Raises:
          ValueError: another loss, or an optimizer that would rewrite the whole of a large table in every step.
        """
        if loss is not None:
            raise ValueError(f"loss must be None: the model has its own, sigmoid cross-entropy of the logits. Received {loss!r}")
        in_a_loop = kwargs.get("steps_per_execution") not in (None, 1)
        # In a loop, TensorFlow's collectives take one shape only, but the number of distinct rows differs from step to step.
        if kwargs.get("jit_compile") or (in_a_loop and self.distribute_strategy.num_replicas_in_sync > 1):
            self.embedding.deduplicate = False
        super().compile(optimizer=sparse_safe(optimizer, self.config.table_bytes), **kwargs)
        # Made here: dropout reads the step, and a variable that a replica makes on first use breaks the graph of all.
        _ = self.optimizer.iterations

    def compute_loss(self, inputs: tuple, training: bool = False) -> tf.Tensor:
        """Mean sigmoid cross-entropy; as in Keras, the mean is over the batch's rows, not over the sum of weights.

        Args:
          inputs: `(features, label [batch_size, 1])` or that and `sample_weight [batch_size]`; `features` as for `call`.
          training: as for `call`.

        Returns:
          float32 scalar, nats.
        """
        features, label, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(inputs)
        return self._mean_loss(label, self(features, training=training), sample_weight, training)

    def _mean_loss(self, label, logits, sample_weight, training=False):
        label = tf.reshape(tf.cast(label, tf.float32), [-1, 1])
        label = self.regularization.smooth(label) if training else label
        if sample_weight is not None:
            sample_weight = tf.reshape(tf.cast(sample_weight, tf.float32), [-1])
        losses = self._task(labels=label, predictions=logits, sample_weight=sample_weight)
        # A replica may have no row of a small last batch.
        return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32))

    def train_step(self, data: tuple) -> dict:
        """One optimizer step; the reported `loss` is the mean over the epoch so far.

        Args:
          data: `(features, label)` or `(features, label, sample_weight)`, as for `compute_loss`.
        """
        features, label, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            logits = self(features, training=True)
            loss = self._mean_loss(label, logits, sample_weight, training=True)
            share = loss * self._share_of_batch(logits)
        self.minimize(share, tape)
        return self._update_metrics(label, logits, sample_weight, loss)

    def minimize(self, loss: tf.Tensor, tape: tf.GradientTape) -> None:
        """One optimizer step of all trainable variables.

        Args:
          loss: float32 scalar.
          tape: the tape that recorded it.
        """
        variables = self.trainable_variables
        if not self.regularization.clip_norm:
            self.optimizer.minimize(loss, variables, tape=tape)  # which a loss scale does in its own way
            return
        gradients = self.regularization.clip(tape.gradient(loss, variables))
        self.optimizer.apply_gradients(zip(gradients, variables))

    @staticmethod
    def _share_of_batch(logits):
        """This replica's part of the global batch; gradients of replicas are summed, each with its part of the mean."""
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return 1.0
        rows = tf.cast(tf.shape(logits)[0], tf.float32)
        return rows / tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, rows)

    def test_step(self, data: tuple) -> dict:
        """Loss and metrics of one batch, without training.

        Args:
          data: `(features, label)` or `(features, label, sample_weight)`, as for `compute_loss`.
        """
        features, label, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        logits = self(features, training=False)
        return self._update_metrics(label, logits, sample_weight, self._mean_loss(label, logits, sample_weight))

    def _update_metrics(self, label, logits, sample_weight, loss):
        # Weighted by rows, so that a smaller last batch counts for what it is.
        self._loss_mean.update_state(loss, tf.shape(logits)[0])
        if self.compiled_metrics is not None:
            self.compiled_metrics.update_state(label, logits, sample_weight)
        return {metric.name: metric.result() for metric in self.metrics}

    def grow(self, sizes: Sequence[int], *, seed: Optional[int] = None) -> "DLRM":
        """A larger copy of this model, with room for new ids: trained rows and the optimizer's state are kept.

        Args:
          sizes: the new `categorical_feature_sizes`, none smaller than before.
          seed: of the new ids' rows.

        Returns:
          The copy, compiled if this model is. Its vocabulary fingerprint is empty: set the new vocabulary's.

        Raises:
          ValueError: sizes that do not fit, or an optimizer whose state can't be copied (newer Keras ones).
        """
        return grow(self, sizes, seed=seed)

    @property
    def metrics(self) -> list:
        """The loss first, as Keras users expect of `evaluate`'s list, then the compiled metrics."""
        return sorted(super().metrics, key=lambda metric: metric is not getattr(self, "_loss_mean", None))

    def get_config(self) -> dict:
        """What `from_config` needs to build the same architecture."""
        return {"config": self.config.to_json(), "name": self.name}

    @classmethod
    def from_config(cls, config: dict, custom_objects: Optional[dict] = None) -> "DLRM":
        """Rebuilds the architecture that `get_config` describes.

        Args:
          config: what `get_config` returned.
          custom_objects: without effect; Keras passes it.
        """
        return cls(DLRMConfig.from_json(config["config"]), name=config["name"])

    def save_weights(self, filepath: StrPath, *args, **kwargs) -> None:
        """Writes a weights file (`dlrm_tf.weights.layout`).

        Args:
          filepath: a path that ends in `.weights.h5`; any other is left to Keras, with what follows.
          *args: for Keras.
          **kwargs: for Keras.
        """
        if str(filepath).endswith(".weights.h5"):
            return save_weights(
                self, filepath, source_sha256=self.source_sha256, vocabulary_fingerprint=self.vocabulary_fingerprint
            )
        return super().save_weights(filepath, *args, **kwargs)

    def load_weights(self, filepath: StrPath, *args, **kwargs) -> Any:
        """Reads a weights file (`dlrm_tf.weights.layout`).

        Args:
          filepath: a path that ends in `.weights.h5`; any other is left to Keras, with what follows.
          *args: for Keras.
          **kwargs: for Keras.

        Returns:
          None; of another file, what Keras returns.

        Raises:
          CheckpointError: the file is damaged or does not fit this model.
        """
        if str(filepath).endswith(".weights.h5"):
            attributes = load_weights(self, filepath)
            self.source_sha256 = attributes["source_sha256"]
            self.vocabulary_fingerprint = attributes["vocabulary_fingerprint"]
            return None
        return super().load_weights(filepath, *args, **kwargs)


def load(path: StrPath) -> DLRM:
    """Rebuilds a `DLRM` from one weights file: its configuration and its weights.

    Args:
      path: a `.weights.h5` written by `convert`, `train` or `DLRM.save_weights`.

    Returns:
      The `dlrm_tf.DLRM`; `model.vocabulary_fingerprint` and `model.source_sha256` come from the file.

    Raises:
      CheckpointError: not such a file.
    """
    with WeightsReader(path) as reader:
        config = reader.config
    model = DLRM(config, initializer="zeros")
    model.load_weights(path)
    return model


def _normal(variance: float, seed: Optional[int], initializer: str) -> tf.keras.initializers.Initializer:
    if initializer == "zeros":
        return tf.keras.initializers.Zeros()
    return tf.keras.initializers.RandomNormal(0.0, float(np.sqrt(variance)), seed)
