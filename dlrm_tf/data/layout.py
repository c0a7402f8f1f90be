"""Layout: what stands where in the lines of one file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Optional

from dlrm_tf.data.bag import Bag
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError


@dataclasses.dataclass(frozen=True)
class Layout:
    """The columns that are read, by position in a line.

    Attributes:
      width: how many fields a line has.
      columns: `(name, kind)` of the columns at these positions.
      label: position of the label; None where there is none.
      dense: positions of the dense features, in the order of the spec.
      categorical: positions of the categorical features, in the order of the spec.
      bags: how the fields of features with several keys are read, by number of the feature.
    """

    width: int
    columns: Mapping[int, tuple[str, str]]
    label: Optional[int]
    dense: tuple[int, ...]
    categorical: tuple[int, ...]
    bags: dict[int, Bag]

    @classmethod
    def of(cls, spec: FeatureSpec, *, labelled: bool = True, names: Optional[Sequence[str]] = None) -> "Layout":
        """The layout of a file.

        Args:
          spec: the columns.
          labelled: False where the file lacks the label column.
          names: of the file's columns, from its header; None where they are those of `spec`.

        Raises:
          DataError: a column is not among `names`, or twice.
        """
        wanted = [column for column in spec.columns if labelled or column[1] != "label"]
        positions = range(len(wanted))
        if names is not None:
            wanted = [column for column in wanted if column[1] != "skip"]
            positions = [_find(name, names) for name, _ in wanted]  # type: ignore[assignment]
        of_kind = {
            kind: tuple(at for at, column in zip(positions, wanted) if column[1] in kinds)
            for kind, kinds in (("label", ("label",)), ("dense", ("int", "float")), ("categorical", ("categorical",)))
        }
        return cls(
            len(wanted if names is None else names),
            dict(zip(positions, wanted)),
            next(iter(of_kind["label"]), None),
            of_kind["dense"],
            of_kind["categorical"],
            {f: spec.bags[name] for f, name in enumerate(spec.categorical_names) if name in spec.bags},
        )

    def place(self, column: int) -> str:
        """A column in errors, by its position."""
        return f"column {column + 1} ({self.columns[column][0]})"


def _find(name: str, names: Sequence[str]) -> int:
    if names.count(name) != 1:
        quoted = '"quote" in the spec says that fields are quoted'
        advice = quoted if names[0].startswith('"') else '"header": "skip" in the spec passes over the line unread'
        count = "one" if name in names else "a"
        # Spaces around a name are part of it, and must be seen.
        shown = ", ".join(repr(name) if name != name.strip() else name for name in names)
        raise DataError(f"header: wanted {count} column {name!r}. Received {shown[:500]}; {advice}")
    return names.index(name)
