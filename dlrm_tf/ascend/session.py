"""Sessions of TF 1 on the NPU, through `npu_bridge`: for scoring a frozen graph or for one's own graph-mode code.

The model itself is a Keras 2 model and trains through `npu_device` (`dlrm_tf.ascend.device`).
"""

from typing import Any, Optional

from dlrm_tf.ascend.plugin import PRECISION_MODES, load_npu_bridge
from dlrm_tf.errors import AscendError, UsageError

# The graph optimizer by which the plugin takes a session's graph to the NPU.
_OPTIMIZER = "NpuOptimizer"


def session_config(*, precision: str = "float32", config: Optional[Any] = None) -> Any:
    """A `ConfigProto` for `tf.compat.v1.Session` that runs the graph on the NPU.

    Args:
      precision: `"float32"`, or `"mixed"`: float16 where the plugin considers it safe.
      config: a `ConfigProto` to complete; a new one when None.

    Raises:
      AscendError: npu_bridge is not installed or does not load.
      UsageError: an unknown precision.

    Example:
      with tf.compat.v1.Session(graph=graph, config=session_config()) as session:
          session.run("Identity:0", {"dense:0": dense, "categorical:0": categorical})
    """
    if precision not in PRECISION_MODES:
        raise UsageError(f"precision must be one of {', '.join(PRECISION_MODES)}. Received {precision!r}")
    config = load_npu_bridge().npu_config_proto(config)
    for optimizer in config.graph_options.rewrite_options.custom_optimizers:
        if optimizer.name == _OPTIMIZER:
            optimizer.parameter_map["precision_mode"].s = PRECISION_MODES[precision].encode()
            return config
    raise AscendError(
        f"npu_bridge: wanted a graph optimizer {_OPTIMIZER} from npu_config_proto. Received none; this version of the plugin is "
        "not supported"
    )
