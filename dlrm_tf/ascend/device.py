"""The NPU of this process: opened before any model is built, then asked to distribute optimizer, variables and rows."""

import types
import warnings
from collections.abc import Sequence
from typing import Any, Optional, Union

from dlrm_tf.ascend.cluster import Cluster
from dlrm_tf.ascend.plugin import PRECISION_MODES, load_npu_device
from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import AscendError, UsageError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.model.optimizers import LazyAdam, parts

tf = tensorflow()

# Above this an all-reduce of the whole table in every step is worth a warning.
LARGE_TABLE_BYTES = 1 << 30


def open_device(
    *, precision: str = "float32", loss_scale: Union[None, float, str] = None, options: Optional[dict[str, Any]] = None
) -> "AscendDevice":
    """Opens this process's NPU and makes it TensorFlow's default device; call it before anything else of TensorFlow.

    The plugin's environment variables say which device, and in which cluster (`dlrm_tf.ascend.cluster`). Arguments and
    environment are checked before the plugin is loaded or the device opened.

    Args:
      precision: `"float32"`, or `"mixed"`: float16 where the plugin considers it safe, with a scaled loss.
      loss_scale: with `"mixed"`: a fixed scale, or `"dynamic"` (the default).
      options: further names of `npu_device.global_options()` and their values; `precision_mode_v2` replaces what `precision`
        would set.

    Returns:
      The `AscendDevice`.

    Raises:
      AscendError: plugin, environment or device are not ready, or TensorFlow has already run an operation.
      UsageError: an invalid argument, or options that exclude each other.
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
            f"wanted {cluster.world_size} processes, as the environment says. Received {handle.workers_num} from the plugin: "
            "this npu_device does not know the variables in use (CM_* needs a newer one than RANK_TABLE_FILE)"
        )
    handle.as_default()
    return AscendDevice(npu, cluster.world_size, handle.worker_id, scale)


def _check_arguments(precision: str, loss_scale: Union[None, float, str], options: dict) -> Union[None, float, str]:
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
    """The plugin replaces TensorFlow's context; variables made in the old one would be lost."""
    from tensorflow.python.eager import context

    if context.context()._initialized:
        raise AscendError(
            "TensorFlow has already run an operation in this process: open the device before any model or variable is made"
        )


