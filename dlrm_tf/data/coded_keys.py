"""CodedKeys: the keys of one categorical feature in many rows, as a few distinct keys and the number of one for each row."""

from typing import Any, NamedTuple

import numpy as np

from dlrm_tf.data.key_column import KeyColumn


class CodedKeys(NamedTuple):
    """Keys of `n` rows, each one of `d` keys: looked up once a key, not once a row.

    Attributes:
      distinct: the `d` keys. One may be there twice, or in no row.
      codes: integers `[n]`, from 0 below `d`: the key of each row.
    """

    distinct: KeyColumn
    codes: np.ndarray

    def rows(self, first: int, last: int) -> "CodedKeys":
        """The rows `[first, last)`."""
        return CodedKeys(self.distinct, self.codes[first:last])

    @property
    def empty(self) -> np.ndarray:
        """bool `[n]`, the key is ''."""
        return self.distinct.empty[self.codes]

    def expand(self) -> KeyColumn:
        """The same keys as a `KeyColumn` of `n` rows."""
        return self.distinct.take(self.codes)

    def ids(self, feature: Any, *, learn: bool = False) -> np.ndarray:
        """Ids of the keys, int32 `[n]`, as `FeatureKeys.ids` gives them.

        Args:
          feature: the keys that have ids, such as `FeatureKeys`.
          learn: unknown keys become new ids, in order of first appearance.
        """
        if not learn:
            known: np.ndarray = feature.ids(self.distinct)[self.codes]
            return known
        # Ids follow from the row in which a key stands first, and a key of no row gets none.
        first = np.full(len(self.distinct.values), len(self.codes), np.int64)
        first[self.codes[::-1]] = np.arange(len(self.codes) - 1, -1, -1)
        order = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(self.codes))]
        ids = np.empty(len(first), np.int32)
        ids[order] = feature.ids(self.distinct.take(order), learn=True)
        learnt: np.ndarray = ids[self.codes]
        return learnt
