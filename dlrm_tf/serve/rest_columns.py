"""Predict's JSON to arrays and arrays to JSON, a piece at a time, after TensorFlow Serving's json_tensor.cc. Needs no TensorFlow.

A body holds rows (`instances`) or columns (`inputs`).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional, Union

import numpy as np

from dlrm_tf.serve.json_pieces import Span, check, parts, resolved
from dlrm_tf.serve.rest_errors import format_error, level_error, list_error, row_error, shown, unlike_error
from dlrm_tf.serve.rest_json import ValueType, dump, is_base64, signature_name, to_array, to_json
from dlrm_tf.serving_api.errors import RequestError, invalid_argument
from dlrm_tf.serving_api.limits import MAX_RANK
from dlrm_tf.serving_api.names import DEFAULT_SIGNATURE

# The members of a body that Predict reads.
MEMBERS = ("signature_name", "instances", "inputs")
# Rows that become JSON in one call.
ROWS_AT_A_TIME = 1024

Types = Mapping[str, ValueType]


class Column:
    """The array of one input, from the elements of a JSON list as they come.

    Args:
      kind: its type.
      write: takes the arrays whose values, one after the other, are those of the whole.
      level: lists around the list.
      inner: the shape that each element must have; None takes that of the first one.
    """

    def __init__(
        self, kind: ValueType, write: Callable[[np.ndarray], None], *, level: int = 0, inner: Optional[tuple[int, ...]] = None
    ):
        self.kind, self._write, self._level = kind, write, level
        self._rows = 0
        self._inner = inner

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's."""
        return (self._rows, *(self._inner or ()))

    @property
    def row_shape(self) -> Optional[tuple[int, ...]]:
        """Of each element; None before the first one."""
        return self._inner

    def extend(self, values: list) -> None:
        """Appends elements; raises RequestError at the first one of another type or shape than it should have."""
        inner = self._inner
        if len(values) == 1 and isinstance(values[0], Span):
            inner = self._read(values[0])
        else:
            shape = None if self._inner is None else (len(values), *self._inner)
            array = to_array(values, self.kind, shape=shape, level=self._level)
            self._write(array)
            inner = array.shape[1:] if values else inner
        self._rows, self._inner = self._rows + len(values), inner

    def _read(self, element: Span) -> tuple[int, ...]:
        """Reads an element that is a large list; gives its shape."""
        level, outer = self._level + 1, (0,) * (self._level + 1)
        expected = None if self._inner is None else (*outer, *self._inner)
        if expected is None and level >= MAX_RANK:
            expected = (*outer, 0)
        wrong = None if expected is None else level_error(expected, level)
        if wrong is not None:
            raise wrong
        column = Column(self.kind, self._write, level=level, inner=self._inner[1:] if self._inner else None)
        size = 0  # it is known at the end, and is looked at before what is in the list
        for part in element.parts():
            size += len(part)
            if wrong is None:
                try:
                    column.extend(part)
                except RequestError as error:
                    wrong = error
        first = (None if expected is None else list_error(size, expected, level)) or wrong
        if first is not None:
            raise first
        return column.shape


def decode(
    document: dict, types_of: Callable[[str], Optional[Types]], write: Callable[[str, ValueType, np.ndarray], None]
) -> tuple[str, bool, dict[str, tuple[int, ...]]]:
    """Reads a Predict body.

    Args:
      document: its members (`MEMBERS`), loaded or as Spans.
      types_of: function signature name -> input types by name; None for an unknown signature.
      write: takes an input's name, type and next values; those of one input follow each other, inputs may alternate.

    Returns:
      `(signature name, whether the body has rows, shapes by input name)`.

    Raises:
      RequestError: in TensorFlow Serving's words.
    """
    name = signature_name(document) or DEFAULT_SIGNATURE
    types = types_of(name)
    if types is None:
        raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
    if not types:
        raise invalid_argument(f"Failed to get input map for signature: {signature_name(document) or 'DEFAULT'}")
    in_rows = "instances" in document
    if in_rows and "inputs" in document:
        raise format_error(document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    if in_rows:
        instances = document["instances"]
        if not isinstance(instances, (list, Span)):
            raise format_error(document, "Excepting 'instances' to be an list/array")
        shapes = _from_instances(instances, types, write)
        if shapes is None:
            raise format_error(document, "No values in 'instances' array")
        return name, True, shapes
    if "inputs" in document:
        return name, False, _from_inputs(document["inputs"], types, write)
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _writer(name: str, kind: ValueType, write: Callable) -> Callable[[np.ndarray], None]:
    return lambda array: write(name, kind, array)


def _from_inputs(value: Any, types: Types, write: Callable) -> dict[str, tuple[int, ...]]:
    if not _is_object(value):
        if len(types) != 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map"
            )
        value = dict.fromkeys(types, value)
    for name in types:
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
    shapes = {}
    for name, kind in types.items():
        shapes[name] = _read_value(value[name], kind, _writer(name, kind, write))
    for name in value.keys() - types.keys():
        if isinstance(value[name], Span):
            check(value[name])
    return shapes


