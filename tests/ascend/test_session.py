"""Session configuration for TF 1's style."""

import pytest

from dlrm_tf.ascend import plugin
from dlrm_tf.ascend.session import session_config
from dlrm_tf.errors import UsageError
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()


@pytest.mark.parametrize("precision, mode", [("float32", b"must_keep_origin_dtype"), ("mixed", b"allow_mix_precision")])
def test_session_config(fake_plugin, monkeypatch, precision, mode):
    monkeypatch.setattr(plugin, "_version", {"npu_bridge": "1.15.0", "tensorflow": "1.15.0"}.get)
    mine = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=3)
    config = session_config(precision=precision, config=mine)
    assert config.intra_op_parallelism_threads == 3
    (optimizer,) = config.graph_options.rewrite_options.custom_optimizers
    assert optimizer.name == "NpuOptimizer"
    assert optimizer.parameter_map["precision_mode"].s == mode


def test_unknown_precision():
    with pytest.raises(UsageError, match="precision must be one of float32, mixed. Received 'half'"):
        session_config(precision="half")
