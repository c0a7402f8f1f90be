"""What a training step does besides the loss: dropout, label smoothing, gradient clipping. Nothing of it is in the weights."""

import dataclasses

from dlrm_tf.keras2 import tensorflow

tf = tensorflow()


@dataclasses.dataclass(frozen=True)
class Regularization:
    """How a `DLRM` is held back while it trains; no part of its architecture, its weights, or its inference.

    Attributes:
      dropout: share of the top MLP's hidden units that a step leaves out, in [0, 1); the others are divided by 1 - dropout
        (Srivastava et al. 2014, in its inverted form).
      label_smoothing: labels are drawn towards 1/2 by this part: y (1 - s) + s / 2 (Szegedy et al. 2016, section 7).
      clip_norm: largest 2-norm of the gradient of all weights together (Pascanu et al. 2013); 0 is no limit. A table's row counts
        once, with the sum of its gradients; rows that the batch does not use have none.
      seed: of the draws of dropout. A draw follows from the seed, the number of the step and the layer alone, so that a resumed
        training draws the same.
    """

    dropout: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    seed: int = 0

    def drop(self, layer: int, values: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Dropout of a layer's output.

        Args:
          layer: number of the layer.
          values: `[batch_size, units]`.
          step: number of the optimizer step, an integer scalar.

        Returns:
          `[batch_size, units]`, of the same type.
        """
        if not self.dropout:
            return values
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group  # each has other rows, and draws for itself
        number = (tf.cast(step, tf.int64) * 1024 + layer) * 1024 + tf.cast(replica, tf.int64)
        drawn = tf.random.stateless_uniform(tf.shape(values), tf.stack([tf.constant(self.seed, tf.int64), number]))
        return values * tf.cast(drawn >= self.dropout, values.dtype) / (1.0 - self.dropout)

    def smooth(self, label: tf.Tensor) -> tf.Tensor:
        """Labels float32 `[batch_size, 1]` as the training loss takes them."""
        return label * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing if self.label_smoothing else label

    def clip(self, gradients: list) -> list:
        """Gradients, tensors or `IndexedSlices`, scaled down together where their norm is larger than `clip_norm`."""
        if not self.clip_norm:
            return gradients
        clipped, _ = tf.clip_by_global_norm([_with_distinct_rows(g) for g in gradients], self.clip_norm)
        return clipped


def _with_distinct_rows(gradient):
    """The same gradient with every row once: only then is the norm of its values its own."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, place = tf.unique(gradient.indices)
    sums = tf.math.unsorted_segment_sum(gradient.values, place, tf.shape(rows)[0])
    return tf.IndexedSlices(sums, rows, gradient.dense_shape)
