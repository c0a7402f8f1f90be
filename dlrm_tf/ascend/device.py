"""The NPU of this process: opened before any model is built, then asked to distribute optimizer, variables and rows."""

import warnings
from typing import Optional, Union

from dlrm_tf.ascend.cluster import Cluster
from dlrm_tf.ascend.plugin import load_npu_device
from dlrm_tf.errors import AscendError, UsageError
from dlrm_tf.keras2 import tensorflow

# The plugin's option `precision_mode`. Left alone, the first-generation 910 computes float32 matrix products in float16.
PRECISION_MODES = {"float32": "must_keep_origin_dtype", "mixed": "allow_mix_precision"}
# Above this an all-reduce of the whole table in every step is worth a warning.
LARGE_TABLE_BYTES = 1 << 30


def open_device(
    precision: str = "float32", loss_scale: Union[None, float, str] = None, options: Optional[dict] = None
) -> "AscendDevice":
    """Opens this process's NPU and makes it TensorFlow's default device; call it before anything else of TensorFlow.

    Which device, and in which cluster, is told by the plugin's environment variables (`dlrm_tf.ascend.cluster`). All that can
    be checked is checked before the plugin is loaded or the device touched.

    Args:
      precision: `"float32"`, or `"mixed"`: float16 where the plugin thinks it safe, with a scaled loss.
      loss_scale: with `"mixed"`: a fixed scale, or `"dynamic"` (the default).
      options: further names of `npu_device.global_options()` and their values; `precision_mode_v2` replaces what `precision`
        would set.

    Returns:
      The `AscendDevice`.

    Raises:
      AscendError: plugin, environment or device are not ready, or TensorFlow is already at work.
      UsageError: an argument that is none, or options that exclude each other.
    """
    options = dict(options or {})
    scale = _check_arguments(precision, loss_scale, options)
    cluster = Cluster.from_environment()
    npu = load_npu_device()
    _check_tensorflow_is_idle()
    if "precision_mode_v2" not in options:
        options.setdefault("precision_mode", PRECISION_MODES[precision])
    for name, value in options.items():
        try:
            setattr(npu.global_options(), name, value)
        except ValueError as e:
            raise AscendError(f"npu_device.global_options().{name} = {value!r}: {' '.join(str(e).split())}") from e
    try:
        handle = npu.open(cluster.device_id)
    except (RuntimeError, ValueError) as e:
        raise AscendError(f"device {cluster.device_id} does not open: {' '.join(str(e).split())}") from e
    if handle.workers_num != cluster.world_size:
        raise AscendError(
            f"the environment tells of {cluster.world_size} processes, the plugin sees {handle.workers_num}: "
            "this npu_device does not know the variables in use (CM_* needs a newer one than RANK_TABLE_FILE)"
        )
    handle.as_default()
    return AscendDevice(npu, cluster.world_size, handle.worker_id, scale)


def _check_arguments(precision: str, loss_scale, options: dict):
    """The loss scale to use: None, "dynamic" or a number."""
    if precision not in PRECISION_MODES:
        raise UsageError(f"precision must be one of {', '.join(PRECISION_MODES)}. Received {precision!r}")
    if {"precision_mode", "precision_mode_v2"} <= set(options):
        raise UsageError("options: precision_mode and precision_mode_v2 exclude each other")
    if precision == "float32":
        if loss_scale is not None:
            raise UsageError(f"loss_scale goes with precision 'mixed'. Received loss_scale={loss_scale!r}, precision 'float32'")
        return None
    if loss_scale in (None, "dynamic"):
        return "dynamic"
    if isinstance(loss_scale, str) or not 0 < loss_scale < float("inf"):
        raise UsageError(f"loss_scale must be 'dynamic' or a positive number. Received {loss_scale!r}")
    return float(loss_scale)


def _check_tensorflow_is_idle() -> None:
    """The plugin replaces TensorFlow's context: what was made in the old one is lost."""
    from tensorflow.python.eager import context

    if context.context()._initialized:
        raise AscendError(
            "TensorFlow has already run an operation in this process: open the device before any model or variable is made"
        )


