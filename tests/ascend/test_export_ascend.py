"""Ascend export: the frozen graph gives the model's probabilities, on other TensorFlows too; atc's command; the cut table."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.data.prepare import prepare
from dlrm_tf.data.synthetic import synth
from dlrm_tf.errors import AscendError, CheckpointError, UsageError
from dlrm_tf.export.ascend.export import export_ascend
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()
# What CANN's TensorFlow parser is given: no variable, no function, no shape that depends on values.
OPERATORS = {
    "Const", "Placeholder", "Identity", "IdentityN", "NoOp", "MatMul", "BiasAdd", "Relu", "GatherV2", "ConcatV2", "StridedSlice",
    "GreaterEqual", "Less", "LogicalAnd", "SelectV2", "AddV2", "BatchMatMulV2", "Mul", "Reshape", "Sigmoid",
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("ascend_export") / "m.weights.h5"
    dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=8).save_weights(path)
    return path


@pytest.fixture
def no_atc(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def run_graph(folder, rows):
    """Probabilities that the frozen graph gives."""
    with open(os.path.join(folder, "ascend.json")) as f:
        names = json.load(f)
    graph_def = tf.compat.v1.GraphDef()
    with open(os.path.join(folder, "frozen_graph.pb"), "rb") as f:
        graph_def.ParseFromString(f.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            return session.run(names["output"], {name + ":0": rows[name] for name in names["inputs"]}), graph_def


@pytest.mark.parametrize("rank", [None, 9])
def test_the_graph_of_cross_layers_gives_the_models_probabilities(tmp_path, no_atc, rank):
    config = dataclasses.replace(dlrm_tf.DLRMConfig.preset("tiny"), interaction="cross", cross_rank=rank)
    model = dlrm_tf.DLRM(config, seed=8)
    model.save_weights(tmp_path / "m.weights.h5")
    export_ascend(tmp_path / "m.weights.h5", tmp_path / "out")
    with np.load(tmp_path / "out" / "check.npz") as file:
        rows = dict(file)
    came, graph_def = run_graph(tmp_path / "out", rows)
    np.testing.assert_allclose(came, tf.sigmoid(model({name: rows[name] for name in ("dense", "categorical")})), atol=1e-6)
    np.testing.assert_allclose(came, rows["probability"], rtol=0, atol=1e-6)
    assert {node.op for node in graph_def.node} <= OPERATORS


@pytest.mark.parametrize("batch", [1, 64])
def test_the_graph_gives_the_models_probabilities(weights, tmp_path, no_atc, batch):
    export_ascend(weights, tmp_path / "out")
    generator = np.random.default_rng(2)
    rows = {
        "dense": generator.random((batch, 13), np.float32),
        "categorical": generator.integers(-3, 110, (batch, 26)).astype(np.int32),
    }
    came, graph_def = run_graph(tmp_path / "out", rows)
    np.testing.assert_allclose(came, tf.sigmoid(dlrm_tf.load(weights)(rows)), rtol=0, atol=1e-6)
    assert {node.op for node in graph_def.node} <= OPERATORS
    assert not graph_def.library.function


def test_command_for_one_and_for_several_batches(weights, tmp_path, no_atc):
    one = export_ascend(weights, tmp_path / "one", batches=(64,))
    assert shlex.split(one.command) == [
        "atc", "--model=frozen_graph.pb", "--framework=3", "--output=model", "--soc_version=Ascend310P3", "--input_format=ND",
        "--input_shape=dense:64,13;categorical:64,26", "--out_nodes=Identity:0", "--precision_mode_v2=origin",
    ]  # fmt: skip
    assert not one.compiled and "atc is not on PATH" in str(one)
    chip = {"soc_version": "Ascend910B4-1", "precision": "mixed"}
    several = export_ascend(weights, tmp_path / "several", batches=(64, 1), **chip)
    assert "'--input_shape=dense:-1,13;categorical:-1,26'" in several.command
    assert several.command.endswith("--precision_mode_v2=mixed_float16 --dynamic_batch_size=1,64")
    assert several.command in (tmp_path / "several" / "atc.sh").read_text()


@pytest.mark.slow
def test_the_check_script_notices_a_changed_graph(weights, tmp_path, no_atc):
    folder = tmp_path / "out"
    export_ascend(weights, folder)
    run = [sys.executable, str(folder / "check.py")]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("256 rows, largest difference of a probability ")
    with np.load(folder / "check.npz") as rows:
        changed = dict(rows)
    changed["probability"][7] += 1e-3
    np.savez(folder / "check.npz", **changed)
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stdout.endswith("0.001\n")


@pytest.mark.slow
def test_the_check_script_on_the_npu(weights, processes, no_atc):
    export_ascend(weights, processes.folder / "out")
    exit_code, out, err = processes.run("out/check.py", "--npu")
    assert exit_code == 0 and out.startswith("256 rows"), err
    assert processes.journal() == [{"event": "session"}]


@pytest.mark.skipif("DLRM_TF_OTHER_PYTHON" not in os.environ, reason="needs a second environment: make test-ascend")
def test_graphs_travel_between_the_versions(weights, tmp_path, no_atc):
    other = os.environ["DLRM_TF_OTHER_PYTHON"]
    export_ascend(weights, tmp_path / "here")
    subprocess.run([other, tmp_path / "here" / "check.py"], check=True)
    export = [other, "-m", "dlrm_tf", "export", "ascend", "--weights", weights, "-o", tmp_path / "there"]
    subprocess.run(export, check=True)
    subprocess.run([sys.executable, tmp_path / "there" / "check.py"], check=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepared data, its vocabulary and weights."""
    folder = tmp_path_factory.mktemp("ascend_pruned")
    synth(folder / "rows.tsv", rows=3000, seed=2, cardinalities=[60] * 26)
    records = prepare(folder / "rows.tsv", folder / "data")
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig(records.sizes, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(8, 1)), seed=1)
    model.vocabulary_fingerprint = records.vocabulary().fingerprint
    model.save_weights(folder / "m.weights.h5")
    return records, folder / "m.weights.h5", folder / "data" / "vocabulary.npz"


