"""Predict's JSON to arrays and arrays to JSON, a piece at a time, after TensorFlow Serving's json_tensor.cc. Needs no TensorFlow.

A body holds rows (`instances`) or columns (`inputs`).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Callable, Optional

import numpy as np

from dlrm_tf.serve.json_pieces import Span, check, parts
from dlrm_tf.serve.rest_json import ValueType, dump, is_base64, shown, signature_name, to_array, to_json
from dlrm_tf.serving_api.errors import RequestError, invalid_argument

DEFAULT_SIGNATURE = "serving_default"
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
    """

    def __init__(self, kind: ValueType, write: Callable[[np.ndarray], None]):
        self.kind, self._write = kind, write
        self._rows = 0
        self._inner: Optional[tuple[int, ...]] = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The whole array's."""
        return (self._rows, *(self._inner or ()))

    @property
    def row_shape(self) -> Optional[tuple[int, ...]]:
        """Of each element; None before the first one."""
        return self._inner

    def extend(self, values: list) -> None:
        """Appends elements; raises RequestError when they are of another type or shape than they should be."""
        if len(values) == 1 and isinstance(values[0], Span):
            element = Column(self.kind, self._write)
            for part in values[0].parts():
                element.extend(part)
            self._count(1, element.shape)
            return
        array = to_array(values, self.kind)
        self._count(len(values), array.shape[1:])
        self._write(array)

    def _count(self, rows: int, inner: tuple[int, ...]) -> None:
        if self._inner not in (None, inner):
            raise _ragged(self._inner, inner)  # type: ignore[arg-type]
        self._rows, self._inner = self._rows + rows, inner


def _ragged(first: tuple[int, ...], other: tuple[int, ...]) -> RequestError:
    level = next((i for i, (a, b) in enumerate(zip(first, other)) if a != b), min(len(first), len(other)))
    if level < len(first):
        return invalid_argument(f"Encountered values at level: {level + 1} that are not all lists of size: {first[level]}")
    return invalid_argument(f"Encountered list at unexpected level: {level + 1} expected < {level + 1}")


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
        raise invalid_argument(f"Failed to get input map for signature: {name}")
    in_rows = "instances" in document
    if in_rows and "inputs" in document:
        raise invalid_argument("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if in_rows:
        return name, True, _from_instances(document["instances"], types, write)
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
        column = value[name].resolve() if isinstance(value[name], Span) else value[name]
        if isinstance(column, Span):
            whole = Column(kind, _writer(name, kind, write))
            for part in column.parts():
                whole.extend(part)
            shapes[name] = whole.shape
        else:
            array = to_array(column, kind)
            shapes[name] = array.shape
            write(name, kind, array)
    for name in value.keys() - types.keys():
        if isinstance(value[name], Span):
            check(value[name])
    return shapes


def _from_instances(instances: Any, types: Types, write: Callable) -> dict[str, tuple[int, ...]]:
    if not isinstance(instances, (list, Span)):
        raise invalid_argument("Excepting 'instances' to be an list/array")
    columns = {name: Column(kind, _writer(name, kind, write)) for name, kind in types.items()}
    errors: dict[str, RequestError] = {}
    objects, index = None, 0
    for part in parts(instances):
        if objects is None and part:
            objects = _is_object(part[0])
            if not objects and len(types) != 1:
                raise invalid_argument(
                    "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                    "tensorinfo_map"
                )
        for i, instance in enumerate(part, index):
            if _is_object(instance) != objects:
                wanted = "Expecting object but got list" if objects else "Expecting value/list but got object"
                raise invalid_argument(f"{wanted} at item {i} of input list")
            if objects and instance.keys() != types.keys():
                raise invalid_argument(
                    f"Failed to process element: {i} of 'instances' list. JSON object: {shown(instance)} keys must be equal to: "
                    f"{','.join(sorted(types))}"
                )
        for name, column in columns.items():
            values = [_resolved(instance[name]) for instance in part] if objects else part
            if name not in errors:  # an error further on in the list's own syntax goes first: it is read to its end
                try:
                    column.extend(values)
                except RequestError as error:
                    errors[name] = _first_bad_instance(name if objects else None, values, column, index) or error
        index += len(part)
    if not index:
        raise invalid_argument("No values in 'instances' array")
    for name in columns:
        if name in errors:
            raise errors[name]
    return {name: column.shape for name, column in columns.items()}


def _resolved(value: Any) -> Any:
    return value.resolve() if isinstance(value, Span) else value


def _first_bad_instance(name: Optional[str], values: list, column: Column, index: int) -> Optional[RequestError]:
    """The error for the first element that is wrong by itself or unlike the first one; None when each by itself is right.

    `index` is the number of the first of `values`.
    """
    shape = column.row_shape
    for i, value in enumerate(values, index):
        key = f" key: {name}" if name else ""
        try:
            if isinstance(value, Span):
                element = Column(column.kind, lambda array: None)
                element.extend([value])
                found = element.shape[1:]
            else:
                found = to_array(value, column.kind).shape
            if shape is not None and found != shape:
                raise invalid_argument(f"Expecting shape {list(shape)} but got: {list(found)}")
            shape = found
        except RequestError as e:
            return invalid_argument(f"Failed to process element: {i}{key} of 'instances' list. Error: {e.code.name}: {e.message}")
    return None


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
