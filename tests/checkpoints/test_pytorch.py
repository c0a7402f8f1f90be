"""PyTorch checkpoints: converted, and compared with the network run in torch or by torchrec itself."""

import dataclasses

import numpy as np
import pytest
from numpy_logits import numpy_logits

from dlrm_tf import DLRMConfig, convert
from dlrm_tf.checkpoints.ckpt_writer import array_tensor
from dlrm_tf.checkpoints.dlrm_checkpoint import DLRMCheckpoint, upper_to_lower
from dlrm_tf.checkpoints.names import NAMINGS
from dlrm_tf.checkpoints.safetensors import write_safetensors
from dlrm_tf.errors import CheckpointError, MissingExtraError
from dlrm_tf.probability import sigmoid
from dlrm_tf.weights.reader import WeightsReader

CONFIG = DLRMConfig((9, 4, 30, 6), 5, 8, (16, 8), (12, 7, 1))


def test_torchrecs_own_network(golden_dir, tmp_path):
    done = convert(golden_dir / "torchrec.safetensors", tmp_path / "r.weights.h5", quiet=True)
    sizes = (7, 5, 11, 3, 9, 4, 13, 6, 3, 8, 17, 4)
    assert done.config == DLRMConfig(sizes, dense_dim=5, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 6, 1))
    with np.load(golden_dir / "torchrec.npz") as run:
        came = numpy_logits(tmp_path / "r.weights.h5", run["dense"], run["categorical"])
        np.testing.assert_allclose(came, run["logits"], rtol=0, atol=1e-6)


def test_torchrecs_own_network_with_cross_layers(golden_dir, tmp_path):
    done = convert(golden_dir / "torchrec_dcn.safetensors", tmp_path / "r.weights.h5", quiet=True)
    shape = DLRMConfig((7, 5, 11, 3, 9), dense_dim=5, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 6, 1))
    assert done.config == dataclasses.replace(shape, interaction="cross", cross_layers=2, cross_rank=6)
    with np.load(golden_dir / "torchrec_dcn.npz") as run:
        came = numpy_logits(tmp_path / "r.weights.h5", run["dense"], run["categorical"])
        assert run["logits"].std() > 0.1
        np.testing.assert_allclose(came, run["logits"], rtol=0, atol=1e-6)


def test_cross_layers_do_not_become_a_mindspore_checkpoint(golden_dir, tmp_path):
    convert(golden_dir / "torchrec_dcn.safetensors", tmp_path / "r.weights.h5", quiet=True)
    with pytest.raises(CheckpointError, match=r"r.ckpt: wanted interaction 'dot' or 'cat': .* only torchrec's"):
        convert(tmp_path / "r.weights.h5", tmp_path / "r.ckpt", quiet=True)
    assert not (tmp_path / "r.ckpt").exists()


def test_a_configuration_with_cross_layers_does_not_fit_a_checkpoint_without(golden_dir, golden_ckpt, tmp_path):
    crossed = DLRMConfig((7, 5, 11), 5, 4, (8, 4), (16, 6, 1), interaction="cross", cross_rank=6)
    with pytest.raises(CheckpointError, match="ckpt: wanted interaction 'dot' or 'cat': .* only torchrec's"):
        convert(golden_ckpt("hub_layout", "trained"), tmp_path / "x.weights.h5", config=crossed)
    with pytest.raises(CheckpointError, match="inter_arch.crossnet.V_kernels.0 is missing"):
        convert(golden_dir / "torchrec.safetensors", tmp_path / "x.weights.h5", config=crossed)


