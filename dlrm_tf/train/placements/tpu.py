"""The DLRM on a TPU: the fused table in the TPU's own embedding hardware, by TFRS's TPUEmbedding.

Never run on a TPU here: the tests run TFRS's layer in its CPU mode, and compile the rest of the network with XLA, as a TPU does.
"""

import functools
import os
from typing import Any, Callable, Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import UsageError
from dlrm_tf.keras2 import recommenders, tensorflow
from dlrm_tf.model.bags import place_weights, sum_places, used_places
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.model.embedding import row_numbers, rows_of_keys
from dlrm_tf.model.optimizers import TableAndDense, legacy, parts
from dlrm_tf.train.placements.base import Placement
from dlrm_tf.weights.layout import table_chunks

tf = tensorflow()
tfrs = recommenders()


class TPUPlacement(Placement):
    """The TPU that the environment variable `TPU_NAME` names, or the local one."""

    needs_whole_batches = True
    refused = ("l2", "clip_norm", "reset_table_each_epoch")  # the table and its gradient are the embedding hardware's

    def make_strategy(self, table_rows: int) -> tf.distribute.Strategy:
        """See `Placement.make_strategy`."""
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ.get("TPU_NAME", ""))
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
        except (ValueError, tf.errors.OpError) as e:
            raise UsageError(f"strategy tpu: no TPU found ({' '.join(str(e).split())[:200]}); name one in TPU_NAME") from e
        return tf.distribute.TPUStrategy(resolver)

    def build(self, make_model: Callable[[], DLRM], make_optimizer: Callable[[], Any]) -> DLRM:
        """See `Placement.build`; the model to copy is made outside of the strategy's scope, on the host."""
        model = make_model()
        return super().build(lambda: model, make_optimizer)

    def wrap(self, model: DLRM, optimizer: Any) -> tuple[DLRM, Any]:
        """See `Placement.wrap`."""
        return tpu_model(model, optimizer), optimizer

    def dataset(self, model: DLRM, batches: Callable[[], tf.data.Dataset]) -> Any:
        """See `Placement.dataset`."""
        return super().dataset(model, functools.partial(with_row_numbers, model.config, batches))

    def host_model(self, model: DLRM) -> DLRM:
        """See `Placement.host_model`."""
        return host_copy(model)


class TPUFusedEmbedding(tf.keras.layers.Layer):
    """`FusedEmbedding` on a TPU: takes row numbers, because a TPU looks up only what comes straight from the input pipeline.

    Args:
      config: the model's configuration.
      table: float32 `[table_rows, D]`, the rows to start from.
      optimizer: of `make_optimizer`; the table's is `"sgd"` or `"adagrad"`, the hardware supports no other of its optimizers.

    Raises:
      UsageError: another optimizer.
    """

    def __init__(self, config: DLRMConfig, table: np.ndarray, optimizer: Any, name: str = "embedding"):
        super().__init__(name=name)
        of_table, _ = parts(optimizer)[-1]
        if not isinstance(of_table, (legacy.SGD, legacy.Adagrad)):
            raise UsageError(f"strategy tpu: the optimizer must be sgd or adagrad. Received {type(of_table).__name__}")
        if isinstance(optimizer, TableAndDense) and isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
            # The hardware does the table's steps, not this object, whose schedule would wait at step 0.
            of_table.iterations = optimizer.dense.iterations
        self.config = config
        placed = tf.tpu.experimental.embedding
        self._table_config = placed.TableConfig(
            vocabulary_size=config.table_rows,
            dim=config.embedding_dim,
            initializer=lambda shape, dtype=tf.float32, **unused: tf.constant(table, dtype),
            name="table",
        )
        self._lookup = tfrs.layers.embedding.TPUEmbedding(placed.FeatureConfig(table=self._table_config), of_table)

    @property
    def table(self) -> tf.Variable:
        """The table's variable, float32 `[table_rows, D]`."""
        return self._lookup.embedding_tables[self._table_config]

    def call(self, rows: tf.Tensor, weights: Optional[tf.Tensor] = None) -> tf.Tensor:
        """Looks rows up, and pools those of a bag.

        Args:
          rows: row numbers int32 `[batch_size, id_columns]`.
          weights: of a model with bags, what each place counts for, float32 `[batch_size, id_columns]`: both are what
            `with_row_numbers` makes. None, when the model is built: 1.

        Returns:
          float32 `[batch_size, F, D]`.
        """
        vectors = self._lookup(rows)
        if not self.config.has_bags:
            return vectors
        return sum_places(self.config, vectors if weights is None else vectors * weights[:, :, tf.newaxis])

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the table, float32 `[stop - start, D]`."""
        return tf.gather(self.table, tf.range(start, stop)).numpy()


def tpu_model(model: DLRM, optimizer: Any) -> DLRM:
    """A copy of a model whose table is a `TPUFusedEmbedding`; call it under the `TPUStrategy`'s scope.

    Args:
      model: the model to copy, made outside of that scope.
      optimizer: the optimizer that will train the copy.
    """
    table = np.concatenate([model.embedding.read_rows(start, stop) for start, stop in table_chunks(model.config)])
    copy = DLRM(model.config, embedding=TPUFusedEmbedding(model.config, table, optimizer))
    _copy_dense(model, copy)
    return copy


def with_row_numbers(config: DLRMConfig, batches: Callable[[], tf.data.Dataset]) -> tf.data.Dataset:
    """A dataset with its ids replaced by rows of the table, which is what a `TPUFusedEmbedding` takes; of bags also what each
    place counts for, as `weights`.

    Args:
      config: the model's configuration.
      batches: makes the dataset of `(features, label)`.
    """

    def map_ids(features, label):
        ids = features["categorical"]
        rows = row_numbers(config, ids)
        if not config.has_bags:
            return {**features, "categorical": rows}, label
        share = place_weights(config, ids, features.get("weights"))
        return {**features, "categorical": rows_of_keys(rows, used_places(ids)), "weights": share}, label

    return batches().map(map_ids)


def host_copy(model: DLRM) -> DLRM:
    """The ordinary model with a TPU model's weights, for measuring and saving on the host.

    Args:
      model: what `tpu_model` made.
    """
    copy = DLRM(model.config, initializer="zeros")
    _copy_dense(model, copy)
    for start, stop in table_chunks(model.config):
        copy.embedding.write_rows(start, model.embedding.read_rows(start, stop))
    return copy


def _copy_dense(source: DLRM, target: DLRM) -> None:
    for mlp, i, _, _ in source.config.dense_shapes():
        for mine, theirs in zip(target.dense_layer(mlp, i).weights, source.dense_layer(mlp, i).weights):
            mine.assign(theirs.numpy())
    target.source_sha256, target.vocabulary_fingerprint = source.source_sha256, source.vocabulary_fingerprint
