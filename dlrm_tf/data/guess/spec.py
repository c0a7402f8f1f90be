"""guess_spec: a feature spec to start from, guessed from a sample of a log, with the reason of every guess."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Optional, Union

from dlrm_tf.data.guess.column import ColumnGuess, guess_column
from dlrm_tf.data.guess.distinct import estimate_distinct
from dlrm_tf.data.guess.sample import Sample, sample_text
from dlrm_tf.data.guess.tables import sample_tables
from dlrm_tf.data.readers.names import expand
from dlrm_tf.data.spec import CRITEO, PRESETS, FeatureSpec
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.files import StrPath

LABEL_NAMES = ("label", "click", "clicked", "is_click", "is_clicked", "target", "y", "conversion", "converted", "is_conversion")
"""Names of a label, the likeliest first."""
_LABELS = {"0/1": {0.0, 1.0}, "-1/1": {-1.0, 1.0}}
_HEX = re.compile(r"[0-9a-f]{8}")


@dataclasses.dataclass(frozen=True)
class SpecGuess:
    """What a log's columns are taken for.

    Attributes:
      spec: the feature spec; without a label where none was found.
      columns: the guess of each column, in file order.
      sampled: rows that were looked at.
      rows: rows of the whole log, about.
      positives: share of positive labels in the sample; None without a label.
      notes: what to look at.
    """

    spec: FeatureSpec
    columns: tuple[ColumnGuess, ...]
    sampled: int
    rows: int
    positives: Optional[float]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        rows = [("column", "kind", "distinct", "missing", "why", "examples")]
        for column in self.columns:
            estimate, least, most = column.distinct
            about = f"{estimate:,}" if least == most else f"~{estimate:,} ({least:,} to {most:,})"
            shown = ", ".join(value[:24] for value in column.examples)
            rows.append((column.name, column.kind, about, f"{column.missing:.1%}", column.why, shown))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        table = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[5]]).rstrip() for row in rows]
        about = "" if self.sampled == self.rows else f" of about {self.rows:,}"
        dense, categorical = len(self.spec.dense_columns), len(self.spec.categorical_columns)
        counted = f"{self.sampled:,} rows{about} looked at: {dense} dense features, {categorical} categorical ones"
        rate = "" if self.positives is None else f", {self.positives:.2%} positive"
        return "\n".join([counted + rate, *table, *(f"note: {note}" for note in self.notes)])


def guess_spec(inputs: Union[StrPath, Sequence[StrPath]]) -> SpecGuess:
    """Guesses the feature spec of a log from some 4 MB of its rows.

    Of files of lines it guesses separator, quotes, header and the texts that stand for missing numbers; of Parquet and Arrow
    files the types say most. The label is a column with the values of one: the first that has the name of one (`LABEL_NAMES`),
    else the first column of the file, else the one with the fewest positives. Columns that have the same value in every row, or
    another one in each, are skipped.

    Args:
      inputs: files, folders, patterns or URLs, as for `prepare`; no pipes, which can be read once only.

    Raises:
      DataError: an input is damaged, or has no column that can be a categorical feature.
      UsageError: there is no input, or one is a pipe.

    Example:
      guess = dlrm_tf.guess_spec("log.csv")
      print(guess)
      records = dlrm_tf.prepare("log.csv", "data", spec=guess.spec)
    """
    paths = [os.fspath(path) for path in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    if not paths or "-" in paths:
        raise UsageError(
            f"inputs must be at least one file, no pipe: prepare reads it again. Received {', '.join(paths) or 'none'}"
        )
    files = expand(paths)
    return _guess(sample_tables(files) or sample_text(files), paths[0])


def _guess(sample: Sample, source: str) -> SpecGuess:
    label, labels = _label(sample)
    separator = sample.format.separator if sample.format else "\t"
    columns, positives = [], None
    for i, (name, cells, declared) in enumerate(zip(sample.names, sample.cells, sample.types)):
        if i == label:
            counts = {value: cells.count(value) for value in set(cells)}
            positives = sum(n for value, n in counts.items() if float(value) == 1) / len(cells)
            why = "the name of a label" if name.strip().lower() in LABEL_NAMES else f"{labels} in every row"
            distinct = estimate_distinct([2] * len(counts), len(cells), sample.rows)
            columns.append(ColumnGuess(name, "label", why, distinct, 0.0, tuple(sorted(counts))))
        else:
            columns.append(guess_column(name, cells, sample.rows, declared=declared, separator=separator))
    notes = _notes(sample, columns, label)
    if not any(column.kind == "categorical" for column in columns):
        raise DataError(
            f"{source}: wanted at least one column that can be a categorical feature. Received "
            f"{', '.join(f'{column.name} ({column.kind})' for column in columns)[:300]}"
        )
    spec = _preset(sample, columns) or FeatureSpec(
        tuple((column.name, column.kind) for column in columns),
        separator,
        header=sample.format.header if sample.format else False,
        quote=sample.format.quote if sample.format else None,
        missing=tuple(sorted({marker for column in columns for marker in column.markers})),
        labels=labels,
        bags={column.name: column.bag for column in columns if column.bag},
    )
    if spec in PRESETS.values():
        name = next(name for name, preset in PRESETS.items() if preset == spec)
        notes = (f"these are the columns of the preset {name}: --spec {name} says the same", *notes)
        columns = [column._replace(name=name, kind=kind) for column, (name, kind) in zip(columns, spec.columns)]
    return SpecGuess(spec, tuple(columns), len(sample.cells[0]), sample.rows, positives, notes)


def _label(sample: Sample) -> tuple[Optional[int], str]:
    """Number of the label's column, None where there is none, and how its values are written."""
    found: dict[int, tuple[str, float]] = {}
    for i, cells in enumerate(sample.cells):
        values = set(cells)
        if len(values) > 4:
            continue
        try:
            numbers = {value: float(value) for value in values}
        except ValueError:
            continue
        for labels, wanted in _LABELS.items():
            if set(numbers.values()) == wanted:
                found[i] = labels, sum(cells.count(value) for value, number in numbers.items() if number == 1)
    if not found:
        return None, "0/1"
    names = [name.strip().lower() for name in sample.names]
    named = [names.index(name) for name in LABEL_NAMES if name in names and names.index(name) in found]
    label = named[0] if named else 0 if 0 in found else min(found, key=lambda i: found[i][1])
    return label, found[label][0]


