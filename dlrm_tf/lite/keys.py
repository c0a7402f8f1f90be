"""KeyTable: the ids of whole raw rows in one search, for scoring row by row."""

import numpy as np

from dlrm_tf.data.feature_keys import as_column
from dlrm_tf.data.vocabulary import Vocabulary


class KeyTable:
    """All features' keys in one sorted array (12 bytes a key).

    `Vocabulary.lookup` takes one feature at a time, right for columns of a data set; a single row would pay for 26 lookups.
    """

    def __init__(self, vocabulary: Vocabulary):
        """Reads the keys out of `vocabulary`, in the order of its features."""
        self._sizes = np.asarray(vocabulary.sizes, np.int32)
        self._empty, self._others = self._sizes.copy(), {}
        packed, ids = [], []
        for f, name in enumerate(vocabulary.names):
            feature = vocabulary.feature(name)
            values, value_ids = feature.numeric()
            packed.append(np.uint64(f << 32) | values.astype(np.uint64))
            ids.append(value_ids)
            for key, i in feature.others():
                if key:
                    self._others[f, key] = i
                else:
                    self._empty[f] = i
        # A last key that no row has, so that every search ends at a place there is.
        packed, ids = np.concatenate([*packed, [np.uint64(2**64 - 1)]]), np.concatenate([*ids, [0]])
        order = np.argsort(packed)
        self._packed, self._ids = packed[order], ids[order].astype(np.int32)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """int32 `[n, F]` of strings `[n, F]`; an unknown key gives its feature's size."""
        keys, empty, odd = as_column(rows.reshape(-1))
        features = np.tile(np.arange(len(self._sizes)), len(rows))
        wanted = features.astype(np.uint64) << np.uint64(32) | keys
        places = np.searchsorted(self._packed, wanted)
        ids = np.where(self._packed[places] == wanted, self._ids[places], self._sizes[features])
        ids[empty] = self._empty[features[empty]]
        for at, key in odd:
            ids[at] = self._others.get((int(features[at]), key), self._sizes[features[at]])
        return ids.reshape(rows.shape)
