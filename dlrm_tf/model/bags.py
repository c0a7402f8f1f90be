"""Several keys per feature: what each place of a bag counts for, and the sums over bags."""

from typing import Optional

import numpy as np

from dlrm_tf.config import UNUSED_PLACE, DLRMConfig
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.bag_runs import bag_runs

tf = tensorflow()


def used_places(categorical: tf.Tensor) -> tf.Tensor:
    """bool, shape of `categorical`: whether a place of a bag holds a key, known or not."""
    return tf.not_equal(categorical, tf.constant(UNUSED_PLACE, categorical.dtype))


def place_weights(config: DLRMConfig, categorical: tf.Tensor, weights: Optional[tf.Tensor] = None) -> tf.Tensor:
    """By what the row of each place is multiplied before the rows of a bag are added.

    Sum: the key's weight, or 1. Mean: that, divided by the sum over the bag's keys, as `tf.nn.embedding_lookup_sparse` and TFRS's
    TPUEmbedding have it; 0 where that sum is 0. (FBGEMM divides a weighted sum by the number of keys instead.) Unused places
    have 0, whatever their weight.

    Args:
      config: the model's configuration.
      categorical: int32 or int64 `[batch_size, id_columns]`.
      weights: float32 `[batch_size, id_columns]` of a weighted model, else None.

    Returns:
      float32 `[batch_size, id_columns]`.
    """
    used = used_places(categorical)
    counts = tf.cast(used, tf.float32) if weights is None else tf.where(used, weights, tf.zeros_like(weights))
    means = np.array(config.poolings)[np.array(config.column_features)] == "mean"
    if not means.any():
        return counts
    totals = tf.reshape(sum_places(config, tf.reshape(counts, [-1, config.id_columns, 1])), [-1, config.num_categorical])
    totals = tf.gather(totals, np.array(config.column_features, np.int32), axis=1)
    empty = tf.equal(totals, 0.0)
    shares = tf.where(empty, tf.zeros_like(counts), counts / tf.where(empty, tf.ones_like(totals), totals))
    return shares if means.all() else tf.where(means[np.newaxis], shares, counts)


def sum_places(config: DLRMConfig, vectors: tf.Tensor) -> tf.Tensor:
    """Adds up the places of each bag.

    Args:
      config: the model's configuration.
      vectors: float32 `[batch_size, id_columns, width]`.

    Returns:
      `[batch_size, F, width]`.
    """
    width, sums = vectors.shape[-1], []
    for column, features, size in bag_runs(config):
        run = vectors[:, column : column + features * size]
        # B X features X size X width
        sums.append(run if size == 1 else tf.reduce_sum(tf.reshape(run, [-1, features, size, width]), axis=2))
    return sums[0] if len(sums) == 1 else tf.concat(sums, axis=1)
