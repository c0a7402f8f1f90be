"""Vocabulary: per categorical feature the keys in id order, in one file with a fingerprint; needs NumPy only."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np

from dlrm_tf.data.key_index import KeyIndex
from dlrm_tf.data.parse import PAD, hex_keys
from dlrm_tf.errors import DataError
from dlrm_tf.files import atomic_file

_FORMAT = 1
_NO_KEYS = np.empty(0, np.uint32)


class FeatureKeys:
    """The keys of one feature: eight-lower-case-hex-digit keys as uint32, all others ('' among them) as bytes.

    Attributes:
      size: how many keys there are; ids are `0 … size - 1`, and `size` is the out-of-vocabulary id.
    """

    def __init__(self, numeric: np.ndarray = _NO_KEYS, others: Iterable[tuple[bytes, int]] = ()):
        """`numeric`: uint32 keys in id order. `others`: `(key, id)`; the numeric keys take the ids these leave free."""
        self._parts = [numeric] if numeric.size else []
        self._others = dict(others)
        self._index = None
        self.size = int(numeric.size) + len(self._others)

    def numeric(self) -> tuple[np.ndarray, np.ndarray]:
        """The eight-hex-digit keys: `(values uint32 [m], ids int32 [m])`, both in id order."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        free = np.ones(self.size, bool)
        free[list(self._others.values())] = False
        return (self._parts[0] if self._parts else _NO_KEYS), np.flatnonzero(free).astype(np.int32)

    def others(self) -> list[tuple[bytes, int]]:
        """The keys that are not eight hex digits, with their ids, in id order."""
        return sorted(self._others.items(), key=lambda item: item[1])

    def find(self, keys: np.ndarray, empty: np.ndarray, odd: Sequence[tuple[int, bytes]]) -> np.ndarray:
        """Ids, int32 `[n]`, of a column as `parse.Block` holds it; -1 where a key is unknown."""
        if self._index is None:
            numeric, ids = self.numeric()
            self._index = KeyIndex(numeric.size)
            self._index.insert(numeric, ids)
        found = self._index.find(keys)
        found[empty] = self._others.get(b"", -1)
        for row, key in odd:
            found[row] = self._others.get(key, -1)
        return found

    def assign(self, keys: np.ndarray, empty: np.ndarray, odd: Sequence[tuple[int, bytes]]) -> np.ndarray:
        """As `find`, but unknown keys become new ids, in order of first appearance."""
        found = self.find(keys, empty, odd)
        unknown = np.flatnonzero(found < 0)
        if not unknown.size:
            return found
        # Rows at which a new key stands first: of the numeric keys, of '', of the others.
        other_first: dict[bytes, int] = {}
        numeric_row = np.ones(len(found), bool)
        for row, key in odd:
            numeric_row[row] = False
            if key not in self._others:
                other_first.setdefault(key, row)
        numeric_row[empty] = False
        if b"" not in self._others and empty.any():
            other_first[b""] = int(np.argmax(empty))
        rows = unknown[numeric_row[unknown]]
        new, first = np.unique(keys[rows], return_index=True)
        order = np.argsort(first)
        new, first = new[order], rows[first[order]]
        others = sorted(other_first.items(), key=lambda item: item[1])
        other_rows = np.array([row for _, row in others], np.int64)
        rank = np.arange(first.size) + np.searchsorted(other_rows, first)
        other_rank = np.arange(len(others)) + np.searchsorted(first, other_rows)
        self._index.insert(new, (self.size + rank).astype(np.int32))
        self._parts.append(new)
        self._others.update((key, self.size + int(i)) for (key, _), i in zip(others, other_rank))
        self.size += first.size + len(others)
        found[rows] = self._index.find(keys[rows])
        if others:
            found[empty] = self._others.get(b"", -1)
            for row, key in odd:
                found[row] = self._others[key]
        return found


