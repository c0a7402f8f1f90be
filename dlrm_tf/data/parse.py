"""Turns a piece of a text log into arrays, a whole piece at once in NumPy; follows upstream's reading of a line.

Upstream: MindSpore models, research/recommend/dlrm/src/preprocess_data.py. A line is good when it has as many fields as columns;
an empty or negative number is 0; a category is any string, the empty one included.
"""

import dataclasses
from typing import Optional, Union

import numpy as np

from dlrm_tf.data.bag import Bag
from dlrm_tf.data.bag_column import BagColumn, find_marks, split_fields
from dlrm_tf.data.block import Block
from dlrm_tf.data.features import read_number, recorded
from dlrm_tf.data.key_column import LOW_NIBBLES, PAD, SIXES, ZEROS, hex_keys, u64, words_at
from dlrm_tf.data.spec import FeatureSpec

_NEWLINE = 10
_HIGH_NIBBLES = u64("f0f0f0f0f0f0f0f0")
# Bytes of an eight-byte word that a field of length 0…8, standing at the word's end, covers; and '0' everywhere else.
_COVERED = np.array([((1 << 64) - 1) ^ ((1 << (64 - 8 * n)) - 1) for n in range(9)], np.uint64)
_FILL = ~_COVERED & ZEROS


def _whole_numbers(words: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads the last `length` (0…8) characters of each word as decimal digits -> `(int64 values, all are digits)`."""
    words = (words & _COVERED.take(length)) | _FILL.take(length)
    digits = ((words & _HIGH_NIBBLES) | (((words + SIXES) & _HIGH_NIBBLES) >> np.uint64(4))) == u64("3333333333333333")
    # Eight digits by three multiplications: pairs, fours, eight (D. Lemire, "Quickly parsing eight digits", 2018).
    words = ((words & LOW_NIBBLES) * np.uint64(2561)) >> np.uint64(8)
    words = ((words & u64("00ff00ff00ff00ff")) * np.uint64(6553601)) >> np.uint64(16)
    words = ((words & u64("0000ffff0000ffff")) * np.uint64(42949672960001)) >> np.uint64(32)
    return words.astype(np.int64), digits


@dataclasses.dataclass
class _Cells:
    """Where the cells of the good lines are.

    Attributes:
      raw: the text.
      characters: uint8, the same.
      words: uint64, the eight bytes from each position on, as one number.
      starts: `[lines, columns]`, position of each cell's first character.
      ends: `[lines, columns]`, position after each cell's last character.
    """

    raw: bytes
    characters: np.ndarray
    words: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def texts(self, rows: Union[np.ndarray, list[int]], column: int) -> list[bytes]:
        return [self.raw[a:b] for a, b in zip(self.starts[rows, column].tolist(), self.ends[rows, column].tolist())]

    def length(self, positions: tuple[int, ...]) -> np.ndarray:
        columns = _columns(positions)
        lengths: np.ndarray = self.ends[:, columns] - self.starts[:, columns]
        return lengths


def _columns(positions: tuple[int, ...]) -> Union[slice, list[int]]:
    """`positions` as a slice when they stand side by side: a view instead of a copy."""
    if positions and positions == tuple(range(positions[0], positions[-1] + 1)):
        return slice(positions[0], positions[-1] + 1)
    return list(positions)


@dataclasses.dataclass
class _Layout:
    """What stands where in a line: `(name, kind)` of its columns, their positions by kind, and the bags by feature number."""

    columns: tuple[tuple[str, str], ...]
    label: Optional[int]
    dense: tuple[int, ...]
    categorical: tuple[int, ...]
    bags: dict[int, Bag]

    @classmethod
    def of(cls, spec: FeatureSpec, labelled: bool) -> "_Layout":
        bags = {f: spec.bags[name] for f, name in enumerate(spec.categorical_names) if name in spec.bags}
        if labelled:
            return cls(spec.columns, spec.label_column, spec.dense_columns, spec.categorical_columns, bags)
        gone = spec.label_column
        dense, categorical = (tuple(i - (i > gone) for i in at) for at in (spec.dense_columns, spec.categorical_columns))
        return cls(spec.columns[:gone] + spec.columns[gone + 1 :], None, dense, categorical, bags)


def has_label(text: bytes, spec: FeatureSpec) -> bool:
    """Whether a log has its label column: False when its first line has exactly one field less than `spec` has columns.

    Args:
      text: lines of the log, the first one whole.
      spec: the columns.
    """
    first = text[: min(end for end in (text.find(b"\n"), text.find(b"\r"), len(text)) if end >= 0)]
    return first.count(spec.separator.encode()) != len(spec.columns) - 2


def parse_block(text: bytes, spec: FeatureSpec, *, labelled: bool = True) -> Block:
    """Parses whole lines.

    Args:
      text: lines; the last one need not end in a newline. CRLF and CR end a line too, as in Python's text mode.
      spec: the columns.
      labelled: False when the lines lack the label column; each label is 0 then.

    Returns:
      A `Block`. In its `bad` is every line with another number of fields, a cell that is not a number where one is wanted, a
      label that is not 0 or 1, or a bag with a bad weight.
    """
    layout = _Layout.of(spec, labelled)
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if text and not text.endswith(b"\n"):
        text += b"\n"
    raw = b"".join((bytes(PAD), text, bytes(PAD)))
    padded = np.frombuffer(raw, np.uint8)
    words = words_at(padded)
    # Ends of fields: [good lines, columns], positions in `padded`.
    ends = np.flatnonzero((padded == ord(spec.separator)) | (padded == _NEWLINE))
    last = np.flatnonzero(padded[ends] == _NEWLINE)
    lines, width = last.size, len(layout.columns)
    fields = np.diff(last, prepend=-1)
    line_starts = np.concatenate(([PAD], ends[last[:-1]] + 1)) if lines else np.empty(0, np.int64)
    good = fields == width
    bad = [(int(i), f"wanted {width} fields. Received {fields[i]}") for i in np.flatnonzero(~good)]
    position = np.arange(lines)
    if bad:
        ends = ends[np.repeat(good, fields)]
        position, line_starts = position[good], line_starts[good]
    stops = ends.reshape(-1, width)
    cells = _Cells(raw, padded, words, np.column_stack((line_starts, stops[:, :-1] + 1)), stops)

    label, dense, faults = _read_numbers(cells, layout)
    marks = find_marks(padded, list(layout.bags.values()))
    bags, bag_faults = _split_bags(cells, layout, marks)
    faults = {**bag_faults, **faults}
    if faults:
        bad = sorted(bad + [(int(position[row]), what) for row, what in faults.items()])
        keep = np.ones(len(position), bool)
        keep[list(faults)] = False
        position, label, dense = position[keep], label[keep], dense[keep]
        cells = _Cells(raw, padded, words, cells.starts[keep], cells.ends[keep])
        bags, _ = _split_bags(cells, layout, marks)

    dense_length = cells.length(layout.dense)
    length = cells.length(layout.categorical)
    keys, canonical = hex_keys(words[cells.starts[:, _columns(layout.categorical)]])
    canonical &= length == 8
    keys[~canonical] = 0
    empty = length == 0
    other = ~(canonical | empty)
    for feature in bags:
        keys[:, feature], other[:, feature] = 0, False
    odd_rows = [np.flatnonzero(column) for column in other.T]
    odd = [list(zip(rows.tolist(), cells.texts(rows, column))) for rows, column in zip(odd_rows, layout.categorical)]
    keys, empty = np.ascontiguousarray(keys.T), np.ascontiguousarray(empty.T)
    return Block(lines, position, label, dense, dense_length == 0, keys, empty, odd, bags, bad)


def _split_bags(cells: _Cells, layout: _Layout, marks: dict[str, np.ndarray]) -> tuple[dict[int, BagColumn], dict[int, str]]:
    """The bags by feature number, and `{row: what is wrong}` of the rows that have a bad weight."""
    bags: dict[int, BagColumn] = {}
    faults: dict[int, str] = {}
    for feature, bag in layout.bags.items():
        column = layout.categorical[feature]
        bags[feature], wrong = split_fields(cells.raw, marks, cells.starts[:, column], cells.ends[:, column], bag)
        for row, what in wrong.items():
            faults.setdefault(row, f"column {column + 1} ({layout.columns[column][0]}): {what}")
    return bags, faults


def _read_numbers(cells: _Cells, layout: _Layout) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Labels, dense features, and `{row: what is wrong}` of the rows that have a cell which is not a number."""
    faults: dict[int, str] = {}

    def complain(row: int, column: int) -> None:
        name, kind = layout.columns[column]
        wanted = {"int": "an integer", "float": "a finite number", "label": "0 or 1"}[kind]
        shown = cells.texts([row], column)[0][:40].decode("utf-8", "backslashreplace")
        faults.setdefault(row, f"column {column + 1} ({name}): wanted {wanted}. Received {shown!r}")

    def read(positions: tuple[int, ...]) -> np.ndarray:
        columns = _columns(positions)
        start, end = cells.starts[:, columns], cells.ends[:, columns]
        negative = (cells.characters[start] == ord("-")) & (end > start)
        length = end - start - negative
        values, digits = _whole_numbers(cells.words[end - PAD], np.minimum(length, 8))
        values = np.where(negative, -values, values).astype(np.float32)
        plain = digits & (length <= 8) & ((length > 0) | ~negative)
        for i, column in enumerate(positions):
            rows = np.flatnonzero(~plain[:, i])
            for row, text in zip(rows.tolist(), cells.texts(rows, column)):
                try:
                    values[row, i] = read_number(text, layout.columns[column][1])
                except (ValueError, OverflowError):
                    complain(row, column)
        return values

    if layout.label is None:
        label = np.zeros(len(cells.starts), np.float32)
    else:
        label = read((layout.label,))[:, 0]
        empty = cells.starts[:, layout.label] == cells.ends[:, layout.label]
        for row in np.flatnonzero(empty | ((label != 0) & (label != 1))).tolist():
            complain(row, layout.label)
    if not layout.dense:
        return label, np.zeros((len(label), 0), np.float32), faults
    return label, recorded(read(layout.dense)), faults