def _from_instances(instances: Union[list, Span], types: Types, write: Callable) -> Optional[dict[str, tuple[int, ...]]]:
    """The inputs' shapes; None when there are no rows."""
    columns = {name: Column(kind, _writer(name, kind, write)) for name, kind in types.items()}
    objects, index = False, 0
    for rows in filter(None, parts(instances)):
        if not index:
            objects = _is_object(rows[0])
            if not objects and len(types) != 1:
                raise invalid_argument(
                    "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                    "tensorinfo_map"
                )
        before = {name: column.row_shape for name, column in columns.items()}
        try:
            if objects != all(map(_is_object, rows)) or (objects and any(row.keys() != types.keys() for row in rows)):
                raise invalid_argument("rows unlike each other")
            for name, column in columns.items():
                column.extend([resolved(row[name]) for row in rows] if objects else rows)
        except RequestError as error:
            raise _first_error(rows, types, objects, index, before) or error from None
        index += len(rows)
    return {name: column.shape for name, column in columns.items()} if index else None


def _first_error(
    rows: list, types: Types, objects: bool, index: int, shapes: Mapping[str, Optional[tuple[int, ...]]]
) -> Optional[RequestError]:
    """The error of the first row that is wrong by itself or unlike those before; None when each by itself is right.

    `index` is the number of the first of `rows`, `shapes` are those of an element of each input in the rows before.
    """
    first = {name: shape for name, shape in shapes.items() if shape is not None}
    for i, row in enumerate(rows, index):
        if _is_object(row) != objects:
            wanted = "Expecting object but got list" if objects else "Expecting value/list but got object"
            return invalid_argument(f"{wanted} at item {i} of input list")
        for name, value in row.items() if objects else ((next(iter(types)), row),):
            try:
                if name not in types:
                    raise invalid_argument(f"JSON object: does not have named input: {name}")
                shape = _read_value(value, types[name], lambda array: None)
                error = unlike_error(shape, first.setdefault(name, shape))
                if error is not None:
                    raise error
            except RequestError as error:
                return row_error(i, name if objects else None, error)
        if objects and row.keys() != types.keys():
            return invalid_argument(
                f"Failed to process element: {i} of 'instances' list. JSON object: {shown(row)} keys must be equal to: "
                f"{','.join(sorted(types))}"
            )
    return None


def _read_value(value: Any, kind: ValueType, write: Callable[[np.ndarray], None]) -> tuple[int, ...]:
    """Writes one value's array, gives its shape; raises RequestError when the value is ragged or of another type."""
    value = resolved(value)
    if not isinstance(value, Span):
        array = to_array(value, kind)
        write(array)
        return array.shape
    column = Column(kind, write)
    for part in value.parts():
        column.extend(part)
    return column.shape


def encode(outputs: Mapping[str, np.ndarray], in_rows: bool) -> Iterator[bytes]:
    """The JSON of a Predict answer, in pieces; `in_rows` when the request had rows.

    Raises:
      RequestError: in TensorFlow Serving's words.
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    size = None
    for name, array in outputs.items() if in_rows else ():
        if np.ndim(array) == 0:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if size not in (None, len(array)):
            raise invalid_argument(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)
    if in_rows:
        yield b'{"predictions": '
        yield from _list(outputs, size or 0)
    elif len(outputs) == 1:  # a single output goes without its name
        yield b'{"outputs": '
        yield from _value(*next(iter(outputs.items())))
    else:
        for i, (name, array) in enumerate(outputs.items()):
            yield (b", " if i else b'{"outputs": {') + dump(name) + b": "
            yield from _value(name, array)
        yield b"}"
    yield b"}"


def _value(name: str, array: np.ndarray) -> Iterator[bytes]:
    if np.ndim(array) == 0:
        yield dump(to_json(name, array))
    else:
        yield from _list({name: array}, len(array))


def _list(outputs: Mapping[str, np.ndarray], size: int) -> Iterator[bytes]:
    """A list of rows, each the value of the only output or an object of all outputs' values."""
    values_a_row = sum(array.size for array in outputs.values()) // max(size, 1)
    step = max(ROWS_AT_A_TIME // max(values_a_row, 1), 1)
    yield b"["
    for start in range(0, size, step):
        columns = {name: to_json(name, array[start : start + step]) for name, array in outputs.items()}
        rows = [dict(zip(columns, row)) for row in zip(*columns.values())] if len(columns) > 1 else next(iter(columns.values()))
        yield (b", " if start else b"") + dump(rows)[1:-1]
    yield b"]"
