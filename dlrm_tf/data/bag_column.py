"""BagColumn: the keys of one categorical feature in many rows, several a row; from fields of a text and from Python values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from dlrm_tf.data.bag import Bag
from dlrm_tf.data.features import LARGEST, read_number
from dlrm_tf.data.key_column import KeyColumn, as_column, hex_keys, words_at
from dlrm_tf.errors import DataError

_WEIGHT = "a weight that is a finite number from 0 on"


class BagColumn(NamedTuple):
    """Keys of `n` rows, at least one each, `m` in all.

    Attributes:
      keys: the `m` keys, row after row, those of a row in the order of its field.
      lengths: int64 `[n]`, keys of each row, from 1 to the bag's `max_keys`.
      weights: float32 `[m]`; None where the keys have none.
      truncated: bool `[n]`, the row had more keys than `max_keys`.
    """

    keys: KeyColumn
    lengths: np.ndarray
    weights: Optional[np.ndarray]
    truncated: np.ndarray

    def rows(self, first: int, last: int) -> "BagColumn":
        """The rows `[first, last)`."""
        start, stop = (int(self.lengths[:row].sum()) for row in (first, last))
        weights = None if self.weights is None else self.weights[start:stop]
        return BagColumn(self.keys.rows(start, stop), self.lengths[first:last], weights, self.truncated[first:last])

    def place(self, values: Any, out: np.ndarray) -> None:
        """Writes a value for each key into the first places of its row.

        Args:
          values: `[m]`, or one for all.
          out: `[n, max_keys]`, written to; unused places stay as they are.
        """
        out[np.arange(out.shape[1]) < self.lengths[:, None]] = values


def find_marks(characters: np.ndarray, bags: Sequence[Bag]) -> dict[str, np.ndarray]:
    """Where the separators within the fields of a text are.

    Args:
      characters: uint8 `[c]`, the text.
      bags: how fields are read.

    Returns:
      By separator the positions of its characters, int64, ascending, and after them `c`, so that the last one has a successor.
    """
    marks = {mark for bag in bags for mark in (bag.separator, bag.weight_separator) if mark is not None}
    return {mark: np.append(np.flatnonzero(characters == ord(mark)), characters.size) for mark in marks}


def split_fields(
    raw: bytes, marks: Mapping[str, np.ndarray], starts: np.ndarray, ends: np.ndarray, bag: Bag
) -> tuple[BagColumn, dict[int, str]]:
    """Splits the fields of one column of a text.

    Args:
      raw: the text, with `PAD` bytes around it.
      marks: what `find_marks` says of it.
      starts: `[n]`, position of each field's first character.
      ends: `[n]`, position after each field's last character.
      bag: how fields are read.

    Returns:
      The keys, and by row what is wrong with its first bad weight.
    """
    separators = marks[bag.separator]
    first = np.searchsorted(separators, starts)
    counts = np.searchsorted(separators, ends) - first + 1
    lengths = np.minimum(counts, bag.max_keys)
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    following = first[row] + place  # number of the separator after each key
    key_starts = np.where(place > 0, separators[following - 1] + 1, starts[row])
    key_ends = np.where(place < counts[row] - 1, separators[following], ends[row])
    weights, faults = None, {}
    if bag.weight_separator is not None:
        last = np.searchsorted(marks[bag.weight_separator], key_ends) - 1
        mark = marks[bag.weight_separator][last]
        given = np.flatnonzero((last >= 0) & (mark >= key_starts))
        texts = [raw[a:b] for a, b in zip((mark[given] + 1).tolist(), key_ends[given].tolist())]
        known = {text: _weight(text) for text in set(texts)}
        weights = np.ones(len(row), np.float32)
        weights[given] = [known[text] for text in texts]
        for at in given[np.isnan(weights[given])][::-1].tolist():  # a row's first one is set last
            faults[int(row[at])] = f"wanted {_WEIGHT}. Received {shown(raw[mark[at] + 1 : key_ends[at]])}"
        key_ends[given] = mark[given]
    size = key_ends - key_starts
    values, canonical = hex_keys(words_at(np.frombuffer(raw, np.uint8))[key_starts])
    canonical &= size == 8
    values[~canonical] = 0
    empty = size == 0
    odd = np.flatnonzero(~(canonical | empty)).tolist()
    keys = KeyColumn(values, empty, [(at, raw[key_starts[at] : key_ends[at]]) for at in odd])
    return BagColumn(keys, lengths, weights, counts > bag.max_keys), faults


def as_bags(
    cells: Sequence[Any], bag: Bag, weights: Optional[Sequence[Any]] = None, where: Callable[[int], str] = "row {}".format
) -> BagColumn:
    """Python values as a column of bags.

    Args:
      cells: of each row a text as it stands in a log, str or bytes, which is split; a list, tuple or array of keys, which are
        taken whole; or one whole number. A missing one (`is_missing`) and an empty list are the one key ''.
      bag: how texts are read.
      weights: of each row whose cell is a list, the weights of its keys, also a list; wanted where the bag has weights.
      where: text that names a row, for errors.

    Raises:
      DataError: a key of another type, or weights that are not as they should be.
    """
    keys: list[Any] = []
    numbers: list[float] = []
    lengths, truncated = np.empty(len(cells), np.int64), np.empty(len(cells), bool)
    for row, cell in enumerate(cells):
        listed = _listed(cell)
        given = None if weights is None else _listed(weights[row])
        if listed is not None:
            found = listed or [b""]
        elif isinstance(cell, str):
            found = cell.split(bag.separator)
        elif isinstance(cell, bytes):
            found = list(cell.split(bag.separator.encode()))
        else:
            found = [cell]
        kept = found[: bag.max_keys]
        lengths[row], truncated[row] = len(kept), len(found) > len(kept)
        if bag.weight_separator is not None:
            try:
                if listed is None:
                    if given:
                        raise ValueError(f"weights only beside a list of keys. Received {len(given)} beside one value")
                    kept, row_weights = _split_weights(kept, bag.weight_separator)
                else:
                    row_weights = _listed_weights(listed, given, bag.max_keys)
            except ValueError as e:
                raise DataError(f"{where(row)}: wanted {e}") from None
            numbers += row_weights
        keys += kept
    rows = np.repeat(np.arange(len(cells)), lengths)
    column = as_column(keys, lambda i: where(int(rows[i])))
    return BagColumn(column, lengths, None if bag.weight_separator is None else np.array(numbers, np.float32), truncated)


def _listed(cell: Any) -> Optional[list[Any]]:
    """The items of a list, tuple or array of one dimension; None for anything else."""
    return list(cell) if isinstance(cell, (list, tuple)) or getattr(cell, "ndim", 0) == 1 else None


def _split_weights(keys: list[Any], separator: str) -> tuple[list[Any], list[float]]:
    """`key:weight` texts as keys and weights; ValueError says what is wanted instead of a bad one."""
    without, weights = [], []
    for key in keys:
        mark = separator if isinstance(key, str) else separator.encode()
        if isinstance(key, (str, bytes)) and mark in key:  # type: ignore[operator]
            key, text = key.rsplit(mark, 1)  # type: ignore[arg-type]
            weight = _weight(text)
            if weight != weight:
                raise ValueError(f"{_WEIGHT}. Received {shown(text)}")
        else:
            weight = 1.0
        without.append(key)
        weights.append(weight)
    return without, weights


def _listed_weights(keys: list[Any], weights: Optional[list[Any]], max_keys: int) -> list[float]:
    """Weights of the first `max_keys` of a list of keys; ValueError says what is wanted instead of bad ones."""
    if not keys:
        if weights:
            raise ValueError(f"no weights for an empty list of keys. Received {len(weights)}")
        return [1.0]
    if weights is None or len(weights) != len(keys):
        raise ValueError(
            f"a list of {len(keys)} weights beside the list of keys. Received {'none' if weights is None else len(weights)}"
        )
    for weight in weights[:max_keys]:
        try:
            good = 0 <= weight <= LARGEST
        except (TypeError, ValueError):  # ValueError of an array
            good = False
        if not good:
            raise ValueError(f"{_WEIGHT}. Received {weight!r}"[:200])
    return [float(weight) for weight in weights[:max_keys]]


def _weight(text: Any) -> float:
    """The number of a weight's text; NaN where it is none that a weight can have."""
    try:
        value = read_number(text)
    except ValueError:
        return np.nan
    return value if value >= 0 else np.nan


def shown(text: Any) -> str:
    """The beginning of a text, str or bytes, for errors."""
    return repr((text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text)[:40])
