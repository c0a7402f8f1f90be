"""Several keys per feature, weights, a shared table, no dense features, wherever training runs: the steps of one process."""

import dataclasses
import json

import numpy as np
import pytest
from test_strategies import MULTI_WORKER, OPTIONS, PARAMETER_SERVER, fit_in_a_process

import dlrm_tf
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import make_optimizer
from dlrm_tf.train.placements.tpu import host_copy, tpu_model, with_row_numbers

tf = tensorflow()
ROWS = 3000


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """2,572 rows to train on: bags of one to six keys, of which four and three are kept, that share a table; a hashed feature."""
    folder, random = tmp_path_factory.mktemp("bags"), np.random.default_rng(4)

    def line():
        tags = "|".join(f"t{t}:{w / 4}" for t, w in zip(random.integers(0, 40, random.integers(1, 7)), random.integers(0, 9, 7)))
        path = "/".join(f"p{p}" for p in random.integers(0, 20, random.integers(1, 5)))
        return f"{int('t1' in tags)}\t{tags}\ts{random.integers(5)}\t{path}\n"

    (folder / "log.tsv").write_text("".join(line() for _ in range(ROWS)))
    spec = dlrm_tf.FeatureSpec(
        (("y", "label"), ("tags", "categorical"), ("shop", "categorical"), ("path", "categorical")),
        bags={"tags": dlrm_tf.Bag("|", 4, "mean", ":"), "path": dlrm_tf.Bag("/", 3)},
        hashed={"shop": 7},
        shared={"both": ("tags", "path")},
    )
    return dlrm_tf.prepare(folder / "log.tsv", folder / "data", spec=spec, quiet=True)


@pytest.fixture(scope="module")
def config(records):
    return dlrm_tf.DLRMConfig(**records.config_fields(), embedding_dim=4, top_mlp=(16, 1))


@pytest.fixture(scope="module")
def alone(records, config, tmp_path_factory):
    return dlrm_tf.fit(records, tmp_path_factory.mktemp("alone") / "run", config=config, **OPTIONS)


@pytest.mark.cluster
def test_workers_in_step_equal_one_process(records, config, alone, tmp_path):
    assert fit_in_a_process(MULTI_WORKER, records, tmp_path, 2, config=config, strategy="multi_worker") == 2
    trained = dlrm_tf.load(tmp_path / "run" / "model.weights.h5")
    assert trained.config == config
    for mine, theirs in zip(trained.trainable_variables, alone.model.trainable_variables):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=1e-5)


@pytest.mark.cluster
def test_parameter_servers(records, config, alone, tmp_path):
    report = fit_in_a_process(PARAMETER_SERVER, records, tmp_path, config=config, strategy="parameter_server")
    assert sum(rows for _, rows in report["parts"]) == config.table_rows
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    # Asynchronous: not the same numbers, but the same work.
    assert history[0]["loss"] == pytest.approx(alone.history[0]["loss"], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_tpu_model_trains_as_the_ordinary_one(records, config, optimizer, weighted):
    """In TFRS's CPU mode."""
    config = dataclasses.replace(config, weighted=weighted)

    def batches():
        rows = records.dataset("train", 64, drop_remainder=True).take(6)
        return rows.map(lambda inputs, label: ({name: inputs[name] for name in config.inputs}, label))

    ordinary = dlrm_tf.DLRM(config, seed=1)
    on_tpu = tpu_model(ordinary, make_optimizer(optimizer, 0.1))
    given, _ = next(iter(batches()))
    rows, _ = next(iter(with_row_numbers(config, batches)))
    np.testing.assert_allclose(on_tpu(rows), ordinary(given), rtol=0, atol=1e-6)
    ordinary.compile(make_optimizer(optimizer, 0.1))
    on_tpu.compile(make_optimizer(optimizer, 0.1))
    ordinary.fit(batches(), epochs=2, verbose=0)
    on_tpu.fit(with_row_numbers(config, batches), epochs=2, verbose=0)
    for mine, theirs in zip(host_copy(on_tpu).trainable_variables, ordinary.trainable_variables):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=1e-6)
