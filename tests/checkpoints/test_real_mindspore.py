"""Against MindSpore itself (`make test-mindspore`, in an environment of its own): each reads the other's files, same numbers."""

import pathlib
import sys

import numpy as np
import pytest

pytest.importorskip("mindspore.train")
import mindspore as ms  # noqa: E402
from mindspore import Parameter, Tensor, nn, ops  # noqa: E402
from mindspore.train import serialization  # noqa: E402

from dlrm_tf import DLRMConfig, convert  # noqa: E402
from dlrm_tf.checkpoints.checkpoint import Checkpoint  # noqa: E402
from dlrm_tf.checkpoints.ckpt_writer import array_tensor, write_checkpoint  # noqa: E402
from dlrm_tf.checkpoints.names import MINDSPORE, weights_of  # noqa: E402
from dlrm_tf.errors import CheckpointError  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
from initial_checkpoint import write_initial_checkpoint  # noqa: E402

RUNS = [(name, stage) for name in ("tiny", "hub_layout") for stage in ("init", "trained")]


def same(ours, theirs):
    theirs = theirs.asnumpy()
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


class Network(nn.Cell):
    """MindSpore's DLRM (research/recommend/dlrm/src/dlrm.py), with its parameter names; float32, dot interaction."""

    def __init__(self, config):
        super().__init__()
        self.parameters = ms.ParameterTuple(
            [Parameter(Tensor(np.zeros(shape, np.float32)), name=MINDSPORE.name(w)) for w, shape in weights_of(config).items()]
        )
        self.layers, self.top_layers = len(config.bottom_mlp), len(config.top_mlp)
        self.features = config.num_categorical
        i, j = np.tril_indices(self.features + 1, -1)
        self.pairs = Tensor((i * (self.features + 1) + j).astype(np.int32))

    def construct(self, dense, categorical):
        """Logits `[B, 1]`."""
        x, at = dense, 0
        for _ in range(self.layers):
            x = ops.relu(ops.matmul(x, self.parameters[at]) + self.parameters[at + 1])
            at += 2
        tables = at + 2 * self.top_layers
        rows = [ops.gather(self.parameters[tables + f], categorical[:, f], 0) for f in range(self.features)]
        vectors = ops.stack([x, *rows], axis=1)
        gram = ops.bmm(vectors, vectors.swapaxes(1, 2))
        x = ops.cat([x, ops.gather(gram.reshape(gram.shape[0], -1), self.pairs, 1)], axis=1)
        for layer in range(self.top_layers):
            x = ops.matmul(x, self.parameters[at]) + self.parameters[at + 1]
            if layer < self.top_layers - 1:
                x = ops.relu(x)
            at += 2
        return x


@pytest.mark.parametrize("name,stage", RUNS)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_mindspore_loads_what_we_convert_back(golden_ckpt, golden_run, tmp_path, name, stage, suffix):
    _, run = golden_run(name)
    source, back = golden_ckpt(name, stage), str(tmp_path / f"back{suffix}")
    config = convert(source, tmp_path / "m.weights.h5", quiet=True).config
    convert(tmp_path / "m.weights.h5", back, crc=True, quiet=True)
    original = ms.load_checkpoint(str(source))
    loaded = ms.load_checkpoint(back, format=suffix[1:], crc_check=True)
    assert set(loaded) == {MINDSPORE.name(w) for w in weights_of(config)}
    for tensor in loaded:
        assert same(original[tensor].asnumpy(), loaded[tensor]), tensor
    network = Network(config)
    not_loaded, _ = ms.load_param_into_net(network, loaded, strict_load=True)
    assert not not_loaded
    came = ops.sigmoid(network(Tensor(run["dense"][-1]), Tensor(run["categorical"][-1]))).asnumpy()
    np.testing.assert_allclose(came, run[f"prob_{stage}"], rtol=0, atol=1e-6)


def test_an_initial_checkpoint_is_what_mindspore_reads(tmp_path):
    path = tmp_path / "i.ckpt"
    write_initial_checkpoint(path, DLRMConfig.preset("tiny"), seed=1)
    loaded = ms.load_checkpoint(str(path))
    with Checkpoint(path) as checkpoint:
        assert list(loaded) == list(checkpoint.names) and all(same(checkpoint.read(n), loaded[n]) for n in loaded)


