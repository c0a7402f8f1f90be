"""The baselines of `evaluate`: the constant by hand, the regression against dense NumPy, and what is kept of them."""

import json
import os
import shutil

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli import main
from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError
from dlrm_tf.train.advice import base_rate, constant_logloss
from dlrm_tf.train.baselines import baselines
from dlrm_tf.train.logistic_regression import LogisticRegression

SIZES = (4, 2, 7)


def one_hot(categorical):
    """Columns of a feature's ids and its id of out of vocabulary, feature after feature."""
    blocks = [np.eye(size + 1)[categorical[:, f]] for f, size in enumerate(SIZES)]
    return np.concatenate(blocks, axis=1)


def test_the_regression_is_adagrad_on_one_hot_columns():
    generator = np.random.default_rng(0)
    categorical = np.stack([generator.integers(0, size + 1, 60) for size in SIZES], axis=1).astype(np.int32)
    dense = generator.random((60, 2)).astype(np.float32)
    label = generator.integers(0, 2, 60).astype(np.float32)
    model = LogisticRegression(SIZES, 2, bias=-0.5, rate=0.3)
    columns = np.concatenate([one_hot(categorical), dense.astype(np.float64), np.ones((60, 1))], axis=1)
    weights, squares = np.zeros(columns.shape[1]), np.ones(columns.shape[1])
    weights[-1] = -0.5
    for start in range(0, 60, 20):
        rows = slice(start, start + 20)
        model.step(dense[rows], categorical[rows], label[rows])
        gradient = columns[rows].T @ (1 / (1 + np.exp(-columns[rows] @ weights)) - label[rows])
        squares += gradient**2
        weights -= 0.3 * gradient / np.sqrt(squares)
    np.testing.assert_allclose(model.weights, weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(model.logits(dense, categorical), columns @ weights, rtol=0, atol=1e-12)


def test_ids_share_buckets_where_there_are_more_of_them():
    model = LogisticRegression((100_000, 50_000), 1, buckets=1 << 10)
    assert model.weights.size == 1024 + 1 + 1
    ids = np.stack([np.arange(50_001), np.arange(50_001)], axis=1).astype(np.int32)
    buckets = model.buckets(ids)
    assert buckets.min() >= 0 and buckets.max() < 1024
    # Spread evenly, and the same id of two features is not the same.
    counts = np.bincount(buckets.reshape(-1), minlength=1024)
    assert counts.max() < 2 * counts.mean()
    assert (buckets[:, 0] == buckets[:, 1]).mean() < 0.01


@pytest.fixture(scope="module")
def figures(prepared):
    return baselines(prepared)


def test_the_constant_is_the_training_rows_click_rate(prepared, figures):
    label = prepared.numpy("test")[2]
    rate = float(prepared.numpy("train")[2].mean())
    assert base_rate(prepared) == pytest.approx(rate)
    constant = figures["constant"]
    assert constant["logloss"] == pytest.approx(constant_logloss(rate, float(label.mean())), abs=1e-9)
    assert (constant["auc"], constant["rows"], constant["mean_prediction"]) == (0.5, 428, pytest.approx(rate))


def test_the_regression_learns(figures):
    assert figures["logistic_regression"]["logloss"] < figures["constant"]["logloss"]
    assert figures["logistic_regression"]["auc"] > 0.6


def test_figures_are_kept_beside_the_data_for_the_same_data_only(prepared, figures, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(prepared.folder, folder)
    records = Records.open(folder)
    kept = json.loads((folder / "baselines.json").read_text())
    assert list(kept.values()) == [figures]
    monkeypatch.setattr(LogisticRegression, "step", None)  # nothing is trained again
    assert baselines(records) == figures
    monkeypatch.undo()
    (folder / "baselines.json").write_text("{")  # damaged: computed again
    assert baselines(records) == figures
    other = records.with_validation(0)
    other.manifest["shards"]["train"][0]["sha256"] = "0" * 64
    monkeypatch.setattr(LogisticRegression, "step", None)
    with pytest.raises(TypeError):
        baselines(other)


def test_no_rows(prepared):
    with pytest.raises(DataError, match="wanted rows of validation for the baselines"):
        baselines(prepared, split="validation")


@pytest.mark.slow
def test_evaluate_prints_them_unless_told_not_to(prepared, small_config, tmp_path, capsys):
    dlrm_tf.DLRM(small_config, seed=1).save_weights(tmp_path / "x.weights.h5")
    command = ["evaluate", "--data", prepared.folder, "--weights", str(tmp_path / "x.weights.h5"), "--quiet"]
    assert main.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["baselines"] == baselines(prepared)
    assert main.main(command) == 0
    printed = capsys.readouterr().out
    assert "logistic regression" in printed.splitlines()[0]
    assert f"{baselines(prepared)['logistic_regression']['auc']:.6f}" in printed
    assert main.main([*command, "--no-baselines", "--json"]) == 0
    assert "baselines" not in json.loads(capsys.readouterr().out)
    assert os.path.exists(os.path.join(prepared.folder, "baselines.json"))
