"""The part of npu_device for TF 2 that our code uses."""

import os

if os.environ.get("FAKE_NPU_BROKEN"):
    raise ImportError("libascendcl.so: cannot open shared object file: No such file or directory")

from npu_device import compat, distribute, train  # noqa: E402
from npu_device.device import (  # noqa: E402
    global_options,
    is_inf_nan_enabled,
    open,
    set_device_sat_mode,
    set_npu_loop_size,
)

__all__ = [
    "compat",
    "distribute",
    "global_options",
    "is_inf_nan_enabled",
    "open",
    "set_device_sat_mode",
    "set_npu_loop_size",
    "train",
]
