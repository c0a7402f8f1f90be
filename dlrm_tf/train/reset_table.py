"""An experiment against overfitting in the second epoch: the table begins anew, the MLPs go on (MEDA, arXiv 2305.19531)."""

from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.model.optimizers import is_table, parts
from dlrm_tf.weights.layout import row_chunks

tf = tensorflow()


def reset_table(model: DLRM, *, seed: int) -> None:
    """Draws the embedding table anew, and sets the optimizer's state of its rows back to what it was at the start.

    OOV rows keep their values: they stand for what is rare, and begin at zero.

    Args:
      model: the compiled model; one device's, or replicas'.
      seed: of the new rows; another one in every epoch.
    """
    model.embedding.draw(seed)
    for optimizer, variables in parts(model.optimizer, model.trainable_variables):
        for variable in filter(is_table, variables):
            optimizer._create_all_weights([variable])
            for name in optimizer.get_slot_names():
                _fill(optimizer.get_slot(variable, name), _start(optimizer, name))


def _start(optimizer, slot: str) -> float:
    """What a slot holds before the first step: our Adagrads' accumulators are the only ones that do not begin at zero."""
    if slot != "accumulator":
        return 0.0
    config = optimizer.get_config()
    return float(config.get("initial_accumulator", config.get("initial_accumulator_value", 0.0)))


def _fill(slot, value: float) -> None:
    for start, stop in row_chunks(0, int(slot.shape[0])):
        rows = tf.fill([stop - start, *slot.shape[1:]], tf.constant(value, slot.dtype))
        slot.scatter_update(tf.IndexedSlices(rows, tf.range(start, stop)))
