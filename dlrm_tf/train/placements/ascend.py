"""Huawei NPUs, one process each, through the Ascend plugin (`dlrm_tf.ascend`)."""

from collections.abc import Sequence
from typing import Any, Callable

from dlrm_tf.ascend.device import open_device
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.train.callbacks import SaveRun
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.placements.base import Placement
from dlrm_tf.train.position import EpochPosition

tf = tensorflow()


class AscendPlacement(Placement):
    """The NPU of this process, and those of the other processes that the plugin's environment variables name.

    Raises:
      AscendError: the plugin, its environment or the NPU is not ready.
    """

    allows_precision = True
    needs_whole_batches = True
    # L2 and the norm want the distinct rows of a batch, which are no static shape; dropout's draws were not tried on an NPU.
    refused = ("l2", "clip_norm", "dropout", "reset_table_each_epoch")

    def make_strategy(self, table_rows: int) -> tf.distribute.Strategy:
        """See `Placement.make_strategy`; no `tf.distribute` on an NPU."""
        self._device = open_device(precision=self.options.precision, loss_scale=self.options.loss_scale)
        self._device.local_batch_size(self.options.batch_size)
        return tf.distribute.get_strategy()

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""
        return self._device.is_chief

    @property
    def catches_signals(self) -> bool:
        """Whether this process is alone."""
        return self._device.world_size == 1

    def wrap(self, model: DLRM, optimizer: Any) -> tuple[DLRM, Any]:
        """See `Placement.wrap`."""
        return model, self._device.distribute(optimizer, model)

    def restore(self, model: DLRM, checkpoints: RunCheckpoints) -> int:
        """See `Placement.restore`; the chief reads, the others get what it has by broadcast, in a new run too."""
        if self.is_chief:
            super().restore(model, checkpoints)
        self._device.broadcast(model, [checkpoints.step])
        return int(checkpoints.step.numpy())

    def agree(self, numbers: list[float]) -> list[float]:
        """See `Placement.agree`; the chief's are broadcast."""
        return self._device.agree(numbers)

    def run_stretch(
        self, model: DLRM, batches: Callable, position: EpochPosition, callbacks: Sequence[Any], saver: SaveRun
    ) -> None:
        """See `Placement.run_stretch`."""
        loop_size = self._device.loop_callback(self.options.steps_per_execution)
        super().run_stretch(model, batches, position, [*callbacks, loop_size], saver)

    def dataset(self, model: DLRM, batches: Callable[[], tf.data.Dataset]) -> Any:
        """See `Placement.dataset`; the rows are shared out by rank."""
        return self._device.share(batches())
