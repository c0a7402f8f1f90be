"""Block: parsed rows of a log, the form between a reader and the Encoder."""

import dataclasses
from typing import Union

import numpy as np

from dlrm_tf.data.bag_column import BagColumn
from dlrm_tf.data.coded_keys import CodedKeys
from dlrm_tf.data.key_column import KeyColumn


@dataclasses.dataclass
class Block:
    """The good rows of a piece, and what was wrong with the others.

    Attributes:
      lines: how many lines the piece has, bad ones counted.
      position: int64 `[n]`, line of each row within the piece, 0-based.
      label: float32 `[n]`.
      dense: float32 `[n, dense features]`.
      dense_missing: bool `[n, dense features]`, the cell is empty.
      keys: uint32 `[categorical features, n]`, the value of a key of eight lower-case hex digits; 0 for any other key.
      empty: bool, shape of `keys`: the field is empty.
      odd: per categorical feature the `(row, key)` of every other key, rows ascending.
      bags: the keys of the features whose column is a bag, by the feature's number; `keys` and `odd` have none for these.
      bad: `(line within the piece, what is wrong)`, in order.
      coded: the keys of the features that came as distinct keys and codes, by the feature's number; `keys` and `odd` have none
        for these.
    """

    lines: int
    position: np.ndarray
    label: np.ndarray
    dense: np.ndarray
    dense_missing: np.ndarray
    keys: np.ndarray
    empty: np.ndarray
    odd: list[list[tuple[int, bytes]]]
    bags: dict[int, BagColumn]
    bad: list[tuple[int, str]]
    coded: dict[int, CodedKeys] = dataclasses.field(default_factory=dict)

    def column(self, feature: int) -> Union[KeyColumn, CodedKeys, BagColumn]:
        """The keys of one categorical feature, by its number."""
        if feature in self.coded:
            return self.coded[feature]
        if feature in self.bags:
            return self.bags[feature]
        return KeyColumn(self.keys[feature], self.empty[feature], self.odd[feature])

    def rows(self, start: int, stop: int) -> "Block":
        """The rows of lines `[start, stop)` of the piece, as a block of `stop - start` lines."""
        first, last = np.searchsorted(self.position, [start, stop])
        return Block(
            stop - start,
            self.position[first:last] - start,
            self.label[first:last],
            self.dense[first:last],
            self.dense_missing[first:last],
            self.keys[:, first:last],
            self.empty[:, first:last],
            [[(row - first, key) for row, key in odd if first <= row < last] for odd in self.odd],
            {feature: column.rows(first, last) for feature, column in self.bags.items()},
            [(line - start, what) for line, what in self.bad if start <= line < stop],
            {feature: column.rows(first, last) for feature, column in self.coded.items()},
        )
