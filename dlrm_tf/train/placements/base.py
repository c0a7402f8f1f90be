"""`Placement`: what `fit` asks of the devices and processes it trains on."""

import functools
from collections.abc import Sequence
from typing import Any, Callable

from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.train.callbacks import SaveRun
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.options import ResolvedOptions
from dlrm_tf.train.position import EpochPosition

tf = tensorflow()


class Placement:
    """Where one run trains. `fit` makes one and calls its methods in the order in which they stand here.

    What the methods do here is right for one process and any synchronous `tf.distribute` strategy; a subclass makes the
    strategy and changes what is different for it.

    Args:
      options: the run's options.
      table_rows: rows of the embedding table.

    Attributes:
      options: the run's options.
      strategy: the `tf.distribute.Strategy` that the model is built under.

    Raises:
      UsageError: an option that this placement does not support, or a cluster or device that is missing.
    """

    # Whether a placement supports these options of `fit`.
    allows_steps_per_execution = True
    allows_profile = True
    allows_optimizer_state = False
    allows_precision = False
    # Options of `fit` that this placement has no way to follow; each is off when it is 0 or false.
    refused: tuple[str, ...] = ()
    # Whether all batches must have the same shape, so that a last one that is not full is left out.
    needs_whole_batches = False

    def __init__(self, options: ResolvedOptions, table_rows: int):
        self.options = options
        if options.steps_per_execution > 1 and not self.allows_steps_per_execution:
            raise UsageError(
                f"steps_per_execution must be 1 with strategy {options.strategy!r}: TensorFlow's collectives take no last "
                f"batch that is smaller in a loop. Received {options.steps_per_execution}"
            )
        for name in self.refused:
            if getattr(options, name):
                raise UsageError(
                    f"{name} does not go with strategy {options.strategy!r}. Received {getattr(options, name)}; set it to 0, "
                    "or take strategy 'default'"
                )
        if options.profile and not self.allows_profile:
            raise UsageError(f"profile does not go with strategy {options.strategy!r}. Received {options.profile}")
        if (options.optimizer_state or options.save_optimizer_state) and not self.allows_optimizer_state:
            raise UsageError(f"optimizer state in weights files goes with strategy 'default'. Received {options.strategy!r}")
        if (options.precision != "float32" or options.loss_scale is not None) and not self.allows_precision:
            received = f"{options.precision!r}, {options.loss_scale!r} with strategy {options.strategy!r}"
            raise UsageError(f"precision and loss_scale go with strategy 'ascend'. Received {received}")
        self.strategy = self.make_strategy(table_rows)

    def make_strategy(self, table_rows: int) -> tf.distribute.Strategy:
        """Opens devices, joins the cluster, and returns the strategy; called once, before anything of TensorFlow runs.

        Args:
          table_rows: rows of the embedding table, by which a partitioner recognizes it.
        """
        return tf.distribute.get_strategy()

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder; exactly one of a run's processes does."""
        return True

    @property
    def catches_signals(self) -> bool:
        """Whether this process finishes its step and saves when it is told to stop.

        Of several processes that step together none can: the others may have left the all-reduce that the step waits for.
        """
        return True

    def epoch_rows(self, records: Records) -> int:
        """Rows of `records` that an epoch trains on.

        Args:
          records: the prepared data.

        Raises:
          DataError: there are none.
        """
        rows = records.rows("train")
        if rows == 0:
            raise DataError(f"{records.folder}: there are no training rows")
        if self.needs_whole_batches and rows < self.options.batch_size:
            raise DataError(f"{records.folder}: {rows} training rows make no batch of {self.options.batch_size}")
        return rows - rows % self.options.batch_size if self.needs_whole_batches else rows

    def build(self, make_model: Callable[[], DLRM], make_optimizer: Callable[[], Any]) -> DLRM:
        """Makes the model and compiles it.

        Args:
          make_model: makes the `DLRM` with the weights to start from.
          make_optimizer: makes the Keras optimizer.

        Returns:
          The compiled model to train; it may be another one than `make_model`'s, with the same weights.
        """
        with self.strategy.scope():
            model, optimizer = self.wrap(make_model(), make_optimizer())
            model.compile(optimizer, steps_per_execution=self.options.steps_per_execution)
        return model

    def wrap(self, model: DLRM, optimizer: Any) -> tuple[DLRM, Any]:
        """The model and the optimizer as the devices need them; called under the strategy's scope.

        Args:
          model: the model as `fit` made it.
          optimizer: the Keras optimizer as `fit` made it.
        """
        return model, optimizer

    def restore(self, model: DLRM, checkpoints: RunCheckpoints) -> int:
        """Brings model and optimizer of every process to where the run is.

        Args:
          model: the compiled model.
          checkpoints: the run's checkpoints.

        Returns:
          The number of optimizer steps done; 0 in a new run.
        """
        return checkpoints.restore() if self.options.resume else 0

    def run_stretch(
        self, model: DLRM, batches: Callable, position: EpochPosition, callbacks: Sequence[Any], saver: SaveRun
    ) -> None:
        """Trains from `position` to the end of its stretch.

        Args:
          model: the compiled model.
          batches: function of `start_batch`, a number or an int64 scalar tensor, counted from the start of the run; returns the
            `tf.data.Dataset` of global batches from there on, epoch after epoch.
          position: where the run is; among `callbacks` too.
          callbacks: Keras callbacks, called at the end of every step in this order.
          saver: the callback that writes checkpoints; comes last.
        """
        dataset = self.dataset(model, functools.partial(batches, start_batch=position.step))
        steps = position.stop - position.batch
        model.fit(dataset, steps_per_epoch=steps, callbacks=[*callbacks, saver], verbose=0)

    def dataset(self, model: DLRM, batches: Callable[[], tf.data.Dataset]) -> Any:
        """This process's share of global batches, as `model.fit` takes it.

        Replica r of n takes rows `[len * r // n, len * (r + 1) // n)` of every batch, so that all replicas together do what one
        process does with the same batches in the same order. Each process reads the whole of every batch (160 bytes per row).

        Args:
          model: the compiled model.
          batches: makes the dataset of global batches; called once in every process.
        """
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1:
            return batches()

        def per_process(context):
            local = replicas // context.num_input_pipelines
            first = context.input_pipeline_id * local

            def share(features, label):
                rows = tf.shape(label)[0]

                def part(replica):
                    begin, end = rows * replica // replicas, rows * (replica + 1) // replicas
                    return {name: value[begin:end] for name, value in features.items()}, label[begin:end]

                return tf.data.Dataset.range(first, first + local, output_type=tf.int32).map(part)

            return batches().flat_map(share).prefetch(2)

        return self.strategy.distribute_datasets_from_function(per_process)

    def agree(self, numbers: list[float]) -> list[float]:
        """The chief's numbers, in every process; each calls it at the same place. Exact for what a float32 holds.

        Args:
          numbers: this process's numbers, as many as the chief has.
        """
        return numbers

    def host_model(self, model: DLRM) -> DLRM:
        """The ordinary `DLRM` with a trained model's weights, which is measured and saved.

        Args:
          model: the model that is trained.
        """
        return model
