"""Scoring on a device: needs NumPy and ai_edge_litert, no TensorFlow."""

from dlrm_tf.lite.scorer import Scorer

__all__ = ["Scorer"]
