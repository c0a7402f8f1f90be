"""NaN and infinity on their way into what is saved."""

import dataclasses
import os
import re
import shutil

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli import main
from dlrm_tf.data.records import Records
from dlrm_tf.errors import CheckpointError
from dlrm_tf.train.callbacks import FiniteWeights, SaveRun, StopAtNonFiniteLoss, TrainingError
from dlrm_tf.train.checkpoints import RunCheckpoints
from dlrm_tf.train.position import EpochPosition


@pytest.fixture
def with_nan(prepared, tmp_path):
    """Function `record -> Records` with NaN as the record's first dense value."""

    def make(record):
        shutil.copytree(prepared.folder, tmp_path / "data")
        shard = tmp_path / "data" / "train" / "00000.bin"
        with open(shard, "r+b") as f:
            f.seek(record * 160 + 4)
            f.write(np.float32(np.nan).tobytes())
        return Records.open(str(tmp_path / "data"))

    return make


def saved(run):
    """Names of the run's checkpoints, weights and history."""
    names = {name for _, folders, files in os.walk(run) for name in (*folders, *files)}
    return sorted(name for name in names if name.startswith("step-") or name.endswith((".weights.h5", "history.json")))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"checkpoint_steps": 1}, {"validate": False}])
def test_nan_in_the_data_is_never_saved(with_nan, small_config, tmp_path, options):
    """Which is not finite first, the loss or a weight, depends on the CPU (see `FiniteWeights`); either error names the place."""
    records = with_nan(1)
    with pytest.raises(
        TrainingError, match=r"at step 1 \(epoch 1, batch.* 1 of 1.*look for non-finite values.*; nothing was saved$"
    ):
        dlrm_tf.fit(records, tmp_path / "run", config=small_config, recipe="mindspore", batch_size=5000, quiet=True, **options)
    assert saved(tmp_path / "run") == []


def test_the_bad_batch_and_the_checkpoint_before_it_are_named(with_nan, small_config, tmp_path):
    records = with_nan(0)
    options = {"config": small_config, "recipe": "mindspore", "batch_size": 500, "quiet": True}  # 6 batches
    dense = [features["dense"] for features, _ in records.dataset("train", 500, shuffle_seed=0)]
    (bad,) = (step for step, values in enumerate(dense, 1) if np.isnan(values).any())
    with pytest.raises(TrainingError, match=rf"at step {bad} \(epoch 1, batch.* {bad} of 6") as every_step:
        dlrm_tf.fit(records, tmp_path / "one", checkpoint_steps=1, **options)
    assert bad > 1
    assert f"; the checkpoint of step {bad - 1} was written before that" in str(every_step.value)
    assert saved(tmp_path / "one")[-1] == f"step-{bad - 1:010d}"
    # A loss is noticed at once, a weight at the end of the epoch.
    with pytest.raises(TrainingError, match=rf"at step ({bad}|6) \(epoch 1, batch.* of 6.*; nothing was saved$"):
        dlrm_tf.fit(records, tmp_path / "whole", **options)
    assert saved(tmp_path / "whole") == []


def test_a_loss_that_is_not_finite_stops_training():
    position = EpochPosition(rows=1000, batch_size=100)
    stop = StopAtNonFiniteLoss(position)

    def step(batch, loss):
        for callback in (position, stop):
            callback.on_train_batch_end(batch, {"loss": loss})

    position.start(0, 0.0)
    step(0, 0.5)
    with pytest.raises(TrainingError, match=r"^the loss is inf at step 2 \(epoch 1, batch 2 of 10\): .*; nothing was saved$"):
        step(1, np.inf)
    position.start(13, 100.0)
    with pytest.raises(
        TrainingError,
        match=r"^the loss is nan at step 14 \(epoch 2, batch 4 of 10\): .*; the checkpoint of step 13 was written before that$",
    ):
        step(0, np.nan)


