"""Sessions."""

import json
import os

import tensorflow as tf


def npu_config_proto(config_proto=None):
    config = config_proto if isinstance(config_proto, tf.compat.v1.ConfigProto) else tf.compat.v1.ConfigProto()
    custom = config.graph_options.rewrite_options.custom_optimizers
    if not any(optimizer.name == "NpuOptimizer" for optimizer in custom):
        custom.add().name = "NpuOptimizer"
    if os.environ.get("FAKE_NPU_JOURNAL"):
        with open(os.environ["FAKE_NPU_JOURNAL"], "a") as f:
            f.write(json.dumps({"event": "session"}) + "\n")
    return config


def set_keras_session_npu_config(config=None):
    session = tf.compat.v1.Session(config=npu_config_proto(config))
    tf.compat.v1.keras.backend.set_session(session)
    return session


def npu_distributed_optimizer_wrapper(optimizer):
    return optimizer
