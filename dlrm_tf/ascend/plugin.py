"""Which Ascend plugin is installed: found without importing TensorFlow or the plugin, loaded with errors that say what to do."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import types
from typing import Optional

from dlrm_tf.errors import AscendError, pip_command

_WHERE = "its wheel comes from gitcode.com/cann/tensorflow (releases; take the tag that matches the machine's CANN)"
_SET_ENV = "source CANN's set_env.sh first, for example: source /usr/local/Ascend/ascend-toolkit/set_env.sh"
# Precision -> the plugin's option `precision_mode`. Left alone, the first-generation 910 computes float32 matrix products in
# float16.
PRECISION_MODES = {"float32": "must_keep_origin_dtype", "mixed": "allow_mix_precision"}
# The plugin's modules -> distributions that bring them, in the order they are looked for.
_DISTRIBUTIONS = {
    "npu_device": ("npu_device", "npu-device"),
    "npu_bridge": ("npu_bridge", "npu-bridge"),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-aarch64"),
}


@dataclasses.dataclass(frozen=True)
class Installed:
    """What this Python and machine have for Ascend.

    Attributes:
      npu_device: version of the plugin for TF 2; "" when it is installed without a version, None when it is not installed.
      npu_bridge: version of the plugin for TF 1; "" and None as above.
      tensorflow: version of TensorFlow; "" and None as above.
      cann_home: folder of CANN, where its set_env.sh was sourced (environment variable ASCEND_HOME_PATH or
        ASCEND_TOOLKIT_HOME).
      atc: path of the offline model compiler, when it is on PATH.
    """

    npu_device: Optional[str]
    npu_bridge: Optional[str]
    tensorflow: Optional[str]
    cann_home: Optional[str]
    atc: Optional[str]


def installed() -> Installed:
    """Looks up what is installed; imports none of it."""
    return Installed(
        **{name: _version(name) for name in _DISTRIBUTIONS},
        cann_home=os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME"),
        atc=shutil.which("atc"),
    )


def load_npu_device() -> types.ModuleType:
    """The `npu_device` module.

    Raises:
      AscendError: it is not installed, is for another TensorFlow, or does not load.
    """
    found = installed()
    if found.npu_device is None:
        other = "npu_bridge, the plugin for TF 1, is, but does not train Keras 2 models; " if found.npu_bridge is not None else ""
        raise AscendError(f"npu_device, the Ascend plugin for TensorFlow 2, is not installed: {other}{_WHERE}")
    _check_tensorflow("npu_device", found.npu_device or "2.6.5", found.tensorflow)
    return _load("npu_device")


def load_npu_bridge() -> types.ModuleType:
    """The `npu_bridge.npu_init` module.

    Raises:
      AscendError: it is not installed, is for another TensorFlow, or does not load.
    """
    found = installed()
    if found.npu_bridge is None:
        raise AscendError(f"npu_bridge, the Ascend plugin for TensorFlow 1, is not installed: {_WHERE}")
    _check_tensorflow("npu_bridge", found.npu_bridge or "1.15.0", found.tensorflow)
    return _load("npu_bridge.npu_init")


def _version(name: str) -> Optional[str]:
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return None
    for distribution in _DISTRIBUTIONS[name]:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _check_tensorflow(plugin: str, plugin_version: str, tensorflow_version: Optional[str]) -> None:
    """The plugin's native part is built against one TensorFlow; its version number says which."""
    if tensorflow_version is None:
        raise AscendError(f"{plugin} {plugin_version} needs TensorFlow, which is not installed: {pip_command('ascend')}")
    wanted = plugin_version.split(".")[:2]
    if tensorflow_version and tensorflow_version.split(".")[:2] != wanted:
        advice = f": use Python 3.9 and {pip_command('ascend')}" if plugin == "npu_device" else ""
        raise AscendError(
            f"{plugin} {plugin_version} needs TensorFlow {'.'.join(wanted)}, installed is {tensorflow_version}{advice}"
        )


def _load(module: str) -> types.ModuleType:
    try:
        return importlib.import_module(module)
    # The plugin's native part fails in many ways when CANN's libraries are missing or of another version.
    except Exception as e:
        reason = " ".join(str(e).split())[:300]
        raise AscendError(f"{module} is installed but does not load ({type(e).__name__}: {reason}): {_SET_ENV}") from e
