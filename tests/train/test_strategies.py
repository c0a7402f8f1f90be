"""Real processes on this machine: what a strategy trains is what one process trains on the same batches."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.errors import UsageError
from dlrm_tf.train.local_cluster import local_cluster
from dlrm_tf.train.options import FitOptions
from dlrm_tf.train.placements import PLACEMENTS
from dlrm_tf.train.placements.tf_config import is_chief, task

# 257 rows for validation, 23 batches and one of 15 rows: uneven shares for two and three.
OPTIONS = {
    "recipe": "mindspore",
    "optimizer": "adagrad",
    "batch_size": 100,
    "validation_share": 0.1,
    "seed": 3,
    "quiet": True,
    "epochs": 1,
}


def run(code: str, **arguments):
    """Runs a program in a fresh process, with `arguments` as a dict of that name; returns what it prints last, from JSON."""
    program = f"import json, os\narguments = json.loads({json.dumps(arguments)!r})\n{code}"
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


FIT = """
from dlrm_tf import FitOptions, fit
from dlrm_tf.train.local_cluster import local_cluster
folders, cluster = arguments["folders"], arguments["cluster"]
options = FitOptions.from_json(arguments["options"])
"""
MULTI_WORKER = """
with local_cluster(*folders, options=options, workers=cluster):
    trained = fit(*folders, options=options)
print(json.dumps(trained.model.distribute_strategy.num_replicas_in_sync))
"""
MIRRORED = """
import numpy as np
import dlrm_tf
from dlrm_tf.keras2 import tensorflow
tf = tensorflow()
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * cluster)
trained = fit(*folders, options=options)
# Steps in a loop, where a collective takes one shape only, though every batch has another number of distinct rows.
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    looped = dlrm_tf.DLRM(options.config)
    looped.compile("sgd", steps_per_execution=5)
looped.fit(dlrm_tf.Records.open(folders[0]).dataset("train", 100, drop_remainder=True), verbose=0)
tables = [np.asarray(value) for value in strategy.experimental_local_results(looped.embedding.table)]
assert np.array_equal(*tables) and tables[0].any()
print(json.dumps(trained.model.distribute_strategy.num_replicas_in_sync))
"""


def fit_alone(prepared, config, folder):
    return dlrm_tf.fit(prepared, folder / "alone", config=config, **OPTIONS)


@pytest.fixture(scope="module")
def alone(prepared, small_config, tmp_path_factory):
    return fit_alone(prepared, small_config, tmp_path_factory.mktemp("alone"))


def fit_in_a_process(program, prepared, tmp_path, cluster=0, **options):
    """Runs `FIT` and `program` with these options of `fit` and `tmp_path/run` as the run's folder."""
    folders = [prepared.folder, str(tmp_path / "run")]
    return run(FIT + program, folders=folders, cluster=cluster, options=FitOptions(**{**OPTIONS, **options}).to_json())


@pytest.mark.cluster
@pytest.mark.parametrize(
    "strategy, replicas, head",
    [
        ("mirrored", 2, {}),
        ("multi_worker", 2, {}),
        ("multi_worker", 3, {}),
        ("mirrored", 2, {"interaction": "cross", "cross_rank": 5}),
    ],
)
def test_replicas_in_step_equal_one_process(strategy, replicas, head, alone, prepared, small_config, tmp_path):
    if head:
        small_config = dataclasses.replace(small_config, **head)
        alone = fit_alone(prepared, small_config, tmp_path)
    program = {"mirrored": MIRRORED, "multi_worker": MULTI_WORKER}[strategy]
    assert fit_in_a_process(program, prepared, tmp_path, replicas, config=small_config, strategy=strategy) == replicas
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [e["step"] for e in history] == [e["step"] for e in alone.history]
    np.testing.assert_allclose([e["loss"] for e in history], [e["loss"] for e in alone.history], rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        [e["validation"]["logloss"] for e in history], [e["validation"]["logloss"] for e in alone.history], rtol=0, atol=1e-5
    )
    trained = dlrm_tf.load(tmp_path / "run" / "model.weights.h5")
    for mine, theirs in zip(trained.trainable_variables, alone.model.trainable_variables):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=1e-5)


@pytest.mark.cluster
def test_workers_stop_early_together_and_lower_their_rates_together(prepared, small_config, tmp_path):
    """The chief alone measures; both workers end after the same step, or they would wait for each other for ever."""
    options = {"optimizer": "sgd", "learning_rate": 3.0, "batch_size": 50, "epochs": 30, "patience": 3, "plateau_factor": 0.5}
    options = {**options, "config": small_config}
    assert fit_in_a_process(MULTI_WORKER, prepared, tmp_path, 2, strategy="multi_worker", **options) == 2
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert 4 <= len(history) < 30
    one = dlrm_tf.fit(prepared, tmp_path / "one", **{**OPTIONS, **options})
    assert [e["step"] for e in one.history] == [e["step"] for e in history]
    for mine, theirs in zip(one.history, history):
        assert mine["validation"]["logloss"] == pytest.approx(theirs["validation"]["logloss"], abs=1e-3)


PARAMETER_SERVER = """
import time
with local_cluster(*folders, options=options, workers=2, ps=2):
    trained = fit(*folders, options=options)
    table = trained.model.embedding.table
    report = {"parts": [[v.device, v.shape[0]] for v in table.variables]}
    report["slots"] = [[v.device, v.shape[0]] for v in trained.model.optimizer.variables() if v.shape.rank and "table" in v.name]
print(json.dumps(report))
"""


