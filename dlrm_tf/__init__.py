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
    "fetch": "dlrm_tf.mindspore.fetch",
    "grow_weights": "dlrm_tf.model.grow",
    "Records": "dlrm_tf.data.records",
    "Vocabulary": "dlrm_tf.data.vocabulary",
    "synth": "dlrm_tf.data.synthetic",
    "prepare": "dlrm_tf.data.criteo",
    "fit": "dlrm_tf.train.fit",
    "evaluate": "dlrm_tf.train.evaluate",
    "export_savedmodel": "dlrm_tf.export.saved_model",
    "export_tflite": "dlrm_tf.export.tflite",
    "export_ascend": "dlrm_tf.export.ascend",
}
# Modules reached as attributes: dlrm_tf.keras3, dlrm_tf.lite.Scorer, dlrm_tf.serve.Client, ...
_MODULES = {
    "keras3": "dlrm_tf.model.keras3",
    **{room: f"dlrm_tf.{room}" for room in ("ascend", "data", "export", "lite", "mindspore", "model", "serve", "train")},
}
__all__ = [*_PUBLIC, *_MODULES, "__version__"]


def __getattr__(name):
    if name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    elif name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    else:
        raise AttributeError(f"module 'dlrm_tf' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
