"""Loss scaling with the device's own look-out for overflow."""

import tensorflow as tf

from npu_device.device import journal

if tf.__version__.startswith("2.6."):
    _Base = tf.keras.mixed_precision.LossScaleOptimizer
else:  # newer Keras hides it behind a factory
    from tf_keras.src.mixed_precision.loss_scale_optimizer import LossScaleOptimizer as _Base


class NpuLossScaleOptimizer(_Base):
    def __init__(self, inner_optimizer, dynamic=True, initial_scale=None, dynamic_growth_steps=None):
        journal("loss_scale", dynamic=dynamic, initial_scale=initial_scale)
        super().__init__(inner_optimizer, dynamic, initial_scale, dynamic_growth_steps)
