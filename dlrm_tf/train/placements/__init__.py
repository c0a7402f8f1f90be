"""Placements: which devices and processes train together, one file each, behind the interface of `base.Placement`."""

from dlrm_tf.train.placements.ascend import AscendPlacement
from dlrm_tf.train.placements.local import LocalPlacement
from dlrm_tf.train.placements.parameter_server import ParameterServerPlacement
from dlrm_tf.train.placements.replicated import MirroredPlacement, MultiWorkerPlacement
from dlrm_tf.train.placements.tpu import TPUPlacement

# `FitOptions.strategy` -> its class.
PLACEMENTS = {
    "default": LocalPlacement,
    "mirrored": MirroredPlacement,
    "multi_worker": MultiWorkerPlacement,
    "parameter_server": ParameterServerPlacement,
    "tpu": TPUPlacement,
    "ascend": AscendPlacement,
}
