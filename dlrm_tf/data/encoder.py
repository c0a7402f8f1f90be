"""Encoder: the one way from a raw row, text or Python values, to what the model takes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.data.arrow_array import as_arrow
from dlrm_tf.data.arrow_keys import arrow_bags, arrow_keys, without_marked
from dlrm_tf.data.arrow_schema import check_column, is_arrow
from dlrm_tf.data.bag import WEIGHTS
from dlrm_tf.data.bag_column import BagColumn, as_bags
from dlrm_tf.data.block import Block
from dlrm_tf.data.coded_keys import CodedKeys
from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.features import dense_numbers, log_dense, without_markers
from dlrm_tf.data.key_column import KeyColumn, as_column, by_row
from dlrm_tf.data.key_table import KeyTable
from dlrm_tf.data.parse import has_label, parse_block
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.table import cells_of, column_of, has_column, object_matrix
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.vocabulary_check import check_features
from dlrm_tf.errors import DataError, reason

# Up to this many rows, one search for all features is faster than one search for each.
_FEW_ROWS = 256

AnyColumn = Union[KeyColumn, CodedKeys, BagColumn]
"""The keys of one feature."""

Batch = tuple[np.ndarray, ...]
"""`(dense float32 [n, d] as the model takes it, ids int32 [n, id_columns])`; the id of an unknown key is its feature's size, that
of an unused place of a bag -1. Where the spec is weighted, a third array: weights float32 [n, id_columns], 0 in unused places."""


class Encoder:
    """Encodes raw rows with a vocabulary.

    Rows come as lines of text (`lines`), as a table of named columns (`columns`), as two arrays (`arrays`), or as a parsed block
    of a log (`block`). The same row gives the same numbers in every form.

    Args:
      spec: the columns.
      vocabulary: ids of the categories.
      source: what the rows are, named in errors.

    Raises:
      DataError: the vocabulary is of other features than `spec` has.

    Example:
      encoder = Encoder(CRITEO, Vocabulary.load("data/vocabulary.npz"))
      dense, ids = encoder.columns({"I1": [3, None], ..., "C26": ["68fd1e64", ""]})
    """

    def __init__(self, spec: FeatureSpec, vocabulary: Vocabulary, *, source: str = "rows"):
        check_features(spec, vocabulary, source)
        self.spec, self.source, self._vocabulary = spec, source, vocabulary
        self._dense_names, self._categorical_names = spec.dense_names, spec.categorical_names
        self._names = self._dense_names + self._categorical_names
        self._features = [vocabulary.feature(name) for name in vocabulary.names]
        sets = vocabulary.spaces.key_sets
        self._sharing = [[f for f, number in enumerate(sets) if number == wanted] for wanted in range(max(sets) + 1)]
        self._ranges = spec.id_ranges

    @functools.cached_property
    def _key_table(self) -> KeyTable:
        return KeyTable(self._vocabulary)

    def block(self, block: Block) -> Batch:
        """The good lines of a parsed block."""
        return (log_dense(block.dense), *self._encode_keys(len(block.label), block.column))

    def write_ids(
        self,
        block: Block,
        out: np.ndarray,
        *,
        weights: Optional[np.ndarray] = None,
        learn: bool = False,
        run: Callable[..., Iterable[Any]] = map,
    ) -> np.ndarray:
        """Writes the ids of a block's categories.

        Args:
          block: a parsed block.
          out: int32 `[n, id_columns]`, written to.
          weights: float32 `[n, id_columns]`, written to; wanted where the spec is weighted.
          learn: unknown keys enter the vocabulary, with the next ids.
          run: `map`, or that of an executor: features that do not share their keys are independent of each other.

        Returns:
          int64 `[F]`, how many keys of each feature are out of vocabulary.
        """
        return self._write(block.column, out, weights, learn, run)

    def lines(self, lines: Sequence[Union[str, bytes]], *, labelled: Optional[bool] = None, first_row: int = 0) -> Batch:
        """Lines of a log.

        Args:
          lines: str or bytes, with or without a line end.
          labelled: whether the lines have the label column; None tells it by the width of the first.
          first_row: number of the first line in errors.

        Raises:
          DataError: a line that is not as `spec` says; nothing is returned for the others, as each row must have a result.
        """
        encoded = [self._line(line, first_row + i) for i, line in enumerate(lines)]
        text = b"".join(line + b"\n" for line in encoded)
        block = parse_block(text, self.spec, labelled=has_label(text, self.spec) if labelled is None else labelled)
        for line, what in block.bad:
            raise DataError(f"{self.source}: row {first_row + line}: {what}")
        if block.lines != len(encoded):
            raise DataError(f"{self.source}: wanted a whole line in each row. Received one that ends within quotes")
        return self.block(block)

    def columns(self, table: Any, *, first_row: int = 0) -> Batch:
        """A table of named columns; other columns than the features of `spec` are ignored.

        A bag's cell is the text that a log has (`"a|b"`), or a list of keys. Beside lists of weighted keys a column
        `NAME_weights` has lists of their weights.

        Args:
          table: whatever gives a column by its name, `table["C1"]`: a dict of lists or arrays, a pandas or polars DataFrame, an
            Arrow table. Missing cells: None, NaN, pandas.NA or '', and for a bag also an empty list.
          first_row: number of the first row in errors.

        Raises:
          DataError: a column is missing or of another length, or a cell is not what its column takes; names row and column.
        """
        return self._encode(self._columns(table), first_row)

    def arrays(self, dense: Any, categorical: Any) -> Batch:
        """Two arrays, columns in the order of `spec`.

        Args:
          dense: numbers `[n, d]`; None, NaN or '' where missing.
          categorical: str, bytes or whole numbers `[n, F]`; None, NaN or '' where missing. A bag's cell is a text as in a log, or
            where it has no weights a list of keys.

        Raises:
          DataError: arrays of other shapes, or a cell that is not what its column takes; names row and column.
        """
        dense = self._matrix("dense", dense, None, self._dense_names)
        keys = self._matrix("categorical", categorical, object, self._categorical_names)
        if len(dense) != len(keys):
            raise DataError(f"{self.source}: dense has {len(dense)} rows, categorical {len(keys)}")
        numbers = dense_numbers(self._marked(dense), self._dense_names, self.source)
        keys = self._marked(keys)
        return (log_dense(numbers), *self._ids(keys.T.tolist(), 0, {}))

    def batches(self, rows: Any, batch_size: int) -> Iterator[Batch]:
        """Rows in any form but arrays, encoded a batch at a time.

        Args:
          rows: a list of lines (see `lines`) or a table (see `columns`).
          batch_size: rows a batch, at most.

        Raises:
          DataError: rows in no known form, or a row that is not as it should be.
        """
        if isinstance(rows, (list, tuple)):
            labelled = not rows or has_label(self._line(rows[0], 0), self.spec)
            for start in range(0, len(rows), batch_size):
                yield self.lines(rows[start : start + batch_size], labelled=labelled, first_row=start)
            return
        if isinstance(rows, (str, bytes)) or not hasattr(rows, "__getitem__"):
            raise DataError(
                f"{self.source}: wanted a list of lines, a dict of columns or a DataFrame. Received {type(rows).__name__}"
            )
        columns = self._columns(rows)
        for start in range(0, len(columns[self._names[0]]), batch_size):
            # A pandas.Series is sliced by its index, which need not be the position.
            part = {name: getattr(column, "iloc", column)[start : start + batch_size] for name, column in columns.items()}
            yield self._encode(part, start)

    def _columns(self, table: Any) -> dict[str, Any]:
        """The columns of the features, and those of weights that are there."""
        columns = {name: column_of(table, name, self.source) for name in self._names}
        for name, bag in self.spec.bags.items():
            if bag.weight_separator is not None and has_column(table, name + WEIGHTS):
                columns[name + WEIGHTS] = column_of(table, name + WEIGHTS, self.source)
        return columns

    def _line(self, line: Any, row: int) -> bytes:
        """A line as bytes, without its end."""
        text = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        if not isinstance(text, bytes):
            raise DataError(f"{self.source}: row {row}: wanted a line of text. Received {type(line).__name__}")
        text = text.rstrip(b"\r\n")
        if b"\n" in text or b"\r" in text:
            raise DataError(f"{self.source}: row {row}: wanted one line. Received several")
        return text

    def _encode(self, columns: Mapping[str, Any], first_row: int) -> Batch:
        """The features' columns by name; those of weights may be absent."""
        rows = len(columns[self._names[0]])
        other = next((name for name, column in columns.items() if len(column) != rows), None)
        if other is not None:
            raise DataError(
                f"{self.source}: wanted columns of one length. Received {rows:,} rows of {self._names[0]}, "
                f"{len(columns[other]):,} of {other}"
            )
        numbers = np.empty((rows, len(self._dense_names)), np.float32)
        for i, name in enumerate(self._dense_names):
            numbers[:, i] = dense_numbers(self._marked(columns[name]), [name], self.source, first_row)
        weights = {name: cells_of(columns[name + WEIGHTS]) for name in self.spec.bags if name + WEIGHTS in columns}
        cells = [self._cells(name, columns[name]) for name in self._categorical_names]
        return (log_dense(numbers), *self._ids(cells, first_row, weights))

    def _cells(self, name: str, column: Any) -> Any:
        """A categorical column as Python values, or as an array of Arrow where that is faster."""
        bag = self.spec.bags.get(name)
        if not is_arrow(column) or len(column) <= _FEW_ROWS or (bag is not None and bag.weight_separator is not None):
            return cells_of(self._marked(column))
        array = as_arrow(column, "categorical", str)
        check_column(array.type, "categorical", bag=bag is not None, where=f"{self.source}: column {name!r}")
        return without_marked(array, self.spec.missing) if self.spec.missing else array

    def _marked(self, cells: Any) -> Any:
        """A column, or an array `[n, width]`, with None in place of the texts that stand for a missing cell."""
        if not self.spec.missing or not len(cells) or getattr(getattr(cells, "dtype", None), "kind", "O") in "fiub":
            return cells
        if getattr(cells, "ndim", 1) == 2:
            return object_matrix([without_markers(row, self.spec.missing) for row in cells.tolist()])
        return without_markers(cells_of(cells), self.spec.missing)

    def _ids(self, cells: Sequence[Any], first_row: int, weights: Mapping[str, list[Any]]) -> Batch:
        """Ids, and weights if any, of the cells of each feature."""
        rows = len(cells[0])
        if rows <= _FEW_ROWS and not self.spec.bags:
            return (self._key_table.ids([key for row in zip(*cells) for key in row], self.source, first_row),)

        def column(f: int) -> AnyColumn:
            name = self._categorical_names[f]
            if is_arrow(cells[f]):
                return arrow_bags(cells[f], self.spec.bags[name])[0] if name in self.spec.bags else arrow_keys(cells[f])

            def where(i: int) -> str:
                return f"{self.source}: row {first_row + i}, {name}"

            if name in self.spec.bags:
                return as_bags(cells[f], self.spec.bags[name], weights.get(name), where)
            return as_column(cells[f], where)

        return self._encode_keys(rows, column)

    def _encode_keys(self, rows: int, column: Callable[[int], AnyColumn]) -> Batch:
        """Ids, and weights if any, of the keys of each feature, by its number."""
        shape = rows, self.spec.id_columns
        ids = np.empty(shape, np.int32)
        weights = np.empty(shape, np.float32) if self.spec.weighted else None
        self._write(column, ids, weights)
        return (ids,) if weights is None else (ids, weights)

    def _write(
        self,
        column: Callable[[int], AnyColumn],
        out: np.ndarray,
        weights: Optional[np.ndarray],
        learn: bool = False,
        run: Callable[..., Iterable[Any]] = map,
    ) -> np.ndarray:
        def number(features: list[int]) -> list[int]:
            columns = [column(f) for f in features]
            if learn and len(features) > 1:
                _learn_together(columns, self._features[features[0]])
            return [self._place(f, keys, out, weights, learn) for f, keys in zip(features, columns)]

        counts = np.zeros(len(self._features), np.int64)
        for features, unknown in zip(self._sharing, run(number, self._sharing)):
            counts[features] = unknown
        return counts

    def _place(self, f: int, keys: AnyColumn, out: np.ndarray, weights: Optional[np.ndarray], learn: bool) -> int:
        """Writes the ids, and weights if any, of one feature's keys; returns how many keys are out of vocabulary."""
        places, feature = self._ranges[f], self._features[f]
        if not isinstance(keys, BagColumn):
            ids = keys.ids(feature, learn=learn) if isinstance(keys, CodedKeys) else feature.ids(keys, learn=learn)
            out[:, places.start] = ids
            if weights is not None:
                weights[:, places.start] = 1
        else:
            ids = feature.ids(keys.keys, learn=learn)
            out[:, places] = UNUSED_PLACE
            keys.place(ids, out[:, places])
            if weights is not None:
                weights[:, places] = 0
                keys.place(1 if keys.weights is None else keys.weights, weights[:, places])
        return int(np.count_nonzero(ids == feature.size))

    def _matrix(self, name: str, values: Any, dtype: Any, columns: Sequence[str]) -> np.ndarray:
        try:
            array = np.asarray(values, dtype) if dtype is None or not self.spec.bags else object_matrix(values)
        except ValueError as e:  # rows of several lengths
            raise DataError(f"{self.source}: {name} must be [batch_size, {len(columns)}] ({reason(e)})") from e
        if array.ndim != 2 or array.shape[1] != len(columns):
            raise DataError(f"{self.source}: {name} must be [batch_size, {len(columns)}]. Received {list(array.shape)}")
        return array


def _learn_together(columns: Sequence[AnyColumn], feature: FeatureKeys) -> None:
    """Gives new keys of columns that share their keys the next ids: by row, then by column, then by place in a bag."""
    keys, rows = [], []
    for column in columns:
        if not isinstance(column, BagColumn):
            keys.append(column.expand() if isinstance(column, CodedKeys) else column)
            rows.append(np.arange(len(keys[-1].values)))
        else:
            keys.append(column.keys)
            rows.append(np.repeat(np.arange(len(column.lengths)), column.lengths))
    feature.assign(by_row(keys, rows))
