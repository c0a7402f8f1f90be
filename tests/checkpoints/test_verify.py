"""`verify` passes for what was converted well, and fails for one changed bit."""

import dataclasses
import json
import os

import h5py
import numpy as np
import pytest
from tensors import read_tensors, write_tensors

from dlrm_tf import DLRMConfig, convert
from dlrm_tf.checkpoints import verify as verify_module
from dlrm_tf.checkpoints.parity import logit_differences
from dlrm_tf.checkpoints.sample import read_sample
from dlrm_tf.checkpoints.verify import verify
from dlrm_tf.cli.main import main
from dlrm_tf.errors import CheckpointError, DataError

TINY = DLRMConfig.preset("tiny")


@pytest.fixture
def converted(golden_ckpt, tmp_path):
    """A golden checkpoint and its weights file."""
    convert(golden_ckpt("tiny", "trained"), tmp_path / "m.weights.h5", quiet=True)
    return golden_ckpt("tiny", "trained"), tmp_path / "m.weights.h5"


@pytest.mark.parametrize("name,stage", [("tiny", "trained"), ("hub_layout", "init"), ("hub_layout", "trained")])
def test_golden_conversions_pass(golden_ckpt, golden_run, tmp_path, name, stage):
    source, target = golden_ckpt(name, stage), tmp_path / "m.weights.h5"
    config = convert(source, target, quiet=True).config
    np.savez(tmp_path / "s.npz", **{key: golden_run(name)[1][key][-1] for key in ("dense", "categorical")})
    parity = verify(source, target, sample=tmp_path / "s.npz", quiet=True)
    assert parity.passed and parity.rows == 64 and len(parity.tensors) == 26 + 2 * len([*config.dense_shapes()])
    assert parity.max_relative_difference < 2e-6 and parity.max_probability_difference < 1e-6
    assert verify(source, target, sample=1500, quiet=True).passed


@pytest.mark.parametrize("name, weights", [("torchrec", 12 + 2 * 5), ("torchrec_dcn", 5 + 2 * 5 + 2 * 3)])
def test_torchs_layout_passes(golden_dir, tmp_path, name, weights):
    convert(golden_dir / f"{name}.safetensors", tmp_path / "r.weights.h5", quiet=True)
    parity = verify(golden_dir / f"{name}.safetensors", tmp_path / "r.weights.h5", sample=100, quiet=True)
    assert parity.passed and len(parity.tensors) == weights


@pytest.mark.parametrize(
    "path,name",
    [
        ("embedding/vars/0", "embeddinglookup.embeddings.0.embedding_table"),
        ("top_mlp/_sublayers/dense_1/vars/1", "top_mlp.1.bias"),
    ],
)
def test_one_changed_bit_fails(converted, path, name):
    source, target = converted
    with h5py.File(target, "r+") as f:
        flat = f[path][...]
        flat.view(np.uint32).flat[0] ^= 1
        f[path][...] = flat
    parity = verify(source, target, sample=10, quiet=True)
    assert not parity.passed and [t["name"] for t in parity.tensors if not t["equal"]] == [name]
    with pytest.raises(CheckpointError, match=f"unequal: {name}"):
        parity.check()


@pytest.mark.parametrize("wrong", [np.nan, 1e-3])
def test_a_wrong_network_fails_though_the_tensors_are_equal(converted, monkeypatch, wrong):
    source, target = converted
    keras_logits = verify_module._keras_logits
    monkeypatch.setattr(verify_module, "_keras_logits", lambda *args: keras_logits(*args) + wrong)
    parity = verify(source, target, sample=10, quiet=True)
    assert all(t["equal"] for t in parity.tensors) and not parity.passed


@pytest.mark.parametrize(
    "name,value,rows",
    [
        ("top_mlp.1.bias", np.nan, 100),
        ("top_mlp.1.bias", -np.inf, 100),
        ("bottom_mlp.0.weight", np.nan, 100),
        ("embeddinglookup.embeddings.0.embedding_table", np.nan, 1),
        ("embeddinglookup.embeddings.0.embedding_table", np.inf, 1),
    ],
)
def test_nan_and_infinity_of_the_checkpoint_itself(golden_ckpt, tmp_path, capsys, name, value, rows):
    source, target = tmp_path / "odd.ckpt", tmp_path / "m.weights.h5"
    tensors = read_tensors(golden_ckpt("tiny", "trained"))
    tensors[name].flat[0] = value
    write_tensors(source, tensors)
    assert main(["convert", str(source), "-o", str(target), "--verify", "100"]) == 0
    out, err = capsys.readouterr()
    assert f"the checkpoint itself has NaN or infinity in {name} (1)" in out and "Warning" not in err
    report = json.loads((tmp_path / "m.weights.h5.parity.json").read_text())
    assert report["passed"] and report["not_finite_rows"] >= rows
    assert {t["name"]: t["not_finite"] for t in report["tensors"] if t["not_finite"]} == {name: 1}
    with h5py.File(target, "r+") as f:  # that the logits are NaN on both sides proves no other tensor
        f["top_mlp/_sublayers/dense_1/vars/1"][...] = 0.5
    parity = verify(source, target, sample=100, quiet=True)
    assert not parity.passed and [t["name"] for t in parity.tensors if not t["equal"]] == ["top_mlp.1.bias"]


