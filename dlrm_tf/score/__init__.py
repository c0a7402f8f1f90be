"""Rows to probabilities wherever the model is: on a server (gRPC or REST), in a SavedModel, a TFLite or a weights file."""

import importlib
from typing import Any

_PUBLIC = {
    "Client": "dlrm_tf.score.client",
    "Tls": "dlrm_tf.score.transport",
    "Predictor": "dlrm_tf.score.predictor",
    "open_target": "dlrm_tf.score.targets",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dlrm_tf.score' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
