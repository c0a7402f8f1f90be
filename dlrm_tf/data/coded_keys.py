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
        found = np.zeros(len(self.codes), bool)
        for code in np.flatnonzero(self.distinct.empty):  # two at most, where no key is there twice
            found |= self.codes == code
        return found

    def expand(self) -> KeyColumn:
        """The same keys as a `KeyColumn` of `n` rows."""
        return self.distinct.take(self.codes)

    def ids(self, feature: Any, *, learn: bool = False) -> np.ndarray:
        """Ids of the keys, int32 `[n]`, as `FeatureKeys.ids` gives them.

        Args:
          feature: the keys that have ids, such as `FeatureKeys`.
          learn: unknown keys become new ids, in order of first appearance.
        """
        unknown = feature.size
        ids: np.ndarray = feature.ids(self.distinct)
        found: np.ndarray = ids[self.codes]
        new = self.codes[found == unknown] if learn else self.codes[:0]
        if not len(new):
            return found
        # Ids follow from the row in which a key stands first; a key of no row gets none.
        codes, first = np.unique(new, return_index=True)
        codes = codes[np.argsort(first)]
        ids[codes] = feature.ids(self.distinct.take(codes), learn=True)
        learnt: np.ndarray = ids[self.codes]
        return learnt
