"""The ids a pruned file kept, in Model.metadata: from ids of the whole vocabulary to the file's own."""

import zlib
from collections.abc import Sequence
from typing import Optional

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.errors import DLRMError

# Name of the entry in Model.metadata.
KEPT_IDS = "dlrm_tf.kept_ids"


def encode_kept_ids(kept: Sequence[np.ndarray]) -> bytes:
    """The ids that a pruned file keeps, as compressed differences: about a byte an id.

    Args:
      kept: ascending ids of each feature, integers.
    """
    return zlib.compress(np.concatenate([np.diff(ids, prepend=0) for ids in kept]).astype("<i4").tobytes(), 9)


class KeptIds:
    """Translates ids of the whole vocabulary into those of a pruned file.

    Args:
      data: what `encode_kept_ids` returned.
      sizes: how many ids each feature kept.
      original_sizes: how many ids each feature has in the whole vocabulary.
      source: named in errors.
      hot_sizes: columns of ids of each feature, where -1 is an unused place; None: one column each, and no such places.

    Raises:
      DLRMError: the data does not fit the sizes.
    """

    def __init__(
        self,
        data: bytes,
        sizes: Sequence[int],
        original_sizes: Sequence[int],
        source: str,
        *,
        hot_sizes: Optional[Sequence[int]] = None,
    ):
        expected = 4 * sum(sizes)
        decoder = zlib.decompressobj()
        try:
            # At most one byte more than expected, so that a decompression bomb takes no memory.
            raw = decoder.decompress(data, expected + 1)
        except zlib.error as e:
            raise DLRMError(f"{source}: damaged list of kept ids ({e})") from e
        if len(raw) != expected:
            raise DLRMError(f"{source}: damaged list of kept ids, wanted {expected} bytes. Received {len(raw)}")
        steps = np.frombuffer(raw, "<i4")
        # One ascending array for all features: a whole batch is one binary search.
        offsets, firsts = np.cumsum([0, *original_sizes[:-1]]), np.cumsum([0, *sizes[:-1]])
        parts = np.split(steps, firsts[1:])
        self._rows = np.concatenate([np.cumsum(part, dtype=np.int64) + offset for part, offset in zip(parts, offsets)])
        self._has_bags = hot_sizes is not None
        # From here on by column.
        self._sizes, self._original_sizes, self._offsets, self._firsts = (
            np.repeat(values, 1 if hot_sizes is None else hot_sizes)
            for values in (np.asarray(sizes, np.int32), np.asarray(original_sizes, np.int64), offsets, firsts)
        )

    def translate(self, categorical: np.ndarray) -> np.ndarray:
        """Ids in the file's numbering.

        Args:
          categorical: integer ids `[n, id_columns]` of the whole vocabulary.

        Returns:
          int32 `[n, id_columns]`; an id that was not kept becomes its feature's size, an unused place of a bag stays one.
        """
        known = (categorical >= 0) & (categorical < self._original_sizes)
        rows = np.where(known, categorical, 0) + self._offsets
        places = np.searchsorted(self._rows, rows)
        known &= self._rows[np.minimum(places, len(self._rows) - 1)] == rows
        ids = np.where(known, places - self._firsts, self._sizes).astype(np.int32)
        return np.where(categorical == UNUSED_PLACE, np.int32(UNUSED_PLACE), ids) if self._has_bags else ids
