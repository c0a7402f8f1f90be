"""Early stopping, plateau, dropout, L2, clipping, several validations an epoch, the table drawn anew: and all of it resumed."""

import signal

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.errors import UsageError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import make_optimizer
from dlrm_tf.train import callbacks
from dlrm_tf.train.options import FitOptions
from dlrm_tf.train.placements import PLACEMENTS
from dlrm_tf.train.reset_table import reset_table
from dlrm_tf.train.stopping import best_entry

tf = tensorflow()
# 257 rows for validation, 24 steps an epoch, measured after 8, 16 and 24.
ALL = {
    "recipe": "mindspore",
    "validation_share": 0.1,
    "optimizer": "lazy_adam",
    "learning_rate": 0.02,
    "dense_optimizer": "adam",
    "dense_learning_rate": 0.01,
    "batch_size": 100,
    "epochs": 3,
    "validations_per_epoch": 3,
    "patience": 0,
    "plateau_factor": 0.5,
    "l2": 0.01,
    "dropout": 0.2,
    "label_smoothing": 0.05,
    "clip_norm": 0.5,
    "reset_table_each_epoch": True,
    "seed": 3,
    "quiet": True,
}


def assert_same_run(one, other):
    for a, b in ((one.weights, other.weights), (one.best_weights, other.best_weights)):
        for mine, theirs in zip(dlrm_tf.load(a).trainable_variables, dlrm_tf.load(b).trainable_variables):
            np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert [e["step"] for e in one.history] == [e["step"] for e in other.history]
    assert [e["validation"] for e in one.history] == [e["validation"] for e in other.history]
    assert [e["loss"] for e in one.history] == pytest.approx([e["loss"] for e in other.history], abs=1e-6)
    assert one.test == other.test


class StopAt(callbacks.StopAtNonFiniteLoss):
    """Sends the process a signal after some step, as Ctrl-C would."""

    at = 0

    def on_train_batch_end(self, batch, logs=None):
        if self._position.step == StopAt.at:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def whole_run(prepared, small_config, tmp_path_factory):
    return dlrm_tf.fit(prepared, tmp_path_factory.mktemp("whole") / "run", config=small_config, **ALL)


@pytest.mark.slow
def test_interrupted_and_resumed_to_the_bit(whole_run, prepared, small_config, tmp_path, monkeypatch):
    assert [e["step"] for e in whole_run.history] == [8, 16, 24, 32, 40, 48, 56, 64, 72]
    assert [e["epoch"] for e in whole_run.history] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    losses = [e["validation"]["logloss"] for e in whole_run.history]
    assert any(b >= a for a, b in zip(losses, losses[1:])), "no plateau: the rates never fell"
    monkeypatch.setattr(callbacks, "StopAtNonFiniteLoss", StopAt)
    # In a stretch, at the end of one, at the end of an epoch, and in the epoch that begins with a new table.
    for step in (5, 16, 24, 29, 61, None):
        StopAt.at = step
        if step is None:
            resumed = dlrm_tf.fit(prepared, tmp_path, config=small_config, resume=True, **ALL)
        else:
            with pytest.raises(KeyboardInterrupt, match=f"stopped at step {step}"):
                dlrm_tf.fit(prepared, tmp_path, config=small_config, resume=True, **ALL)
    assert_same_run(resumed, whole_run)


@pytest.mark.slow
def test_early_stopping_keeps_the_best_and_a_resume_stays_stopped(prepared, small_config, tmp_path, capsys):
    options = {"recipe": "mindspore", "learning_rate": 3.0, "batch_size": 20, "epochs": 40, "patience": 2, "seed": 1}
    options = {**options, "validation_share": 0.1}
    trained = dlrm_tf.fit(prepared, tmp_path / "run", config=small_config, **options)
    losses = [e["validation"]["logloss"] for e in trained.history]
    assert 3 <= len(losses) < 40 and int(np.argmin(losses)) == len(losses) - 3
    best = best_entry(trained.history)
    records = prepared.with_validation(257)
    assert dlrm_tf.evaluate(records, trained.best_weights, split="validation", quiet=True) == best["validation"]
    assert dlrm_tf.evaluate(records, trained.model, quiet=True) == trained.test  # the model is the best one, not the last
    told = capsys.readouterr().err
    assert "recipe mindspore: 2,315 rows: batch 20, sgd 3, up to 40 epochs of 116 steps" in told
    assert trained.advice and all(line in told for line in trained.advice)
    assert f"best.weights.h5 has epoch {best['epoch']} (step {best['step']:,})" in trained.advice[0]
    again = dlrm_tf.fit(prepared, tmp_path / "run", config=small_config, resume=True, **options)
    assert_same_run(again, trained)


