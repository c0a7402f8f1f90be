"""All categorical features in one embedding table, with an out-of-vocabulary (OOV) row per feature."""

from collections.abc import Iterator
from typing import Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.bags import place_weights, sum_places, used_places

tf = tensorflow()
_DRAWN_ROWS = 1 << 18


def row_numbers(config: DLRMConfig, categorical: tf.Tensor) -> tf.Tensor:
    """Rows of the fused table that ids stand for; an id outside `[0, size_f)` is its own feature's OOV row.

    The rule stands twice more, where this function can't be used: the Keras 3 twin (`dlrm_tf.model.keras3`) runs on other
    backends than TensorFlow, and the table of a TFLite file (`dlrm_tf.export.tflite.graph`) has an OOV row at both ends of a
    block, which takes two operators instead of five.

    Args:
      config: the model's configuration.
      categorical: int32 or int64 `[batch_size, id_columns]`.

    Returns:
      int32 `[batch_size, id_columns]`.
    """
    features = np.asarray(config.column_features)
    sizes = np.asarray(config.categorical_feature_sizes, np.int32)[features]
    # int64 ids are compared before they are narrowed, so that 2**32 + 3 is not taken for 3.
    known = (categorical >= 0) & (categorical < tf.cast(sizes, categorical.dtype))
    return tf.where(known, tf.cast(categorical, tf.int32), sizes) + np.asarray(config.block_offsets, np.int32)[features]


def rows_of_keys(rows: tf.Tensor, used: tf.Tensor) -> tf.Tensor:
    """Rows to look up where shapes must be static: an unused place reads a row that some key of the batch reads anyway.

    Its gradient there is 0. On a row that no key reads even that would count: an optimizer with moments would move the row.

    Args:
      rows: int32 `[batch_size, id_columns]`, what `row_numbers` gave.
      used: bool, same shape.

    Returns:
      int32, same shape.
    """
    return tf.where(used, rows, tf.reduce_max(tf.where(used, rows, tf.zeros_like(rows))))


def sum_rows(
    values: tf.Tensor,
    place: tf.Tensor,
    count: tf.Tensor,
    *,
    chosen: Optional[tf.Tensor] = None,
    weights: Optional[tf.Tensor] = None,
) -> tf.Tensor:
    """Sums the rows of `values` that have the same place, in their order, so that on a CPU the result always has the same bits.

    `tf.math.unsorted_segment_sum` as a product with a sparse matrix of ones: the same sums, in a third of the time. It has no
    XLA kernel.

    Args:
      values: float32 `[n, D]`.
      place: int32 `[m]`, in `[0, count)`.
      count: int32, rows of the result.
      chosen: int32 `[m]`, in `[0, n)`, the row of `values` that is added to each place; None: row i, and m is n.
      weights: float32 `[m]`, by which that row is multiplied; None: 1.

    Returns:
      `[count, D]`.
    """
    m = tf.shape(place)[0]
    n, chosen = (m, tf.range(m)) if chosen is None else (tf.shape(values)[0], chosen)
    return tf.raw_ops.SparseTensorDenseMatMul(
        a_indices=tf.cast(tf.stack([place, chosen], axis=1), tf.int64),
        a_values=tf.ones([m]) if weights is None else weights,
        a_shape=tf.cast(tf.stack([count, n]), tf.int64),
        b=values,
    )


