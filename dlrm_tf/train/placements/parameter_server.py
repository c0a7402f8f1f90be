"""Parameter servers: they hold the table, workers fetch the rows they need, the coordinator hands out batches.

The coordinator gives a worker a chunk: a run of neighbouring batches, named by number. The worker reads them itself, from the
same prepared folder. Updates are asynchronous: a worker may read rows that another one is about to change.

What a failure costs: a worker that dies loses its chunk, which another worker does again (so at most `CHUNK_ROWS` rows are
applied twice). A ps or the coordinator that dies ends the run; `--resume` continues from the last checkpoint.
"""

import collections
import os
from collections.abc import Sequence
from typing import Any, Callable, Optional

from dlrm_tf.errors import DLRMError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.model.optimizers import parts
from dlrm_tf.train.callbacks import SaveRun
from dlrm_tf.train.options import ResolvedOptions
from dlrm_tf.train.placements import tf_config
from dlrm_tf.train.placements.base import Placement
from dlrm_tf.train.position import EpochPosition

tf = tensorflow()
# Before TF 2.7 both are experimental.
_distribute = tf.distribute if hasattr(tf.distribute, "ParameterServerStrategy") else tf.distribute.experimental

# Rows a worker is handed at once. It reads 131,072 rows to find them (they are permuted together), so not much fewer.
CHUNK_ROWS = 32768


class ClusterError(DLRMError):
    """A process of the cluster is gone and training can't continue without it."""


class ParameterServerPlacement(Placement):
    """The coordinator of `TF_CONFIG`'s cluster. In a process that is one of its `ps` or `worker`, making it never returns."""

    allows_profile = False
    refused = ("reset_table_each_epoch",)

    def __init__(self, options: ResolvedOptions, table_rows: int):
        self._run_chunk: Optional[Callable] = None
        super().__init__(options, table_rows)

    def make_strategy(self, table_rows: int) -> tf.distribute.Strategy:
        """See `Placement.make_strategy`."""
        cluster = tf_config.cluster("parameter_server", ("worker", "ps"))
        kind, index = tf_config.task()
        if kind in ("ps", "worker"):
            _serve(cluster, kind, index)
        self._workers = len(cluster["worker"])

        def partitioner(shape, dtype, **unused):
            # Rows over the ps, as evenly as they go; the MLPs stay whole.
            whole = len(shape) != 2 or shape[0] != table_rows
            return [1 if whole else min(len(cluster["ps"]), table_rows)] + [1] * (len(shape) - 1)

        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        return _distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)

    def run_stretch(
        self, model: DLRM, batches: Callable, position: EpochPosition, callbacks: Sequence[Any], saver: SaveRun
    ) -> None:
        """See `Placement.run_stretch`; a step of the callbacks is a chunk, and a signal ends the stretch early.

        The saver is called only when no chunk is under way, so that weights and position belong together.

        Raises:
          ClusterError: a ps is gone.
        """
        if self._run_chunk is None:
            self._start_workers(model, batches)
        every, end = self.options.checkpoint_steps, position.epoch * position.batches + position.stop
        while position.step < end:
            stop = min(end, (position.step // every + 1) * every) if every else end
            position.start(position.step, position.loss_sum)
            try:
                self._run_batches(position, stop, callbacks, saver)
            except tf.errors.OpError as e:
                if not _is_loss_of_a_process(e):
                    raise
                raise ClusterError(
                    f"a parameter server is gone ({' '.join(e.message.split())[:200]}): start the cluster again with --resume"
                ) from e
            saver.on_train_batch_end(position.batch - 1)

    def _start_workers(self, model: DLRM, batches: Callable) -> None:
        self._coordinator = _distribute.coordinator.ClusterCoordinator(self.strategy)
        # Slots are variables, which a worker's function can't make.
        with self.strategy.scope():
            for part, variables in parts(model.optimizer, model.trainable_variables):
                part._create_all_weights(variables)

        @tf.function(input_signature=[tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64)])
        def run_chunk(first, count):
            loss_sum = tf.constant(0.0, tf.float64)
            for features, label in batches(start_batch=first).take(count):
                loss_sum += self.strategy.run(_step, args=(model, features, label))
            return loss_sum

        self._run_chunk = run_chunk

    def _run_batches(self, position: EpochPosition, stop: int, callbacks: Sequence[Any], saver: SaveRun) -> None:
        """Trains up to step `stop`, or until a signal comes; the callbacks see the chunks in the order of their batches."""
        first, first_batch, begin = position.step, position.batch, position.step
        rows = position.rows_until(first_batch + 1) - position.rows_until(first_batch)
        # In short epochs smaller, so that every worker gets some.
        chunk = max(1, min(CHUNK_ROWS // rows, (stop - first) // (2 * self._workers)))
        waiting: collections.deque[tuple[int, Any]] = collections.deque()
        loss_sum = 0.0
        while True:
            while begin < stop and len(waiting) < 2 * self._workers and not saver.stopping:
                count = min(chunk, stop - begin)
                arguments = (tf.constant(begin, tf.int64), tf.constant(count, tf.int64))
                waiting.append((begin + count, self._coordinator.schedule(self._run_chunk, args=arguments)))
                begin += count
            if not waiting:
                return
            done, result = waiting.popleft()
            loss_sum += float(result.fetch())
            rows = position.rows_until(first_batch + done - first) - position.rows_until(first_batch)
            for callback in callbacks:
                callback.on_train_batch_end(done - first - 1, {"loss": loss_sum / rows})


def _serve(cluster: dict, kind: str, index: int) -> None:
    """Runs this process as a `ps` or `worker`; never returns."""
    options = tf.compat.v1.ConfigProto()
    # A worker runs functions that read, look up, and train; with one thread they would wait for each other.
    options.inter_op_parallelism_threads = max(4, os.cpu_count() or 1)
    spec = tf.train.ClusterSpec(cluster)
    tf.distribute.Server(spec, job_name=kind, task_index=index, protocol="grpc", config=options).join()


def _is_loss_of_a_process(error: tf.errors.OpError) -> bool:
    """Whether a process can't be reached any more.

    Where a worker's graph, not the coordinator, finds a ps gone, TensorFlow passes its "unavailable" on as an internal error.
    """
    lost = isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError))
    return lost or (isinstance(error, tf.errors.InternalError) and "originally returned UnavailableError" in error.message)


def _step(model, features, label):
    """One optimizer step; returns the sum of the rows' losses, float64."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss((features, label), training=True)
    model.minimize(loss, tape)
    return tf.cast(loss, tf.float64) * tf.cast(tf.shape(label)[0], tf.float64)
