"""Turns a piece of a text log into arrays, a whole piece at once in NumPy; follows upstream's reading of a line.

Upstream: MindSpore models, research/recommend/dlrm/src/preprocess_data.py. A line is good when it has as many fields as columns;
an empty or negative number is 0; a category is any string, the empty one included.
"""

import dataclasses
from collections.abc import Sequence
from typing import Optional, Union

import numpy as np

from dlrm_tf.data.bag_column import BagColumn, find_marks, shown, split_fields
from dlrm_tf.data.block import Block
from dlrm_tf.data.features import read_number, recorded
from dlrm_tf.data.key_column import LOW_NIBBLES, PAD, SIXES, ZEROS, hex_keys, u64, words_at
from dlrm_tf.data.layout import Layout
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.text_format import LABELS

_NEWLINE, _QUOTE = ord("\n"), ord('"')
_POINT_ZERO = np.uint64(int.from_bytes(b".0", "little"))
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

    def clear(self, positions: tuple[int, ...], marker: bytes) -> None:
        """Makes cells of these columns that hold `marker` empty."""
        columns = np.array(positions)
        rows, at = np.nonzero(self.length(positions) == len(marker))
        at = columns[at]
        for i in range(0, len(marker), 8):
            part = marker[i : i + 8]
            same = (self.words[self.starts[rows, at] + i] << np.uint64(64 - 8 * len(part))) == np.uint64(
                int.from_bytes(part, "little") << (64 - 8 * len(part))
            )
            rows, at = rows[same], at[same]
        self.ends[rows, at] = self.starts[rows, at]

    def length(self, positions: tuple[int, ...]) -> np.ndarray:
        columns = _columns(positions)
        lengths: np.ndarray = self.ends[:, columns] - self.starts[:, columns]
        return lengths


def _columns(positions: tuple[int, ...]) -> Union[slice, list[int]]:
    """`positions` as a slice when they stand side by side: a view instead of a copy."""
    if positions and positions == tuple(range(positions[0], positions[-1] + 1)):
        return slice(positions[0], positions[-1] + 1)
    return list(positions)


def first_line(text: bytes, spec: FeatureSpec) -> tuple[list[bytes], int]:
    """The fields of a text's first line, and where the next line begins.

    Args:
      text: lines, the first one whole.
      spec: the columns.
    """
    if spec.quoting is not None:
        end = text.find(b"\n") + 1
        while end and not spec.quoting.end_of_lines(text[:end]):  # a newline within quotes
            end = text.find(b"\n", end) + 1
        end = end or len(text)
        found = spec.quoting.fields(text[:end])
        count = int(found.last[0]) + 1 if found.last.size else 0
        starts = np.concatenate(([0], found.ends[: count - 1] + 1))
        return [found.text[a:b].tobytes() for a, b in zip(starts.tolist(), found.ends[:count].tolist())], end
    stop = min(end for end in (text.find(b"\n"), text.find(b"\r"), len(text)) if end >= 0)
    return text[:stop].split(spec.separator.encode()), stop + (2 if text[stop : stop + 2] == b"\r\n" else 1)


def has_label(text: bytes, spec: FeatureSpec) -> bool:
    """Whether a log has its label column: False when its first line has exactly one field less than `spec` has columns.

    Args:
      text: lines of the log, the first one whole.
      spec: the columns.
    """
    return spec.label_column is not None and len(first_line(text, spec)[0]) != len(spec.columns) - 1


def parse_block(text: bytes, spec: FeatureSpec, *, labelled: bool = True, names: Optional[Sequence[str]] = None) -> Block:
    """Parses whole lines.

    Args:
      text: lines; the last one need not end in a newline. CRLF and CR end a line too, as in Python's text mode.
      spec: the columns.
      labelled: False when the lines lack the label column; each label is 0 then.
      names: of the columns, from the file's header; None where they are those of `spec`.

    Returns:
      A `Block`. In its `bad` is every line with another number of fields, wrong quotes, a cell that is not a number where one is
      wanted, a label that is none of `spec.labels`, or a bag with a bad weight.

    Raises:
      DataError: a column of `spec` is not among `names`.
    """
    layout = Layout.of(spec, labelled=labelled, names=names)
    raw, ends, last, quote_faults = _fields(text, spec)
    padded = np.frombuffer(raw, np.uint8)
    words = words_at(padded)
    lines, width = last.size, layout.width
    fields = np.diff(last, prepend=-1)
    line_starts = np.concatenate(([PAD], ends[last[:-1]] + 1)) if lines else np.empty(0, np.int64)
    good = fields == width
    good[list(quote_faults)] = False
    bad = [(int(i), quote_faults.get(int(i), f"wanted {width} fields. Received {fields[i]}")) for i in np.flatnonzero(~good)]
    position = np.arange(lines)
    if bad:
        ends = ends[np.repeat(good, fields)]
        position, line_starts = position[good], line_starts[good]
    stops = ends.reshape(-1, width)
    cells = _Cells(raw, padded, words, np.column_stack((line_starts, stops[:, :-1] + 1)), stops)
    for marker in spec.missing:
        cells.clear(layout.dense + layout.categorical, marker.encode())

    label, dense, faults = _read_numbers(cells, layout, LABELS[spec.labels])
    if spec.quote is None and b'"' in text:
        faults = {**_quoted_cells(cells, layout), **faults}
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


