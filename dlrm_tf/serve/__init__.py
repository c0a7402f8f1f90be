"""The embedded model server: TensorFlow Serving's API, over gRPC and REST."""

import importlib
import warnings
from typing import Any

_PUBLIC = {"ModelServer": "dlrm_tf.serve.server", "ServerOptions": "dlrm_tf.serve.options"}
# Deprecated aliases: names that were here in version 0.1.0.
_MOVED = dict.fromkeys(("Client", "Tls", "open_target"), "dlrm_tf.score")
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        warnings.warn(f"dlrm_tf.serve.{name} is {_MOVED[name]}.{name} now", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(_MOVED[name]), name)
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dlrm_tf.serve' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
