"""Bag: how a categorical column that holds several keys a row is read and pooled."""

import dataclasses
import operator
from typing import Any, Optional, SupportsIndex

from dlrm_tf.config_checks import POOLING
from dlrm_tf.errors import DataError

WEIGHTS = "_weights"
"""Ending of the name of the column that has the weights of a bag's keys."""


def is_separator(value: object, controls: str) -> bool:
    """Whether `value` is one printable ASCII character, or one of `controls`."""
    one = isinstance(value, str) and len(value) == 1 and value.isascii()
    return one and (str(value).isprintable() or str(value) in controls)


@dataclasses.dataclass(frozen=True)
class Bag:
    """A field that holds several keys, such as `a|b|c`, or with weights `a:0.5|b:2`.

    Order counts (ids are given in it), and a key that stands twice counts twice. An empty field is the one key '', and so is what
    stands between two separators in a row: a bag is never empty. A weight is a finite number from 0 on, after the last weight
    separator of a key; a key without one has weight 1.

    Attributes:
      separator: one ASCII character between two keys.
      max_keys: most keys of a row, the model's number of id columns for the feature; what comes after them is dropped unread.
      pooling: what the model makes of the keys' vectors: `"sum"`, or `"mean"` (with weights the weighted mean).
      weight_separator: one ASCII character between a key and its weight; None where keys have no weights.

    Raises:
      DataError: a value that can't be used; says which.
    """

    separator: str
    max_keys: int
    pooling: str = "sum"
    weight_separator: Optional[str] = None

    def __post_init__(self) -> None:
        for name in ("separator", "weight_separator"):
            value = getattr(self, name)
            # Hive separates the items of a collection by \x02, a map's keys from their values by \x03.
            if not is_separator(value, "\t\x01\x02\x03") and (value is not None or name == "separator"):
                raise DataError(
                    f"bag: {name} must be one printable ASCII character, a tab, \\x01, \\x02 or \\x03. Received {value!r}"
                )
        if self.weight_separator is not None and self.weight_separator in self.separator + "0123456789+-.eE":
            raise DataError(
                f"bag: weight_separator must be another character than separator and those of numbers. "
                f"Received {self.weight_separator!r}"
            )
        whole = isinstance(self.max_keys, SupportsIndex) and not isinstance(self.max_keys, bool)
        if not whole or operator.index(self.max_keys) < 1:
            raise DataError(f"bag: max_keys must be a whole number from 1 on. Received {self.max_keys!r}")
        object.__setattr__(self, "max_keys", operator.index(self.max_keys))
        if self.pooling not in POOLING:
            raise DataError(f"bag: pooling must be one of {', '.join(POOLING)}. Received {self.pooling!r}")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; a weight separator of None is left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Any) -> "Bag":
        """From what `to_dict` gave; an unknown or missing entry raises DataError."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not {"separator", "max_keys"} <= set(values) <= known:
            raise DataError(
                f"bag: wanted an object with separator and max_keys, and pooling and weight_separator where needed. "
                f"Received {str(values)[:200]}"
            )
        return cls(**values)
