"""A page that shows a prepared data folder: cardinality, frequency of categories, missing cells, label rate over the log."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Union

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.data.describe import describe_records
from dlrm_tf.data.record_files import SPLITS
from dlrm_tf.data.records import Records
from dlrm_tf.errors import UsageError, require
from dlrm_tf.files import StrPath, write_file
from dlrm_tf.reports.picture_page import picture_page, png

_SEGMENTS = 100  # equal parts of the log, for the label rate
_CURVES = 6  # features whose frequency curve is drawn: those with the most categories


@dataclasses.dataclass
class _Sums:
    """Counts of one pass over all rows.

    Attributes:
      counts: per feature int64 `[size + 1]`, how often each id occurs; the last is out of vocabulary.
      rows: int64 `[segments]`, rows of each segment of the log (train, then test).
      positives: float64 `[segments]`.
    """

    counts: list[np.ndarray]
    rows: np.ndarray
    positives: np.ndarray


def _count(records: Records) -> _Sums:
    """Reads all rows, a shard at a time."""
    total = sum(records.rows(split) for split in SPLITS)
    segments = min(_SEGMENTS, total)
    sums = _Sums([np.zeros(size + 1, np.int64) for size in records.sizes], np.zeros(segments, np.int64), np.zeros(segments))
    first = 0
    for shard in (shard for split in SPLITS for shard in records.shards[split]):
        rows = np.fromfile(os.path.join(records.folder, shard.path), records.dtype)
        for count, places in zip(sums.counts, records.spec.id_ranges):
            ids, seen = np.unique(rows["categorical"][:, places], return_counts=True)
            used = ids != UNUSED_PLACE
            count[ids[used]] += seen[used]
        segment = (first + np.arange(len(rows))) * segments // total
        sums.rows += np.bincount(segment, minlength=segments)
        sums.positives += np.bincount(segment, rows["label"], minlength=segments)
        first += len(rows)
    return sums


def _bars(axes: Any, names: Sequence[str], values: Sequence[float], color: Any) -> None:
    axes.bar(range(len(names)), values, color=color)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)


def _figure(records: Records, sums: _Sums) -> Any:
    """Four panels, as a matplotlib figure."""
    figure_class = require("matplotlib.figure", "report").Figure
    figure = figure_class(figsize=(13, 8), layout="constrained")
    cardinality, frequency, missing, label = figure.subplots(2, 2).flat
    names = records.spec.categorical_names

    _bars(cardinality, names, records.sizes, "#3b6ea5")
    cardinality.set_yscale("log")
    cardinality.set_title(f"categories a feature ({records.num_ids:,} in all)")

    for i in np.argsort(records.sizes)[::-1][:_CURVES]:
        ranked = np.sort(sums.counts[i][:-1])[::-1]
        ranked = ranked[ranked > 0]
        if ranked.size:
            rank = np.unique(np.geomspace(1, ranked.size, 200).astype(int))
            frequency.loglog(rank, ranked[rank - 1], label=names[i])
    frequency.set_title("occurrences of a category, by its rank")
    frequency.set_xlabel("rank")
    frequency.legend(fontsize=7)

    counts, total = records.manifest["counts"], max(sums.rows.sum(), 1)
    every = (*records.spec.dense_names, *names)
    if None not in counts["missing"].values():
        dense = len(records.spec.dense_names)
        colors = ["#7a9e5f"] * dense + ["#3b6ea5"] * len(names)
        _bars(missing, every, [100 * counts["missing"][name] / total for name in every], colors)
    missing.set_title("missing cells, % of rows (green: dense)")

    middle = (np.arange(len(sums.rows)) + 0.5) / len(sums.rows) * 100
    label.plot(middle, 100 * sums.positives / np.maximum(sums.rows, 1), color="#3b6ea5")
    label.axvline(100 * records.rows("train") / total, color="#999999", linestyle="--", label="train | test")
    label.set_title("positive labels over the log, % of rows")
    label.set_xlabel("place in the log, %")
    label.set_ylim(bottom=0)
    label.legend(fontsize=7)
    return figure


def page_suffix(path: StrPath) -> str:
    """The format of a page.

    Args:
      path: the page's file.

    Returns:
      `.html` or `.png`.

    Raises:
      UsageError: another suffix.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in (".html", ".png"):
        raise UsageError(f"page must end in .html or .png. Received {os.fspath(path)!r}")
    return suffix


def write_page(folder: StrPath, path: StrPath) -> None:
    """Writes the page of a data folder; it appears whole or not at all.

    Args:
      folder: a data folder that `prepare` made.
      path: `.html` (figure and table in one file, nothing loaded from elsewhere) or `.png` (the figure).

    Raises:
      DataError: not a finished data folder.
      MissingExtraError: matplotlib is not installed.
      UsageError: another suffix.
    """
    suffix = page_suffix(path)
    records = Records.open(folder)
    picture = png(_figure(records, _count(records)))
    content: Union[str, bytes] = picture
    if suffix == ".html":
        title = os.path.basename(os.path.abspath(folder))
        alt, text = "cardinality, frequency, missing cells, label rate", "\n".join(describe_records(folder))
        content = picture_page(title, picture, alt=alt, text=text)
    write_file(path, content)
