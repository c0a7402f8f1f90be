"""Training: `fit` and its options, placements (one file per strategy), checkpoints, metrics, optimizer state in weights files."""

import importlib
import warnings


def __getattr__(name: str):
    if name != "optimizers":  # a module of 0.1.0
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("dlrm_tf.train.optimizers is dlrm_tf.model.optimizers now", DeprecationWarning, stacklevel=2)
    return importlib.import_module("dlrm_tf.model.optimizers")