class AscendDevice:
    """An open NPU and what training needs of the plugin; made by `open_device`.

    Args:
      npu: the `npu_device` module.
      world_size: processes that train together, one per device.
      rank: number of this process, from 0.
      loss_scale: None, a fixed scale, or `"dynamic"`.

    Attributes:
      world_size: processes that train together, one per device.
      rank: number of this process, from 0.

    Example:
      device = open_device()
      model = dlrm_tf.DLRM(config, seed=0)
      model.compile(device.distribute(make_optimizer("sgd"), model))
      device.broadcast(model)
      model.fit(device.share(records.dataset("train", 8192, shuffle_seed=0, drop_remainder=True)))
    """

    def __init__(self, npu: types.ModuleType, world_size: int, rank: int, loss_scale: Union[None, float, str]):
        self._npu, self._loss_scale = npu, loss_scale
        self.world_size, self.rank = world_size, rank

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files: rank 0 does."""
        return self.rank == 0

    def distribute(self, optimizer: tf.keras.optimizers.Optimizer, model: DLRM) -> tf.keras.optimizers.Optimizer:
        """The optimizer with the loss scaled (precision `"mixed"`) and gradients averaged over all processes.

        Gradients are averaged before they are checked for overflow, so that all processes skip the same steps. An optimizer
        that was wrapped before is returned as it is: wrapped twice, it would reduce twice. The model's lookup of distinct rows
        is switched off, because an NPU needs static shapes.

        Args:
          optimizer: a Keras optimizer (`dlrm_tf.model.optimizers.make_optimizer`).
          model: the model it is for.

        Returns:
          The optimizer to compile the model with.

        Raises:
          UsageError: the optimizer needs a sparse gradient of the table, but the plugin's all-reduce makes it dense.
        """
        model.embedding.deduplicate = False
        made = getattr(optimizer, "_ascend_distributed", None)
        if made is not None:
            return made
        inner = optimizer
        if self._loss_scale is not None:
            optimizer = self._scaled(optimizer)
        if self.world_size > 1:
            for part, _ in parts(inner):
                if isinstance(part, LazyAdam):  # with a dense gradient it would be Adam
                    raise UsageError(
                        f"LazyAdam does not work on {self.world_size} Ascend devices: the plugin makes the "
                        "embedding table's gradient dense; take sgd, adagrad or rowwise_adagrad"
                    )
            self._warn_of_dense_gradient(model.config)
            optimizer = self._npu.distribute.npu_distributed_keras_optimizer_wrapper(optimizer)
        inner._ascend_distributed = optimizer._ascend_distributed = optimizer
        return optimizer

    def _scaled(self, optimizer):
        # Where overflow gives Inf or NaN, Keras's loss scale detects it; where it saturates, only the plugin's does.
        if self._npu.is_inf_nan_enabled():
            scaled = tf.keras.mixed_precision.LossScaleOptimizer
        else:
            scaled = self._npu.train.optimizer.NpuLossScaleOptimizer
        if self._loss_scale == "dynamic":
            return scaled(optimizer)
        return scaled(optimizer, dynamic=False, initial_scale=self._loss_scale)

    def _warn_of_dense_gradient(self, config: DLRMConfig) -> None:
        table = config.table_bytes
        if table > LARGE_TABLE_BYTES:
            moved = 2 * (self.world_size - 1) / self.world_size * table
            warnings.warn(
                f"every step all-reduces the whole embedding table's gradient, {table / 1e9:.2f} GB, as the plugin has no sparse "
                f"all-reduce: about {moved / 1e9:.2f} GB in and out of each of {self.world_size} devices a step, and as much "
                "memory again; larger batches make fewer steps, a smaller vocabulary (prepare --min-count) a smaller table",
                RuntimeWarning,
                stacklevel=3,
            )

    def broadcast(self, model: DLRM, extra: Sequence[tf.Variable] = ()) -> None:
        """Gives every process the chief's weights and optimizer state; call it after building, and again after a restore.

        Args:
          model: a compiled model.
          extra: further variables, of any dtype but float64 and string.
        """
        if self.world_size > 1:
            weights = model.trainable_variables
            self._npu.distribute.broadcast([*weights, *_state(model.optimizer, weights), *extra], root_rank=0)

    def agree(self, numbers: list[float]) -> list[float]:
        """The chief's numbers in every process.

        Args:
          numbers: as many as the chief has; they travel as float32.
        """
        if self.world_size == 1:
            return numbers
        shared = tf.Variable(numbers, dtype=tf.float32, trainable=False, name="agreed")
        self._npu.distribute.broadcast([shared], root_rank=0)
        return [float(number) for number in shared.numpy()]

    def local_batch_size(self, batch_size: int) -> int:
        """Rows a step of this process.

        Args:
          batch_size: rows per step of all processes together.

        Raises:
          UsageError: not a multiple of the number of processes.
        """
        if batch_size % self.world_size:
            raise UsageError(f"batch size: wanted a multiple of the {self.world_size} devices. Received {batch_size}")
        return batch_size // self.world_size

    def share(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """This process's rows of every batch: rank, rank + world_size, ..., the same as `shard_and_rebatch_dataset` gives.

        Faster than `shard`, because batches are not split into single rows and put together again.

        Args:
          batches: a dataset of batches for all processes together, of a static size.

        Returns:
          A dataset of batches of `local_batch_size` rows, of static shape.

        Raises:
          UsageError: a batch size that is not static, or not a multiple of the number of processes.
        """
        for part in tf.nest.flatten(batches.element_spec):
            if part.shape[0] is None:
                raise UsageError("batches: wanted a static batch size (drop_remainder=True). Received a dynamic one")
            self.local_batch_size(part.shape[0])
        if self.world_size == 1:
            return batches
        return batches.map(lambda *batch: tf.nest.map_structure(lambda t: t[self.rank :: self.world_size], batch))

    def shard(self, rows: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        """Shares out and batches a dataset of single rows.

        Args:
          rows: an unbatched dataset, the same in every process.
          batch_size: rows per step of all processes together.

        Returns:
          A dataset of batches of `local_batch_size(batch_size)` rows, of static shape; a last batch that is not full is left out.

        Raises:
          UsageError: `batch_size` is not a multiple of the number of processes.
        """
        self.local_batch_size(batch_size)
        rows, local = self._npu.distribute.shard_and_rebatch_dataset(rows, batch_size)
        return rows.batch(local, drop_remainder=True)

    def loop_callback(self, steps_per_execution: int) -> tf.keras.callbacks.Callback:
        """A callback that tells the device how many steps each call of it loops over.

        Args:
          steps_per_execution: what the model is compiled with.
        """
        return _LoopSize(self._npu.set_npu_loop_size, steps_per_execution)


class _LoopSize(tf.keras.callbacks.Callback):
    def __init__(self, set_loop_size, steps_per_execution: int):
        super().__init__()
        self._set_loop_size, self._steps_per_execution = set_loop_size, steps_per_execution

    def on_train_batch_begin(self, batch, logs=None):
        # The last call of an epoch runs the steps that are left.
        left = (self.params.get("steps") or self._steps_per_execution + batch) - batch
        self._set_loop_size(min(self._steps_per_execution, left))

    def on_train_end(self, logs=None):
        self._set_loop_size(1)


def _state(optimizer, weights) -> list:
    """Every variable of an optimizer's state; those that do not exist yet are made, which is when a restore fills them.

    The order is ours: `optimizer.variables()` has the order of creation, which a restore changes, so that processes would
    exchange different variables.
    """
    state = []
    for part, own in parts(optimizer, weights):
        part._create_all_weights(own)
        slots = [part.get_slot(variable, name) for name in sorted(part.get_slot_names()) for variable in own]
        state += [part.iterations, *slots]
    if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer) and optimizer.dynamic:
        # Keras offers no other way to them: `LossScaleOptimizer.variables` leaves them out.
        state += [optimizer._loss_scale.current_loss_scale, optimizer._loss_scale.counter]
    return state
