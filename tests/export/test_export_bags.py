"""A model with several keys per feature gives one probability for a row in every form it is exported to."""

import json
import subprocess
import sys

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.errors import CheckpointError, DataError
from dlrm_tf.export.ascend.export import export_ascend
from dlrm_tf.export.budget import count_ids, loss_of_dropping, prune_weights
from dlrm_tf.export.tflite.build import choose_ids
from dlrm_tf.export.tflite.export import TFLiteExporter, export_tflite
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.lite import Scorer
from dlrm_tf.model.subset import float_probabilities
from dlrm_tf.score.targets import open_target
from dlrm_tf.weights.subset import renumber

tf = tensorflow()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mlp, table_dtype, error", [("float32", "int8", 0.01), ("dynamic", "int8", 0.02), ("float32", "int4", 0.15)]
)
def test_a_tflite_file(case, tmp_path, mlp, table_dtype, error):
    label = (np.arange(len(case.dense)) % 2).astype(np.float32)
    given = {"vocabulary": case.keys, "spec": case.spec, "evaluation": (*case.encoded, label), "max_auc_loss": 1.0}
    report = export_tflite(case.weights, tmp_path / "m.tflite", mlp=mlp, table_dtype=table_dtype, quiet=True, **given)
    assert report.rows == len(case.dense) and report.max_error < error
    scorer = Scorer(tmp_path / "m.tflite")
    came = scorer.score(*case.encoded)
    np.testing.assert_allclose(came, case.probability[:, 0], atol=error)
    np.testing.assert_array_equal(scorer.score_raw(case.dense, case.text), came)
    # One row, then many: the shapes of the interpreter follow.
    np.testing.assert_allclose(scorer.score(*(array[:1] for array in case.encoded)), came[:1], atol=1e-3)
    wrong = case.encoded[:2] if case.spec.weighted else (*case.encoded, np.ones_like(case.encoded[1], np.float32))
    with pytest.raises(DataError, match="wanted dense, categorical"):
        scorer.score(*wrong)
    with open_target(tmp_path / "m.tflite") as target:
        np.testing.assert_array_equal(target.score(*case.encoded), came)


@pytest.mark.slow
def test_what_dropping_a_key_of_a_bag_costs(case):
    """p (1 - p) d^2 / 2, with d the derivative along the way from the key's row to the mean row, taken by differences."""
    config, table = case.model.config, case.model.embedding.table.numpy()
    counts = [np.random.default_rng(3).integers(0, 9, size + 1) for size in config.categorical_feature_sizes]
    row = {name: values[4:5] for name, values in case.inputs.items()}
    key_weights = {"key_weights": row["weights"]} if config.weighted else {}
    costs, occurrences = loss_of_dropping(str(case.weights), row["dense"], row["categorical"], counts, quiet=True, **key_weights)

    def logit(values):
        case.model.embedding.table.assign(values)
        return float(case.model(row)[0, 0])

    seen, p = 0, float(case.probability[4, 0])
    for f, (size, offset, columns) in enumerate(zip(config.categorical_feature_sizes, config.block_offsets, config.id_ranges)):
        ids, times = np.unique(row["categorical"][0, columns], return_counts=True)
        known = (ids >= 0) & (ids < size)
        mean = np.average(table[offset + ids[known]], axis=0, weights=counts[f][ids[known]] + 1e-12) if known.any() else None
        np.testing.assert_array_equal(occurrences[f][ids[known]], times[known])
        assert occurrences[f].sum() == times[known].sum()
        for key in ids[known & (times == 1)]:  # of a key that occurs twice the costs of both places are added up
            step = np.zeros_like(table)
            step[offset + key] = (mean - table[offset + key]) * 1e-2
            d = (logit(table + step) - logit(table - step)) / 2e-2
            assert costs[f][key] == pytest.approx(p * (1 - p) * d**2 / 2, rel=2e-2, abs=1e-6)
            seen += costs[f][key] > 1e-6
    case.model.embedding.table.assign(table)
    assert seen