class AscendDevice:
    """What training needs of the plugin; made by `open_device`.

    Attributes:
      world_size: processes that train together, one a device.
      rank: this one's number, from 0.

    Example:
      device = open_device()
      model = dlrm_tf.DLRM(config, seed=0)
      model.compile(device.distribute(make_optimizer("sgd"), model))
      device.broadcast(model)
      model.fit(device.share(records.dataset("train", 8192, shuffle_seed=0, drop_remainder=True)))
    """

    def __init__(self, npu, world_size: int, rank: int, loss_scale):
        self._npu, self._loss_scale = npu, loss_scale
        self.world_size, self.rank = world_size, rank

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def distribute(self, optimizer, model):
        """The optimizer with the loss scaled (precision `"mixed"`) and gradients averaged over all processes.

        Gradients are averaged before the scaled loss's are looked at for overflow, so that all processes skip the same steps.
        An optimizer that was given before comes back as it is: wrapped twice it would reduce twice. The model is told to look
        its rows up one by one, with static shapes.

        Args:
          optimizer: a `tf.keras.optimizers.Optimizer` (`dlrm_tf.model.optimizers.make_optimizer`).
          model: the `dlrm_tf.DLRM` it is for.

        Raises:
          UsageError: the optimizer needs the table's gradient to be sparse, which the plugin's all-reduce has no way for.
        """
        model.embedding.deduplicate = False
        made = getattr(optimizer, "_ascend_distributed", None)
        if made is not None:
            return made
        inner = optimizer
        if self._loss_scale is not None:
            optimizer = self._scaled(optimizer)
        if self.world_size > 1:
            # Here, not above: it loads TensorFlow, which the device's options come before.
            from dlrm_tf.model.optimizers import LazyAdam, parts

            if any(isinstance(part, LazyAdam) for part, _ in parts(inner)):
                raise UsageError(
                    f"LazyAdam does not work on {self.world_size} Ascend devices: the plugin makes the embedding table's "
                    "gradient dense; take sgd, adagrad or rowwise_adagrad"
                )
            self._warn_of_dense_gradient(model.config)
            optimizer = self._npu.distribute.npu_distributed_keras_optimizer_wrapper(optimizer)
        inner._ascend_distributed = optimizer._ascend_distributed = optimizer
        return optimizer

    def _scaled(self, optimizer):
        # Where overflow gives Inf or NaN, TensorFlow's own finds it; where it saturates, only the plugin's does.
        if self._npu.is_inf_nan_enabled():
            scaled = tensorflow().keras.mixed_precision.LossScaleOptimizer
        else:
            scaled = self._npu.train.optimizer.NpuLossScaleOptimizer
        if self._loss_scale == "dynamic":
            return scaled(optimizer)
        return scaled(optimizer, dynamic=False, initial_scale=self._loss_scale)

    def _warn_of_dense_gradient(self, config) -> None:
        table = config.table_rows * config.embedding_dim * 4
        if table > LARGE_TABLE_BYTES:
            moved = 2 * (self.world_size - 1) / self.world_size * table
            warnings.warn(
                f"every step all-reduces the whole embedding table's gradient, {table / 1e9:.2f} GB, as the plugin has no sparse "
                f"all-reduce: about {moved / 1e9:.2f} GB in and out of each of {self.world_size} devices a step, and as much "
                "memory again; larger batches make fewer steps, a smaller vocabulary (prepare --min-count) a smaller table",
                RuntimeWarning,
                stacklevel=3,
            )

    def broadcast(self, model, extra=()) -> None:
        """Gives every process the chief's weights and optimizer state: after building, and after a restore.

        Args:
          model: a compiled `dlrm_tf.DLRM`.
          extra: further variables (any dtype but float64 and string).
        """
        if self.world_size > 1:
            weights = model.trainable_variables
            self._npu.distribute.broadcast([*weights, *_state(model.optimizer, weights), *extra], root_rank=0)

    def local_batch_size(self, batch_size: int) -> int:
        """Rows a step of this process when all together take `batch_size`.

        Raises:
          UsageError: they can't be shared out evenly.
        """
        if batch_size % self.world_size:
            raise UsageError(f"batch size: wanted a multiple of the {self.world_size} devices. Received {batch_size}")
        return batch_size // self.world_size

    def share(self, batches):
        """This process's rows of every batch: rank, rank + world_size, ... as `shard_and_rebatch_dataset` deals them out.

        Cutting whole batches spares taking records apart into rows.

        Args:
          batches: a dataset of batches for all processes together, of a static size.

        Returns:
          A dataset of batches of `local_batch_size` rows, of static shape.
        """
        tf = tensorflow()
        for part in tf.nest.flatten(batches.element_spec):
            if part.shape[0] is None:
                raise UsageError("batches: wanted a static batch size (drop_remainder=True). Received a dynamic one")
            self.local_batch_size(part.shape[0])
        if self.world_size == 1:
            return batches
        return batches.map(lambda *batch: tf.nest.map_structure(lambda t: t[self.rank :: self.world_size], batch))

    def shard(self, rows, batch_size: int):
        """Shares out and batches a dataset of single rows.

        Args:
          rows: an unbatched dataset, the same in every process.
          batch_size: rows a step of all processes together.

        Returns:
          A dataset of batches of `local_batch_size(batch_size)` rows, of static shape; a last batch that is not full is left out.
        """
        self.local_batch_size(batch_size)
        rows, local = self._npu.distribute.shard_and_rebatch_dataset(rows, batch_size)
        return rows.batch(local, drop_remainder=True)

    def loop_callback(self, steps_per_execution: int):
        """A Keras callback that tells the device how many steps each call of it loops over.

        Args:
          steps_per_execution: what the model is compiled with.
        """
        set_loop_size = self._npu.set_npu_loop_size

        class LoopSize(tensorflow().keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                # Keras makes the epoch's last call with the steps that are left.
                left = (self.params.get("steps") or steps_per_execution + batch) - batch
                set_loop_size(min(steps_per_execution, left))

            def on_train_end(self, logs=None):
                set_loop_size(1)

        return LoopSize()


def _state(optimizer, weights) -> list:
    """Every variable of an optimizer's state, made now if it is not there yet: a restore fills slots when they are made.

    In an order of our own: `optimizer.variables()` has them as they were made, which is another order after a restore, and
    the processes would mix them up.
    """
    # Here, not above: it loads TensorFlow, which the device's options come before.
    from dlrm_tf.model.optimizers import parts

    state = []
    for part, own in parts(optimizer, weights):
        part._create_all_weights(own)
        state.append(part.iterations)
        state += [part.get_slot(variable, name) for name in sorted(part.get_slot_names()) for variable in own]
    if hasattr(optimizer, "inner_optimizer") and optimizer.dynamic:
        # The only way to the scale's variables; `LossScaleOptimizer.variables` leaves them out.
        state += [optimizer._loss_scale.current_loss_scale, optimizer._loss_scale.counter]
    return state