@pytest.mark.cluster
def test_parameter_servers_share_the_table_and_resume(prepared, small_config, alone, tmp_path):
    options = {"config": small_config, "strategy": "parameter_server", "checkpoint_steps": 10}
    report = fit_in_a_process(PARAMETER_SERVER, prepared, tmp_path, **options)
    rows = small_config.table_rows
    assert [part_rows for _, part_rows in report["parts"]] == [rows - rows // 2, rows // 2]
    assert sorted(device for device, _ in report["parts"]) == [f"/job:ps/replica:0/task:{i}/device:CPU:0" for i in range(2)]
    assert report["slots"] == report["parts"]  # the optimizer's state lies where the rows are
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    # Asynchronous: not the same numbers, but the same work.
    assert [e["step"] for e in history] == [24]
    assert history[0]["loss"] == pytest.approx(alone.history[0]["loss"], abs=0.05)
    # A parameter-server run goes on in one process, its table and slots put together again.
    more = dlrm_tf.fit(prepared, tmp_path / "run", config=small_config, resume=True, **{**OPTIONS, "epochs": 2})
    assert [e["step"] for e in more.history] == [24, 48]
    assert more.history[1]["loss"] < history[0]["loss"]


LOST_UPDATES = """
import numpy as np
import tensorflow as tf
from dlrm_tf import DLRMConfig
from dlrm_tf.model.embedding import FusedEmbedding
from dlrm_tf.model.optimizers import make_optimizer
ports = iter(arguments["ports"])
cluster = {"worker": [f"localhost:{next(ports)}" for _ in range(4)], "ps": [f"localhost:{next(ports)}" for _ in range(2)]}
spec, options = tf.train.ClusterSpec(cluster), tf.compat.v1.ConfigProto(inter_op_parallelism_threads=8)
servers = [tf.distribute.Server(spec, job, i, "grpc", options) for job in cluster for i in range(len(cluster[job]))]
config = DLRMConfig((20000,) * 4)
strategy = tf.distribute.experimental.ParameterServerStrategy(
    tf.distribute.cluster_resolver.SimpleClusterResolver(spec, rpc_layer="grpc"),
    variable_partitioner=lambda shape, dtype, **more: [2 if shape[0] == config.table_rows else 1] + [1] * (len(shape) - 1))
with strategy.scope():
    embedding, optimizer = FusedEmbedding(config, initializer="zeros"), make_optimizer("sgd", 1.0)

@tf.function
def look_up(ids, training):
    return strategy.run(lambda: embedding(ids, training=training)[:, :, 0])

@tf.function
def step():
    def in_worker():
        ids = tf.cast(tf.exp(tf.random.uniform([512, 4]) * np.log(20000.0)) - 1, tf.int32)  # some ids in every batch
        with tf.GradientTape() as tape:
            loss = -tf.reduce_sum(embedding(ids, training=True))
        optimizer.minimize(loss, embedding.trainable_variables, tape=tape)
    strategy.run(in_worker)

coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
# Rows that lie in both parts, out of order: each id gets its own.
rows = np.arange(config.table_rows, dtype=np.float32)
embedding.write_rows(0, np.repeat(rows[:, None], config.embedding_dim, 1))
ids = np.random.default_rng(0).integers(0, 20001, (64, 4)).astype(np.int32)
for training in (False, True):
    found = coordinator.schedule(look_up, args=(tf.constant(ids), training)).fetch()
    assert np.array_equal(found, ids + np.array(config.block_offsets)), training
embedding.write_rows(0, np.zeros((config.table_rows, config.embedding_dim), np.float32))

for _ in range(200):
    coordinator.schedule(step)
coordinator.join()
applied = sum(float(part.numpy().sum(dtype="f8")) for part in embedding.table.variables)
print(json.dumps(applied / (200 * 512 * 4 * config.embedding_dim)), flush=True)
os._exit(0)
"""


@pytest.mark.cluster
def test_rows_in_parts_are_found_and_workers_that_meet_in_one_lose_no_update():
    sockets = [socket.socket() for _ in range(6)]
    for listener in sockets:
        listener.bind(("localhost", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    assert run("import dlrm_tf\n" + LOST_UPDATES, ports=ports) == pytest.approx(1, abs=1e-3)


def test_tf_config_is_checked(monkeypatch):
    def place(strategy):
        PLACEMENTS[strategy](FitOptions(strategy=strategy), 1)

    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert task() == ("chief", 0) and is_chief()
    with pytest.raises(UsageError, match="strategy multi_worker: TF_CONFIG names no worker"):
        place("multi_worker")
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}')
    assert task() == ("worker", 1) and not is_chief()
    with pytest.raises(UsageError, match="parameter_server: TF_CONFIG names no ps"):
        place("parameter_server")
    monkeypatch.setenv("TF_CONFIG", "{worker")
    with pytest.raises(UsageError, match="TF_CONFIG: wanted JSON like .* Received '{worker'"):
        task()
    with pytest.raises(UsageError, match="strategy must be one of .* Received 'ring'"):
        FitOptions(strategy="ring")
    with (
        pytest.raises(UsageError, match="needs at least one worker and one ps. Received 2 workers, 0 ps"),
        local_cluster("data", "unused", options=FitOptions(strategy="parameter_server"), workers=2),
    ):
        pass