def _fields(text: bytes, spec: FeatureSpec) -> tuple[bytes, np.ndarray, np.ndarray, dict[int, str]]:
    """`(text between PAD bytes, position after each field, which fields end a line, what is wrong with quotes by line)`."""
    padding = bytes(PAD)
    if spec.quoting is not None and (spec.quote or "").encode() in text:
        found = spec.quoting.fields(text)
        return b"".join((padding, found.text.tobytes(), padding)), found.ends + PAD, found.last, found.faults
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if text and not text.endswith(b"\n"):
        text += b"\n"
    raw = b"".join((padding, text, padding))
    padded = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero((padded == ord(spec.separator)) | (padded == _NEWLINE))
    return raw, ends, np.flatnonzero(padded[ends] == _NEWLINE), {}


def _quoted_cells(cells: _Cells, layout: Layout) -> dict[int, str]:
    """`{row: what is wrong}` of rows with a category in double quotes, which would silently become part of its key."""
    faults: dict[int, str] = {}
    for column in layout.categorical:
        start, end = cells.starts[:, column], cells.ends[:, column]
        quoted = (cells.characters[start] == _QUOTE) & (cells.characters[end - 1] == _QUOTE) & (end - start > 1)
        rows = np.flatnonzero(quoted)
        for row, cell in zip(rows.tolist(), cells.texts(rows, column)):
            faults.setdefault(
                row,
                f'{layout.place(column)}: wanted no double quotes around a category ("quote" in the spec says what they are, '
                f'"\\"" around fields, "" a part of them). Received {shown(cell)}',
            )
    return faults


def _split_bags(cells: _Cells, layout: Layout, marks: dict[str, np.ndarray]) -> tuple[dict[int, BagColumn], dict[int, str]]:
    """The bags by feature number, and `{row: what is wrong}` of the rows that have a bad weight."""
    bags: dict[int, BagColumn] = {}
    faults: dict[int, str] = {}
    for feature, bag in layout.bags.items():
        column = layout.categorical[feature]
        bags[feature], wrong = split_fields(cells.raw, marks, cells.starts[:, column], cells.ends[:, column], bag)
        for row, what in wrong.items():
            faults.setdefault(row, f"{layout.place(column)}: {what}")
    return bags, faults


def _read_numbers(cells: _Cells, layout: Layout, labels: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Labels, dense features, and `{row: what is wrong}` of the rows that have a cell which is not a number."""
    faults: dict[int, str] = {}

    def complain(row: int, column: int) -> None:
        kind = layout.columns[column][1]
        wanted = {"int": "an integer", "float": "a finite number", "label": "{} or {}".format(*labels)}[kind]
        faults.setdefault(row, f"{layout.place(column)}: wanted {wanted}. Received {shown(cells.texts([row], column)[0])}")

    def read(positions: tuple[int, ...]) -> np.ndarray:
        columns = _columns(positions)
        start, end = cells.starts[:, columns], cells.ends[:, columns]
        if positions == (layout.label,):  # 0.0 and 1.0, as frames write them
            end = end - 2 * ((cells.words[end - PAD] >> np.uint64(48) == _POINT_ZERO) & (end - start > 2))
        negative = (cells.characters[start] == ord("-")) & (end > start)
        length = end - start - negative
        values, digits = _whole_numbers(cells.words[end - PAD], np.minimum(length, 8))
        values = np.where(negative, -values, values).astype(np.float32)
        plain = digits & (length <= 8) & ((length > 0) | ~negative)
        for i, column in enumerate(positions):
            rows = np.flatnonzero(~plain[:, i])
            for row, text in zip(rows.tolist(), cells.texts(rows, column)):
                try:
                    values[row, i] = read_number(text, "int" if layout.columns[column][1] == "int" else "float")
                except (ValueError, OverflowError):
                    complain(row, column)
        return values

    def read_label(column: int) -> np.ndarray:
        start, end = cells.starts[:, column], cells.ends[:, column]
        digit = cells.characters[start] - np.uint8(ord("0"))
        negative, positive = labels
        if negative == 0 and ((end - start == 1) & (digit <= 1)).all():  # the quick way of nearly every log
            return digit.astype(np.float32)
        label = read((column,))[:, 0]
        for row in np.flatnonzero((start == end) | ((label != negative) & (label != positive))).tolist():
            complain(row, column)
        return (label == positive).astype(np.float32)

    label = np.zeros(len(cells.starts), np.float32) if layout.label is None else read_label(layout.label)
    if not layout.dense:
        return label, np.zeros((len(label), 0), np.float32), faults
    return label, recorded(read(layout.dense)), faults
