"""Category strings to ids inside a TensorFlow graph, with two sorted arrays instead of a hash table."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional

import numpy as np

from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.key_column import hex_words
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()

# Keys hashed at a time when the arrays are made.
_CHUNK = 1 << 20
# FarmHash Fingerprint64 modulo this: 63 bits, so that the hashes order as signed integers.
_BUCKETS = 2**63 - 1


class StringIds(tf.Module):
    """Maps strings to ids as `Vocabulary.lookup` does; an unknown string gives the feature's size (OOV).

    A key is kept as a 63-bit FarmHash fingerprint, salted by its feature: 12 bytes per key (405 MB for Criteo's
    33.8 M), restored like any variable, where a hash table of strings would take several GB and minutes to fill. That no two
    keys of the vocabulary share a fingerprint is checked here; a string outside it is taken for a key with probability
    keys / 2**63 (4e-12 at Criteo's size).

    The id of a hashed feature is computed, by `tf.strings.to_hash_bucket_fast`; it has no keys.

    Args:
      vocabulary: a `dlrm_tf.Vocabulary`.
      columns: the feature of each column of strings; None: one column per feature.

    Raises:
      DataError: two keys share a fingerprint, or only a part of the buckets of a hashed feature is kept.
    """

    def __init__(self, vocabulary: Vocabulary, columns: Optional[Sequence[int]] = None):
        super().__init__()
        spaces = vocabulary.spaces
        columns = range(len(vocabulary.names)) if columns is None else columns
        names = [vocabulary.names[f] for f in columns]
        for name, count in spaces.hashed.items():
            size = vocabulary.feature(name).size
            if size != count:
                raise DataError(
                    f"the signature 'raw' takes whole vocabularies: wanted all {count:,} buckets of {name}. Received {size:,}"
                )
        self._listed = [i for i, name in enumerate(names) if name not in spaces.hashed]
        self._key_sets = [spaces.key_sets[columns[i]] for i in self._listed]
        self._sizes = np.array([vocabulary.sizes[columns[i]] for i in self._listed], np.int32)
        # One operation for all columns with one number of buckets.
        buckets = {i: spaces.hashed[name] for i, name in enumerate(names) if name in spaces.hashed}
        self._hashed = [(n, [i for i, other in buckets.items() if other == n]) for n in dict.fromkeys(buckets.values())]
        self._salts = [spaces.salt(name) for name in names]
        if self._listed:
            self._take_keys(vocabulary)

    def _take_keys(self, vocabulary: Vocabulary) -> None:
        """Makes the sorted arrays."""
        owners = [(n, name) for n, name in enumerate(vocabulary.spaces.owners) if name not in vocabulary.spaces.hashed]
        total = sum(vocabulary.feature(name).size for _, name in owners)
        hashes, ids = np.empty(total, np.int64), np.empty(total, np.int32)
        at = 0
        for number, name in owners:
            for keys, key_ids in _key_chunks(vocabulary.feature(name)):
                stop = at + len(keys)
                hashes[at:stop] = _fingerprint(tf.constant(keys, tf.string), [number])
                ids[at:stop] = key_ids
                at = stop
        order = np.argsort(hashes)
        hashes, ids = hashes[order], ids[order]
        if np.any(hashes[1:] == hashes[:-1]):
            raise DataError("two keys of the vocabulary share a 63-bit fingerprint; the signature 'raw' can't tell them apart")
        self.hashes = tf.Variable(hashes, trainable=False, name="key_fingerprints")
        self.ids = tf.Variable(ids, trainable=False, name="key_ids")

    def __call__(self, strings: Any) -> Any:
        """int32 `[B, columns]` ids of string `[B, columns]`."""
        if not self._hashed:
            return self._found(strings)
        order, parts = list(self._listed), []
        if self._listed:
            parts.append(self._found(tf.gather(strings, self._listed, axis=1)))
        for buckets, columns in self._hashed:
            keys, salts = tf.gather(strings, columns, axis=1), [self._salts[i] for i in columns]
            keys = tf.add(tf.constant(salts), keys) if any(salts) else keys
            parts.append(tf.cast(tf.strings.to_hash_bucket_fast(keys, buckets), tf.int32))
            order += columns
        return tf.gather(tf.concat(parts, axis=1), np.argsort(order), axis=1)

    def _found(self, strings: Any) -> Any:
        """int32 ids of the columns that have a vocabulary."""
        wanted = _fingerprint(strings, self._key_sets)
        flat = tf.reshape(wanted, [-1])
        keys = self.hashes.read_value()
        position = tf.minimum(tf.searchsorted(keys, flat), tf.size(keys) - 1)
        known = tf.equal(tf.gather(keys, position), flat)
        ids = tf.reshape(tf.where(known, tf.gather(self.ids, position), -1), tf.shape(wanted))
        return tf.where(ids >= 0, ids, self._sizes)


def _fingerprint(strings: Any, key_sets: Iterable[int]) -> Any:
    """int64, shape of `strings`: FarmHash of each string, salted so that one key in two sets of keys has two fingerprints."""
    # Multiples of 2**64 / golden ratio (Knuth, TAOCP 3, 6.4), cut to 63 bits.
    salt = np.array([number * 0x9E3779B97F4A7C15 % _BUCKETS for number in key_sets], np.int64)
    return tf.bitwise.bitwise_xor(tf.strings.to_hash_bucket_fast(strings, _BUCKETS), salt)


def _key_chunks(feature: FeatureKeys) -> Iterator[tuple[Any, Any]]:
    """Yields `(keys as bytes, their ids)` over a feature's keys; the hex ones are spelled by NumPy, not one by one."""
    values, ids = feature.numeric()
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        yield hex_words(part).astype("<u8").view("S8"), ids[start : start + _CHUNK]
    others = feature.others()
    for start in range(0, len(others), _CHUNK):
        chunk = others[start : start + _CHUNK]
        yield [key for key, _ in chunk], [i for _, i in chunk]