@pytest.mark.slow
def test_a_budget_keeps_the_ids_of_bags_that_matter(case, records, tmp_path):
    ids = records.numpy("train")[1]
    counts = count_ids(records, quiet=True)
    for count, size, columns in zip(counts, records.sizes, case.model.config.id_ranges):
        wanted = np.bincount(ids[:, columns][ids[:, columns] != -1], minlength=size + 1)
        np.testing.assert_array_equal(count, wanted)
    given = {"data": records, "vocabulary": case.keys}
    whole = export_tflite(case.weights, tmp_path / "whole.tflite", mlp="float32", quiet=True, **given)
    exporter = TFLiteExporter(case.weights, quiet=True, **given)
    report = exporter.export(tmp_path / "m.tflite", mlp="float32", max_size=whole.bytes)
    assert report.ids < report.ids_total and report.bytes < whole.bytes and report.max_error < 0.3
    scorer = Scorer(tmp_path / "m.tflite")
    came = scorer.score(*case.encoded)
    np.testing.assert_array_equal(scorer.score_raw(case.dense, case.text), came)
    # The pruned float model, whose rows the file holds quantized.
    kept = choose_ids(exporter.source, whole.bytes, "float32", 8)
    pruned = str(tmp_path / "p.weights.h5")
    prune_weights(str(case.weights), pruned, kept=kept, counts=exporter.source.counts, quiet=True)
    dense, categorical, *weights = case.encoded
    wanted = float_probabilities(pruned, dense, renumber(categorical, kept, case.model.config), *weights)
    np.testing.assert_allclose(came, wanted, atol=0.01)
    np.testing.assert_allclose(float_probabilities(str(case.weights), *case.encoded), case.probability[:, 0], atol=1e-6)


@pytest.mark.slow
def test_int8_layers_are_calibrated_on_bags(case, records, tmp_path):
    errors = {}
    for data in (None, records):
        given = {"evaluation": case.encoded[:]} if data is None else {"data": data}
        report = export_tflite(case.weights, tmp_path / "m.tflite", quiet=True, **given)
        errors[data is None] = report.max_error
        assert Scorer(tmp_path / "m.tflite").metadata["quantization"]["calibration_rows"] == (0 if data is None else 772)
    assert max(errors.values()) < 0.02


@pytest.mark.slow
def test_a_frozen_graph_cut_to_the_ids_of_bags_that_are_used(case, records, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = case.model.config
    export_ascend(case.weights, tmp_path / "out", data=records, max_table_bytes=(config.table_rows - 1000) * 16, quiet=True)
    with np.load(tmp_path / "out" / "check.npz") as check:
        assert check["categorical"].shape == (128, config.id_columns) and (check["categorical"] == -1).any()
    done = subprocess.run([sys.executable, tmp_path / "out" / "check.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_a_frozen_graph_for_ascend(case, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = export_ascend(case.weights, tmp_path / "out")
    assert f"categorical:64,{case.model.config.id_columns}" in done.command
    assert ("weights:64" in done.command) == case.spec.weighted
    names = json.loads((tmp_path / "out" / "ascend.json").read_text())
    graph_def = tf.compat.v1.GraphDef.FromString((tmp_path / "out" / "frozen_graph.pb").read_bytes())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            feed = {f"{name}:0": values for name, values in zip(names["inputs"], case.encoded)}
            came = session.run(names["output"], feed)
            with np.load(tmp_path / "out" / "check.npz") as check:
                checked = session.run(names["output"], {f"{name}:0": check[name] for name in names["inputs"]})
                np.testing.assert_allclose(checked, check["probability"], atol=1e-6)
    np.testing.assert_allclose(came, case.probability, atol=1e-6)
    # No shape that depends on values.
    assert not {node.op for node in graph_def.node} & {"Where", "Unique", "SparseTensorDenseMatMul", "If", "While"}


def test_mindspore_has_no_bags(case, tmp_path):
    with pytest.raises(CheckpointError, match=r"m.ckpt: wanted one key per feature: .* MindSpore's .* Received hot_sizes \["):
        dlrm_tf.convert(case.weights, tmp_path / "m.ckpt", quiet=True)
    assert not (tmp_path / "m.ckpt").exists()