@pytest.mark.parametrize("cross", [{}, {"cross_layers": 2, "cross_rank": 5}])
def test_a_checkpoint_of_torchrec_scores_as_its_own_forward(tmp_path, cross):
    torch, torchrec = pytest.importorskip("torch"), pytest.importorskip("torchrec")
    from torchrec.models.dlrm import DLRM, DLRM_DCN

    torch.manual_seed(3)
    dense, categorical = rows()
    names = [f"cat_{f}" for f in range(4)]
    tables = [
        torchrec.EmbeddingBagConfig(name=f"t_{name}", embedding_dim=8, num_embeddings=n, feature_names=[name])
        for name, n in zip(names, (9, 4, 30, 6))
    ]
    bags, config = torchrec.EmbeddingBagCollection(tables=tables), CONFIG
    if cross:
        net = DLRM_DCN(bags, 5, [16, 8], [12, 7, 1], dcn_num_layers=2, dcn_low_rank_dim=5)
        config = dataclasses.replace(CONFIG, interaction="cross", **cross)
    else:
        net = DLRM(bags, 5, [16, 8], [12, 7, 1])
    for name, parameter in net.named_parameters():
        if "sparse_arch" in name or "crossnet.bias" in name:
            torch.nn.init.normal_(parameter)  # torchrec's own initial values hardly tell one id from another, biases are 0
    ids = torch.tensor(categorical.T.copy()).flatten()
    with torch.no_grad():
        bags = torchrec.KeyedJaggedTensor.from_lengths_sync(names, ids, torch.ones(len(ids), dtype=torch.int32))
        wanted = net(torch.tensor(dense), bags).numpy()
    torch.save(net.state_dict(), tmp_path / "r.pt")
    done = convert(tmp_path / "r.pt", tmp_path / "r.weights.h5", quiet=True)
    assert done.config == config
    assert wanted.std() > 0.01
    np.testing.assert_allclose(numpy_logits(tmp_path / "r.weights.h5", dense, categorical), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "pooling, weighted", [("sum", False), ("mean", False), ("sum", True), (("sum", "mean", "mean", "sum"), False)]
)
def test_bags_score_as_torchrecs_own_forward(tmp_path, pooling, weighted):
    """torchrec's tables know nothing of the most keys of a row: a configuration says it."""
    torch, torchrec = pytest.importorskip("torch"), pytest.importorskip("torchrec")
    from torchrec.models.dlrm import DLRM

    config = dataclasses.replace(CONFIG, hot_sizes=(2, 1, 5, 3), pooling=pooling, weighted=weighted)
    random, names = np.random.default_rng(1), [f"cat_{f}" for f in range(4)]
    lengths = np.stack([random.integers(0, size + 1, 40) for size in config.bag_sizes])
    ids, weights = np.full((40, config.id_columns), -1), random.normal(1, 1, (40, config.id_columns)).astype(np.float32)
    for f, columns in enumerate(config.id_ranges):
        keys = random.integers(0, CONFIG.categorical_feature_sizes[f], (40, config.bag_sizes[f]))
        ids[:, columns] = np.where(np.arange(config.bag_sizes[f]) < lengths[f][:, None], keys, -1)
    torch.manual_seed(3)
    kinds = {"sum": torchrec.PoolingType.SUM, "mean": torchrec.PoolingType.MEAN}
    tables = [
        torchrec.EmbeddingBagConfig(
            name=f"t_{name}", embedding_dim=8, num_embeddings=n, feature_names=[name], pooling=kinds[config.poolings[f]]
        )
        for f, (name, n) in enumerate(zip(names, CONFIG.categorical_feature_sizes))
    ]
    net = DLRM(torchrec.EmbeddingBagCollection(tables=tables, is_weighted=weighted), 5, [16, 8], [12, 7, 1])
    for table in net.sparse_arch.parameters():
        torch.nn.init.normal_(table)
    flat = [
        (ids[n, columns][k], weights[n, columns][k])
        for f, columns in enumerate(config.id_ranges)
        for n in range(40)
        for k in range(lengths[f, n])
    ]
    bags = torchrec.KeyedJaggedTensor(
        names,
        torch.tensor([key for key, _ in flat]),
        torch.tensor([weight for _, weight in flat]) if weighted else None,
        lengths=torch.tensor(lengths.reshape(-1), dtype=torch.int32),
    )
    dense, _ = rows()
    with torch.no_grad():
        wanted = net(torch.tensor(dense), bags).numpy()
    torch.save(net.state_dict(), tmp_path / "r.pt")
    assert convert(tmp_path / "r.pt", tmp_path / "r.weights.h5", config=config, quiet=True).config == config
    given = (dense, ids, weights) if weighted else (dense, ids)
    assert wanted.std() > 0.01
    np.testing.assert_allclose(numpy_logits(tmp_path / "r.weights.h5", *given), wanted, rtol=0, atol=1e-5)