def test_differences():
    nan, inf = np.nan, np.inf
    came = np.array([3.0, nan, inf, -inf, nan, 1.0, inf, 1.0, inf])
    wanted = np.array([1.0, nan, inf, -inf, 1.0, nan, 1.0, -inf, -inf])
    logit, relative, probability = logit_differences(came, 2 * wanted)
    np.testing.assert_array_equal(logit, [1, 0, 0, 0, inf, inf, inf, inf, inf])
    np.testing.assert_array_equal(relative, [0.5, 0, 0, 0, inf, inf, inf, inf, inf])
    np.testing.assert_allclose(probability, [1 / (1 + np.exp(-3)) - 1 / (1 + np.exp(-2)), 0, 0, 0, inf, inf, inf, inf, inf])


def test_samples(tmp_path, golden_run):
    dense, categorical = read_sample("500", TINY)
    assert dense.shape == (500, 13) and dense.min() >= 0
    assert (categorical[0] == 0).all() and (categorical[-1] == np.array(TINY.categorical_feature_sizes) - 1).all()
    for bad in ("0", "1000001", "9" * 5000, "-3", "none.npz", str(tmp_path)):
        with pytest.raises(DataError):
            read_sample(bad, TINY)
    np.savez(tmp_path / "w.npz", dense=dense[:, :5], categorical=categorical)
    with pytest.raises(DataError, match=r"wanted .*\(500, 13\).*Received \(500, 5\)"):
        read_sample(tmp_path / "w.npz", TINY)
    for odd in (
        {"dense": np.float32(1), "categorical": categorical},
        {"dense": dense[:0], "categorical": categorical[:0]},
        {"dense": dense.astype(str), "categorical": categorical},
        {"dense": dense, "categorical": categorical.astype(np.float32)},
    ):
        np.savez(tmp_path / "w.npz", **odd)
        with pytest.raises(DataError, match="wanted dense"):
            read_sample(tmp_path / "w.npz", TINY)
    categorical[3, 3] = 84
    np.savez(tmp_path / "o.npz", dense=dense, categorical=categorical)
    with pytest.raises(DataError, match="outside their feature"):
        read_sample(tmp_path / "o.npz", TINY)


@pytest.mark.parametrize("weighted", [False, True])
def test_bags_are_verified(golden_ckpt, tmp_path, weighted):
    """A configuration gives the tables of a checkpoint several keys per feature; both sides score bags of every length."""
    config = dataclasses.replace(TINY, hot_sizes=[1 + f % 4 for f in range(26)], pooling="mean", weighted=weighted)
    convert(golden_ckpt("tiny", "trained"), tmp_path / "m.weights.h5", config=config, quiet=True)
    rows = read_sample("200", config)
    assert [array.shape for array in rows] == [(200, columns) for _, columns in config.inputs.values()]
    assert {(ids != -1).sum() for ids in rows[1][:, config.id_ranges[3]]} == {1, 2, 3, 4}
    assert verify(golden_ckpt("tiny", "trained"), tmp_path / "m.weights.h5", sample=200, quiet=True).passed
    np.savez(tmp_path / "rows.npz", **dict(zip(config.inputs, rows)))
    assert verify(golden_ckpt("tiny", "trained"), tmp_path / "m.weights.h5", sample=tmp_path / "rows.npz", quiet=True).passed
    with pytest.raises(DataError, match=r"wanted .* of shapes .*\(200, 63\).*Received .*\(200, 26\)"):
        np.savez(tmp_path / "rows.npz", **dict(zip(config.inputs, (rows[0], rows[1][:, :26], *rows[2:]))))
        read_sample(tmp_path / "rows.npz", config)


def test_out_of_vocabulary_rows_agree(converted, tmp_path):
    source, target = converted
    dense, categorical = read_sample("50", TINY)
    categorical[::2, 1] = TINY.categorical_feature_sizes[1]
    np.savez(tmp_path / "s.npz", dense=dense, categorical=categorical)
    assert verify(source, target, sample=tmp_path / "s.npz", quiet=True).passed


def test_command_line_both_ways(golden_ckpt, tmp_path, capsys):
    there, back = tmp_path / "m.weights.h5", tmp_path / "b.ckpt"
    assert main(["convert", str(golden_ckpt("tiny", "trained")), "-o", str(there), "--verify", "200"]) == 0
    assert "34 of 34 tensors equal bit for bit; 200 rows" in capsys.readouterr().out
    report = json.loads((tmp_path / "m.weights.h5.parity.json").read_text())
    assert report["passed"] and len(report["tensors"]) == 34
    assert main(["convert", str(there), "-o", str(back), "--verify", "20"]) == 0
    assert json.loads((tmp_path / "b.ckpt.parity.json").read_text())["passed"]
    assert main(["convert", str(there), "-o", str(back), "--verify", "nothing"]) == 1
    assert "wanted a number of rows" in capsys.readouterr().err


@pytest.mark.parametrize("sample", ["", "0", "none.npz", "wrong.npz"])
@pytest.mark.parametrize("back", [False, True])
def test_an_unusable_sample_is_said_before_anything_is_written(golden_ckpt, tmp_path, monkeypatch, capsys, sample, back):
    monkeypatch.chdir(tmp_path)
    dense, categorical = read_sample("5", TINY)
    np.savez("wrong.npz", dense=dense[:, :5], categorical=categorical)
    source, target = golden_ckpt("tiny", "trained"), "new.weights.h5"
    if back:
        convert(source, "m.weights.h5", quiet=True)
        source, target = "m.weights.h5", "new.ckpt"
    before = sorted(os.listdir("."))
    assert main(["convert", str(source), "-o", target, "--verify", sample]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"dlrm-tf: {sample}: wanted ") and err.count("\n") == 1
    assert sorted(os.listdir(".")) == before
