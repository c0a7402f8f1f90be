"""Whether the columns of a table in Arrow's types are those of a feature spec: checked before a row is read."""

import sys
from typing import Any

from dlrm_tf.data.arrow_keys import is_list, is_text
from dlrm_tf.data.bag import WEIGHTS
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError, require

_SHOWN = 20  # names of columns in an error


def columns_to_read(schema: Any, spec: FeatureSpec, source: str, *, labelled: bool) -> list[str]:
    """The names of the columns that `spec` wants, in its order, after a check that each is there and has a type that it can have.

    Args:
      schema: a `pyarrow.Schema`.
      spec: the columns; those of kind `skip` are not wanted.
      source: the table in errors.
      labelled: whether the label is wanted.

    Raises:
      DataError: a column is not there, is there twice, or has another type.
    """
    kinds = {name: kind for name, kind in spec.columns if kind != "skip" and (labelled or kind != "label")}
    for name, bag in spec.bags.items():
        listed = name in schema.names and is_list(schema.field(schema.names.index(name)).type)
        if bag.weight_separator is not None and listed:
            kinds[name + WEIGHTS] = "weights"
    for name, kind in kinds.items():
        count = schema.names.count(name)
        if count != 1:
            there = ", ".join(schema.names[:_SHOWN]) + (", …" if len(schema.names) > _SHOWN else "")
            raise DataError(
                f"{source}: wanted {'one' if count else 'a'} column {name!r}. Received {f'{count} of them' if count else there}"
            )
        found = schema.field(schema.names.index(name)).type
        check_column(found, kind, bag=name in spec.bags, where=f"{source}: column {name!r}")
    return list(kinds)


def is_arrow(column: Any) -> bool:
    """Whether a column is one of Arrow; pyarrow is not imported to ask that."""
    pa = sys.modules.get("pyarrow")
    return pa is not None and isinstance(column, (pa.Array, pa.ChunkedArray))


def check_column(found: Any, kind: str, *, bag: bool, where: str) -> None:
    """Checks the type of one column.

    Args:
      found: a `pyarrow.DataType`.
      kind: of the column, as a feature spec has it, or `"weights"`.
      bag: whether it holds several keys a row.
      where: the column in errors.

    Raises:
      DataError: the column can't have this type.
    """
    wanted = _difference(found, kind, bag=bag)
    if wanted:
        raise DataError(f"{where}: wanted {wanted}. Received {str(found)[:80]}")


def _difference(found: Any, kind: str, *, bag: bool) -> str:
    """What is wanted instead of the type `found`; '' where it can be read."""
    kinds = require("pyarrow", "arrow").types
    if kind == "weights":
        sound = is_list(found) and (kinds.is_floating(found.value_type) or kinds.is_integer(found.value_type))
        return "" if sound else "lists of numbers"
    if kind == "categorical" and is_list(found):
        views = kinds.is_string_view(found.value_type) or kinds.is_binary_view(found.value_type)
        return (
            ("lists of plain texts" if views else _difference(found.value_type, kind, bag=False))
            if bag
            else "one key a row; a bag in the feature spec has several"
        )
    value = found.value_type if kinds.is_dictionary(found) else found
    if is_text(value) or kinds.is_null(value) or kinds.is_integer(value):
        return ""
    if kind != "categorical":
        good = kinds.is_floating(value) or kinds.is_decimal(value) or kinds.is_boolean(value)
        return "" if good else f"{'0 or 1' if kind == 'label' else 'numbers'}; write them as numbers"
    if kinds.is_floating(value) or kinds.is_decimal(value):
        # 5.0 may have been '5' or '5.0'.
        return "texts or whole numbers; write them as texts exactly as they are in other logs, or as whole numbers"
    return "texts or whole numbers; write them as texts"