class Vocabulary:
    """Which id each category of each feature has.

    Example:
      vocabulary = Vocabulary.load("data/vocabulary.npz")
      vocabulary.lookup("C1", ["68fd1e64", "", "never seen"])  # int32, [0, 42, vocabulary.sizes[0]]
    """

    def __init__(self, features: Sequence[tuple[str, FeatureKeys]]):
        """`features`: `(name, keys)` in the order of the model's categorical input."""
        self.names = tuple(name for name, _ in features)
        self._features = dict(features)

    @classmethod
    def from_keys(cls, keys: "dict[str, Sequence[str]]") -> "Vocabulary":
        """From each feature's keys in id order; a key that stands twice raises DataError."""
        features = []
        for name, column in keys.items():
            feature = FeatureKeys()
            feature.assign(*_as_column(column))
            if feature.size != len(column):
                raise DataError(f"vocabulary: feature {name!r} has {len(column) - feature.size} keys twice")
            features.append((name, feature))
        return cls(features)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of keys of each feature; an id equal to it is out of vocabulary."""
        return tuple(self._features[name].size for name in self.names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over names, keys and ids: the same exactly when every lookup gives the same."""
        digest = hashlib.sha256()
        for name in self.names:
            feature = self._features[name]
            others = feature.others()
            head = [name, feature.size, [[key.hex(), i] for key, i in others]]
            digest.update(json.dumps(head).encode())
            digest.update(feature.numeric()[0].astype("<u4").tobytes())
        return digest.hexdigest()

    def feature(self, name: str) -> FeatureKeys:
        """Keys and ids of one feature, as arrays."""
        if name not in self._features:
            raise DataError(f"vocabulary: no feature {name!r}; it has {', '.join(self.names)}")
        return self._features[name]

    def keys(self, name: str) -> list[str]:
        """Keys of one feature in id order; bytes that are not UTF-8 come as surrogates (`surrogateescape`)."""
        feature = self.feature(name)
        numeric, ids = feature.numeric()
        result = [""] * feature.size
        for i, key in zip(ids.tolist(), numeric.tolist()):
            result[i] = f"{key:08x}"
        for key, i in feature.others():
            result[i] = key.decode("utf-8", "surrogateescape")
        return result

    def lookup(self, name: str, keys: Sequence[str]) -> np.ndarray:
        """Ids of `keys` (strings or bytes, any shape) of one feature: int32, same shape; an unknown key gives the feature's size."""
        feature = self.feature(name)
        found = feature.find(*_as_column(np.asarray(keys, dtype=object).ravel()))
        found[found < 0] = feature.size
        return found.reshape(np.shape(keys))

    def save(self, path: str) -> None:
        """Writes one `.npz` (4 bytes a hex key); the file appears whole or not at all."""
        header = {"format": _FORMAT, "fingerprint": self.fingerprint, "features": []}
        numeric, others = [], []
        for name in self.names:
            values, _ = self._features[name].numeric()
            rest = self._features[name].others()
            header["features"].append({"name": name, "hex_keys": int(values.size), "other_keys": len(rest)})
            numeric.append(values.astype("<u4"))
            others.extend(rest)
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                header=np.frombuffer(json.dumps(header).encode(), np.uint8),
                hex_keys=np.concatenate(numeric) if numeric else _NO_KEYS,
                other_ids=np.array([i for _, i in others], "<i4"),
                other_lengths=np.array([len(key) for key, _ in others], "<i4"),
                other_keys=np.frombuffer(b"".join(key for key, _ in others), np.uint8),
            )

    @classmethod
    def load(cls, path: str) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
          DataError: not a vocabulary file, another format, or damaged (its fingerprint does not fit).
        """
        try:
            with open(path, "rb") as file, np.load(io.BufferedReader(file), allow_pickle=False) as arrays:
                header = json.loads(arrays["header"].tobytes())
                hex_values, other_ids = arrays["hex_keys"], arrays["other_ids"]
                lengths, blob = arrays["other_lengths"], arrays["other_keys"].tobytes()
        except OSError as e:
            if e.errno is not None:
                raise
            raise DataError(f"{path}: not a vocabulary file ({e})") from None
        except (ValueError, KeyError, AttributeError, zipfile.BadZipFile, EOFError) as e:
            raise DataError(f"{path}: not a vocabulary file, or damaged ({e})") from None
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise DataError(f"{path}: wanted a vocabulary of format {_FORMAT}, got {str(header)[:60]}")
        try:
            return cls._assemble(header, hex_values, other_ids, lengths, blob)
        except (ValueError, KeyError, TypeError, IndexError) as e:
            raise DataError(f"{path}: damaged vocabulary file ({e})") from None

    @classmethod
    def _assemble(cls, header, hex_values, other_ids, lengths, blob) -> "Vocabulary":
        if lengths.size and (lengths.min() < 0 or int(lengths.sum(dtype=np.int64)) != len(blob)):
            raise ValueError("lengths of keys do not fit the keys")
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        features, at, other_at = [], 0, 0
        for entry in header["features"]:
            count, rest = int(entry["hex_keys"]), int(entry["other_keys"])
            if min(count, rest) < 0 or at + count > hex_values.size or other_at + rest > other_ids.size:
                raise ValueError(f"feature {entry['name']!r} has more keys than the file")
            others = [(blob[offsets[i] : offsets[i + 1]], int(other_ids[i])) for i in range(other_at, other_at + rest)]
            if any(not 0 <= i < count + rest for _, i in others) or len({i for _, i in others}) != rest:
                raise ValueError(f"feature {entry['name']!r} has ids out of range")
            features.append((str(entry["name"]), FeatureKeys(hex_values[at : at + count], others)))
            at, other_at = at + count, other_at + rest
        vocabulary = cls(features)
        if vocabulary.fingerprint != header["fingerprint"]:
            raise ValueError("the fingerprint does not fit the keys")
        return vocabulary


def _as_column(keys: Sequence) -> tuple[np.ndarray, np.ndarray, list[tuple[int, bytes]]]:
    """Strings (or bytes) as `parse.Block` holds a column: `(keys, empty, odd)`."""
    encoded = [key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogateescape") for key in keys]
    length = np.fromiter(map(len, encoded), np.int64, len(encoded))
    text = np.frombuffer(b"".join(encoded) + bytes(PAD), np.uint8)
    words = np.ndarray((text.size - 7,), "<u8", text, strides=(1,))
    numeric, canonical = hex_keys(words[np.cumsum(length) - length])
    canonical &= length == 8
    numeric[~canonical] = 0
    empty = length == 0
    return numeric, empty, [(row, encoded[row]) for row in np.flatnonzero(~(canonical | empty)).tolist()]