@pytest.mark.parametrize("crosses", [[], [("cross_projection", 0), ("cross", 0)]], ids=["dot", "cross"])
def test_weights_that_are_not_finite_are_counted_and_never_saved(small_config, tmp_path, crosses):
    if crosses:
        small_config = dataclasses.replace(small_config, interaction="cross", cross_layers=1, cross_rank=3)
    model = dlrm_tf.DLRM(small_config, seed=0)
    model.compile("sgd")
    layers = [("bottom_mlp", 0), ("bottom_mlp", 1), *crosses, ("top_mlp", 0), ("top_mlp", 1)]
    position = EpochPosition(rows=1000, batch_size=100)
    position.start(0, 0.0)
    saver = SaveRun(position, RunCheckpoints(str(tmp_path), model, model.optimizer), FiniteWeights(model, position, step=0))

    def refused(ending, place):
        """Three bad numbers in each kernel and bias in turn: saving names weight and place, and ends with what is saved."""
        for mlp, i in layers:
            for kind in ("kernel",) if mlp == "cross_projection" else ("kernel", "bias"):
                weight = getattr(model.dense_layer(mlp, i), kind)
                good = weight.numpy()
                flat = good.flatten()
                bad = [np.nan, -np.inf, np.inf][: flat.size]
                flat[flat.size - len(bad) :] = bad
                weight.assign(flat.reshape(good.shape))
                message = rf"^{len(bad)} weights of {mlp} layer {i} \({kind}\) are not finite at {place}: .*; {ending}$"
                with pytest.raises(TrainingError, match=message):
                    saver.save()
                weight.assign(good)

    position.on_train_batch_end(0, {"loss": 0.5})
    refused("nothing was saved", r"step 1 \(epoch 1, batches 1 to 1 of 10, trained since step 0\)")
    assert saved(tmp_path) == []
    saver.save()
    position.on_train_batch_end(2, {"loss": 0.5})
    refused("the checkpoint of step 1 was written before that", r"step 3 \(epoch 1, batches 2 to 3 of 10, trained since step 1\)")
    assert saved(tmp_path) == ["step-0000000001"]


def test_a_learning_rate_that_overflows_is_one_line(prepared, tmp_path, capsys):
    """One step from finite weights to finite weights whose products are not; the loss of that step was still finite."""
    command = ["train", "--data", prepared.folder, "-o", str(tmp_path / "run"), "--recipe", "mindspore", "--learning-rate"]
    assert main.main([*command, "3e38", "--validation-share", "0.1", "--batch-size", "20000", "--quiet"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"dlrm-tf: after step 1 \(epoch 1\) the validation rows can't be measured: \d+ of 257 rows have a NaN", error)
    assert saved(tmp_path / "run") == []


@pytest.mark.slow
def test_best_weights_without_validation_are_the_last(prepared, small_config, tmp_path):
    options = {"config": small_config, "recipe": "mindspore", "validation_share": 0.1, "batch_size": 500, "quiet": True}
    trained = dlrm_tf.fit(prepared, tmp_path / "run", validate=False, **options)
    assert trained.best_weights == trained.weights == str(tmp_path / "run" / "model.weights.h5")
    assert trained.test is None and trained.history[0]["validation"] is None
    assert trained.history[0]["step"] == 6  # of all 2,572 rows
    # Other rows are trained on: this would be another run.
    with pytest.raises(CheckpointError, match="rows was 2572, now 2315; validation_rows was 0, now 257"):
        dlrm_tf.fit(prepared, tmp_path / "run", resume=True, **options)


@pytest.mark.parametrize("option", ["--batch-size", "--epochs", "--steps-per-execution", "--checkpoint-steps"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_numbers_that_must_be_positive_are_wrong_usage(prepared, tmp_path, capsys, option, value):
    assert main.main(["train", "--data", prepared.folder, "-o", str(tmp_path / "run"), option, value]) == 2
    assert f"dlrm-tf: {option[2:].replace('-', '_')} must be positive. Received {value}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluating_in_batches_of_none_is_wrong_usage(prepared, capsys):
    assert main.main(["evaluate", "--data", prepared.folder, "--weights", "x.weights.h5", "--batch-size", "0"]) == 2
    assert "--batch-size: wanted a positive number. Received 0" in capsys.readouterr().err
