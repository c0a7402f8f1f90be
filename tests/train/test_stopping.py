"""What follows from the validation loglosses, by hand; and where the loop is between two measurements."""

import itertools

import pytest

from dlrm_tf.probability import constant_logloss
from dlrm_tf.train.advice import advice
from dlrm_tf.train.options import FitOptions
from dlrm_tf.train.position import EpochPosition
from dlrm_tf.train.stopping import Decision, best_entry, decide


def history_of(losses, training=None):
    training = training or [0.5] * len(losses)
    return [
        {"epoch": i, "step": 100 * i, "loss": own, "validation": None if x is None else {"logloss": x, "mean_label": 0.25}}
        for i, (x, own) in enumerate(zip(losses, training), 1)
    ]


@pytest.mark.parametrize(
    "losses, patience, plateau, stop, factor",
    [
        ([], 1, 1, False, 1.0),
        ([0.5], 1, 1, False, 1.0),
        ([0.5, 0.4, 0.3], 1, 1, False, 1.0),
        ([0.5, 0.6], 1, 1, True, 0.1),
        ([0.5, 0.5], 1, 1, True, 0.1),  # as good is not better
        ([0.5, 0.6], 2, 1, False, 0.1),
        ([0.5, 0.6, 0.4, 0.45], 2, 1, False, 0.01),
        ([0.5, 0.6, 0.4, 0.45, 0.42], 2, 1, True, 0.001),
        ([0.5, 0.6, 0.7, 0.4, 0.5, 0.5, 0.5], 0, 2, False, 0.01),  # two and two without improvement, one left
        ([None, 0.5, None, 0.6], 1, 1, True, 0.1),
        ([None, None], 1, 1, False, 1.0),
    ],
)
def test_stops_and_rates_by_hand(losses, patience, plateau, stop, factor):
    options = FitOptions(patience=patience, plateau_factor=0.1, plateau_patience=plateau)
    assert decide(history_of(losses), options) == Decision(stop, pytest.approx(factor))


def test_the_best_is_the_earliest_of_equal_ones():
    assert best_entry(history_of([0.5, 0.4, None, 0.4]))["step"] == 200
    assert best_entry(history_of([None])) is None


@pytest.mark.parametrize("stretches, stops", [(1, [10]), (3, [3, 6, 10]), (4, [2, 5, 7, 10]), (99, list(range(1, 11)))])
def test_stretches_of_an_epoch(stretches, stops):
    position = EpochPosition(rows=950, batch_size=100, stretches=stretches)
    for step in range(25):
        position.start(step, 7.0)
        begin, stop = next(pair for pair in zip([0, *stops], stops) if pair[0] <= step % 10 < pair[1])
        assert (position.epoch, position.batch, position.begin, position.stop) == (step // 10, step % 10, begin, stop)
        # What a checkpoint says of an unfinished stretch counts inside of one only.
        assert position.loss_sum == (0.0 if step % 10 == begin else 7.0)


def test_the_loss_of_a_stretch_is_that_of_its_rows():
    position = EpochPosition(rows=950, batch_size=100, stretches=2)
    position.start(5, 0.0)
    for batch, mean in enumerate([0.2, 0.3, 0.3, 0.3]):  # Keras's mean since fit began
        position.on_train_batch_end(batch, {"loss": mean})
    position.start(9, position.loss_sum)  # resumed: 50 rows are left, 0.4 each
    position.on_train_batch_end(0, {"loss": 0.4})
    assert position.mean_loss == pytest.approx((400 * 0.3 + 50 * 0.4) / 450)
    assert (position.batch, position.stop, position.rows_of_run) == (10, 10, 950)


def test_the_constants_logloss_by_hand():
    assert constant_logloss(0.25, 0.25) == pytest.approx(0.5623351446188083)  # the entropy of a quarter
    assert constant_logloss(0.5, 0.1) == pytest.approx(0.6931471805599453)
    assert constant_logloss(0.0, 0.0) == 0.0 and constant_logloss(0.0, 0.1) == float("inf")


def said(losses, training, prepared, test=None, **options):
    return " | ".join(advice(history_of(losses, training), test, FitOptions(epochs=3, batch_size=100, **options), prepared))


def test_what_is_said_of_a_run(prepared):
    assert said([0.5, 0.4], [0.5, 0.45], prepared) == ""
    overfitting = said([0.45, 0.5], [0.5, 0.4], prepared)
    assert overfitting.startswith(
        "overfitting: from epoch 1 (step 100) to step 200 the training loss fell from 0.5000 to 0.4000 while the validation "
        "logloss rose from 0.4500 to 0.5000; best.weights.h5 has epoch 1 (step 100)"
    )
    assert "--epochs 1" in overfitting
    worse = said([0.45, 0.5], [0.5, 0.6], prepared)
    assert worse.startswith("the validation logloss was lowest after epoch 1 (step 100), 0.4500, and 0.5000 at the end")
    constant = said([0.9], None, prepared, test={"logloss": 0.8, "mean_label": 0.25})
    rate = prepared.manifest["counts"]["positives"]["train"] / prepared.rows("train")
    assert (
        f"a logloss of 0.8000 on the test rows, the training rows' click rate for every row {constant_logloss(rate, 0.25):.4f}"
        in constant
    )
    few = " | ".join(
        advice([{"epoch": 1, "step": 4, "loss": 1.0, "validation": None}], None, FitOptions(epochs=1, batch_size=2048), prepared)
    )
    assert few.startswith(
        "few steps: 2,572 rows in batches of 2,048 made 4 optimizer steps, too few to learn from: take --batch-size 16 or"
    )
    assert list(itertools.islice(advice([], None, FitOptions(), prepared), 1)) == []
