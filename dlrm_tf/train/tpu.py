"""The DLRM for TPUs: the fused table in the TPU's own embedding hardware, by TFRS's TPUEmbedding.

Never run on a TPU here: the tests run TFRS's layer in its CPU mode, and compile the rest of the network with XLA, as a TPU does.
"""

import numpy as np

from dlrm_tf.errors import UsageError
from dlrm_tf.keras2 import recommenders, tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.model.embedding import row_numbers
from dlrm_tf.model.optimizers import legacy
from dlrm_tf.weights.layout import table_chunks

tf = tensorflow()
tfrs = recommenders()


class TPUFusedEmbedding(tf.keras.layers.Layer):
    """`FusedEmbedding` on a TPU: takes row numbers, because a TPU looks up only what comes straight from the input pipeline.

    Args:
      config: the model's configuration.
      table: float32 `[table_rows, D]`, the rows to start from.
      optimizer: `"sgd"` or `"adagrad"` of `make_optimizer`, the table's own; the hardware knows no others of ours.

    Raises:
      UsageError: another optimizer.
    """

    def __init__(self, config, table: np.ndarray, optimizer, name="embedding"):
        super().__init__(name=name)
        if not isinstance(optimizer, (legacy.SGD, legacy.Adagrad)):
            raise UsageError(f"strategy tpu: the optimizer must be sgd or adagrad. Received {type(optimizer).__name__}")
        self.config = config
        placed = tf.tpu.experimental.embedding
        self._table_config = placed.TableConfig(
            vocabulary_size=config.table_rows,
            dim=config.embedding_dim,
            initializer=lambda shape, dtype=tf.float32, **unused: tf.constant(table, dtype),
            name="table",
        )
        self._lookup = tfrs.layers.embedding.TPUEmbedding(placed.FeatureConfig(table=self._table_config), optimizer)

    @property
    def table(self):
        """The table's variable."""
        return self._lookup.embedding_tables[self._table_config]

    def call(self, rows):
        """Row numbers int32 `[batch_size, F]` -> `[batch_size, F, D]`."""
        return self._lookup(rows)

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `[stop - start, D]` of the table as NumPy."""
        return tf.gather(self.table, tf.range(start, stop)).numpy()


def tpu_model(model: DLRM, optimizer) -> DLRM:
    """A copy of a model whose table is a `TPUFusedEmbedding`; call it under the `TPUStrategy`'s scope.

    Args:
      model: the model to copy, made outside of that scope.
      optimizer: the optimizer that will train the copy.
    """
    table = np.concatenate([model.embedding.read_rows(start, stop) for start, stop in table_chunks(model.config)])
    copy = DLRM(model.config, embedding=TPUFusedEmbedding(model.config, table, optimizer))
    _copy_dense(model, copy)
    return copy


def on_host(model: DLRM, make_dataset):
    """`make_dataset()` with the ids replaced by row numbers, which is what a `TPUFusedEmbedding` takes."""

    def map_ids(features, label):
        return {**features, "categorical": row_numbers(model.config, features["categorical"])}, label

    return make_dataset().map(map_ids)


def host_copy(model: DLRM) -> DLRM:
    """The ordinary model with a TPU model's weights: for measuring and saving on the host."""
    copy = DLRM(model.config, initializer="zeros")
    _copy_dense(model, copy)
    for start, stop in table_chunks(model.config):
        copy.embedding.write_rows(start, model.embedding.read_rows(start, stop))
    copy.source_sha256, copy.vocabulary_fingerprint = model.source_sha256, model.vocabulary_fingerprint
    return copy


def _copy_dense(source: DLRM, target: DLRM) -> None:
    for mlp, i, _, _ in source.config.dense_shapes():
        for mine, theirs in zip(target.dense_layer(mlp, i).weights, source.dense_layer(mlp, i).weights):
            mine.assign(theirs.numpy())
    target.source_sha256, target.vocabulary_fingerprint = source.source_sha256, source.vocabulary_fingerprint
