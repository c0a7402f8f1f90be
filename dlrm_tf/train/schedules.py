"""Learning rate over the steps: linear warm-up, constant, polynomial decay."""

from typing import Any, Optional, Union

from dlrm_tf.keras2 import tensorflow

tf = tensorflow()


class WarmUpThenDecay(tf.keras.optimizers.schedules.LearningRateSchedule):
    """`peak * (step + 1) / warmup_steps`, then `peak`, then `peak * ((total_steps - step) / decay_steps) ** power`.

    The schedule of the MLPerf DLRM reference (facebookresearch/dlrm, `LRPolicyScheduler`, where power is 2).

    Args:
      peak: the learning rate after warm-up.
      total_steps: steps of the whole training.
      warmup_steps: steps of the rise; 0 starts at `peak`.
      decay_steps: steps of the fall to zero; 0 stays at `peak`.
      power: exponent of the fall; 1 is linear.
      factor: a float32 scalar variable that every rate is multiplied by, or None; whoever has it may change it between steps.

    Raises:
      ValueError: the steps do not fit into `total_steps`.
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        *,
        warmup_steps: int = 0,
        decay_steps: int = 0,
        power: float = 2.0,
        factor: Optional[tf.Variable] = None,
    ):
        if min(warmup_steps, decay_steps) < 0 or warmup_steps + decay_steps > total_steps:
            raise ValueError(
                f"warmup_steps + decay_steps must fit into total_steps. "
                f"Received {warmup_steps} + {decay_steps} in {total_steps} steps"
            )
        if power <= 0:
            raise ValueError(f"power must be positive. Received {power}")
        self.peak, self.total_steps, self.power = float(peak), total_steps, float(power)
        self.warmup_steps, self.decay_steps = warmup_steps, decay_steps
        self.factor = factor

    def __call__(self, step: Union[int, tf.Tensor]) -> tf.Tensor:
        """The learning rate, a float32 scalar.

        Args:
          step: number of the optimizer step, from 0.
        """
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.peak)
        if self.decay_steps:
            left = (float(self.total_steps) - step) / float(self.decay_steps)
            rate *= tf.clip_by_value(left, 0.0, 1.0) ** self.power
        if self.warmup_steps:
            rate *= tf.minimum((step + 1.0) / float(self.warmup_steps), 1.0)
        return rate if self.factor is None else rate * self.factor

    def get_config(self) -> dict[str, Any]:
        """The arguments, from which Keras rebuilds the schedule."""
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "decay_steps": self.decay_steps,
            "power": self.power,
            "factor": self.factor,
        }
