"""Size against quality: one model exported at several budgets, as a table and as a picture."""

import os
import tempfile
from collections.abc import Sequence
from typing import Optional

from dlrm_tf.errors import DLRMError, require
from dlrm_tf.export.tflite.export import TFLiteExporter
from dlrm_tf.export.tflite.report import TFLiteReport
from dlrm_tf.files import atomic_file

# Budgets measured around the one that was asked for.
_FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)


def budgets_around(max_size: int) -> list[int]:
    """Budgets in bytes, ascending, from a sixteenth of `max_size` to four times it."""
    return [int(max_size * factor) for factor in _FACTORS]


def size_curve(
    exporter: TFLiteExporter, budgets: Sequence[int], *, mlp: str = "dynamic", table_dtype: str = "int8"
) -> list[TFLiteReport]:
    """Exports the model at each budget into a temporary folder and measures it.

    Args:
      exporter: a `TFLiteExporter` with data.
      budgets: sizes in bytes, ascending; those too small for the dense layers are left out, and the first that holds every id is
        the last.
      mlp: precision of the dense layers.
      table_dtype: of the table, `"int8"` or `"int4"`.

    Returns:
      A `TFLiteReport` a budget.

    Raises:
      DLRMError: no budget is large enough.
    """
    reports: list[TFLiteReport] = []
    refusal: Optional[DLRMError] = None
    with tempfile.TemporaryDirectory(prefix="dlrm_tf_curve_") as folder:
        for budget in budgets:
            try:
                # Without the quality gate: the curve also shows sizes that lose too much.
                path = os.path.join(folder, "m.tflite")
                report = exporter.export(path, mlp=mlp, table_dtype=table_dtype, max_size=budget, max_auc_loss=1.0)
            except DLRMError as e:
                refusal = e
                continue
            reports.append(report)
            if report.ids == report.ids_total:
                break
    if not reports:
        raise refusal or DLRMError("budgets must be at least one. Received none")
    return reports


def format_curve(reports: Sequence[TFLiteReport]) -> str:
    """The curve as a table; the last line is the float model."""
    lines = [f"{'size':>14}{'ids':>12}{'AUC':>10}{'logloss':>10}{'calibration':>13}{'mean error':>12}{'max error':>11}"]
    for r in reports:
        q = r.quality
        lines.append(
            f"{r.bytes:>14,}{r.ids:>12,}{q['auc']:>10.5f}{q['logloss']:>10.5f}{q['calibration']:>13.4f}"
            f"{r.mean_error:>12.5f}{r.max_error:>11.5f}"
        )
    r, q = reports[-1], reports[-1].float_quality
    lines.append(
        f"{r.float_bytes:>14,}{r.ids_total:>12,}{q['auc']:>10.5f}{q['logloss']:>10.5f}{q['calibration']:>13.4f}  float32"
    )
    return "\n".join(lines)


def draw_curve(reports: Sequence[TFLiteReport], path: str) -> None:
    """Draws AUC, logloss and calibration against the file's size, the float model as a line; `path` ends in .png or .svg."""
    require("matplotlib", "report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    sizes = [r.bytes / 1e6 for r in reports]
    for ax, name, label in zip(figure.subplots(1, 3), ("auc", "logloss", "calibration"), ("AUC", "logloss", "calibration")):
        ax.plot(sizes, [r.quality[name] for r in reports], "o-", color="tab:blue", label=f"{reports[0].table_dtype} TFLite")
        ax.axhline(reports[0].float_quality[name], color="tab:gray", linestyle="--", label="float32, all ids")
        ax.set(xscale="log", xlabel="file size [MB]", title=label)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
    figure.axes[0].legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=os.path.splitext(path)[1][1:] or "png", dpi=150)
