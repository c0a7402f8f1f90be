"""One process, one device."""

from dlrm_tf.train.placements.base import Placement


class LocalPlacement(Placement):
    """This process and its first device (or the `tf.distribute` strategy whose scope `fit` is called in)."""

    allows_optimizer_state = True
