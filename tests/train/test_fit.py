"""The training loop: what a run folder holds, resume to the bit, and what is refused."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli import main
from dlrm_tf.errors import CheckpointError, DataError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.train import callbacks
from dlrm_tf.train.callbacks import TrainingError
from dlrm_tf.train.checkpoints import RunCheckpoints

tf = tensorflow()
# 257 of the 2,572 training rows are for validation: 24 steps an epoch, the last one of 15 rows.
OPTIONS = {"recipe": "mindspore", "batch_size": 100, "epochs": 2, "validation_share": 0.1, "seed": 3, "quiet": True}


def weights_of(path):
    return [variable.numpy() for variable in dlrm_tf.load(path).trainable_variables]


def assert_same_weights(one, other):
    for a, b in zip(weights_of(one), weights_of(other)):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def whole_run(prepared, small_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return dlrm_tf.fit(prepared, folder, config=small_config, **OPTIONS), folder


def test_run_folder_and_history(whole_run, prepared):
    trained, folder = whole_run
    history = json.loads((folder / "history.json").read_text())
    assert history == trained.history
    assert [(e["epoch"], e["step"]) for e in history] == [(1, 24), (2, 48)]
    assert history[1]["loss"] < history[0]["loss"]
    assert os.listdir(folder / "tensorboard")
    assert sorted(os.listdir(folder / "checkpoints")) == ["step-0000000024", "step-0000000048"]
    # The figures in the history are those of the weights file.
    records = prepared.with_validation(257)
    assert dlrm_tf.evaluate(records, trained.weights, split="validation", quiet=True) == history[-1]["validation"]
    assert history[-1]["validation"]["rows"] == 257
    assert dlrm_tf.load(trained.weights).vocabulary_fingerprint == prepared.vocabulary().fingerprint
    best = min(e["validation"]["logloss"] for e in history)
    assert dlrm_tf.evaluate(records, trained.best_weights, split="validation", quiet=True)["logloss"] == best
    assert dlrm_tf.evaluate(prepared, trained.best_weights, quiet=True) == trained.test
    assert trained.test["rows"] == prepared.rows("test") == 428
    step = min(history, key=lambda e: e["validation"]["logloss"])["step"]
    assert json.loads((folder / "test.json").read_text()) == {"step": step, **trained.test}
    for mine, theirs in zip(trained.model.trainable_variables, weights_of(trained.best_weights)):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_the_epochs_loss_is_the_mean_over_its_rows(prepared, small_config, tmp_path):
    # A learning rate too small to change float32 weights: the mean of the steps is the loss of one pass.
    trained = dlrm_tf.fit(
        prepared,
        tmp_path / "run",
        config=small_config,
        recipe="mindspore",
        learning_rate=1e-30,
        batch_size=100,
        validation_share=0.1,
        quiet=True,
    )
    measured = dlrm_tf.evaluate(prepared.with_validation(257), trained.model, split="train", quiet=True)
    assert trained.history[0]["loss"] == pytest.approx(measured["logloss"], abs=1e-6)


class StopAt(callbacks.StopAtNonFiniteLoss):
    """Sends the process a signal after some steps, as Ctrl-C or a scheduler would."""

    at, number = 0, signal.SIGINT

    def on_train_batch_end(self, batch, logs=None):
        if self._position.step == StopAt.at:
            signal.raise_signal(StopAt.number)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(7, 30), (24,), (47, 48)])
def test_interrupted_and_resumed_equals_uninterrupted(whole_run, stops, prepared, small_config, tmp_path, monkeypatch):
    trained, _ = whole_run
    monkeypatch.setattr(callbacks, "StopAtNonFiniteLoss", StopAt)
    for i, step in enumerate((*stops, None)):
        StopAt.at, StopAt.number = step, (signal.SIGINT, signal.SIGTERM)[i % 2]
        arguments = {"config": small_config, "resume": True, **OPTIONS}
        if step is None:
            resumed = dlrm_tf.fit(prepared, tmp_path, **arguments)
        else:
            with pytest.raises(KeyboardInterrupt):
                dlrm_tf.fit(prepared, tmp_path, **arguments)
    assert_same_weights(resumed.weights, trained.weights)
    assert_same_weights(resumed.best_weights, trained.best_weights)
    for mine, whole in zip(resumed.history, trained.history):
        assert mine["loss"] == pytest.approx(whole["loss"], abs=1e-6)
        assert mine["validation"] == whole["validation"]


@pytest.mark.slow
@pytest.mark.parametrize("head", [{}, {"interaction": "cross", "cross_rank": 5}])
def test_more_epochs_for_a_finished_run(whole_run, prepared, small_config, tmp_path, head):
    arguments = {**OPTIONS, "config": dataclasses.replace(small_config, **head)}
    trained = dlrm_tf.fit(prepared, tmp_path / "whole", **arguments) if head else whole_run[0]
    dlrm_tf.fit(prepared, tmp_path / "run", **{**arguments, "epochs": 1})
    more = dlrm_tf.fit(prepared, tmp_path / "run", resume=True, **arguments)
    assert_same_weights(more.weights, trained.weights)


def test_resuming_another_run_is_refused(prepared, small_config, tmp_path):
    options = {"config": small_config, "recipe": "mindspore", "quiet": True}
    dlrm_tf.fit(prepared, tmp_path / "run", batch_size=500, **options)
    with pytest.raises(CheckpointError, match="already holds a run"):
        dlrm_tf.fit(prepared, tmp_path / "run", batch_size=500, **options)
    with pytest.raises(CheckpointError, match="batch_size was 500, now 400; seed was 0, now 1"):
        dlrm_tf.fit(prepared, tmp_path / "run", batch_size=400, seed=1, resume=True, **options)


def test_weights_must_be_for_the_data(prepared, small_config, tmp_path):
    model = dlrm_tf.DLRM(small_config, seed=1)
    model.vocabulary_fingerprint = "f" * 64
    model.save_weights(tmp_path / "foreign.weights.h5")
    with pytest.raises(CheckpointError, match="foreign.weights.h5: was trained with vocabulary ffffffffffff…"):
        dlrm_tf.fit(prepared, tmp_path / "run", weights=tmp_path / "foreign.weights.h5", quiet=True)
    with pytest.raises(CheckpointError, match="was trained with vocabulary"):
        dlrm_tf.evaluate(prepared, tmp_path / "foreign.weights.h5", quiet=True)
    other = dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=1)
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(CheckpointError, match="has 7 ids for feature C1, but .* has"):
        dlrm_tf.fit(prepared, tmp_path / "run", weights=tmp_path / "other.weights.h5", quiet=True)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_starts_from_the_given_weights(prepared, small_config, tmp_path):
    model = dlrm_tf.DLRM(small_config, seed=1)
    model.save_weights(tmp_path / "start.weights.h5")
    trained = dlrm_tf.fit(
        prepared,
        tmp_path / "run",
        weights=tmp_path / "start.weights.h5",
        optimizer="sgd",
        learning_rate=1e-30,
        batch_size=500,
        quiet=True,
    )
    assert_same_weights(trained.weights, tmp_path / "start.weights.h5")


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_a_loss_that_is_no_number_stops_with_step_and_batch(prepared, small_config, tmp_path, steps_per_execution):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ \(epoch 1, batch \d+ of 24\)"):
        dlrm_tf.fit(
            prepared,
            tmp_path / "run",
            config=small_config,
            learning_rate=1e38,
            checkpoint_steps=1,
            steps_per_execution=steps_per_execution,
            **OPTIONS,
        )
    assert not (tmp_path / "run" / "model.weights.h5").exists()
    # What was saved before is finite.
    model = dlrm_tf.DLRM(small_config, initializer="zeros")
    model.compile("sgd")
    assert RunCheckpoints(str(tmp_path / "run"), model, model.optimizer).restore() >= 1 or steps_per_execution > 1
    assert all(np.isfinite(v.numpy()).all() for v in model.trainable_variables)


def test_a_folder_without_prepared_data(tmp_path):
    with pytest.raises(DataError, match="not a prepared data folder"):
        dlrm_tf.fit(tmp_path, tmp_path / "run")


@pytest.mark.slow
def test_command_line(prepared, small_config, tmp_path, capsys):
    (tmp_path / "small.json").write_text(small_config.to_json())
    command = ["train", "--data", prepared.folder, "-o", str(tmp_path / "run"), "--config", str(tmp_path / "small.json")]
    command += ["--optimizer=sgd", "--momentum=0.9", "--decay=0.5", "--warmup-steps=3", "--batch-size=500"]
    command += ["--profile=2:3", "--quiet"]
    assert main.main(command) == 0
    assert "best weights: " in capsys.readouterr().out
    profile = list((tmp_path / "run" / "tensorboard").glob("**/*.xplane.pb"))
    assert len(profile) == 1 and profile[0].stat().st_size > 1000
    assert main.main(command) == 1
    assert "already holds a run" in capsys.readouterr().err
    weights = str(tmp_path / "run" / "model.weights.h5")
    assert main.main(["evaluate", "--data", prepared.folder, "--weights", weights, "--json", "--quiet"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert exact["rows"] == 428 and sum(b["rows"] for b in exact["calibration_bins"]) == 428
    assert main.main(["evaluate", "--data", prepared.folder, "--weights", weights, "--streaming", "--quiet"]) == 0
    assert f"{exact['logloss']:.6f}" in capsys.readouterr().out
    assert main.main(["evaluate", "--data", str(tmp_path), "--weights", weights]) == 1
    assert "not a prepared data folder" in capsys.readouterr().err


@pytest.mark.slow
def test_flags_of_recipe_and_architecture(prepared, tmp_path, capsys):
    command = ["train", "--data", prepared.folder, "-o", str(tmp_path / "run"), "--recipe", "mindspore", "--batch-size", "500"]
    assert main.main([*command, "--embedding-dim", "4", "--bottom-mlp", "8,4", "--top-mlp", "16", "--interaction", "cat"]) == 0
    printed = capsys.readouterr()
    assert "recipe mindspore: 2,572 rows: batch 500, sgd 0.15, 1 epoch of 6 steps; no validation rows" in printed.err
    assert "few steps: 2,572 rows in batches of 500 made 6 optimizer steps" in printed.err
    assert "test rows, best weights" in printed.out
    config = dlrm_tf.load(tmp_path / "run" / "model.weights.h5").config
    assert (config.embedding_dim, config.bottom_mlp, config.top_mlp, config.interaction) == (4, (8, 4), (16, 1), "cat")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["batch_size"], settings["learning_rate"], settings["validation_rows"]) == (500, 0.15, 0)


@pytest.mark.slow
def test_pictures(prepared, small_config, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "small.json").write_text(small_config.to_json())
    command = ["train", "--data", prepared.folder, "-o", str(tmp_path / "run"), "--config", str(tmp_path / "small.json")]
    assert main.main([*command, "--batch-size", "500", "--quiet", "--plot"]) == 0
    weights = str(tmp_path / "run" / "model.weights.h5")
    command = ["evaluate", "--data", prepared.folder, "--weights", weights, "--quiet"]
    assert main.main([*command, "--plot", str(tmp_path / "again.png")]) == 0
    for picture in ("run/training.png", "run/quality.png", "again.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert main.main([*command, "--plot", str(tmp_path / "never.png"), "--streaming"]) == 2
    assert "--plot needs every score" in capsys.readouterr().err