def test_the_writers_agree_byte_for_byte(golden_ckpt, tmp_path):
    source = str(golden_ckpt("tiny", "trained"))
    loaded = ms.load_checkpoint(source)
    for crc in (False, True):
        ms.save_checkpoint([{"name": n, "data": p} for n, p in loaded.items()], str(tmp_path / "theirs.ckpt"), crc_check=crc)
        with Checkpoint(source) as checkpoint:
            write_checkpoint(tmp_path / "ours.ckpt", [array_tensor(n, checkpoint.read(n)) for n in checkpoint.names], crc=crc)
        assert (tmp_path / "ours.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("crc", [False, True])
def test_we_read_every_dtype_mindspore_saves(tmp_path, suffix, crc):
    path = str(tmp_path / f"d{suffix}")
    values = np.array([[0, 1, 2], [3, 4, 100]])
    dtypes = [ms.bool_, ms.int8, ms.uint8, ms.int16, ms.uint16, ms.int32, ms.uint32, ms.int64, ms.uint64, ms.float16, ms.float32]
    parameters = {str(d).lower(): Tensor(values, dtype=d) for d in [*dtypes, ms.float64]}
    if suffix == ".ckpt":  # MindSpore's safetensors path can't save it
        parameters["half.brain"] = Tensor(values.astype(np.float32) / 3, dtype=ms.bfloat16)
    parameters["scalar"] = Tensor(2.5, dtype=ms.float32)
    ms.save_checkpoint([{"name": n, "data": t} for n, t in parameters.items()], path, format=suffix[1:], crc_check=crc)
    with Checkpoint(path) as checkpoint:
        assert checkpoint.check_crc() is crc and set(checkpoint.names) == set(parameters)
        for name, tensor in parameters.items():
            wanted = tensor.astype(ms.float32).asnumpy() if name == "half.brain" else tensor.asnumpy()
            np.testing.assert_array_equal(checkpoint.read(name), wanted)
            assert checkpoint.read(name).dtype == wanted.dtype and checkpoint.info(name).shape == tensor.shape


def test_entries_of_append_dict(tmp_path, golden_ckpt):
    path = str(tmp_path / "a.ckpt")
    loaded = ms.load_checkpoint(str(golden_ckpt("tiny", "trained")))
    append = {"epoch_num": 3, "note": "trained long", "lr": 0.15, "done": True}
    ms.save_checkpoint([{"name": n, "data": p} for n, p in loaded.items()], path, append_dict=append)
    with Checkpoint(path) as checkpoint:
        assert set(append) < set(checkpoint.names)
        assert "".join(map(chr, checkpoint.read("note"))) == "trained long" and checkpoint.read("epoch_num") == 3
    assert convert(path, tmp_path / "a.weights.h5", quiet=True).tensors == 34


def test_slices_mindspore_cuts(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)  # KiB; 512 MiB outside this test
    array = np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32)
    for form, data in (("bytes", Parameter(Tensor(array), name="w")), ("array", Tensor(array))):
        path = str(tmp_path / f"{form}.ckpt")
        ms.save_checkpoint([{"name": "w", "data": data}], path)
        with Checkpoint(path) as checkpoint:
            assert len(checkpoint.info("w").slices) == 14
            np.testing.assert_array_equal(checkpoint.read("w"), array)
    write_checkpoint(tmp_path / "ours.ckpt", [array_tensor("w", array)], slice_bytes=1000)
    assert same(array, ms.load_checkpoint(str(tmp_path / "ours.ckpt"))["w"])


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC"])
def test_encrypted_files_are_recognised(tmp_path, mode):
    path = str(tmp_path / "e.ckpt")
    ms.save_checkpoint([{"name": "w", "data": Tensor(np.ones(3, np.float32))}], path, enc_key=b"0123456789ABCDEF", enc_mode=mode)
    with pytest.raises(CheckpointError, match="encrypted by MindSpore"):
        Checkpoint(path)


@pytest.mark.parametrize("name", ["adagrad", "momentum"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_optimizer_state_comes_back_to_mindspore(golden_dir, tmp_path, name, suffix):
    original = ms.load_checkpoint(str(golden_dir / f"{name}.ckpt"))
    convert(golden_dir / f"{name}.ckpt", tmp_path / "m.weights.h5", optimizer_state=True, quiet=True)
    convert(tmp_path / "m.weights.h5", tmp_path / f"b{suffix}", optimizer_state=True, quiet=True)
    loaded = ms.load_checkpoint(str(tmp_path / f"b{suffix}"), format=suffix[1:])
    assert set(loaded) == set(original) and all(same(original[n].asnumpy(), loaded[n]) for n in original)
    network = Network(DLRMConfig.preset("tiny"))
    optimizer = (
        nn.Adagrad(list(network.get_parameters())) if name == "adagrad" else nn.SGD(list(network.get_parameters()), momentum=0.9)
    )
    not_loaded, _ = ms.load_param_into_net(optimizer, loaded, strict_load=True)
    assert not not_loaded and int(optimizer.global_step.asnumpy()[0]) == 10


def test_pytorch_to_mindspore(golden_dir, tmp_path):
    """torchrec's own network, its weights through ours into MindSpore's: the same logits."""
    config = convert(golden_dir / "torchrec.safetensors", tmp_path / "r.weights.h5", quiet=True).config
    convert(tmp_path / "r.weights.h5", tmp_path / "r.ckpt", quiet=True)
    network = Network(config)
    ms.load_param_into_net(network, ms.load_checkpoint(str(tmp_path / "r.ckpt")), strict_load=True)
    with np.load(golden_dir / "torchrec.npz") as run:
        came = network(Tensor(run["dense"]), Tensor(run["categorical"])).asnumpy()
        np.testing.assert_allclose(came, run["logits"], rtol=0, atol=1e-6)
