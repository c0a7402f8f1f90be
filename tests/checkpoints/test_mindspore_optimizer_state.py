"""Optimizer state there and back, bit for bit."""

import h5py
import numpy as np
import pytest
from tensors import read_tensors, write_tensors

from dlrm_tf import convert
from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.errors import CheckpointError
from dlrm_tf.weights.layout import TABLE
from dlrm_tf.weights.optimizer_state import OptimizerStateReader
from dlrm_tf.weights.reader import WeightsReader


@pytest.fixture
def sources(golden_dir, golden_ckpt):
    """name -> checkpoint with the state of that optimizer."""
    return {
        "adagrad": golden_dir / "adagrad.ckpt",
        "momentum": golden_dir / "momentum.ckpt",
        "sgd": golden_ckpt("hub_layout", "trained"),
    }


@pytest.mark.parametrize("name", ["adagrad", "momentum", "sgd"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_there_and_back(sources, tmp_path, name, suffix):
    convert(sources[name], tmp_path / "m.weights.h5", optimizer_state=True, quiet=True)
    convert(tmp_path / "m.weights.h5", tmp_path / f"b{suffix}", optimizer_state=True, quiet=True)
    with Checkpoint(sources[name]) as a, Checkpoint(tmp_path / f"b{suffix}") as b:
        assert sorted(a.names) == sorted(b.names)
        for n in a.names:
            assert a.info(n).dtype == b.info(n).dtype and a.info(n).shape == b.info(n).shape, n
            assert a.read(n).tobytes() == b.read(n).tobytes(), n
    if suffix == ".ckpt" and name == "sgd":  # that one was written by MindSpore in this order
        assert (tmp_path / "b.ckpt").read_bytes() == sources[name].read_bytes()


def test_constant_state_takes_no_room(sources, tmp_path):
    convert(sources["sgd"], tmp_path / "without.weights.h5", quiet=True)
    done = convert(sources["sgd"], tmp_path / "with.weights.h5", optimizer_state=True, quiet=True)
    assert "carried the state of MindSpore's optimizer sgd" in done.notes
    assert (tmp_path / "with.weights.h5").stat().st_size < (tmp_path / "without.weights.h5").stat().st_size + 20_000
    with WeightsReader(tmp_path / "with.weights.h5") as reader:
        state = OptimizerStateReader(reader)
        assert state.slots == ("accum", "stat")
        assert (state.read("stat", TABLE, 0, 700) == 1).all() and (state.read("accum", TABLE, 0, 700) == 0).all()


def test_oov_rows_start_where_adagrad_starts(sources, tmp_path):
    convert(sources["adagrad"], tmp_path / "m.weights.h5", optimizer_state=True, quiet=True)
    with WeightsReader(tmp_path / "m.weights.h5") as reader:
        state = OptimizerStateReader(reader)
        assert state.attributes["optimizer"] == "adagrad" and state.attributes["global_step"].tolist() == [10]
        for f, offset in enumerate(reader.config.block_offsets):
            oov = offset + reader.config.categorical_feature_sizes[f]
            np.testing.assert_array_equal(state.read("accum", TABLE, oov, oov + 1), np.full((1, 4), 0.1, np.float32))


def test_incomplete_and_unknown_state(sources, tmp_path):
    tensors = read_tensors(sources["adagrad"])

    def attempt(changed):
        write_tensors(tmp_path / "x.ckpt", changed)
        convert(tmp_path / "x.ckpt", tmp_path / "x.weights.h5", optimizer_state=True, quiet=True)

    with pytest.raises(CheckpointError, match=r"accum.top_mlp.0.bias wanted Float32 \[16\], which is missing"):
        attempt({n: a for n, a in tensors.items() if n != "accum.top_mlp.0.bias"})
    with pytest.raises(CheckpointError, match=r"accum.top_mlp.0.bias wanted Float32 \[16\], received Float32 \[3\]"):
        attempt({**tensors, "accum.top_mlp.0.bias": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="wanted optimizer state .*. Received moment1, moment2"):
        names = [n for n in tensors if not n.startswith("accum.")]
        attempt({**{n: tensors[n] for n in names}, **{f"moment{k}.{n}": tensors[n] for n in names for k in (1, 2) if "." in n}})
    with pytest.raises(CheckpointError, match="Received none"):
        attempt({n: a for n, a in tensors.items() if not n.startswith("accum.")})
    convert(sources["adagrad"], tmp_path / "m.weights.h5", quiet=True)
    with pytest.raises(CheckpointError, match="holds no optimizer state"):
        convert(tmp_path / "m.weights.h5", tmp_path / "m.ckpt", optimizer_state=True, quiet=True)


def test_damaged_state_is_named(sources, tmp_path):
    path = tmp_path / "m.weights.h5"
    convert(sources["adagrad"], path, optimizer_state=True, quiet=True)
    with h5py.File(path, "r+") as f:
        del f["optimizer_state/embedding/vars/0/accum"]
        f["optimizer_state/embedding/vars/0/accum"] = np.zeros((3, 4), np.float32)
        del f["optimizer_state/top_mlp/_sublayers/dense/vars/1/accum"]
        f["optimizer_state/top_mlp/_sublayers/dense/vars/1/accum"] = h5py.ExternalLink("/etc/passwd", "/x")
    with WeightsReader(path) as reader, pytest.raises(CheckpointError) as e:
        OptimizerStateReader(reader)
    assert "optimizer_state/embedding/vars/0/accum wanted float32 (689, 4), received float32 (3, 4)" in str(e.value)
    assert "optimizer_state/top_mlp/_sublayers/dense/vars/1/accum is missing" in str(e.value)
