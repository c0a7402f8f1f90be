"""Rows of a table in Arrow's types to a Block, as rows of a text log become one."""

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from dlrm_tf.data.arrow_keys import Seen, arrow_bags, arrow_keys, without_marked, without_views
from dlrm_tf.data.arrow_numbers import Numbers, arrow_numbers
from dlrm_tf.data.bag import WEIGHTS
from dlrm_tf.data.bag_column import BagColumn
from dlrm_tf.data.block import Block
from dlrm_tf.data.coded_keys import CodedKeys
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.text_format import LABELS
from dlrm_tf.errors import require


def table_block(
    columns: Mapping[str, Any], spec: FeatureSpec, *, labelled: bool, seen: Optional[Mapping[str, Seen]] = None
) -> Block:
    """Parses rows.

    Args:
      columns: by name a `pyarrow.Array` of each column, all of one length, of types that `columns_to_read` let pass.
      spec: the columns.
      labelled: False when the rows lack the label; each label is 0 then.
      seen: by name the dictionary that a column had in the piece before.

    Returns:
      A `Block`; in its `bad` is every row with a label that is none of `spec.labels`, or with a wrong number or weight.
    """
    columns = {name: without_views(column) for name, column in columns.items()}
    if spec.missing:
        cells = {*spec.dense_names, *spec.categorical_names}
        columns = {n: without_marked(column, spec.missing) if n in cells else column for n, column in columns.items()}
    labels = LABELS[spec.labels]
    rows = len(next(iter(columns.values())))
    numeric = [(name, kind) for name, kind in spec.columns if kind in ("int", "float") or (kind == "label" and labelled)]
    numeric.sort(key=lambda column: column[1] != "label")  # the label first, as in a text
    numbers = {name: arrow_numbers(columns[name], kind, labels) for name, kind in numeric}
    bags, faults = _bags(columns, spec)
    wanted = {"int": "an integer", "float": "a finite number", "label": "{} or {}".format(*labels)}
    for name, kind in reversed(numeric):
        for row in np.flatnonzero(numbers[name].wrong).tolist():
            shown = repr(columns[name][row].as_py())[:40]
            faults[row] = f"column {name}: wanted {wanted[kind]}. Received {shown}"
    position = np.arange(rows)
    if faults:
        keep = np.ones(rows, bool)
        keep[list(faults)] = False
        position = position[keep]
        good = require("pyarrow", "arrow").array(keep)
        columns = {name: column.filter(good) for name, column in columns.items()}
        numbers = {name: column.take(position) for name, column in numbers.items()}
        bags, _ = _bags(columns, spec)
    count = len(position)
    label = next((numbers[name].values for name, kind in numeric if kind == "label"), np.zeros(count, np.float32))
    dense, missing = _stack([numbers[name] for name in spec.dense_names], count)
    features = len(spec.categorical_names)
    block = Block(
        lines=rows,
        position=position,
        label=label,
        dense=dense,
        dense_missing=missing,
        keys=np.zeros((features, count), np.uint32),
        empty=np.zeros((features, count), bool),
        odd=[[] for _ in range(features)],
        bags=bags,
        bad=sorted(faults.items()),
    )
    for feature, name in enumerate(spec.categorical_names):
        if feature in bags:
            block.empty[feature] = bags[feature].missing
            continue
        keys = arrow_keys(columns[name], None if seen is None else seen.get(name))
        block.empty[feature] = keys.empty
        if isinstance(keys, CodedKeys):
            block.coded[feature] = keys
        else:
            block.keys[feature], block.odd[feature] = keys.values, list(keys.odd)
    return block


def _bags(columns: Mapping[str, Any], spec: FeatureSpec) -> tuple[dict[int, BagColumn], dict[int, str]]:
    """The bags by feature number, and what is wrong with the rows that have a bad weight."""
    bags: dict[int, BagColumn] = {}
    faults: dict[int, str] = {}
    for feature, name in enumerate(spec.categorical_names):
        if name in spec.bags:
            bags[feature], wrong = arrow_bags(columns[name], spec.bags[name], columns.get(name + WEIGHTS))
            for row, what in wrong.items():
                faults.setdefault(row, f"column {name}: {what}")
    return bags, faults


def _stack(numbers: list[Numbers], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Dense features as records hold them, and where they are missing, `[rows, d]` both."""
    dense, missing = np.empty((len(numbers), rows), np.float32).T, np.empty((len(numbers), rows), bool).T
    for i, column in enumerate(numbers):
        np.maximum(column.values, 0, out=dense[:, i])
        missing[:, i] = column.missing
    return dense, missing
