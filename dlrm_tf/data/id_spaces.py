"""IdSpaces: which categorical features are hashed, and which share a table."""

import collections
import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from dlrm_tf.errors import DataError

# Ids are int32, and one more stands for what is out of vocabulary.
MAX_BUCKETS = 2**31 - 2


@dataclasses.dataclass(frozen=True)
class IdSpaces:
    """How the keys of categorical features become ids.

    Left alone, a feature has a vocabulary and a table of its own.

    Attributes:
      names: the categorical features, in the order of the model's input.
      hashed: by name the number of buckets N of those without a vocabulary: a key's id is FarmHash's Fingerprint64 of its
        bytes modulo N, which is `tf.strings.to_hash_bucket_fast`. A table of a chosen size for any number of keys.
      shared: by the name of a table the features whose keys mean the same, such as the item shown and the items bought before.
        They have one vocabulary (or one hash) and one table: the same key reads the same row. In a vocabulary, an id is the
        rank of the key's first position: line, then column, then place in a bag.
      unified: by the name of a table hashed features whose keys have nothing to do with each other, in one table of N rows
        (Coleman et al. 2023, "Unified Embedding", https://arxiv.org/abs/2305.12102). Each has a hash of its own, that of the
        feature's name, `=` and the key, so that which keys meet in a row is drawn anew for each feature.

    Raises:
      DataError: values that do not fit each other; says which.
    """

    names: tuple[str, ...]
    hashed: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
    shared: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    unified: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for field in ("hashed", "shared", "unified"):
            values = getattr(self, field)
            if not isinstance(values, Mapping):
                raise DataError(f"{field} must be an object. Received {str(values)[:200]}")
        object.__setattr__(self, "hashed", {name: _buckets(name, number) for name, number in self.hashed.items()})
        for field in ("shared", "unified"):
            tables = {table: self._in_order(field, table, features) for table, features in getattr(self, field).items()}
            object.__setattr__(self, field, tables)
        self._check_names("hashed", self.hashed)
        members = [name for tables in (self.shared, self.unified) for features in tables.values() for name in features]
        if len(set(members)) < len(members):
            twice = collections.Counter(members).most_common(1)[0][0]
            raise DataError(f"a feature can be in one table of shared and unified. Received {twice!r} twice")
        for field, table, features in self._tables():
            found = [self.hashed.get(name) for name in features]
            if len(set(found)) > 1 or (field == "unified" and found[0] is None):
                shown = ", ".join(f"{name} {'not' if number is None else number}" for name, number in zip(features, found))
                rule = "of buckets" if field == "unified" else "or not at all"
                raise DataError(
                    f"{field}[{table!r}]: wanted features that are hashed into the same number {rule}. Received {shown}"
                )

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        """Number of each feature."""
        return {name: place for place, name in enumerate(self.names)}

    def _tables(self) -> list[tuple[str, str, tuple[str, ...]]]:
        return [(field, *item) for field in ("shared", "unified") for item in getattr(self, field).items()]

    def _in_order(self, field: str, table: str, features: Any) -> tuple[str, ...]:
        """The features of a table in the order of the columns."""
        names = [features] if isinstance(features, str) or not isinstance(features, Iterable) else list(features)
        self._check_names(f"{field}[{table!r}]", names)
        if len(names) < 2 or len(set(names)) < len(names):
            raise DataError(f"{field}[{table!r}]: wanted two or more different features. Received {features!r}")
        return tuple(sorted(names, key=self._places.__getitem__))

    def _check_names(self, what: str, names: Iterable[Any]) -> None:
        for name in names:
            if not isinstance(name, str) or name not in self._places:
                raise DataError(f"{what}: wanted categorical columns, {', '.join(self.names)}. Received {name!r}")

    @property
    def tables(self) -> tuple[int, ...]:
        """The number of each feature's table, numbered from 0 by first appearance, as `DLRMConfig.feature_tables`."""
        table_of = {name: (field, table) for field, table, features in self._tables() for name in features}
        numbers: dict[Any, int] = {}
        return tuple(numbers.setdefault(table_of.get(name, name), len(numbers)) for name in self.names)

    @property
    def key_sets(self) -> tuple[int, ...]:
        """The number of each feature's set of keys, or hash, numbered from 0: features of a table in `shared` have the same."""
        owner = {name: features[0] for features in self.shared.values() for name in features}
        numbers: dict[str, int] = {}
        return tuple(numbers.setdefault(owner.get(name, name), len(numbers)) for name in self.names)

    @property
    def owners(self) -> tuple[str, ...]:
        """The first feature of each set of keys."""
        first: dict[int, str] = {}
        for number, name in zip(self.key_sets, self.names):
            first.setdefault(number, name)
        return tuple(first.values())

    def salt(self, name: str) -> bytes:
        """What stands before each key of a hashed feature when its hash is taken."""
        in_one_table = any(name in features for features in self.unified.values())
        return name.encode("utf-8", "surrogatepass") + b"=" if in_one_table else b""

    def to_dict(self) -> dict[str, Any]:
        """`hashed`, `shared` and `unified` as plain JSON values, those that are not empty."""
        tables = {field: {table: list(names) for table, names in getattr(self, field).items()} for field in ("shared", "unified")}
        return {field: values for field, values in {"hashed": dict(self.hashed), **tables}.items() if values}


def _buckets(name: str, number: Any) -> int:
    whole = isinstance(number, SupportsIndex) and not isinstance(number, bool)
    if not whole or not 1 <= operator.index(number) <= MAX_BUCKETS:
        raise DataError(f"hashed[{name!r}] must be a whole number from 1 to {MAX_BUCKETS:,}. Received {number!r}")
    return operator.index(number)
