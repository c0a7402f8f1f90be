"""A missing package is answered with a command that installs it, wherever dlrm_tf came from."""

import importlib.metadata
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

import dlrm_tf
from dlrm_tf.errors import MissingExtraError, pip_command, require

PACKAGE = pathlib.Path(dlrm_tf.__file__).parent


def test_in_a_checkout_the_checkout_is_named(monkeypatch):
    assert pip_command() == f"python -m pip install -e {shlex.quote(str(PACKAGE.parent))}"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    wanted = f"matplotlib is not installed: python -m pip install -e '{PACKAGE.parent}[report]'"
    with pytest.raises(MissingExtraError) as e:
        require("matplotlib", "report")
    assert str(e.value) == wanted


def metadata_of_dlrm_tf() -> str:
    """The installed package's; in a checkout the first distribution found is the one that setuptools left beside it."""
    found = importlib.metadata.distribution("dlrm_tf")
    return found.read_text("METADATA") or found.read_text("PKG-INFO")


@pytest.fixture
def answer(tmp_path):
    """Function `Python expression -> text` in a process where the package lies as pip unpacks a wheel, with its metadata."""
    shutil.copytree(PACKAGE, tmp_path / "dlrm_tf", ignore=shutil.ignore_patterns("__pycache__", "golden"))

    def run(expression: str, metadata: bool = True) -> str:
        if metadata:
            folder = tmp_path / f"dlrm_tf-{dlrm_tf.__version__}.dist-info"
            folder.mkdir()
            nested = 'Requires-Dist: dlrm_tf[report,lite]; extra == "nested"\n'
            (folder / "METADATA").write_text(nested + metadata_of_dlrm_tf())
        code = f"import sys; from dlrm_tf.errors import *\n{expression}"
        # Without site-packages, where this environment's own dlrm_tf is.
        command, environment = [sys.executable, "-S", "-c", code], {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_from_a_wheel_the_requirements_are_named(answer):
    code = "try: require('matplotlib', 'report')\nexcept MissingExtraError as e: print(e)"
    assert answer(code) == "matplotlib is not installed: python -m pip install 'matplotlib<4,>=3.7'"


@pytest.mark.skipif(sys.version_info < (3, 10), reason="elsewhere TensorFlow comes from the extra ascend")
def test_from_a_wheel_a_missing_tensorflow_is_named(answer):
    said = answer("from dlrm_tf.keras2 import tensorflow\ntry: tensorflow()\nexcept ImportError as e: print(e)")
    assert said.startswith("tensorflow is not installed: python -m pip install 'tensorflow<2.22,>=2.21; ")
    assert "'absl-py<3,>=0.15'" in said and "extra" not in said and "\n" not in said


def test_every_extra_of_the_metadata_is_found(answer):
    extras = importlib.metadata.metadata("dlrm_tf").get_all("Provides-Extra")
    said = answer(f"for extra in {extras}: print(pip_command(extra))").splitlines()
    assert len(said) == len(extras) and all(line.startswith("python -m pip install ") and "dlrm" not in line for line in said)
    serving = said[extras.index("serving")]
    assert "'tensorflow-serving-api<2.22,>=2.20'" in serving and "'aiohttp<4,>=3.10'" in serving and "tensorflow<" not in serving


def test_an_extra_may_name_others(answer):
    assert answer("print(pip_command('nested'))") == "python -m pip install 'matplotlib<4,>=3.7' 'ai-edge-litert<3,>=2.0'"


def test_a_copy_without_metadata(answer):
    assert answer("print(pip_command('serving'))", metadata=False) == "install dlrm_tf again, from its source or wheel"
