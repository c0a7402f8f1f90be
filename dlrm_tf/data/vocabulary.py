"""Vocabulary: per categorical feature the keys in id order, in one file with a fingerprint; needs NumPy only."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Optional, Union

import numpy as np

from dlrm_tf.data.days import UNKNOWN_DAY
from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.hashed_keys import HashedKeys
from dlrm_tf.data.id_spaces import IdSpaces
from dlrm_tf.data.key_column import as_column
from dlrm_tf.data.key_file import read_keys, write_keys
from dlrm_tf.errors import DataError
from dlrm_tf.files import StrPath

_FORMAT, _FORMAT_WITH_OPTIONS = 1, 2  # what needs no option stays readable for earlier versions
# What a header of format 2 may have beside what every header has. A reader that does not know one would take ids for others.
_OPTIONS = ("hashed", "shared", "unified", "last_seen")


class Vocabulary:
    """Which id each category of each feature has.

    Attributes:
      names: the features, in the order of the model's categorical input.
      spaces: which of them are hashed, and which share a table.

    Example:
      vocabulary = Vocabulary.load("data/vocabulary.npz")
      vocabulary.lookup("C1", ["68fd1e64", "", "never seen"])  # int32, [0, 42, vocabulary.sizes[0]]
    """

    def __init__(self, features: Sequence[tuple[str, FeatureKeys]], spaces: Optional[IdSpaces] = None):
        """Takes keys.

        Args:
          features: `(name, keys)` in the order of the model's categorical input; the same object for features that share keys.
          spaces: of these features; None: none is hashed, and none shares a table.
        """
        self.names = tuple(name for name, _ in features)
        self.spaces = IdSpaces(self.names) if spaces is None else spaces
        self._features = dict(features)

    @classmethod
    def empty(cls, spaces: IdSpaces) -> "Vocabulary":
        """A vocabulary without keys.

        Args:
          spaces: the features, and which of them are hashed or share keys.
        """
        return cls.of_key_sets(spaces, [_keys(spaces, name) for name in spaces.owners])

    @classmethod
    def of_key_sets(cls, spaces: IdSpaces, key_sets: Sequence[FeatureKeys]) -> "Vocabulary":
        """A vocabulary of these keys.

        Args:
          spaces: the features, and which of them are hashed or share keys.
          key_sets: the keys of each of `spaces.owners`.
        """
        return cls([(name, key_sets[number]) for name, number in zip(spaces.names, spaces.key_sets)], spaces)

    @property
    def key_sets(self) -> list[FeatureKeys]:
        """The keys of all features, those that features share once."""
        return [self._features[name] for name in self.spaces.owners]

    def copy(self) -> "Vocabulary":
        """An independent copy."""
        return self.of_key_sets(self.spaces, [keys.copy() for keys in self.key_sets])

    def mapped(self, prefix: str) -> "Vocabulary":
        """The same for look-up only, in a form that many processes of a machine share; it can be pickled.

        Args:
          prefix: beginning of the names of files with the indexes; see `FeatureKeys.mapped`.
        """
        return self.of_key_sets(self.spaces, [keys.mapped(f"{prefix}{i:03d}.npy") for i, keys in enumerate(self.key_sets)])

    def keep(self, kept: Sequence[np.ndarray]) -> "Vocabulary":
        """A part of the ids, numbered anew in the same order.

        Args:
          kept: of each feature bool `[size]`, by id; the same for features that share keys.
        """
        masks = dict(zip(self.names, kept))
        return self.of_key_sets(self.spaces, [self._features[name].keep(masks[name]) for name in self.spaces.owners])

    @classmethod
    def from_keys(cls, keys: Mapping[str, Sequence[Any]]) -> "Vocabulary":
        """A vocabulary of these keys.

        Args:
          keys: by feature, in the order of the model's input, the keys in id order: str, bytes or whole numbers.

        Raises:
          DataError: a key occurs twice, or is of another type.
        """
        features = []
        for name, column in keys.items():
            feature = FeatureKeys()
            feature.assign(as_column(column, f"vocabulary: feature {name!r}, key {{}}".format))
            if feature.size != len(column):
                raise DataError(
                    f"vocabulary: feature {name!r}: wanted different keys. Received {len(column) - feature.size} repeated"
                )
            features.append((name, feature))
        return cls(features)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of keys of each feature; an id equal to it is out of vocabulary."""
        return tuple(self._features[name].size for name in self.names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over names, keys and ids, not days: the same exactly when every lookup gives the same."""
        digest = hashlib.sha256()
        for name in self.names:
            feature = self._features[name]
            digest.update(json.dumps([name, feature.size, feature.rule()]).encode())
            digest.update(feature.stored()[0].astype("<u4").tobytes())
        return digest.hexdigest()

    def first(self, sizes: Sequence[int]) -> "Vocabulary":
        """What this vocabulary was before it grew.

        Args:
          sizes: how many keys each feature had.
        """
        return self.keep([np.arange(mine) < size for mine, size in zip(self.sizes, sizes)])

    def feature(self, name: str) -> FeatureKeys:
        """Keys and ids of one feature, as arrays."""
        if name not in self._features:
            raise DataError(f"vocabulary: wanted one of the features {', '.join(self.names)}. Received {name!r}")
        return self._features[name]

    def keys(self, name: str) -> list[str]:
        """Keys of one feature in id order; bytes that are not UTF-8 come as surrogates (`surrogateescape`).

        Raises:
          DataError: the feature is hashed.
        """
        feature = self.feature(name)
        if name in self.spaces.hashed:
            raise DataError(f"vocabulary: wanted a feature with keys. Received {name!r}, which is hashed")
        numeric, ids = feature.numeric()
        result = [""] * feature.size
        for i, key in zip(ids.tolist(), numeric.tolist()):
            result[i] = f"{key:08x}"
        for key, i in feature.others():
            result[i] = key.decode("utf-8", "surrogateescape")
        return result

    def lookup(self, name: str, keys: Any) -> np.ndarray:
        """Ids of keys of one feature.

        Args:
          name: the feature.
          keys: str, bytes or whole numbers, any shape; None, NaN and pandas.NA are the key ''.

        Returns:
          int32, shape of `keys`; an unknown key gives the feature's size.

        Raises:
          DataError: no such feature, or a key of another type.
        """
        feature = self.feature(name)
        cells = np.asarray(keys, dtype=object)
        column = as_column(cells.reshape(-1).tolist(), f"feature {name!r}, key {{}}".format)
        return feature.ids(column).reshape(cells.shape)

    def last_seen(self, name: str) -> np.ndarray:
        """Day of the last log in which each key of one feature occurred, of those that were prepared with `last_seen`.

        Returns:
          int32 `[size]`, in id order: days since 1970-01-01, or `UNKNOWN_DAY` (-1) where it is not known.
        """
        return self.feature(name).last_seen

    def save(self, path: StrPath, *, last_seen: bool = True) -> None:
        """Writes one `.npz` (4 bytes a hex key, 4 more with days); the file appears whole or not at all.

        Args:
          path: the file.
          last_seen: with the days on which keys were last seen, where any is known; lookups do not need them.
        """
        features = self.key_sets
        options = self.spaces.to_dict()
        members = {}
        if last_seen and any((feature.last_seen != UNKNOWN_DAY).any() for feature in features):
            options["last_seen"] = True
            members["last_seen"] = np.concatenate([feature.last_seen for feature in features])
        header = {"format": _FORMAT_WITH_OPTIONS if options else _FORMAT, "fingerprint": self.fingerprint, "names": self.names}
        parts = [feature.stored() for feature in features]
        write_keys(path, {**header, **options}, parts, members=members)

    @classmethod
    def load(cls, path: Union[StrPath, BinaryIO]) -> "Vocabulary":
        """Reads what `save` wrote.

        Args:
          path: the file, or an open binary file.

        Raises:
          DataError: not a vocabulary file, another format, or damaged (its fingerprint does not fit).
        """
        header, parts, members = read_keys(path)
        _check_header(path, header, members)
        try:
            spaces = IdSpaces(tuple(header["names"]), *(header.get(option, {}) for option in ("hashed", "shared", "unified")))
        except (DataError, TypeError) as e:
            raise DataError(f"{path}: damaged vocabulary file ({e})") from None
        days = members.get("last_seen", np.empty(0, np.int32))
        features: list[FeatureKeys] = []
        at = 0
        for name, (numeric, others) in zip(spaces.owners, parts):
            if name in spaces.hashed:
                if others or (numeric[1:] <= numeric[:-1]).any() or numeric.max(initial=0) >= spaces.hashed[name]:
                    raise DataError(f"{path}: damaged vocabulary file (the buckets of {name!r})")
                features.append(_keys(spaces, name, numeric))
                continue
            size = numeric.size + len(others)
            if any(not 0 <= i < size for _, i in others) or len({i for _, i in others}) != len(others):
                raise DataError(f"{path}: damaged vocabulary file (ids of {name!r} are out of range)")
            if len(dict(others)) != len(others):
                raise DataError(f"{path}: damaged vocabulary file (a key of {name!r} stands twice)")
            features.append(FeatureKeys(numeric, others, last_seen=days[at : at + size]))
            at += size
        if len(spaces.owners) != len(parts):
            raise DataError(f"{path}: damaged vocabulary file (keys of {len(parts)} features, wanted {len(spaces.owners)})")
        vocabulary = cls.of_key_sets(spaces, features)
        if vocabulary.fingerprint != header["fingerprint"]:
            raise DataError(f"{path}: damaged vocabulary file (the fingerprint does not fit the keys)")
        if days.min(initial=0) < UNKNOWN_DAY or ("last_seen" in members and days.size != at):
            raise DataError(f"{path}: damaged vocabulary file (wanted a day for each key. Received {days.size} for {at} keys)")
        return vocabulary


def _keys(spaces: IdSpaces, name: str, kept: Optional[np.ndarray] = None) -> FeatureKeys:
    """A feature's keys, none yet; of a hashed one the buckets `kept`, all where that is None or empty."""
    if name not in spaces.hashed:
        return FeatureKeys()
    return HashedKeys(spaces.hashed[name], spaces.salt(name), kept=kept if kept is not None and kept.size else None)


def _check_header(path: Union[StrPath, BinaryIO], header: dict[str, Any], members: Mapping[str, np.ndarray]) -> None:
    """Raises DataError for a header that `Vocabulary.save` does not write."""
    if header.get("format") not in (_FORMAT, _FORMAT_WITH_OPTIONS) or "fingerprint" not in header:
        raise DataError(f"{path}: wanted a vocabulary of format {_FORMAT} or {_FORMAT_WITH_OPTIONS}. Received {str(header)[:60]}")
    names = header.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: damaged vocabulary file (names of features are {str(names)[:60]})")
    options = _OPTIONS if header["format"] == _FORMAT_WITH_OPTIONS else ()
    foreign = sorted(set(header) - {"format", "fingerprint", "names", *options})
    if foreign:
        raise DataError(f"{path}: wanted no options but {', '.join(_OPTIONS)}. Received {str(foreign)[:60]}: of a newer dlrm_tf?")
    if header.get("last_seen", False) is not ("last_seen" in members):
        raise DataError(f"{path}: damaged vocabulary file (header and arrays do not agree about last_seen)")
