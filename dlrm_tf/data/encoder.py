"""Encoder: the one way from a raw row, text or Python values, to what the model takes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.data.features import dense_numbers, log_dense
from dlrm_tf.data.key_column import as_column
from dlrm_tf.data.key_table import KeyTable
from dlrm_tf.data.parse import Block, has_label, parse_block
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError, reason

# Up to this many rows, one search for all features is faster than one search for each.
_FEW_ROWS = 256

Batch = tuple[np.ndarray, np.ndarray]
"""`(dense float32 [n, d] as the model takes it, ids int32 [n, F])`; the id of an unknown key is its feature's size."""


def check_features(spec: FeatureSpec, vocabulary: Vocabulary, source: str) -> None:
    """Checks that a vocabulary is of the categorical features of `spec`, in their order.

    Args:
      spec: the columns.
      vocabulary: the vocabulary.
      source: named in errors.

    Raises:
      DataError: it is not; names both.
    """
    if vocabulary.names != spec.categorical_names:
        raise DataError(
            f"{source}: wanted a vocabulary of the features {', '.join(spec.categorical_names)}. Received one that has "
            f"{', '.join(vocabulary.names)}; give the feature spec of columns other than Criteo Kaggle's (--spec)"
        )


def int32_ids(categorical: Any, source: str) -> np.ndarray:
    """Ids as models take them, int32; an id beyond int32 becomes -1, which is out of vocabulary.

    Args:
      categorical: integers of any width.
      source: named in errors.

    Raises:
      DataError: they are not integers.
    """
    given: np.ndarray = np.asarray(categorical)
    if not np.issubdtype(given.dtype, np.integer):
        raise DataError(f"{source}: categorical must be integer ids. Received {given.dtype}")
    if given.dtype == np.int32:
        return given
    limits = np.iinfo(np.int32)
    ids: np.ndarray = given.astype(np.int32)
    ids[(given < limits.min) | (given > limits.max)] = -1
    return ids


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

    @functools.cached_property
    def _key_table(self) -> KeyTable:
        return KeyTable(self._vocabulary)

    def block(self, block: Block) -> Batch:
        """The good lines of a parsed block."""
        ids = np.empty((len(block.label), len(self._features)), np.int32)
        self.write_ids(block, ids)
        return log_dense(block.dense), ids

    def write_ids(
        self, block: Block, out: np.ndarray, *, learn: bool = False, run: Callable[..., Iterable[int]] = map
    ) -> np.ndarray:
        """Writes the ids of a block's categories.

        Args:
          block: a parsed block.
          out: int32 `[n, F]`, written to.
          learn: unknown keys enter the vocabulary, with the next ids.
          run: `map`, or that of an executor: features are independent of each other.

        Returns:
          int64 `[F]`, how many cells of each feature are out of vocabulary.
        """

        def number(f: int) -> int:
            ids = self._features[f].ids(block.column(f), learn=learn)
            out[:, f] = ids
            return int(np.count_nonzero(ids == self._features[f].size))

        return np.array(list(run(number, range(len(self._features)))), np.int64)

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
        return self.block(block)

    def columns(self, table: Any, *, first_row: int = 0) -> Batch:
        """A table of named columns; other columns than the features of `spec` are ignored.

        Args:
          table: whatever gives a column by its name, `table["C1"]`: a dict of lists or arrays, a pandas or polars DataFrame, an
            Arrow table. Missing cells: None, NaN, pandas.NA or ''.
          first_row: number of the first row in errors.

        Raises:
          DataError: a column is missing or of another length, or a cell is not what its column takes; names row and column.
        """
        return self._encode([_column(table, name, self.source) for name in self._names], first_row)

    def arrays(self, dense: Any, categorical: Any) -> Batch:
        """Two arrays, columns in the order of `spec`.

        Args:
          dense: numbers `[n, d]`; None, NaN or '' where missing.
          categorical: str, bytes or whole numbers `[n, F]`; None, NaN or '' where missing.

        Raises:
          DataError: arrays of other shapes, or a cell that is not what its column takes; names row and column.
        """
        dense = self._matrix("dense", dense, None, self._dense_names)
        keys = self._matrix("categorical", categorical, object, self._categorical_names)
        if len(dense) != len(keys):
            raise DataError(f"{self.source}: dense has {len(dense)} rows, categorical {len(keys)}")
        numbers = dense_numbers(dense, self._dense_names, self.source)
        if len(keys) <= _FEW_ROWS:
            return log_dense(numbers), self._key_table.ids(keys.reshape(-1).tolist(), self.source)
        return log_dense(numbers), self._ids(keys.T.tolist(), 0)

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
        columns = [_column(rows, name, self.source) for name in self._names]
        for start in range(0, len(columns[0]), batch_size):
            # A pandas.Series is sliced by its index, which need not be the position.
            yield self._encode([getattr(column, "iloc", column)[start : start + batch_size] for column in columns], start)

    def _line(self, line: Any, row: int) -> bytes:
        """A line as bytes, without its end."""
        text = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        if not isinstance(text, bytes):
            raise DataError(f"{self.source}: row {row}: wanted a line of text. Received {type(line).__name__}")
        text = text.rstrip(b"\r\n")
        if b"\n" in text or b"\r" in text:
            raise DataError(f"{self.source}: row {row}: wanted one line. Received several")
        return text

    def _encode(self, columns: Sequence[Any], first_row: int) -> Batch:
        rows, width = len(columns[0]), len(self._dense_names)
        other = next((i for i, column in enumerate(columns) if len(column) != rows), None)
        if other is not None:
            raise DataError(
                f"{self.source}: wanted columns of one length. Received {rows:,} rows of {self._names[0]}, "
                f"{len(columns[other]):,} of {self._names[other]}"
            )
        numbers = np.empty((rows, width), np.float32)
        for i, name in enumerate(self._dense_names):
            numbers[:, i] = dense_numbers(columns[i], [name], self.source, first_row)
        return log_dense(numbers), self._ids([_cells(column) for column in columns[width:]], first_row)

    def _ids(self, keys: Sequence[list[Any]], first_row: int) -> np.ndarray:
        """int32 `[n, F]` of the keys of each feature."""
        rows = len(keys[0])
        if rows <= _FEW_ROWS:
            return self._key_table.ids([key for row in zip(*keys) for key in row], self.source, first_row)
        ids = np.empty((rows, len(keys)), np.int32)
        for f, (name, feature) in enumerate(zip(self._vocabulary.names, self._features)):

            def where(i: int, name: str = name) -> str:
                return f"{self.source}: row {first_row + i}, {name}"

            ids[:, f] = feature.ids(as_column(keys[f], where))
        return ids

    def _matrix(self, name: str, values: Any, dtype: Any, columns: Sequence[str]) -> np.ndarray:
        try:
            array = np.asarray(values, dtype)
        except ValueError as e:  # rows of several lengths
            raise DataError(f"{self.source}: {name} must be [batch_size, {len(columns)}] ({reason(e)})") from e
        if array.ndim != 2 or array.shape[1] != len(columns):
            raise DataError(f"{self.source}: {name} must be [batch_size, {len(columns)}]. Received {list(array.shape)}")
        return array


def _column(table: Any, name: str, source: str) -> Any:
    """One column of a table."""
    try:
        column = table[name]
        len(column)
    except Exception as e:  # KeyError, TypeError of a single value, or an error of the table's own library
        raise DataError(f"{source}: wanted a column {name!r} ({reason(e)})") from e
    if getattr(column, "ndim", 1) != 1 or isinstance(column, (str, bytes)):
        raise DataError(f"{source}: wanted one column {name!r}. Received {str(column)[:40]!r} ({type(column).__name__})")
    return column


def _cells(column: Any) -> list[Any]:
    """A column's cells as Python values, by the method that its library has for it."""
    for method in ("tolist", "to_list", "to_pylist"):  # NumPy and pandas, polars, Arrow
        if hasattr(column, method):
            return list(getattr(column, method)())
    return list(column)