def test_upper_to_lower_by_hand():
    # Vectors x, a, b, c (F = 3, D = 2). Upper: xa xb xc ab ac bc; lower: ax, bx ba, cx ca cb.
    config = DLRMConfig((5, 5, 5), embedding_dim=2, bottom_mlp=(2,), top_mlp=(1,))
    kernel = np.array(["x0", "x1", "xa", "xb", "xc", "ab", "ac", "bc"])
    assert list(kernel[upper_to_lower(config)]) == ["x0", "x1", "xa", "xb", "ab", "xc", "ac", "bc"]


@pytest.mark.parametrize("name", ["dlrm_pytorch", "torchrec"])
def test_the_golden_model_under_other_names(golden_ckpt, tmp_path, name):
    """MindSpore's weights, written as another program would name and lay them out, become the same weights file."""
    naming = NAMINGS[name]
    with DLRMCheckpoint(golden_ckpt("hub_layout", "trained")) as source:
        to_upper = np.argsort(upper_to_lower(source.config))
        tensors = []
        for weight, tensor_name in naming.names(source.config).items():
            array = source.checkpoint.read(source.found.weights[weight])
            if naming.pairs == "upper" and weight == ("top_mlp", 0, "kernel"):
                array = array[to_upper]
            tensors.append(array_tensor(tensor_name, array.T.copy() if weight.kind == "kernel" else array))
    write_safetensors(tmp_path / "o.safetensors", tensors)
    convert(tmp_path / "o.safetensors", tmp_path / "o.weights.h5", quiet=True)
    convert(golden_ckpt("hub_layout", "trained"), tmp_path / "m.weights.h5", quiet=True)
    with WeightsReader(tmp_path / "o.weights.h5") as ours, WeightsReader(tmp_path / "m.weights.h5") as wanted:
        assert ours.config == wanted.config
        for path, dataset in wanted.file.datasets.items():
            rows = dataset.shape[0]
            np.testing.assert_array_equal(ours.file.read(path, 0, rows), wanted.file.read(path, 0, rows), err_msg=path)


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    (tmp_path / "m.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"torch is not installed: python -m pip install .*torch"):
        convert(tmp_path / "m.pt", tmp_path / "m.weights.h5")


@pytest.fixture
def network():
    """Function `(interaction, self_interaction) -> torch module` laid out and named as facebookresearch/dlrm's DLRM_Net."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self, sizes, dense_dim, width, bottom, top, interaction, self_interaction):
            super().__init__()
            self.emb_l = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum") for n in sizes)
            vectors = len(sizes) + 1
            pairs = vectors * (vectors + (1 if self_interaction else -1)) // 2
            joined = width + pairs if interaction == "dot" else vectors * width
            self.bot_l = self.mlp([dense_dim, *bottom], nn.ReLU)
            self.top_l = self.mlp([joined, *top], nn.Sigmoid)
            self.interaction, self.offset = interaction, 1 if self_interaction else 0

        @staticmethod
        def mlp(widths, last):
            layers = []
            for i, (a, b) in enumerate(zip(widths, widths[1:])):
                layers += [nn.Linear(a, b), last() if i == len(widths) - 2 else nn.ReLU()]
            return nn.Sequential(*layers)

        def forward(self, dense, categorical):
            x = self.bot_l(dense)
            rows = [table(categorical[:, f : f + 1]) for f, table in enumerate(self.emb_l)]
            if self.interaction == "cat":
                return self.top_l(torch.cat([x, *rows], dim=1))
            vectors = torch.stack([x, *rows], dim=1)
            gram = torch.bmm(vectors, vectors.transpose(1, 2))
            pairs = [(i, j) for i in range(vectors.shape[1]) for j in range(i + self.offset)]
            flat = torch.stack([gram[:, i, j] for i, j in pairs], dim=1)
            return self.top_l(torch.cat([x, flat], dim=1))

    torch.manual_seed(3)

    def make(interaction="dot", self_interaction=False):
        return Net((9, 4, 30, 6), 5, 8, (16, 8), (12, 7, 1), interaction, self_interaction)

    return make


def rows():
    random = np.random.default_rng(0)
    return random.random((40, 5), np.float32), np.stack([random.integers(0, n, 40) for n in (9, 4, 30, 6)], axis=1)


@pytest.mark.parametrize("interaction,self_interaction", [("dot", False), ("dot", True), ("cat", False)])
@pytest.mark.parametrize("zipped", [True, False])
def test_facebooks_layout(network, tmp_path, interaction, self_interaction, zipped):
    import torch

    net = network(interaction, self_interaction)
    dense, categorical = rows()
    with torch.no_grad():
        wanted = net(torch.tensor(dense), torch.tensor(categorical)).numpy()
    saved = {"epoch": 1, "state_dict": net.state_dict(), "test_acc": np.float64(0.78), "train_loss": 0.4, "iter": np.int64(7)}
    torch.save(saved, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    done = convert(tmp_path / "f.pt", tmp_path / "f.weights.h5", quiet=True)
    assert done.config == dataclasses.replace(CONFIG, interaction=interaction, self_interaction=self_interaction)
    came = sigmoid(numpy_logits(tmp_path / "f.weights.h5", dense, categorical))
    np.testing.assert_allclose(came, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_and_data_parallel_prefix(network, tmp_path, dtype):
    import torch

    state = {f"module.{n}": t.to(getattr(torch, dtype)) for n, t in network().state_dict().items()}
    torch.save(state, tmp_path / "h.pt")
    done = convert(tmp_path / "h.pt", tmp_path / "h.weights.h5", quiet=True)
    assert "the weights' names start with module." in done.notes
    with WeightsReader(tmp_path / "h.weights.h5") as reader:
        wanted = state["module.top_l.0.weight"].float().numpy().T
        np.testing.assert_array_equal(reader.dense("top_mlp", 0)[0], wanted)
        np.testing.assert_array_equal(reader.rows(2, 0, 30), state["module.emb_l.2.weight"].float().numpy())


def test_converted_to_mindspore_through_keras(network, tmp_path):
    import torch

    net = network()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "f.pt")
    convert(tmp_path / "f.pt", tmp_path / "f.weights.h5", quiet=True)
    convert(tmp_path / "f.weights.h5", tmp_path / "f.ckpt", quiet=True)
    with DLRMCheckpoint(tmp_path / "f.pt") as a, DLRMCheckpoint(tmp_path / "f.ckpt") as b:
        assert a.config == b.config
        for x, y in zip(a.dense("top_mlp", 0), b.dense("top_mlp", 0)):
            np.testing.assert_array_equal(x, y)
        ids = np.array([29, 0, 3, 3])
        np.testing.assert_array_equal(a.gather(2, ids), b.gather(2, ids))


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path):
    import os

    torch = pytest.importorskip("torch")

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for zipped in (True, False):
        torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="not a PyTorch checkpoint of tensors and plain values") as e:
            convert(tmp_path / "bomb.pt", tmp_path / "x.weights.h5")
        assert "\n" not in str(e.value) and not (tmp_path / "ran").exists()


def test_other_zips_and_contents_are_refused(tmp_path, network):
    import zipfile

    import torch

    with zipfile.ZipFile(tmp_path / "k.pt", "w") as z:
        z.writestr("config.json", "{}")
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        convert(tmp_path / "k.pt", tmp_path / "x.weights.h5")
    torch.save({"a": 1}, tmp_path / "n.pt")
    with pytest.raises(CheckpointError, match="no state_dict"):
        convert(tmp_path / "n.pt", tmp_path / "x.weights.h5")
    state = network().state_dict()
    state["emb_l.1.weight"] = state["emb_l.1.weight"].to_sparse()
    torch.save(state, tmp_path / "s.pt")
    with pytest.raises(CheckpointError, match="emb_l.1.weight: is sparse"):
        convert(tmp_path / "s.pt", tmp_path / "x.weights.h5")
    state = network().state_dict()
    state["v_W_l.0"] = torch.zeros(9)
    state["bot_l.0.weight"] = torch.zeros(16, 6)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        CheckpointError, match=r"bot_l.0.weight wanted shape \[16, 5\], received \[16, 6\]; v_W_l.0 \[9\] is unknown"
    ):
        convert(tmp_path / "w.pt", tmp_path / "x.weights.h5", config=CONFIG)
