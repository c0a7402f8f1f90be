"""The embedded model server (TF Serving's API) and the client for it and for the real TensorFlow Serving."""

import importlib

_PUBLIC = {
    "ModelServer": "dlrm_tf.serve.server",
    "ServerOptions": "dlrm_tf.serve.options",
    "Client": "dlrm_tf.serve.client",
    "Tls": "dlrm_tf.serve.client",
    "open_target": "dlrm_tf.serve.targets",
}
__all__ = [*_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dlrm_tf.serve' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
