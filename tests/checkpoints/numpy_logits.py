"""Logits of a weights file, by the NumPy reference."""

from dlrm_tf.checkpoints.reference import logits
from dlrm_tf.weights.reader import WeightsReader


def numpy_logits(weights_file, dense, categorical, key_weights=None):
    """float64 `[n, 1]`; see `reference.logits` for the rows."""
    with WeightsReader(weights_file) as reader:

        def weight(part, index, kind, ids):
            return reader.dense(part, index)[kind == "bias"] if ids is None else reader.rows(index, 0, 1 << 30)[ids]

        return logits(reader.config, weight, dense, categorical, key_weights)
