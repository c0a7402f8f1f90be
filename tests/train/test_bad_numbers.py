"""NaN and infinity on their way into what is saved."""

import os
import shutil

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli import main
from dlrm_tf.data.records import Records
from dlrm_tf.train.callbacks import TrainingError


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


@pytest.mark.parametrize("options", [{}, {"checkpoint_steps": 1}, {"validate": False}])
def test_nan_in_the_data_is_never_saved(with_nan, small_config, tmp_path, options):
    records = with_nan(1)
    with pytest.raises(
        TrainingError,
        match=r"\d+ weights of bottom_mlp layer 0 \(kernel\) are not finite at step 1 \(epoch 1, batches 1 to 1 of 1\), "
        "and were at step 0: look for non-finite values",
    ):
        dlrm_tf.fit(records, tmp_path / "run", config=small_config, batch_size=5000, quiet=True, **options)
    left = {name for _, folders, files in os.walk(tmp_path / "run") for name in (*folders, *files)}
    assert not {name for name in left if name.endswith(".weights.h5") or name.startswith("step-")}
    assert "history.json" not in left


def test_steps_and_batches_since_the_last_good_checkpoint_are_named(with_nan, small_config, tmp_path):
    records = with_nan(1)
    options = {"config": small_config, "batch_size": 500, "quiet": True}  # 6 batches
    with pytest.raises(TrainingError) as every_step:
        dlrm_tf.fit(records, tmp_path / "one", checkpoint_steps=1, **options)
    bad = int(str(every_step.value).split("at step ")[1].split()[0])
    assert f"at step {bad} (epoch 1, batches {bad} to {bad} of 6), and were at step {bad - 1}" in str(every_step.value)
    with pytest.raises(TrainingError, match=r"at step 6 \(epoch 1, batches 1 to 6 of 6\), and were at step 0"):
        dlrm_tf.fit(records, tmp_path / "whole", **options)


def test_a_learning_rate_that_overflows_is_one_line(prepared, tmp_path, capsys):
    """One step from finite weights to finite weights whose products are not: the loss has not told yet."""
    command = ["train", "--data", prepared.folder, "-o", str(tmp_path / "run"), "--optimizer", "sgd", "--learning-rate", "3e38"]
    assert main.main([*command, "--batch-size", "20000", "--quiet"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dlrm-tf: after step 1 (epoch 1) the test split can't be measured: 428 of 428 rows have a NaN")
    assert not list((tmp_path / "run").glob("*.weights.h5")) and not (tmp_path / "run" / "history.json").exists()


def test_best_weights_without_validation_are_the_last(prepared, small_config, tmp_path):
    options = {"config": small_config, "batch_size": 500, "quiet": True}
    dlrm_tf.fit(prepared, tmp_path / "run", validate=False, **options)
    again = dlrm_tf.fit(prepared, tmp_path / "run", resume=True, **options)
    assert again.best_weights == again.weights == str(tmp_path / "run" / "model.weights.h5")
    more = dlrm_tf.fit(prepared, tmp_path / "run", resume=True, epochs=2, **options)
    assert more.best_weights == str(tmp_path / "run" / "best.weights.h5") and os.path.exists(more.best_weights)
    # Measured before, not now: the best is still the best.
    last = dlrm_tf.fit(prepared, tmp_path / "run", resume=True, epochs=2, validate=False, **options)
    assert last.best_weights == more.best_weights


@pytest.mark.parametrize("option", ["--batch-size", "--epochs", "--steps-per-execution", "--checkpoint-steps"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_numbers_that_must_be_positive_are_wrong_usage(prepared, tmp_path, capsys, option, value):
    assert main.main(["train", "--data", prepared.folder, "-o", str(tmp_path / "run"), option, value]) == 2
    assert f"dlrm-tf: {option[2:].replace('-', '_')} must be positive. Received {value}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluating_in_batches_of_none_is_wrong_usage(prepared, capsys):
    assert main.main(["evaluate", "--data", prepared.folder, "--weights", "x.weights.h5", "--batch-size", "0"]) == 2
    assert "--batch-size: wanted a positive number. Received 0" in capsys.readouterr().err
