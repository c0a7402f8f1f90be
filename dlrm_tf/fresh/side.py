"""Side: rows that are compared, and FolderSide, the rows of a data folder."""

import abc
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

import numpy as np

from dlrm_tf.data.features import log_dense
from dlrm_tf.data.pipeline import bounded_rows
from dlrm_tf.data.record_files import MANIFEST, SPLITS
from dlrm_tf.data.records import Records
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError, reason

BATCH_ROWS = 1 << 17


class Rows(NamedTuple):
    """Some rows of a side.

    Attributes:
      dense: float32 `[n, d]`, log(max(x, 0) + 1); NaN where the number is known to be missing.
      ids: int32 `[n, id_columns]`, in the side's vocabulary; its feature's size where a key is unknown.
      label: float32 `[n]`; NaN where it is not known.
      weights: float32 `[n, id_columns]` where keys have weights.
    """

    dense: np.ndarray
    ids: np.ndarray
    label: np.ndarray
    weights: Optional[np.ndarray] = None

    def at(self, places: np.ndarray) -> "Rows":
        """The rows where `places` (bool `[n]`) is True."""
        weights = None if self.weights is None else self.weights[places]
        return Rows(self.dense[places], self.ids[places], self.label[places], weights)


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other, of at least one part."""
    weights = [rows.weights for rows in parts if rows.weights is not None]
    dense, ids, label = (np.concatenate(arrays) for arrays in list(zip(*parts))[:3])
    return Rows(dense, ids, label, np.concatenate(weights) if weights else None)


class Side(abc.ABC):
    """Rows that are compared.

    Attributes:
      name: what a user called it.
      spec: the columns.
      vocabulary: what its ids mean.
      total: how many rows there are, or None while that is not known.
      missing: how many numbers of each dense feature are missing, int64 `[d]`; None where rows tell it (NaN), or nothing does.
      missing_known: whether it is known which or how many dense numbers are missing, else they count as 0; right after all rows
        were read.
      skipped: requests that were passed over, and why the first of them was.
    """

    name: str
    spec: FeatureSpec
    vocabulary: Vocabulary
    total: Optional[int] = None
    missing: Optional[np.ndarray] = None
    missing_known: bool = True
    skipped: tuple[int, str] = (0, "")

    @abc.abstractmethod
    def batches(self) -> Iterator[Rows]:
        """All rows, in order; can be called again.

        Raises:
          DataError: the rows can't be read.
        """


class FolderSide(Side):
    """The rows of a data folder.

    Args:
      records: the folder.
      split: `train`, `test`, or `all`.

    Raises:
      DataError: no such split, or a damaged vocabulary.
    """

    def __init__(self, records: Records, split: str):
        self._records, self._splits = records, SPLITS if split == "all" else (split,)
        self.name = records.folder if split == "all" else f"{records.folder} ({split})"
        self.spec, self.vocabulary = records.spec, records.vocabulary()
        self.total = sum(records.rows(name) for name in self._splits)
        # Records hold 0 for a missing number; how many there are is counted for the whole folder.
        try:
            counted = [records.manifest["counts"]["missing"][name] for name in self.spec.dense_names]
            self.missing_known = split == "all" and None not in counted  # None: of data that came from TFRecord files (0.1.0)
            self.missing = np.array(counted, np.int64) if self.missing_known else None
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise DataError(f"{records.folder}: damaged counts in {MANIFEST} ({reason(e)}); prepare the data again") from None

    def batches(self) -> Iterator[Rows]:
        """See `Side`."""
        step = bounded_rows(BATCH_ROWS, self.spec, self._records.dtype.itemsize)
        for split in self._splits:
            for start in range(0, self._records.rows(split), step):
                dense, ids, label, *weights = self._records.numpy(split, start, start + step)
                yield Rows(log_dense(dense), ids, label[:, 0], *weights)
