"""Pictures of a training run: loss curves, ROC curve, calibration (needs the extra `report`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlrm_tf.errors import require
from dlrm_tf.files import atomic_file
from dlrm_tf.train.metrics import ClickMetrics
from dlrm_tf.train.stopping import best_entry, measured


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of the ROC curve, one a distinct score.

    Args:
      labels: `[n]`, 0 or 1, both present.
      scores: `[n]`.

    Returns:
      `(false positive rate, true positive rate)`, float64, from (0, 0) to (1, 1).
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    positive, scores = np.asarray(labels)[order] > 0.5, np.asarray(scores)[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true = np.append(0, np.cumsum(positive)[last])
    false = np.append(0, last + 1) - true
    return false / false[-1], true / true[-1]


def plot_quality(metrics: ClickMetrics, path: str) -> None:
    """ROC curve and calibration, as a PNG.

    Args:
      metrics: of all rows, with `exact`.
      path: the PNG file.

    Raises:
      MissingExtraError: matplotlib is not installed.
      ValueError: only one class is there, so there is no curve.
    """
    labels, logits = metrics.scores()
    result, bins = metrics.result(), metrics.calibration_bins()
    if result["auc"] is None:
        raise ValueError("a ROC curve needs rows of both classes")
    figure, (left, right) = _figure(2)
    left.plot(*roc_curve(labels, logits), label=f"AUC {result['auc']:.4f}")
    left.plot([0, 1], [0, 1], linestyle=":", color="gray")
    left.set(xlabel="false positive rate", ylabel="true positive rate", title=f"ROC, {result['rows']:,} rows")
    left.legend(loc="lower right")
    predicted, seen = ([b[name] for b in bins] for name in ("mean_prediction", "mean_label"))
    top = max(*predicted, *seen) * 1.05
    right.plot([0, top], [0, top], linestyle=":", color="gray")
    right.plot(
        predicted, seen, marker="o", label=f"calibration {result['calibration']:.3f}, NE {result['normalized_entropy']:.4f}"
    )
    right.set(xlabel="mean predicted probability", ylabel="click rate", title="Calibration, bins of equal counts")
    right.legend(loc="upper left")
    _save(figure, path)


def plot_history(history: Sequence[dict[str, Any]], path: str) -> None:
    """Loss and AUC over the steps of a run, as a PNG.

    Args:
      history: `Trained.history`, one dict a measurement.
      path: the PNG file.

    Raises:
      MissingExtraError: matplotlib is not installed.
    """
    shown = measured(history)
    steps = [entry["step"] for entry in shown]
    figure, (left, right) = _figure(2)
    left.plot([entry["step"] for entry in history], [entry["loss"] for entry in history], marker="o", label="training")
    left.plot(steps, [entry["validation"]["logloss"] for entry in shown], marker="o", label="validation")
    best = best_entry(history)
    if best:
        left.axvline(best["step"], linestyle=":", color="gray", label=f"best weights, epoch {best['epoch']}")
    left.set(xlabel="step", ylabel="logloss", title="Loss")
    left.legend()
    # An undefined AUC (None) leaves a gap.
    auc = [np.nan if entry["validation"]["auc"] is None else entry["validation"]["auc"] for entry in shown]
    right.plot(steps, auc, marker="o")
    right.set(xlabel="step", ylabel="AUC", title="AUC on the validation rows")
    _save(figure, path)


def _figure(panels: int) -> tuple[Any, Any]:
    require("matplotlib", "report")
    # Not pyplot: it keeps global state and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * panels, 4.2), layout="constrained")
    return figure, figure.subplots(1, panels)


def _save(figure: Any, path: str) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
