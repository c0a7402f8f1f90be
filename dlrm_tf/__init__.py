"""MindSpore's DLRM in TensorFlow: convert, retrain, serve, score on a device.

Importing this package loads no TensorFlow; a name's module is imported when the name is first used (PEP 562).
"""

import importlib
import os
import sys
import warnings
from typing import Any

# TFRS imports only under Keras 2, and TensorFlow reads this variable once, when its Keras is first loaded.
if "tensorflow" not in sys.modules:
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

__version__ = "0.2.0.dev0"

# Public name -> module that defines it.
_PUBLIC = {
    "DLRMConfig": "dlrm_tf.config",
    "DLRM": "dlrm_tf.model.dlrm",
    "load": "dlrm_tf.model.dlrm",
    "make_optimizer": "dlrm_tf.model.optimizers",
    "convert": "dlrm_tf.checkpoints.convert",
    "fetch": "dlrm_tf.checkpoints.fetch",
    "grow_weights": "dlrm_tf.weights.grow",
    "Records": "dlrm_tf.data.records",
    "Vocabulary": "dlrm_tf.data.vocabulary",
    "FeatureSpec": "dlrm_tf.data.spec",
    "Bag": "dlrm_tf.data.bag",
    "guess_spec": "dlrm_tf.data.guess.spec",
    "synth": "dlrm_tf.data.synthetic",
    "prepare": "dlrm_tf.data.prepare",
    "SparkEngine": "dlrm_tf.data.spark.engine",
    "fit": "dlrm_tf.train.fit",
    "FitOptions": "dlrm_tf.train.options",
    "Predictor": "dlrm_tf.score.predictor",
    "evaluate": "dlrm_tf.train.evaluate",
    "drift": "dlrm_tf.fresh.drift",
    "export_savedmodel": "dlrm_tf.export.savedmodel.export",
    "export_tflite": "dlrm_tf.export.tflite.export",
    "export_ascend": "dlrm_tf.export.ascend.export",
}
# Modules reached as attributes: dlrm_tf.keras3, dlrm_tf.lite.Scorer, dlrm_tf.score.Client, ...
_ROOMS = ("ascend", "checkpoints", "data", "export", "fresh", "lite", "model", "reports", "score", "serve", "train", "weights")
_MODULES = {"keras3": "dlrm_tf.model.keras3", **{room: f"dlrm_tf.{room}" for room in _ROOMS}}
# Names of 0.1.0 that are called otherwise now.
_MOVED = {"mindspore": "checkpoints"}
__all__ = [*_PUBLIC, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    elif name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _MOVED:
        warnings.warn(f"dlrm_tf.{name} is dlrm_tf.{_MOVED[name]} now", DeprecationWarning, stacklevel=2)
        return __getattr__(_MOVED[name])
    else:
        raise AttributeError(f"module 'dlrm_tf' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
