"""`Watch`: acts on the validation loglosses of a run between two stretches of training."""

import sys
from typing import Optional

from dlrm_tf.keras2 import tensorflow
from dlrm_tf.train.options import ResolvedOptions
from dlrm_tf.train.placements.base import Placement
from dlrm_tf.train.stopping import Decision, decide

tf = tensorflow()


class Watch:
    """Ends a training early and lowers its rates on a plateau, in all of its processes at the same step.

    Args:
      options: the run's options.
    """

    def __init__(self, options: ResolvedOptions):
        self._options = options
        self._rate_factor: Optional[tf.Variable] = None
        self._lowers = options.plateau_factor < 1.0

    def make_rate_factor(self) -> Optional[tf.Variable]:
        """The variable that the learning rates are multiplied by, or None when no plateau lowers them.

        Call it once, under the scope of the strategy that trains.
        """
        if self._lowers:
            self._rate_factor = tf.Variable(1.0, trainable=False, name="rate_factor")
        return self._rate_factor

    def stops(self, history: list[dict], placement: Placement) -> bool:
        """Sets the rates that follow from the history, and says whether training ends here.

        Args:
          history: the run's entries; only the chief's is asked.
          placement: the run's placement; every process calls this at the same step.
        """
        if not (self._lowers or self._options.patience):
            return False
        decision = decide(history, self._options)
        stop, factor = placement.agree([float(decision.stop), decision.rate_factor])
        decision = Decision(bool(stop), factor)
        if self._rate_factor is not None:
            before = float(self._rate_factor.numpy())
            self._rate_factor.assign(decision.rate_factor)
            after = float(self._rate_factor.numpy())
            if after < before and placement.is_chief and not self._options.quiet and not decision.stop:
                text = (
                    f"validation logloss did not improve: learning rates times {after:.3g} from step {history[-1]['step'] + 1} on"
                )
                print(text, file=sys.stderr)
        return decision.stop