@pytest.mark.slow
def test_a_plateau_lowers_the_rate_of_the_steps_that_follow(prepared, small_config, tmp_path):
    """SGD at a rate of 1e-30 changes nothing, so every measurement but the first is a plateau."""
    options = {"recipe": "mindspore", "learning_rate": 1e-30, "batch_size": 500, "epochs": 4, "quiet": True}
    options = {**options, "validation_share": 0.1, "plateau_factor": 0.1}
    trained = dlrm_tf.fit(prepared, tmp_path / "run", config=small_config, **options)
    rate = trained.model.optimizer._decayed_lr(tf.float32).numpy()
    assert rate == pytest.approx(1e-33, rel=1e-5)  # after the epochs 2, 3 and 4


@pytest.mark.parametrize("name, initial", [("sgd", 0.0), ("adagrad", 0.1), ("rowwise_adagrad", 0.1), ("lazy_adam", 0.0)])
def test_a_table_drawn_anew_is_a_new_one_and_the_mlps_stay(name, initial, small_config):
    generator = np.random.default_rng(0)
    ids = np.stack([generator.integers(0, size + 1, 64) for size in small_config.categorical_feature_sizes], 1)
    rows = {"dense": generator.random((64, 13), np.float32), "categorical": ids.astype(np.int32)}
    model = dlrm_tf.DLRM(small_config, seed=1)
    model.compile(make_optimizer(name, 0.1))
    model.fit(rows, generator.integers(0, 2, (64, 1)).astype(np.float32), epochs=2, verbose=0)
    table = model.embedding.table
    oov = [start + size for start, size in zip(small_config.block_offsets, small_config.categorical_feature_sizes)]
    kept = [v.numpy() for v in model.trainable_variables if v is not table] + [table.numpy()[oov]]
    reset_table(model, seed=9)
    new = dlrm_tf.DLRM(small_config, seed=9).embedding.table.numpy()
    ordinary = np.setdiff1d(np.arange(small_config.table_rows), oov)
    np.testing.assert_array_equal(table.numpy()[ordinary], new[ordinary])
    for mine, before in zip([*(v.numpy() for v in model.trainable_variables if v is not table), table.numpy()[oov]], kept):
        np.testing.assert_array_equal(mine, before)
    for slot in model.optimizer.get_slot_names():
        assert (model.optimizer.get_slot(table, slot).numpy() == np.float32(initial)).all()


@pytest.mark.parametrize(
    "strategy, option, value",
    [
        ("mirrored", "clip_norm", 1.0),
        ("tpu", "l2", 0.1),
        ("tpu", "clip_norm", 1.0),
        ("ascend", "dropout", 0.1),
        ("ascend", "l2", 0.1),
        ("parameter_server", "reset_table_each_epoch", True),
    ],
)
def test_what_a_strategy_can_not_follow_is_one_line(strategy, option, value, prepared, tmp_path):
    message = f"{option} does not go with strategy '{strategy}'. Received {value}; set it to 0, or take strategy 'default'"
    with pytest.raises(UsageError, match=message):
        dlrm_tf.fit(prepared, tmp_path / "run", strategy=strategy, **{option: value})
    assert not (tmp_path / "run").exists()


def test_one_process_agrees_with_itself():
    assert PLACEMENTS["default"](FitOptions(), 1).agree([1.0, 0.25]) == [1.0, 0.25]
