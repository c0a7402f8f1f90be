"""What the fields of `DLRMConfig` may be; two ways to say the same become one, so that equal models have equal configurations."""

import operator
from collections.abc import Sequence
from typing import Any, Optional, SupportsIndex, Union

# The most columns of ids: far beyond any use, so that a damaged file takes no memory.
MAX_ID_COLUMNS = 1 << 16
# How rows of one feature become one vector.
POOLING = ("sum", "mean")


def whole(name: str, value: object, least: int = 1) -> int:
    """A whole number.

    Args:
      name: of the field, for errors.
      value: the field.
      least: 1 or 0.

    Raises:
      ValueError: no whole number, or a smaller one.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or operator.index(value) < least:
        raise ValueError(f"{name} must be {'a positive integer' if least else 'an integer of at least 0'}. Received {value!r}")
    return operator.index(value)


def positives(name: str, values: Any) -> tuple[int, ...]:
    """One or more positive whole numbers.

    Args:
      name: of the field, for errors.
      values: the field.

    Raises:
      ValueError: no sequence, an empty one, or an entry that is none.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ValueError(f"{name} must be a sequence of positive integers. Received {values!r}")
    found = tuple(whole(f"{name}[{i}]", value) for i, value in enumerate(values))
    if not found:
        raise ValueError(f"{name} must have at least one entry. Received {values!r}")
    return found


def tables_of(feature_tables: Any, sizes: Sequence[int]) -> Optional[tuple[int, ...]]:
    """`DLRMConfig.feature_tables`; None where each feature has its own table.

    Args:
      feature_tables: the field.
      sizes: ids of each feature.

    Raises:
      ValueError: not a table for each feature, other numbers than by first appearance, or features of one table that differ in
        size.
    """
    if feature_tables is None:
        return None
    tables = tuple(feature_tables) if hasattr(feature_tables, "__iter__") else ()
    if len(tables) != len(sizes) or not all(type(table) is int for table in tables):
        raise ValueError(f"feature_tables must be {len(sizes)} whole numbers, one per feature. Received {feature_tables!r}")
    first: dict[int, int] = {}
    for f, (table, size) in enumerate(zip(tables, sizes)):
        if first.setdefault(table, f) == f and table != len(first) - 1:
            raise ValueError(f"feature_tables must be numbered from 0 by first appearance. Received {feature_tables!r}")
        if size != sizes[first[table]]:
            raise ValueError(
                f"features of one table must have equal sizes. Received {sizes[first[table]]} ids of feature {first[table]}, "
                f"{size} of feature {f}"
            )
    return tables if len(first) < len(tables) else None


def bags_of(
    hot_sizes: Any, pooling: Any, weighted: Any, features: int
) -> tuple[Optional[tuple[int, ...]], Union[str, tuple[str, ...]]]:
    """`DLRMConfig.hot_sizes`, None in a model of one key per feature, and `pooling`, one word where it is the same for all.

    Args:
      hot_sizes: the field.
      pooling: the field.
      weighted: the field.
      features: number of categorical features.

    Raises:
      ValueError: one that is out of range, or not one entry a feature.
    """
    if not isinstance(weighted, bool):
        raise ValueError(f"weighted must be true or false. Received {weighted!r}")
    hot = (1,) * features if hot_sizes is None else positives("hot_sizes", hot_sizes)
    if len(hot) != features:
        raise ValueError(f"hot_sizes must have {features} entries, one per feature. Received {len(hot)}")
    if sum(hot) > max(MAX_ID_COLUMNS, features):
        raise ValueError(f"hot_sizes must have a sum of at most {MAX_ID_COLUMNS:,}. Received {sum(hot)}")
    words = (pooling,) * features if isinstance(pooling, str) else tuple(pooling) if hasattr(pooling, "__iter__") else ()
    if len(words) != features or not all(isinstance(word, str) and word in POOLING for word in words):
        raise ValueError(f"pooling must be 'sum' or 'mean', for all or one per feature ({features}). Received {pooling!r}")
    if not weighted and max(hot) == 1:
        return None, POOLING[0]  # of one row without a weight, all are the same
    return hot, words if len(set(words)) > 1 else words[0]
