"""What follows from the validation loglosses of a run so far: the best weights, early stopping, the rates on a plateau.

All of it is computed from the history, so a resumed run decides as an uninterrupted one does.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from dlrm_tf.train.options import ResolvedOptions


class Decision(NamedTuple):
    """What the loop does after a measurement.

    Attributes:
      stop: whether training ends.
      rate_factor: what the learning rates are multiplied by from here on.
    """

    stop: bool
    rate_factor: float


def measured(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a history that have validation figures."""
    return [entry for entry in history if entry["validation"]]


def best_entry(history: Sequence[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """The entry with the lowest validation logloss, the earliest of equal ones; None when nothing was measured."""
    return min(measured(history), key=lambda entry: entry["validation"]["logloss"], default=None)


def decide(history: Sequence[dict[str, Any]], options: ResolvedOptions) -> Decision:
    """Early stopping and the plateau rule.

    Args:
      history: the run's entries.
      options: `patience` (0: never stop), `plateau_factor` and `plateau_patience`.
    """
    best, since_best, since_change, factor = math.inf, 0, 0, 1.0
    for entry in measured(history):
        if entry["validation"]["logloss"] < best:
            best, since_best, since_change = entry["validation"]["logloss"], 0, 0
            continue
        since_best, since_change = since_best + 1, since_change + 1
        if since_change == options.plateau_patience:
            factor, since_change = factor * options.plateau_factor, 0
    return Decision(bool(options.patience) and since_best >= options.patience, factor)
