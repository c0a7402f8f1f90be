"""The demo's report: a table for the terminal, report.json for programs, one self-contained HTML page for people."""

import base64
import contextlib
import html
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dlrm_tf.errors import require
from dlrm_tf.files import write_file
from dlrm_tf.keras2 import tensorflow

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%}
td,th{padding:.3rem .6rem;border-bottom:1px solid #d8dee4;text-align:left;vertical-align:top}
td.n{text-align:right;white-space:nowrap}figure{display:inline-block;width:48%;margin:0;min-width:24rem}img{width:100%}
.note{color:#57606a}
"""


class Step:
    """One step of the demo: its name, seconds, and figures by name."""

    def __init__(self, name: str):
        self.name, self.seconds = name, 0.0
        self.figures: dict[str, str] = {}

    def figure(self, name: str, value: str) -> None:
        """Notes one figure."""
        self.figures[name] = value


class Report:
    """Collects steps, figures and pictures.

    Attributes:
      steps: the finished ones.
      latencies: seconds of each call, by what was called.

    Args:
      folder: where report.html and report.json are written.
    """

    def __init__(self, folder: str):
        require("matplotlib", "report")  # checked before the demo starts, not at its end
        self.folder = folder
        self.steps: list[Step] = []
        self.latencies: dict[str, list[float]] = {}
        self._pictures: list[tuple[str, str, str]] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Times a step; yields it, for its figures."""
        step = Step(name)
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        yield step
        step.seconds = time.monotonic() - start
        self.steps.append(step)

    def text(self) -> str:
        """The table, for a terminal."""
        lines = [""]
        for step in self.steps:
            lines.append(f"{step.name:<70}{step.seconds:8.1f} s")
            lines += [f"    {name:<52} {value}" for name, value in step.figures.items()]
        lines.append(f"{'in all':<70}{sum(s.seconds for s in self.steps):8.1f} s")
        return "\n".join(lines)

    def pictures(
        self,
        *,
        run: str,
        best_auc: float,
        evaluation: dict[str, Any],
        label: np.ndarray,
        float_scores: np.ndarray,
        lite_scores: np.ndarray,
    ) -> None:
        """Draws loss, calibration, float against int8 scores, and latency.

        Args:
          run: the training run's folder, whose TensorBoard scalars are read.
          best_auc: AUC of the true probabilities.
          evaluation: what `evaluate` returned for the trained model.
          label: 0 or 1 of the rows that were scored, `[n]`.
          float_scores: their probabilities from Keras, `[n]`.
          lite_scores: their probabilities from TFLite, `[n]`.
        """
        loss = train_losses(run)
        with self._figure(
            "Training loss", f"Mean of 50 steps. Test AUC at the end {evaluation['auc']:.4f}, best {best_auc:.4f}."
        ) as ax:
            ax.plot([step for step, _ in loss], [value for _, value in loss])
            ax.axhline(evaluation["logloss"], ls="--", c="gray", label=f"test logloss {evaluation['logloss']:.4f}")
            ax.set(xlabel="step", ylabel="loss")
            ax.legend()
        with self._figure("Calibration", "Test rows in bins of equal counts: predicted against observed click rate.") as ax:
            bins = evaluation["calibration_bins"]
            predicted, observed = ([b[key] for b in bins] for key in ("mean_prediction", "mean_label"))
            top = max(*predicted, *observed)
            ax.plot([0, top], [0, top], c="gray", lw=1)
            ax.plot(predicted, observed, "o-")
            ax.set(xlabel="mean prediction", ylabel="mean label")
        error = np.abs(lite_scores - float_scores)
        note = f"{len(error):,} test rows. Difference: largest {error.max():.4f}, mean {error.mean():.5f}."
        with self._figure("int8 TFLite against float", note) as ax:
            for value, name in ((0, "no click"), (1, "click")):
                ax.plot(float_scores[label == value], lite_scores[label == value], ".", ms=3, alpha=0.4, label=name)
            ax.set(xlabel="Keras probability", ylabel="TFLite probability")
            ax.legend()
        with self._figure("Latency", "One caller on this machine; the gRPC server is another process.") as ax:
            for name, seconds in self.latencies.items():
                ax.plot(np.sort(seconds) * 1e3, np.linspace(0, 100, len(seconds)), label=name)
            ax.set(xlabel="ms", ylabel="% of calls within", xscale="log")
            ax.legend()

    @contextlib.contextmanager
    def _figure(self, title: str, note: str) -> Iterator[Any]:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
        axes = figure.add_subplot()
        yield axes
        axes.grid(alpha=0.3)
        out = io.BytesIO()
        figure.savefig(out, format="png")
        self._pictures.append((title, note, base64.b64encode(out.getvalue()).decode()))

    def save(self) -> None:
        """Writes report.json and report.html."""
        steps = [{"name": s.name, "seconds": s.seconds, "figures": s.figures} for s in self.steps]
        latencies = {name: {f"p{q}_ms": float(np.percentile(s, q) * 1e3) for q in (50, 99)} for name, s in self.latencies.items()}
        write_file(os.path.join(self.folder, "report.json"), json.dumps({"steps": steps, "latencies": latencies}, indent=1))
        rows = []
        for step in self.steps:
            rows.append(f"<tr><th colspan=2>{html.escape(step.name)}</th><td class=n>{step.seconds:.1f} s</td></tr>")
            for name, value in step.figures.items():
                rows.append(f"<tr><td></td><td>{html.escape(name)}</td><td class=n>{html.escape(str(value))}</td></tr>")
        figures = [
            f'<figure><h3>{html.escape(title)}</h3><img alt="{html.escape(title)}" src="data:image/png;base64,{png}">'
            f"<figcaption class=note>{html.escape(note)}</figcaption></figure>"
            for title, note, png in self._pictures
        ]
        page = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>dlrm_tf demo</title><style>{_STYLE}</style>'
            "<h1>dlrm_tf: every step, measured</h1><p class=note>All rows are generated; figures are of this machine.</p>"
            f"<table>{''.join(rows)}</table>{''.join(figures)}</html>\n"
        )
        write_file(os.path.join(self.folder, "report.html"), page)


def train_losses(run: str) -> list[tuple[int, float]]:
    """`(step, loss)` of a run, from its TensorBoard scalars `train/loss`."""
    tf = tensorflow()
    points = {}
    for path in sorted(tf.io.gfile.glob(os.path.join(run, "tensorboard", "events*"))):
        for record in tf.data.TFRecordDataset(path):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tag == "train/loss":
                    points[event.step] = float(tf.make_ndarray(value.tensor))
    return sorted(points.items())
