"""The page of a quality study (benchmarks/quality.py): Markdown tables and pictures of its cells."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dlrm_tf.errors import require
from dlrm_tf.files import StrPath, write_file
from dlrm_tf.reports.mean_interval import MeanInterval
from dlrm_tf.reports.picture_page import picture_page, png

_FLOAT = "float32"
_STYLES = ("o-", "o--", "o:", "o-.")  # of the dtypes of a table
Cell = dict[str, Any]
# (recipe, head, min_count, measure) -> the cells of its seeds.
Index = dict[tuple[str, str, int, str], dict[int, Cell]]


def index_cells(cells: Sequence[Cell]) -> Index:
    """The cells by what was measured, then by seed; those without figures are left out.

    Args:
      cells: of a study.
    """
    index: Index = {}
    for cell in cells:
        if "auc" in cell:
            key = (cell["recipe"], cell["head"], cell["min_count"], cell["measure"])
            index.setdefault(key, {})[cell["seed"]] = cell
    return index


def mean_of(cells: dict[int, Cell], value: Callable[[Cell], float]) -> MeanInterval:
    """Mean and interval of a figure over the seeds.

    Args:
      cells: by seed.
      value: the figure of a cell.
    """
    return MeanInterval.of([value(cell) for cell in cells.values()])


def mean_change(cells: dict[int, Cell], others: dict[int, Cell], name: str) -> MeanInterval:
    """Mean and interval of a figure's difference, seed by seed: what the seeds' data have in common drops out.

    Args:
      cells: by seed.
      others: what it is the difference from, by seed; seeds that only one of the two has are left out.
      name: of the figure.
    """
    return MeanInterval.of([cells[seed][name] - others[seed][name] for seed in cells if seed in others])


def _figure_of(name: str, minus: str = "", scale: float = 1.0) -> Callable[[Cell], float]:
    """A figure of a cell, or how much it is more than another one."""
    return lambda cell: (cell[name] - (cell[minus] if minus else 0.0)) / scale


_BELOW_BEST, _ABOVE_BEST = _figure_of("best_auc", minus="auc"), _figure_of("logloss", minus="best_logloss")
_CALIBRATION, _MEGABYTES, _IDS = _figure_of("calibration"), _figure_of("bytes", scale=1e6), _figure_of("ids")


def _is_file(measure: str) -> bool:
    """Whether a file for a device was measured, not the weights on some day."""
    return not measure.startswith((_FLOAT, "day"))


def _day(measure: str) -> int:
    return 0 if measure == _FLOAT else int(measure.split()[1])


def tables(cells: Sequence[Cell]) -> str:
    """The study as Markdown.

    Args:
      cells: of a study, at least one.
    """
    index = index_cells(cells)
    refused = dict.fromkeys((f"{cell['recipe']}, {cell['head']}", cell["measure"]) for cell in cells if "refused" in cell)
    seeds = len({cell["seed"] for cell in cells})
    head = f"Means over {seeds} seed{'s' if seeds > 1 else ''} (of data and first weights), ± 95 % intervals (Student's t)."
    return "\n\n".join(
        [head, *(part for part in (_models(index), _files(index, refused), _days(index), _min_counts(index)) if part)]
    )


def _table(title: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(row) for row in rows]
    rule = " | ".join("---" if i < 2 else "---:" for i in range(len(names)))
    return "\n".join([f"## {title}", "", *(f"| {line} |" for line in [" | ".join(names), rule, *lines])]) if lines else ""


def _models(index: Index) -> str:
    whole = {key: cells for key, cells in index.items() if key[2] == 1 and key[3] == _FLOAT}
    first = next(iter(whole.values()), {})
    rows = []
    for (recipe, head, _, _), cells in whole.items():
        paired = cells is not first and set(cells) & set(first)
        figures = [
            mean_of(cells, _figure_of("auc")).text(4),
            mean_of(cells, _BELOW_BEST).text(4),
            mean_change(cells, first, "auc").text(4, "+") if paired else "",
            mean_of(cells, _figure_of("logloss")).text(4),
            mean_of(cells, _ABOVE_BEST).text(4),
            mean_of(cells, _figure_of("normalized_entropy")).text(4),
            mean_of(cells, _CALIBRATION).text(3),
            mean_of(cells, _figure_of("seconds")).text(0),
            f"{mean_of(cells, _MEGABYTES).mean:.1f}",
        ]
        rows.append([recipe, head, *figures])
    names = ["recipe", "head", "AUC", "below the best", "AUC change from the first line", "logloss", "above the best"]
    return _table("Recipes and heads", [*names, "NE", "calibration", "training, s", "float32, MB"], rows)


def _files(index: Index, refused: Iterable[tuple[str, str]]) -> str:
    rows = []
    for (recipe, head, count, measure), cells in index.items():
        whole = index.get((recipe, head, count, _FLOAT), {})
        if count == 1 and _is_file(measure) and set(cells) & set(whole):
            changes = [mean_change(cells, whole, name).text(5, "+") for name in ("auc", "logloss")]
            size, ids = f"{mean_of(cells, _MEGABYTES).mean:.2f}", f"{mean_of(cells, _IDS).mean:,.0f}"
            rows.append([f"{recipe}, {head}", measure, size, ids, *changes, mean_of(cells, _CALIBRATION).text(3)])
    rows += [[model, measure, "", "too small", "", "", ""] for model, measure in refused]
    names = ["model", "file", "MB", "ids", "AUC change", "logloss change", "calibration"]
    return _table("Files for a device, against their float32 model", names, rows)


def _days(index: Index) -> str:
    rows = []
    for (recipe, head, count, measure), cells in index.items():
        if count == 1 and not _is_file(measure):
            figures = [mean_of(cells, value).text(4) for value in (_figure_of("auc"), _BELOW_BEST, _ABOVE_BEST)]
            rows.append([f"{recipe}, {head}", f"day {_day(measure)}", *figures, mean_of(cells, _CALIBRATION).text(3)])
    names = ["model", "rows of", "AUC", "below that day's best", "logloss above the best", "calibration"]
    return _table("Day 0's model on later days", names, rows if any(row[1] != "day 0" for row in rows) else [])


def _min_counts(index: Index) -> str:
    counted = {(recipe, head) for recipe, head, count, _ in index if count > 1}
    rows = []
    for (recipe, head, count, measure), cells in index.items():
        whole = index.get((recipe, head, 1, _FLOAT), {})
        if (recipe, head) in counted and measure == _FLOAT and set(cells) & set(whole):
            changes = [mean_change(cells, whole, name).text(4, "+") if count > 1 else "" for name in ("auc", "logloss")]
            rows.append([f"{recipe}, {head}", str(count), f"{mean_of(cells, _IDS).mean:,.0f}", *changes])
    return _table("Keys of few rows left out", ["model", "least rows", "ids", "AUC change", "logloss change"], rows)


def _halves(figures: Sequence[MeanInterval]) -> list[float]:
    """Error bars; none of one seed."""
    return [0.0 if math.isnan(figure.half) else figure.half for figure in figures]


def _figure(index: Index) -> Any:
    """Four panels: models, sizes, quality and calibration of later days."""
    figure = require("matplotlib.figure", "report").Figure(figsize=(13, 9), layout="constrained")
    models, files, days, calibration = figure.subplots(2, 2).flat
    names = [(recipe, head) for recipe, head, count, measure in index if count == 1 and measure == _FLOAT]
    bars = [mean_of(index[(*name, 1, _FLOAT)], _BELOW_BEST) for name in names]
    models.barh([", ".join(name) for name in names], [bar.mean for bar in bars], xerr=_halves(bars))
    models.invert_yaxis()
    for i, name in enumerate(names):
        label, color = ", ".join(name), f"C{i % 10}"
        measured = {key[3]: cells for key, cells in index.items() if key[:3] == (*name, 1)}
        sized = [measure for measure in measured if _is_file(measure)]
        for style, dtype in zip(_STYLES, dict.fromkeys(measure.split()[0] for measure in sized)):
            points = sorted(
                (mean_of(measured[m], _MEGABYTES).mean, mean_change(measured[m], measured[_FLOAT], "auc").mean)
                for m in sized
                if m.split()[0] == dtype
            )
            files.plot(*zip(*points), style, c=color, ms=3, label=f"{label}: {dtype}")
        dated = sorted((_day(measure), measure) for measure in measured if not _is_file(measure))
        for axes, value in ((days, _BELOW_BEST), (calibration, _CALIBRATION)):
            figures = [mean_of(measured[measure], value) for _, measure in dated]
            means = [figure.mean for figure in figures]
            axes.errorbar([day for day, _ in dated], means, yerr=_halves(figures), fmt="o-", c=color, ms=3, label=label)
    models.set_title("AUC below the best possible, day 0")
    files.set(title="change of AUC by the size of the file", xlabel="MB", xscale="log")
    days.set(title="AUC below that day's best, model of day 0", xlabel="day")
    calibration.set(title="mean prediction / mean label, model of day 0", xlabel="day")
    files.xaxis.set_major_formatter("{x:g}")
    files.xaxis.set_minor_formatter("{x:g}")
    calibration.axhline(1, c="gray", lw=1)
    for axes in (files, days, calibration):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6)
    return figure


def write_quality_page(cells: Sequence[Cell], folder: StrPath) -> str:
    """Writes quality.md (the tables) and quality.html (the pictures, then the tables).

    Args:
      cells: of a study, at least one.
      folder: where to.

    Returns:
      Path of the page.

    Raises:
      MissingExtraError: matplotlib is not installed.
    """
    text, title = tables(cells), "dlrm_tf: quality on rows whose best is known"
    page = os.path.join(os.fspath(folder), "quality.html")
    write_file(os.path.join(os.fspath(folder), "quality.md"), f"# {title}\n\n{text}\n")
    alt = "AUC below the best by recipe and head; AUC by size; AUC and calibration by day"
    write_file(page, picture_page(title, png(_figure(index_cells(cells))), alt=alt, text=text))
    return page
