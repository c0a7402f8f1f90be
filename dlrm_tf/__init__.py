"""MindSpore's DLRM in TensorFlow: convert, retrain, serve, score on a device.

Importing this package loads no TensorFlow; a name's module is imported when the name is first used (PEP 562).
"""

import importlib
import os
import sys

# TFRS imports only under Keras 2, and TensorFlow reads this variable once, when its Keras is first loaded.
if "tensorflow" not in sys.modules:
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

__version__ = "0.1.0"

# Public name -> module that defines it.
_PUBLIC = {
    "DLRMConfig": "dlrm_tf.config",
    "DLRM": "dlrm_tf.model.dlrm",
    "load": "dlrm_tf.model.weights",
    "convert": "dlrm_tf.mindspore.convert",
    "Vocabulary": "dlrm_tf.data.vocabulary",
    "synth": "dlrm_tf.data.synthetic",
    "prepare": "dlrm_tf.data.criteo",
    "fit": "dlrm_tf.train.fit",
    "evaluate": "dlrm_tf.train.evaluate",
    "export_savedmodel": "dlrm_tf.export.saved_model",
    "export_tflite": "dlrm_tf.export.tflite",
    "keras3": None,
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dlrm_tf' has no attribute {name!r}")
    if _PUBLIC[name] is None:
        return importlib.import_module(f"dlrm_tf.model.{name}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