def _preset(sample: Sample, columns: Sequence[ColumnGuess]) -> Optional[FeatureSpec]:
    """The preset whose columns these are, by their names or, without a header, by what Criteo's look like."""
    if sample.format is None:
        return None
    for preset in PRESETS.values():
        if preset.header and [name for name, _ in preset.columns] == sample.names and sample.format.separator == preset.separator:
            return preset
    if (
        sample.format.names
        or sample.format.separator != "\t"
        or len(columns) != len(CRITEO.columns)
        or columns[0].kind != "label"
    ):
        return None
    hexadecimal = (not cell or _HEX.fullmatch(cell) for i in CRITEO.categorical_columns for cell in sample.cells[i][:1000])
    whole = (not cell or re.fullmatch(r"-?\d+", cell) for i in CRITEO.dense_columns for cell in sample.cells[i][:1000])
    return CRITEO if all(hexadecimal) and all(whole) else None


def _notes(sample: Sample, columns: Sequence[ColumnGuess], label: Optional[int]) -> tuple[str, ...]:
    notes = []
    if label is None:
        notes.append("no column looks like a label (0/1 or -1/1): prepare and train need one, score does not")
    if sample.odd:
        notes.append(f"{sample.odd:,} lines of the sample have another number of columns: prepare skips such lines")
    for marker in sorted({marker for column in columns for marker in column.markers}):
        of = [column.name for column in columns if marker in column.markers]
        notes.append(f"{marker!r} stands for a missing number in {', '.join(of)[:200]}; as a category it then is missing too")
    for column in columns:
        if column.bag:
            notes.append(f"{column.name}: max_keys {column.bag.max_keys} is the most of a cell of the sample")
    return tuple(notes)
