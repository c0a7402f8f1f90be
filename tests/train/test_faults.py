"""Training killed at random moments, out of disk, or without its workers."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.errors import CheckpointError
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.fit import fit
from dlrm_tf.train.options import FitOptions

OPTIONS = {"batch_size": 20, "seed": 3, "quiet": True, "epochs": 2, "checkpoint_steps": 20, "recipe": "mindspore"}
PROGRAM = """
import json, signal, sys
import dlrm_tf
from dlrm_tf.train import callbacks
arguments = json.loads(sys.argv[1])
config = dlrm_tf.DLRMConfig.from_json(arguments.pop("config"))

class Waits(callbacks.StopAtNonFiniteLoss):  # at its last step, to be killed
    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self._position.step == 130:
            signal.pause()

callbacks.StopAtNonFiniteLoss = Waits
dlrm_tf.fit(config=config, **arguments)
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(prepared, small_config, tmp_path):
    options = {**OPTIONS, "batch_size": 40}  # 65 steps an epoch
    whole = fit(prepared, tmp_path / "whole", config=small_config, **options)
    arguments = {"data": prepared.folder, "run_dir": str(tmp_path / "run"), "config": small_config.to_json(), "resume": True}
    command = [sys.executable, "-c", PROGRAM, json.dumps({**arguments, **options})]
    checkpoints = tmp_path / "run" / "checkpoints"
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None and not list(checkpoints.glob("step-*")):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        process.kill()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]
    assert not (tmp_path / "run" / "model.weights.h5").exists()
    resumed = fit(prepared, tmp_path / "run", config=small_config, resume=True, **options)
    for mine, theirs in zip(resumed.model.trainable_variables, whole.model.trainable_variables):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert [e["step"] for e in json.loads((tmp_path / "run" / "history.json").read_text())] == [65, 130]


def test_a_full_disk_keeps_the_last_good_checkpoint(small_config, tmp_path):
    model = dlrm_tf.DLRM(small_config, seed=1)
    model.compile("adagrad")
    checkpoints = RunCheckpoints(str(tmp_path), model, model.optimizer)
    checkpoints.save(10, 1.5)
    trained = [v.numpy() for v in model.trainable_variables]
    for variable in model.trainable_variables:
        variable.assign_add(np.ones(variable.shape, np.float32))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # No file may grow beyond 4 kB: writes fail half-way, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        with pytest.raises(CheckpointError, match=r"could not write the checkpoint \(.*\); the checkpoint of step 10 is intact"):
            checkpoints.save(20, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path / "checkpoints") == ["step-0000000010"]
    assert RunCheckpoints(str(tmp_path), model, model.optimizer).restore() == 10
    for variable, before in zip(model.trainable_variables, trained):
        np.testing.assert_array_equal(variable.numpy(), before)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(small_config, tmp_path):
    model = dlrm_tf.DLRM(small_config, seed=1)
    model.compile("sgd")
    checkpoints = RunCheckpoints(str(tmp_path), model, model.optimizer)
    for step in (10, 20, 30):
        checkpoints.save(step, 0.0)
    assert checkpoints.steps() == [20, 30]
    folder = tmp_path / "checkpoints" / "step-0000000030"
    (tmp_path / "checkpoints" / ".step-0000000040.abc.part").mkdir()  # killed while it wrote
    for path in folder.iterdir():
        os.truncate(path, path.stat().st_size // 2)
    assert checkpoints.restore() == 20
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["damaged-step-0000000030", "step-0000000020"]
    checkpoints.save(30, 0.0)  # is written anew
    assert RunCheckpoints(str(tmp_path), model, model.optimizer).restore() == 30
    for path in (tmp_path / "checkpoints").glob("step-*/*"):
        os.truncate(path, 10)
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be read: .*step-0000000030.*step-0000000020"):
        checkpoints.restore()


@pytest.mark.slow
def test_a_run_goes_on_from_before_the_damage_and_pushes_out_no_good_checkpoint(prepared, small_config, tmp_path):
    options = {**OPTIONS, "optimizer": "adagrad", "batch_size": 500, "checkpoint_steps": None}  # 6 steps an epoch
    whole = fit(prepared, tmp_path / "whole", config=small_config, **{**options, "epochs": 3})
    fit(prepared, tmp_path / "run", config=small_config, **options)
    for path in (tmp_path / "run" / "checkpoints" / "step-0000000012").iterdir():
        os.truncate(path, path.stat().st_size // 2)
    resumed = fit(prepared, tmp_path / "run", config=small_config, resume=True, **{**options, "epochs": 3})
    names = sorted(os.listdir(tmp_path / "run" / "checkpoints"))
    assert names == ["damaged-step-0000000012", "step-0000000012", "step-0000000018"]
    for mine, theirs in zip(resumed.model.trainable_variables, whole.model.trainable_variables):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


CLUSTER = """
import os, sys, threading, time
from dlrm_tf import FitOptions, fit
from dlrm_tf.errors import DLRMError
from dlrm_tf.train.local_cluster import local_cluster
folders, options = sys.argv[1:3], FitOptions.from_json(sys.argv[3])
folder = folders[1] + "/checkpoints"

def newest():
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return max([int(n[5:]) for n in names if n.startswith("step-")], default=0)

def wait_for(step):
    while newest() < step:
        time.sleep(0.02)

def kill(others):
    wait_for(20)
    others["worker-1"].kill()
    print("worker", newest(), flush=True)
    wait_for(newest() + 20)
    print("ps", newest(), flush=True)
    others["ps-1"].kill()

with local_cluster(*folders, options=options, workers=2, ps=2) as others:
    threading.Thread(target=kill, args=(others,), daemon=True).start()
    try:
        fit(*folders, options=options)
    except DLRMError as e:
        print(type(e).__name__, e, flush=True)
        os._exit(0)
"""


@pytest.mark.cluster
def test_a_lost_worker_is_survived_and_a_lost_ps_is_resumed_from(prepared, small_config, tmp_path):
    options = FitOptions(config=small_config, strategy="parameter_server", validate=False, **{**OPTIONS, "epochs": 100})
    command = [sys.executable, "-c", CLUSTER, prepared.folder, str(tmp_path / "run"), options.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert len(done.stdout.splitlines()) == 3, done.stdout + done.stderr[-3000:]
    worker, ps, error = done.stdout.splitlines()
    # Training went on for at least 20 steps after the worker was gone.
    assert int(ps.split()[1]) >= int(worker.split()[1]) + 20
    assert error.startswith("ClusterError a parameter server is gone") and error.endswith("start the cluster again with --resume")
    steps = [int(name[5:]) for name in os.listdir(tmp_path / "run" / "checkpoints") if name.startswith("step-")]
    epochs = max(steps) // 129 + 1
    resumed = fit(prepared, tmp_path / "run", options=options, strategy="default", resume=True, epochs=epochs)
    assert resumed.history[-1]["step"] == 129 * epochs
    # Asynchronous: not the same numbers as in one process, but the same work.
    alone = fit(prepared, tmp_path / "alone", options=options, strategy="default", epochs=epochs)
    assert resumed.history[-1]["loss"] == pytest.approx(alone.history[-1]["loss"], abs=0.05)