def test_a_table_too_large_is_cut_to_the_frequent_ids(prepared, tmp_path, no_atc):
    records, weights, vocabulary = prepared
    made = export_ascend(weights, tmp_path / "out", data=records, vocabulary=vocabulary, max_table_bytes=800 * 16, quiet=True)
    assert (made.kept, made.total) == (800 - 26, sum(records.sizes))
    with np.load(tmp_path / "out" / "kept_ids.npz") as f:
        kept = [f[f"feature_{i}"] for i in range(26)]
    dense, ids, _ = records.numpy("train")
    model = dlrm_tf.load(weights)
    # Rows whose ids all stayed keep their probability.
    whole = np.all([np.isin(ids[:, f], kept[f]) for f in range(26)], axis=0)
    assert whole.sum() > 5
    rows = {"dense": np.log1p(dense[whole]), "categorical": ids[whole]}
    renumbered = np.stack([np.searchsorted(kept[f], rows["categorical"][:, f]) for f in range(26)], 1).astype(np.int32)
    came, _ = run_graph(tmp_path / "out", {**rows, "categorical": renumbered})
    np.testing.assert_allclose(came, tf.sigmoid(model(rows)), rtol=0, atol=1e-6)
    # No dropped id is more frequent than a kept one.
    counts = [np.bincount(ids[:, f], minlength=size + 1)[:size] for f, size in enumerate(records.sizes)]
    rarest = min(count[k].min() for count, k in zip(counts, kept))
    assert max(np.delete(count, k).max(initial=0) for count, k in zip(counts, kept)) <= rarest
    # The vocabulary beside the graph gives the graph's ids.
    assert dlrm_tf.Vocabulary.load(tmp_path / "out" / "vocabulary.npz").sizes == tuple(len(k) for k in kept)


def test_data_of_another_vocabulary(prepared, tmp_path, no_atc):
    """The ids of the same number of keys would be those of other rows."""
    records, weights, _ = prepared
    other = dlrm_tf.load(weights)
    other.vocabulary_fingerprint = "f" * 64
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(CheckpointError, match="was trained with vocabulary ffffffffffff…"):
        export_ascend(tmp_path / "other.weights.h5", tmp_path / "out", data=records, max_table_bytes=800 * 16, quiet=True)
    assert os.listdir(tmp_path) == ["other.weights.h5"]


def test_a_table_too_large_without_data(prepared, tmp_path, no_atc):
    _, weights, _ = prepared
    with pytest.raises(AscendError, match=r"the table has 0\.00 GB, a frozen graph holds .* give prepared data \(--data\)"):
        export_ascend(weights, tmp_path / "out", max_table_bytes=800 * 16)
    assert os.listdir(tmp_path) == []


ATC = """#!{python}
import sys, time
options = dict(a[2:].split("=", 1) for a in sys.argv[1:])
if {code}:
    print("E10001: no such chip")
    sys.exit({code})
assert open(options["model"], "rb").read()
open(options["output"] + ".om", "w").write(str(sorted(options)))
"""


@pytest.mark.parametrize("code", [0, 1])
def test_atc_is_run_where_it_is(weights, tmp_path, monkeypatch, code):
    atc = tmp_path / "bin" / "atc"
    atc.parent.mkdir()
    atc.write_text(ATC.format(python=sys.executable, code=code))
    atc.chmod(0o755)
    monkeypatch.setenv("PATH", str(atc.parent))
    if code:
        with pytest.raises(AscendError, match=r"atc failed \(exit code 1\): E10001: no such chip.*; the command: atc --model"):
            export_ascend(weights, tmp_path / "out")
        assert os.listdir(tmp_path) == ["bin"]
    else:
        assert export_ascend(weights, tmp_path / "out").compiled
        assert "soc_version" in (tmp_path / "out" / "model.om").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batches": ()}, "batches: wanted positive numbers"),
        ({"batches": (0, 4)}, "batches: wanted positive numbers"),
        ({"soc_version": "310P3; rm -r ."}, "soc_version: wanted a name such as Ascend310P3"),
        ({"precision": "half"}, "precision must be one of float32, mixed. Received 'half'"),
    ],
)
def test_wrong_arguments(weights, tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        export_ascend(weights, tmp_path / "out", **arguments)


def test_not_in_a_process_that_trains_on_an_npu(weights, tmp_path, fake_plugin):
    import npu_device  # noqa: F401

    with pytest.raises(AscendError, match="has loaded npu_device"):
        export_ascend(weights, tmp_path / "out")


def test_command_line(weights, tmp_path, no_atc, capsys):
    out = str(tmp_path / "out")
    assert main(["export", "ascend", "--weights", str(weights), "-o", out, "--batches", "1,64"]) == 0
    assert "--dynamic_batch_size=1,64" in capsys.readouterr().out
    assert main(["export", "ascend", "--weights", str(weights), "-o", out]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["export", "ascend", "--weights", str(weights)]) == 2
    assert main(["export", "ascend", "--weights", str(weights), "-o", out, "--batches", "1,x"]) == 2
    assert "argument --batches: wanted whole numbers with commas. Received '1,x'" in capsys.readouterr().err
