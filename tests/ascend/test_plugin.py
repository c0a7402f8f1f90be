"""Detection imports nothing; what is missing or does not fit is said before anything is loaded."""

import pytest

from dlrm_tf.ascend import plugin
from dlrm_tf.errors import AscendError


def test_nothing_installed(clean_environment):
    found = plugin.installed()
    assert found.npu_device is None and found.npu_bridge is None
    assert found.tensorflow
    with pytest.raises(
        AscendError, match="npu_device, the Ascend plugin for TensorFlow 2, is not installed: its wheel comes from"
    ):
        plugin.load_npu_device()
    with pytest.raises(AscendError, match="npu_bridge, the Ascend plugin for TensorFlow 1, is not installed"):
        plugin.load_npu_bridge()


def test_detection_imports_neither_tensorflow_nor_the_plugin(processes):
    code = (
        "import sys; from dlrm_tf.ascend.plugin import installed; found = installed(); "
        "assert not {'tensorflow', 'npu_device', 'npu_bridge', 'hccl'} & set(sys.modules); "
        "print(found.npu_device == found.npu_bridge == found.tensorflow)"
    )
    assert processes.run("-c", code) == (0, "True\n", "")


def test_cann_and_atc(clean_environment, monkeypatch, tmp_path):
    atc = tmp_path / "atc"
    atc.write_text("#!/bin/sh\n")
    atc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", "/opt/cann")
    found = plugin.installed()
    assert (found.atc, found.cann_home) == (str(atc), "/opt/cann")


@pytest.mark.parametrize(
    "versions, message",
    [
        (
            {"npu_device": "2.6.5", "tensorflow": "2.21.0"},
            r"npu_device 2\.6\.5 needs TensorFlow 2\.6, installed is 2\.21\.0: use Python 3\.9",
        ),
        # Installed without its metadata, it is taken for the version there is.
        ({"npu_device": "", "tensorflow": "2.21.0"}, r"npu_device 2\.6\.5 needs TensorFlow 2\.6, installed is 2\.21"),
        ({"npu_device": "2.6.5"}, "needs TensorFlow, which is not installed"),
        ({"npu_bridge": "1.15.0", "tensorflow": "1.15.0"}, "npu_bridge, the plugin for TF 1, is, but does not train Keras 2"),
    ],
)
def test_versions_that_do_not_fit(clean_environment, monkeypatch, versions, message):
    monkeypatch.setattr(plugin, "_version", versions.get)
    monkeypatch.setattr(plugin, "_load", lambda module: pytest.fail("loaded"))
    with pytest.raises(AscendError, match=message):
        plugin.load_npu_device()


def test_a_plugin_that_does_not_load(fake_plugin, monkeypatch):
    monkeypatch.setenv("FAKE_NPU_BROKEN", "1")
    monkeypatch.setattr(plugin, "_version", {"npu_device": "2.6.5", "tensorflow": "2.6.5"}.get)
    with pytest.raises(AscendError, match=r"does not load \(ImportError: libascendcl.so: .*\): source CANN's set_env.sh"):
        plugin.load_npu_device()
