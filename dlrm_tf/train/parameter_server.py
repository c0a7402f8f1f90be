"""Training on parameter servers: the table lives on the ps, workers fetch the rows they need, the coordinator hands out batches.

The coordinator gives a worker a chunk: a run of neighbouring batches, named by number. The worker reads them itself, from the
same prepared folder. Updates are asynchronous: a worker may read rows that another one is about to change.

What a failure costs: a worker that dies loses its chunk, which another worker does again (so at most `CHUNK_ROWS` rows are
applied twice). A ps or the coordinator that dies ends the run; `--resume` goes on from the last checkpoint.
"""

import collections

from dlrm_tf.errors import DLRMError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import parts

tf = tensorflow()

# Rows a worker is handed at once. It reads 131,072 rows to find them (they are permuted together), so not much fewer.
CHUNK_ROWS = 32768


class ClusterError(DLRMError):
    """A process of the cluster is gone and training can't go on without it."""


def _is_loss_of_a_process(error) -> bool:
    """Whether a process can't be reached any more.

    Where a worker's graph, not the coordinator, finds a ps gone, TensorFlow passes its "unavailable" on as an internal error.
    """
    lost = isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError))
    return lost or (isinstance(error, tf.errors.InternalError) and "originally returned UnavailableError" in error.message)


class ParameterServerLoop:
    """Runs epochs of a model on a `ParameterServerStrategy`.

    Args:
      strategy: the strategy the model was built under.
      model: a compiled `dlrm_tf.DLRM`.
      make_dataset: function of a first batch (int64 scalar tensor), which returns the dataset from that batch on.
    """

    def __init__(self, strategy, model, make_dataset):
        module = tf.distribute if hasattr(tf.distribute, "coordinator") else tf.distribute.experimental
        self._coordinator = module.coordinator.ClusterCoordinator(strategy)
        self._workers = strategy._num_workers
        # Slots are variables, which a worker's function can't make.
        with strategy.scope():
            for part, variables in parts(model.optimizer, model.trainable_variables):
                part._create_all_weights(variables)

        @tf.function(input_signature=[tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64)])
        def run_chunk(first, count):
            loss_sum = tf.constant(0.0, tf.float64)
            for features, label in make_dataset(first).take(count):
                loss_sum += strategy.run(_step, args=(model, features, label))
            return loss_sum

        self._run_chunk = run_chunk

    def run_epoch(self, position, callbacks, saver, checkpoint_steps=None) -> None:
        """Trains to the end of the epoch that `position` is in, or until a signal comes.

        Args:
          position: the run's `EpochPosition`, started.
          callbacks: their `on_train_batch_end` is called for every chunk, in the order of the batches.
          saver: the run's `SaveRun`; called only when no chunk is under way, so that weights and position belong together.
          checkpoint_steps: steps between two checkpoints, or None.

        Raises:
          ClusterError: a ps is gone.
        """
        end = (position.epoch + 1) * position.batches
        while position.step < end:
            stop = end
            if checkpoint_steps:
                stop = min(end, (position.step // checkpoint_steps + 1) * checkpoint_steps)
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

    def _run_batches(self, position, stop, callbacks, saver):
        first, first_batch, begin = position.step, position.batch, position.step
        rows = position.rows_until(first_batch + 1) - position.rows_until(first_batch)
        # In short epochs smaller, so that every worker gets some.
        chunk = max(1, min(CHUNK_ROWS // rows, (stop - first) // (2 * self._workers)))
        waiting, loss_sum = collections.deque(), 0.0
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


def _step(model, features, label):
    """One optimizer step; returns the sum of the rows' losses, float64."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss((features, label), training=True)
    model.optimizer.minimize(loss, model.trainable_variables, tape=tape)
    return tf.cast(loss, tf.float64) * tf.cast(tf.shape(label)[0], tf.float64)