class FusedEmbedding(tf.keras.layers.Layer):
    """One variable `[sum(size_f + 1), D]`; block f holds the ids of feature f, then its OOV row. Features may share a block.

    An id outside `[0, size_f)` reads the OOV row of its own feature, never a neighbour's row: left alone, such an id
    would raise on CPU, read zeros on GPU and be clamped by XLA. Where features have bags, id -1 is no key at all: it adds
    nothing, to the vector or to a gradient, and an empty bag is a vector of zeros.

    Args:
      config: the model's configuration.
      initializer: `"uniform"`, U(-s sqrt(1/size_f), s sqrt(1/size_f)) a feature, or `"zeros"`, for a table that is loaded next.
      scale: s; 1 is MindSpore's draw (research/recommend/dlrm). A small one lets rows say nothing before they have learned.
      seed: seed of the uniform draw, or None.

    Attributes:
      deduplicate: whether training looks up the distinct rows of a batch only, each once: the gradient then has each row once,
        and the table's traffic in memory or over a network is that of the distinct rows. Their number is a dynamic shape: set
        this to False for devices that want static shapes, for XLA, and for several replicas whose steps run in a loop. True by
        default on CPUs; not measured on a GPU.
    """

    def __init__(
        self, config: DLRMConfig, *, initializer: str = "uniform", scale: float = 1.0, seed: Optional[int] = None, **kwargs
    ):
        super().__init__(**kwargs)
        self.config, self._scale = config, scale
        on_tpu = isinstance(tf.distribute.get_strategy(), (tf.distribute.TPUStrategy, tf.distribute.experimental.TPUStrategy))
        self.deduplicate = not on_tpu and not tf.config.get_visible_devices("GPU")
        # An initializer holds the table three times, but only it works in a graph, and gives all workers the same draw.
        whole = not tf.executing_eagerly() or tf.distribute.has_strategy()
        self.table = self.add_weight(
            name="table",
            shape=(config.table_rows, config.embedding_dim),
            dtype=tf.float32,
            initializer=_Uniform(config, scale, seed) if initializer != "zeros" and whole else "zeros",
        )
        self.built = True
        if initializer != "zeros" and not whole:
            self.draw(seed)

    def call(self, categorical: tf.Tensor, weights: Optional[tf.Tensor] = None, training: Optional[bool] = None) -> tf.Tensor:
        """Looks ids up, and pools those of a bag.

        Args:
          categorical: int32 or int64 `[batch_size, id_columns]`.
          weights: float32 `[batch_size, id_columns]`, of a weighted model.
          training: whether a gradient will be asked for (see `deduplicate`); the result is the same.

        Returns:
          `[batch_size, F, D]` in the layer's compute dtype.

        Raises:
          ValueError: weights for a model without them, or none for a weighted one.
        """
        if (weights is not None) != self.config.weighted:
            received = "none" if weights is None else "weights"
            raise ValueError(
                f"the model wanted the inputs {', '.join(self.config.inputs)}. Received {received} for its keys' weights"
            )
        if self.config.has_bags:
            pooled = self._pooled(categorical, place_weights(self.config, categorical, weights), training)
        else:
            # Looked up as one vector: a table that is partitioned over parameter servers takes no other shape.
            rows = tf.reshape(row_numbers(self.config, categorical), [-1])
            pooled = self._distinct(rows) if training and self.deduplicate else self._gather(rows)
        shape = [-1, self.config.num_categorical, self.config.embedding_dim]
        return tf.cast(tf.reshape(pooled, shape), self.compute_dtype)

    def _pooled(self, categorical, weights, training):
        """The vectors of bags, float32: `[batch_size, F, D]`, or the same as `[batch_size * F, D]`."""
        config, rows, used = self.config, row_numbers(self.config, categorical), used_places(categorical)
        if training and self.deduplicate:
            return self._distinct_pooled(rows, weights, used)
        if training:
            rows = rows_of_keys(rows, used)
        vectors = tf.cast(self._gather(tf.reshape(rows, [-1])), tf.float32)
        vectors = tf.reshape(vectors, [-1, config.id_columns, config.embedding_dim])
        return sum_places(config, vectors * weights[:, :, tf.newaxis])

    def _distinct_pooled(self, rows, weights, used):
        places, bags = tf.where(used), tf.shape(used)[0] * self.config.num_categorical
        features = tf.gather(np.array(self.config.column_features, np.int32), places[:, 1])
        bag = tf.cast(places[:, 0], tf.int32) * self.config.num_categorical + features
        weights = tf.gather_nd(weights, places)
        distinct, place = tf.unique(tf.gather_nd(rows, places))

        @tf.custom_gradient
        def pool(vectors):
            def gradient(upstream):
                sums = sum_rows(tf.cast(upstream, tf.float32), place, tf.shape(distinct)[0], chosen=bag, weights=weights)
                return tf.cast(sums, vectors.dtype)

            return sum_rows(tf.cast(vectors, tf.float32), bag, bags, chosen=place, weights=weights), gradient

        return pool(self._gather(distinct))

    def _distinct(self, rows):
        distinct, place = tf.unique(rows)

        @tf.custom_gradient
        def spread(vectors):
            def gradient(upstream):
                # The sums are made in float32, also for gradients of half precision.
                return tf.cast(sum_rows(tf.cast(upstream, tf.float32), place, tf.shape(distinct)[0]), upstream.dtype)

            return tf.gather(vectors, place), gradient

        return spread(self._gather(distinct))

    def _gather(self, rows):
        # tf.gather of a table in parts on parameter servers returns the rows of one part after those of the other.
        return tf.nn.embedding_lookup(self.table, rows) if hasattr(self.table, "variables") else tf.gather(self.table, rows)

    def draw(self, seed: Optional[int]) -> None:
        """Overwrites the ids' rows with those of a new table; OOV rows stay.

        Args:
          seed: of the uniform draw, or None.
        """
        for start, rows in _uniform_rows(self.config, self._scale, seed):
            self.write_rows(start, rows)

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `[stop - start, D]` of the table as NumPy, without copying the whole table."""
        return tf.gather(self.table, tf.range(start, stop)).numpy()

    def write_rows(self, start: int, rows: np.ndarray) -> None:
        """Overwrites the table's rows from `start` on with `[n, D]` float32."""
        self.table.scatter_update(tf.IndexedSlices(tf.constant(rows), tf.range(start, start + len(rows))))


class _Uniform(tf.keras.initializers.Initializer):
    """The table of `_uniform_rows`; OOV rows are zero (the absent feature)."""

    def __init__(self, config: DLRMConfig, scale: float, seed: Optional[int]):
        self._config, self._scale, self._seed = config, scale, seed

    def __call__(self, shape, dtype=tf.float32, **kwargs):
        table = np.zeros(shape, np.float32)
        for start, rows in _uniform_rows(self._config, self._scale, self._seed):
            table[start : start + len(rows)] = rows
        return tf.constant(table, dtype)


def _uniform_rows(config: DLRMConfig, scale: float, seed: Optional[int]) -> Iterator[tuple[int, np.ndarray]]:
    """U(-scale sqrt(1/size_f), scale sqrt(1/size_f)) for every table's ids: pieces of the fused table as `(first row, rows)`."""
    generator = np.random.default_rng(seed)
    for feature in config.table_features:
        size, offset = config.categorical_feature_sizes[feature], config.block_offsets[feature]
        for start in range(0, size, _DRAWN_ROWS):
            rows = generator.random((min(_DRAWN_ROWS, size - start), config.embedding_dim), np.float32)
            rows -= 0.5
            rows *= 2 * scale * np.sqrt(1.0 / size)
            yield offset + start, rows
