"""Paths of the golden data, and TensorFlow kept quiet and off the GPU."""

import gzip
import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Before any test imports TensorFlow: makes tf.keras Keras 2.
import pytest  # noqa: E402

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # in MindSpore's environment
    pass
else:
    # A busy machine is no failure.
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")

import dlrm_tf  # noqa: E402

GOLDEN = pathlib.Path(__file__).parent / "golden"
TINY = pathlib.Path(dlrm_tf.__file__).parent / "checkpoints" / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    """tests/golden."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_ckpt(tmp_path_factory):
    """Function `(name, stage) -> path` of a MindSpore-written checkpoint: name tiny|hub_layout, stage init|trained."""
    folder = tmp_path_factory.mktemp("golden")

    def path(name: str, stage: str) -> pathlib.Path:
        if name == "tiny":
            return TINY / f"tiny.{stage}.ckpt"
        target = folder / f"{name}.{stage}.ckpt"
        if not target.exists():
            with gzip.open(GOLDEN / f"{name}.{stage}.ckpt.gz") as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out)
        return target

    return path


@pytest.fixture(scope="session")
def golden_run():
    """Function `name -> (config dict, arrays)` of a golden run: name tiny|hub_layout."""
    import json

    import numpy as np

    def run(name: str):
        folder = TINY if name == "tiny" else GOLDEN
        settings = json.loads((folder / f"{name}.json").read_text())
        with np.load(folder / f"{name}.npz") as arrays:
            return settings, {key: arrays[key] for key in arrays.files}

    return run
