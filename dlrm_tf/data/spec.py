"""FeatureSpec: which columns a log file has, in file order, and what each is for."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dlrm_tf.errors import DataError
from dlrm_tf.files import StrPath

# What a column can be. `int` and `float` are dense features; a `skip` column is ignored.
KINDS = ("label", "int", "float", "categorical", "skip")


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The columns of a text log.

    Attributes:
      columns: `(name, kind)` in file order; exactly one `label`, at least one `categorical`. Kinds: `label` (0 or 1), `int`
        (whole number; empty and negative count as 0), `float` (finite number; empty and negative count as 0), `categorical` (any
        string, the empty one included), `skip` (ignored).
      separator: one ASCII character between two columns. There is no quoting.
      header: the first line of each file is column names: it is skipped and not counted as a line.

    Raises:
      DataError: the columns can't be used; says which.
    """

    columns: tuple[tuple[str, str], ...]
    separator: str = "\t"
    header: bool = False

    def __post_init__(self) -> None:
        try:
            columns = tuple((str(name), str(kind)) for name, kind in self.columns)
        except (TypeError, ValueError):
            raise DataError(f"feature spec: columns must be a list of [name, kind]. Received {self.columns!r}") from None
        object.__setattr__(self, "columns", columns)
        for name, kind in columns:
            if kind not in KINDS:
                raise DataError(f"feature spec: the kind of column {name!r} must be one of {', '.join(KINDS)}. Received {kind!r}")
        names = [name for name, _ in columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"feature spec: column names must be different. Received {twice[0]!r} twice")
        kinds = [kind for _, kind in columns]
        if kinds.count("label") != 1:
            raise DataError(f"feature spec: wanted exactly one label column. Received {kinds.count('label')}")
        if "categorical" not in kinds:
            raise DataError("feature spec: wanted at least one categorical column. Received none")
        one = isinstance(self.separator, str) and len(self.separator) == 1 and self.separator.isascii()
        if not one or not (self.separator.isprintable() or self.separator in "\t\x01"):  # Hive separates by \x01
            raise DataError(
                f"feature spec: separator must be one printable ASCII character, a tab or \\x01. Received {self.separator!r}"
            )

    @classmethod
    def of(cls, dense: Sequence[str], categorical: Sequence[str]) -> "FeatureSpec":
        """The spec of rows that are not lines of text: a label, then these features.

        Args:
          dense: names of the dense features.
          categorical: names of the categorical features.
        """
        columns = [("(label)", "label"), *((name, "float") for name in dense), *((name, "categorical") for name in categorical)]
        return cls(tuple(columns))

    def _positions(self, *kinds: str) -> tuple[int, ...]:
        return tuple(i for i, (_, kind) in enumerate(self.columns) if kind in kinds)

    @property
    def label_column(self) -> int:
        """Position of the label in a line."""
        return self._positions("label")[0]

    @property
    def dense_columns(self) -> tuple[int, ...]:
        """Positions of the dense features in a line, in file order."""
        return self._positions("int", "float")

    @property
    def categorical_columns(self) -> tuple[int, ...]:
        """Positions of the categorical features in a line, in file order."""
        return self._positions("categorical")

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Names of the dense features, in file order."""
        return tuple(self.columns[i][0] for i in self.dense_columns)

    @property
    def categorical_names(self) -> tuple[str, ...]:
        """Names of the categorical features, in file order."""
        return tuple(self.columns[i][0] for i in self.categorical_columns)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"columns": [list(column) for column in self.columns], "separator": self.separator, "header": self.header}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FeatureSpec":
        """From what `to_dict` gave; an unknown or missing entry raises DataError."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or "columns" not in values or set(values) - known:
            raise DataError(f"feature spec: wanted an object with {sorted(known)}. Received {str(values)[:200]}")
        return cls(**values)

    @classmethod
    def load(cls, path: StrPath) -> "FeatureSpec":
        """From a JSON file.

        Raises:
          DataError: not JSON, or not a feature spec.
        """
        with open(path, encoding="utf-8") as file:
            try:
                return cls.from_dict(json.load(file))
            except (ValueError, TypeError, RecursionError) as e:
                raise DataError(f"{path}: {e}") from None


# Criteo Kaggle's train.txt: label, 13 integer features, 26 categorical features of 8 hex digits.
CRITEO = FeatureSpec(
    (("label", "label"),) + tuple((f"I{i}", "int") for i in range(1, 14)) + tuple((f"C{i}", "categorical") for i in range(1, 27))
)
