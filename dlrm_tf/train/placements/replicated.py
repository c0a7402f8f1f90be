"""Replicas of the model that step together: the devices of this process, or several processes."""

from dlrm_tf.keras2 import tensorflow
from dlrm_tf.train.placements import tf_config
from dlrm_tf.train.placements.base import Placement

tf = tensorflow()


class MirroredPlacement(Placement):
    """All GPUs of this machine, or all logical CPU devices when there is none."""

    allows_steps_per_execution = False

    def make_strategy(self, table_rows: int) -> tf.distribute.Strategy:
        """See `Placement.make_strategy`."""
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])


class MultiWorkerPlacement(Placement):
    """The workers of `TF_CONFIG`, one process each; its first worker is the chief."""

    allows_steps_per_execution = False

    def make_strategy(self, table_rows: int) -> tf.distribute.Strategy:
        """See `Placement.make_strategy`."""
        tf_config.cluster("multi_worker", ("worker",))
        return tf.distribute.MultiWorkerMirroredStrategy()

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""
        return tf_config.is_chief()

    @property
    def catches_signals(self) -> bool:
        """False: the other workers may be gone from the all-reduce."""
        return False
