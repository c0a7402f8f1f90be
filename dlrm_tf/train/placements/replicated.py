"""Replicas of the model that step together: the devices of this process, or several processes."""

from dlrm_tf.keras2 import tensorflow
from dlrm_tf.train.placements import tf_config
from dlrm_tf.train.placements.base import Placement

tf = tensorflow()


class MirroredPlacement(Placement):
    """All GPUs of this machine, or all logical CPU devices when there is none."""

    allows_steps_per_execution = False
    refused = ("clip_norm",)  # the norm is that of the sum over replicas, which is made later

    def make_strategy(self, table_rows: int) -> tf.distribute.Strategy:
        """See `Placement.make_strategy`."""
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])


class MultiWorkerPlacement(Placement):
    """The workers of `TF_CONFIG`, one process each; its first worker is the chief."""

    allows_steps_per_execution = False
    refused = MirroredPlacement.refused

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

    def agree(self, numbers: list[float]) -> list[float]:
        """See `Placement.agree`; the sum over replicas of the chief's numbers and zeros."""

        @tf.function
        def in_replicas():
            context = tf.distribute.get_replica_context()
            own = tf.where(context.replica_id_in_sync_group == 0, tf.constant(numbers, tf.float32), 0.0)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

        agreed = self.strategy.experimental_local_results(self.strategy.run(in_replicas))[0]
        return [float(number) for number in agreed.numpy()]
