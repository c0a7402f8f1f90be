"""Metrics against definitions worked out by hand or by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.reports.training_plots import roc_curve
from dlrm_tf.train.metrics import ClickMetrics, NonFiniteLogits, exact_auc


def auc_by_pairs(labels, scores):
    """Every positive against every negative; a tie counts half."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative).sum() + 0.5 * (positive[:, None] == negative).sum()
    return wins / (len(positive) * len(negative))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=60))
def test_exact_auc_equals_counting_pairs(rows):
    labels, scores = (np.array(column) for column in zip(*rows))
    if labels.min() == labels.max():
        assert math.isnan(exact_auc(labels, scores))
    else:
        assert exact_auc(labels, scores) == pytest.approx(auc_by_pairs(labels, scores), abs=1e-12)


def test_all_metrics_by_hand():
    metrics = ClickMetrics()
    logit = np.log([0.8 / 0.2, 0.4 / 0.6, 0.1 / 0.9, 0.6 / 0.4])  # probabilities 0.8, 0.4, 0.1, 0.6
    metrics.update([[1.0], [1.0]], logit[:2])
    metrics.update([0.0, 0.0], logit[2:, None])
    result = metrics.result()
    logloss = -(math.log(0.8) + math.log(0.4) + math.log(0.9) + math.log(0.4)) / 4
    assert result["rows"] == 4
    assert result["accuracy"] == 0.5
    assert result["auc"] == 0.75
    assert result["logloss"] == pytest.approx(logloss, abs=1e-12)
    assert result["normalized_entropy"] == pytest.approx(logloss / math.log(2), abs=1e-12)
    assert result["calibration"] == pytest.approx(1.9 / 2, abs=1e-12)
    assert (result["mean_label"], result["mean_prediction"]) == (0.5, pytest.approx(0.475))
    bins = metrics.calibration_bins(2)
    assert [b["rows"] for b in bins] == [2, 2]
    assert [b["mean_prediction"] for b in bins] == pytest.approx([0.25, 0.7])
    assert [b["mean_label"] for b in bins] == [0.5, 0.5]


def test_roc_curve_by_hand_and_its_area_is_the_auc():
    false, true = roc_curve([1, 0, 1, 0, 0], [0.9, 0.8, 0.8, 0.3, 0.1])
    np.testing.assert_allclose(false, [0, 0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(true, [0, 0.5, 1, 1, 1])
    generator = np.random.default_rng(2)
    labels, scores = generator.integers(0, 2, 300), generator.integers(0, 40, 300)
    false, true = roc_curve(labels, scores)
    area = np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2)
    assert area == pytest.approx(exact_auc(labels, scores), abs=1e-12)


def test_streaming_agrees_with_exact():
    generator = np.random.default_rng(0)
    probability = generator.beta(1, 20, 50_000)  # click-like: most are small
    labels = (generator.random(50_000) < probability).astype(np.float32)
    logits = np.log(probability / (1 - probability))
    exact, streaming = ClickMetrics(), ClickMetrics(exact=False)
    for metrics in (exact, streaming):
        for part in np.array_split(np.arange(50_000), 7):
            metrics.update(labels[part], logits[part])
    one, other = exact.result(), streaming.result()
    assert one["auc"] == pytest.approx(other["auc"], abs=1e-4)
    assert {k: v for k, v in one.items() if k != "auc"} == {k: v for k, v in other.items() if k != "auc"}
    with pytest.raises(ValueError, match="only with exact=True"):
        streaming.calibration_bins()


def test_huge_logits_do_not_overflow():
    metrics = ClickMetrics()
    with np.errstate(all="raise", under="ignore"):
        metrics.update([1, 0, 1], [800.0, 800.0, -800.0])
    assert metrics.result()["logloss"] == pytest.approx(1600 / 3)


def test_metrics_without_meaning_are_none():
    metrics = ClickMetrics()
    metrics.update([0, 0], [0.1, 0.2])
    result = metrics.result()
    assert (result["auc"], result["normalized_entropy"], result["calibration"]) == (None, None, None)
    with pytest.raises(ValueError, match="no rows"):
        ClickMetrics().result()
    with pytest.raises(ValueError, match="2 labels, 3 logits"):
        ClickMetrics().update([0, 1], [1, 2, 3])


@pytest.mark.parametrize("exact", [True, False])
def test_logits_that_are_no_numbers_are_an_error_that_counts_them(exact):
    metrics = ClickMetrics(exact=exact)
    metrics.update([0, 1, 1], [0.5, np.nan, np.inf])
    metrics.update([0, 1], [0.5, np.nan])
    with pytest.raises(NonFiniteLogits, match="3 of 5 rows have a NaN or infinite logit"):
        metrics.result()
