"""The baselines of `evaluate`: the constant by hand, the regression against dense NumPy, and what is kept of them."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli import main
from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError
from dlrm_tf.probability import constant_logloss
from dlrm_tf.train.advice import base_rate
from dlrm_tf.train.baselines import baselines
from dlrm_tf.train.logistic_regression import LogisticRegression

CONFIG = dlrm_tf.DLRMConfig((4, 2, 7), dense_dim=2)
BAGS = dataclasses.replace(CONFIG, hot_sizes=(2, 1, 3), pooling=("mean", "sum", "sum"))


def id_columns(config, categorical, key_weights=None):
    """Columns of a feature's ids and its id of out of vocabulary, feature after feature: what each counts for in each row."""
    blocks = [np.zeros((len(categorical), size + 1)) for size in config.categorical_feature_sizes]
    for row in range(len(categorical)):
        column = 0
        for block, size, pooling in zip(blocks, config.bag_sizes, config.poolings):
            keys = [
                (categorical[row, c], 1 if key_weights is None else key_weights[row, c]) for c in range(column, column + size)
            ]
            keys, column = [(key, weight) for key, weight in keys if key != -1], column + size
            total = sum(float(weight) for _, weight in keys) if pooling == "mean" else 1.0
            for key, weight in keys:
                block[row, key] += float(weight) / total if total else 0.0
    return np.concatenate(blocks, axis=1)


@pytest.mark.parametrize("config", [CONFIG, BAGS, dataclasses.replace(BAGS, weighted=True)], ids=["one key", "bags", "weighted"])
def test_the_regression_is_adagrad_on_columns_of_ids(config):
    generator = np.random.default_rng(0)
    sizes = [config.categorical_feature_sizes[f] for f in config.column_features]
    least = -1 if config.has_bags else 0  # -1 anywhere, so that there are empty bags too
    categorical = np.stack([generator.integers(least, size + 1, 60) for size in sizes], axis=1).astype(np.int32)
    # Whole numbers with zeros: the weights of a bag may add up to 0.
    more = [generator.integers(0, 3, categorical.shape).astype(np.float32)] if config.weighted else []
    dense = generator.random((60, 2)).astype(np.float32)
    label = generator.integers(0, 2, 60).astype(np.float32)
    model = LogisticRegression(config, bias=-0.5, rate=0.3)
    columns = np.concatenate([id_columns(config, categorical, *more), dense.astype(np.float64), np.ones((60, 1))], axis=1)
    weights, squares = np.zeros(columns.shape[1]), np.ones(columns.shape[1])
    weights[-1] = -0.5
    for start in range(0, 60, 20):
        rows = slice(start, start + 20)
        model.step(dense[rows], categorical[rows], label[rows], *(weights[rows] for weights in more))
        gradient = columns[rows].T @ (1 / (1 + np.exp(-columns[rows] @ weights)) - label[rows])
        squares += gradient**2
        weights -= 0.3 * gradient / np.sqrt(squares)
    np.testing.assert_allclose(model.weights, weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(model.logits(dense, categorical, *more), columns @ weights, rtol=0, atol=1e-12)


def test_ids_share_buckets_where_there_are_more_of_them():
    model = LogisticRegression(dlrm_tf.DLRMConfig((100_000, 50_000), dense_dim=1), buckets=1 << 10)
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


def test_the_regression_of_bags_reads_every_key_and_its_weight(tmp_path):
    """The label follows from a key that may stand in any place, where it has a weight; 5 % of the labels are wrong."""
    generator, lines = np.random.default_rng(3), []
    for _ in range(12000):
        tags = generator.choice(8, 3, replace=False)
        weights = generator.integers(0, 2, 3)
        clicked = bool(((tags == 0) & (weights > 0)).any()) ^ bool(generator.random() < 0.05)
        lines.append(f"{int(clicked)}\t1\t" + "|".join(f"t{tag}:{weight}" for tag, weight in zip(tags, weights)) + "\n")
    (tmp_path / "log.tsv").write_text("".join(lines))
    columns = (("y", "label"), ("x", "float"), ("tags", "categorical"))
    spec = dlrm_tf.FeatureSpec(columns, bags={"tags": dlrm_tf.Bag("|", 3, weight_separator=":")})
    records = dlrm_tf.prepare(tmp_path / "log.tsv", tmp_path / "data", spec=spec, quiet=True)
    dense, categorical, label, weights = records.numpy("test")
    best = ((categorical == records.vocabulary().keys("tags").index("t0")) & (weights > 0)).any(axis=1)
    accuracy = baselines(records)["logistic_regression"]["accuracy"]
    assert accuracy == pytest.approx((best == label[:, 0]).mean(), abs=1e-9) and accuracy > 0.9


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
