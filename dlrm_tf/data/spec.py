"""FeatureSpec: which columns a log file has, in file order, and what each is for."""

import dataclasses
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from dlrm_tf.config import column_ranges
from dlrm_tf.config_checks import MAX_ID_COLUMNS
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.id_spaces import IdSpaces
from dlrm_tf.data.quoting import Quoting
from dlrm_tf.data.text_format import check_text_format
from dlrm_tf.errors import DataError
from dlrm_tf.files import StrPath
from dlrm_tf.presets import json_text, preset_or_file

# What a column can be. `int` and `float` are dense features; a `skip` column is ignored.
KINDS = ("label", "int", "float", "categorical", "skip")


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The columns of a text log.

    Attributes:
      columns: `(name, kind)` in file order; one `label` (to score none is needed), at least one `categorical`. Kinds: `label`
        (see `labels`), `int` (whole number; empty and negative count as 0), `float` (finite number; empty and negative count as
        0), `categorical` (any string, the empty one included), `skip` (ignored).
      separator: one ASCII character between two columns.
      header: True: the first line of each file names its columns, which are found by their names, in any order and among others.
        `"skip"`: it is passed over unread, the columns are those of `columns`. It is not counted as a line.
      quote: one ASCII character around fields, doubled within them (RFC 4180), such as `'"'`. None: there are no quotes, and a
        category in double quotes makes a bad line. `""`: they are part of the categories.
      escape: one ASCII character that takes a quote, separator, line end or itself after it as text; only with `quote`.
      missing: what stands for an empty field besides nothing, such as `("NULL", "\\N")`.
      labels: `"0/1"` (0.0 and 1.0 too) or `"-1/1"`.
      bags: by name the categorical columns that hold several keys a row; in JSON an object of `Bag`'s fields for each, such as
        `"bags": {"genres": {"separator": "|", "max_keys": 5, "pooling": "mean"}}`.
      hashed: by name the categorical columns without a vocabulary, with their numbers of ids: `"hashed": {"C3": 1000000}`. How
        this and the next two are meant: `IdSpaces`.
      shared: by the name of a table the categorical columns whose keys mean the same: `"shared": {"item": ["shown", "bought"]}`.
      unified: by the name of a table hashed columns that share its rows: `"unified": {"rare": ["C3", "C4"]}`.

    Raises:
      DataError: the columns can't be used; says which.
    """

    columns: tuple[tuple[str, str], ...]
    separator: str = "\t"
    header: Union[bool, str] = False
    quote: Optional[str] = None
    escape: Optional[str] = None
    missing: tuple[str, ...] = ()
    labels: str = "0/1"
    # A dict has no hash.
    bags: Mapping[str, Bag] = dataclasses.field(default_factory=dict, hash=False)
    hashed: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
    shared: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    unified: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)

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
        if kinds.count("label") > 1:
            raise DataError(f"feature spec: wanted at most one label column. Received {kinds.count('label')}")
        if "categorical" not in kinds:
            raise DataError("feature spec: wanted at least one categorical column. Received none")
        if isinstance(self.missing, list):  # of JSON
            object.__setattr__(self, "missing", tuple(self.missing))
        check_text_format(self.separator, self.header, self.quote, self.escape, self.missing, self.labels)
        self._check_bags()
        try:
            spaces = self.id_spaces
        except DataError as e:
            raise DataError(f"feature spec: {e}") from None
        for field in ("hashed", "shared", "unified"):
            object.__setattr__(self, field, getattr(spaces, field))

    def _check_bags(self) -> None:
        if not isinstance(self.bags, Mapping):
            raise DataError(f"feature spec: bags must be an object, a bag for each name. Received {str(self.bags)[:200]}")
        object.__setattr__(self, "bags", dict(self.bags))
        for name, bag in self.bags.items():
            if name not in self.categorical_names:
                raise DataError(
                    f"feature spec: bags must be of categorical columns, {', '.join(self.categorical_names)}. Received {name!r}"
                )
            if not isinstance(bag, Bag):
                raise DataError(f"feature spec: bags[{name!r}] must be a Bag. Received {bag!r}")
            for mark in (self.separator, self.quote or None, self.escape):
                if mark is not None and mark in (bag.separator, bag.weight_separator):
                    raise DataError(
                        f"feature spec: the separators of bag {name!r} must be other characters than separator, quote and escape "
                        f"of columns. Received {mark!r} for both"
                    )
        if self.bags and self.id_columns > MAX_ID_COLUMNS:
            raise DataError(
                f"feature spec: wanted at most {MAX_ID_COLUMNS:,} keys a row (max_keys). Received {self.id_columns:,}"
            )

    @classmethod
    def of(
        cls,
        dense: Sequence[str],
        categorical: Sequence[str],
        *,
        bags: Optional[Mapping[str, Bag]] = None,
        missing: Sequence[str] = (),
    ) -> "FeatureSpec":
        """The spec of rows that are not lines of text: a label, then these features.

        Args:
          dense: names of the dense features.
          categorical: names of the categorical features.
          bags: those of them that hold several keys a row, by name.
          missing: texts that stand for a missing cell.
        """
        columns = [("(label)", "label"), *((name, "float") for name in dense), *((name, "categorical") for name in categorical)]
        within = {mark for bag in (bags or {}).values() for mark in (bag.separator, bag.weight_separator)}
        separator = next(mark for mark in "\t" + string.punctuation if mark not in within)
        return cls(tuple(columns), separator, bags=bags or {}, missing=tuple(missing))

    def _positions(self, *kinds: str) -> tuple[int, ...]:
        return tuple(i for i, (_, kind) in enumerate(self.columns) if kind in kinds)

    @property
    def label_column(self) -> Optional[int]:
        """Position of the label in a line; None where there is none."""
        return next(iter(self._positions("label")), None)

    @property
    def quoting(self) -> Optional[Quoting]:
        """How fields are quoted; None where they are not."""
        return Quoting(self.separator, self.quote, self.escape) if self.quote else None

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

    @property
    def hot_sizes(self) -> tuple[int, ...]:
        """Most keys a row of each categorical feature, in file order; 1 where the column is no bag."""
        return tuple(self.bags[name].max_keys if name in self.bags else 1 for name in self.categorical_names)

    @property
    def id_columns(self) -> int:
        """Ids a row: the sum of `hot_sizes`."""
        return sum(self.hot_sizes)

    @property
    def id_ranges(self) -> tuple[slice, ...]:
        """Which of the id columns belong to each categorical feature, in file order."""
        return column_ranges(self.hot_sizes)

    @property
    def id_spaces(self) -> IdSpaces:
        """How the keys of the categorical features become ids."""
        return IdSpaces(self.categorical_names, self.hashed, self.shared, self.unified)

    @property
    def weighted(self) -> bool:
        """Whether keys have weights: those of at least one bag have. Keys of the other columns then have weight 1."""
        return any(bag.weight_separator is not None for bag in self.bags.values())

    @property
    def poolings(self) -> tuple[str, ...]:
        """How the keys of each categorical feature are pooled, in file order; `"sum"` where the column is no bag."""
        return tuple(self.bags[name].pooling if name in self.bags else "sum" for name in self.categorical_names)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; of what came after `header`, without that which has its default."""
        values = {"columns": [list(column) for column in self.columns], "separator": self.separator, "header": self.header}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("quote", "escape", "missing", "labels") and value != field.default:
                values[field.name] = list(value) if field.name == "missing" else value
        bags = {"bags": {name: bag.to_dict() for name, bag in self.bags.items()}} if self.bags else {}
        return {**values, **bags, **self.id_spaces.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "FeatureSpec":
        """From what `to_dict` gave; an unknown or missing entry raises DataError."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or "columns" not in values or set(values) - known:
            raise DataError(f"feature spec: wanted an object with {sorted(known)}. Received {str(values)[:200]}")
        bags = values.get("bags", {})
        if isinstance(bags, dict):
            values = {**values, "bags": {name: _bag(name, bag) for name, bag in bags.items()}}
        return cls(**values)

    @classmethod
    def preset(cls, name: str) -> "FeatureSpec":
        """The columns of a published log.

        Args:
          name: `"criteo_kaggle"` (train.txt of the Kaggle contest), `"criteo_1tb"` (day_0 to day_23 of the Terabyte click logs:
            the same columns) or `"avazu"` (train.csv of Kaggle's avazu-ctr-prediction: 21 categorical features, no dense ones;
            `hour` is skipped, as an hour that is over never comes again).

        Raises:
          DataError: no such preset.
        """
        if name not in PRESETS:
            raise DataError(f"feature spec: preset must be one of {', '.join(PRESETS)}. Received {name!r}")
        return PRESETS[name]

    @classmethod
    def read(cls, name_or_path: StrPath) -> "FeatureSpec":
        """The columns of a published log, or those of a JSON file.

        Args:
          name_or_path: a preset's name (`preset`), or the path of a file (`load`).

        Raises:
          DataError: neither, or a file that is not a feature spec.
        """
        return preset_or_file(name_or_path, PRESETS, cls.load)

    @classmethod
    def load(cls, path: StrPath) -> "FeatureSpec":
        """From a JSON file.

        Raises:
          DataError: not JSON, or not a feature spec.
        """
        text = json_text(path)
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, TypeError, RecursionError) as e:
            raise DataError(f"{path}: {e}") from None


def _bag(name: str, values: Any) -> Bag:
    try:
        return Bag.from_dict(values)
    except DataError as e:
        raise DataError(f"feature spec: column {name!r}: {e}") from None


# Criteo Kaggle's train.txt: label, 13 integer features, 26 categorical features of 8 hex digits.
CRITEO = FeatureSpec(
    (("label", "label"),) + tuple((f"I{i}", "int") for i in range(1, 14)) + tuple((f"C{i}", "categorical") for i in range(1, 27))
)
_AVAZU = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id"),
    *("device_ip", "device_model", "device_type", "device_conn_type", *(f"C{i}" for i in range(14, 22))),
)
PRESETS = {
    "criteo_kaggle": CRITEO,
    "criteo_1tb": CRITEO,
    # `hour` is YYMMDDHH: as a key, none of the test rows' would be known.
    "avazu": FeatureSpec(
        (("id", "skip"), ("click", "label"), ("hour", "skip"), *((name, "categorical") for name in _AVAZU)), ",", header=True
    ),
}
