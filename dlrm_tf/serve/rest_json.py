"""JSON values of the REST API to arrays and back, after TensorFlow Serving's json_tensor.cc. Needs no TensorFlow."""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, Optional, Union

import grpc
import numpy as np

from dlrm_tf.serve.rest_errors import format_error, lossy_error, parse_error, shape_error, shape_of, too_big_error, type_error
from dlrm_tf.serving_api.errors import RequestError, invalid_argument
from dlrm_tf.serving_api.limits import MAX_RANK


class ValueType(NamedTuple):
    """The type of an input: TensorFlow's name (`float`, `string`) and its NumPy dtype, None where JSON has no form for it."""

    name: str
    dtype: Optional[np.dtype]


class Literal(float):
    """NaN, Infinity or -Infinity written as a literal. An infinity of any other class was a number too large for a double."""


def parse(body: Union[bytes, bytearray]) -> dict:
    """A request's JSON object; NaN, Infinity and -Infinity are numbers, of class `Literal`.

    The text ends at a zero byte, as it does for the C++ server's parser: what follows may be anything.

    Raises:
      RequestError: not JSON, or not an object.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    if b"\0" in body:
        body = body[: body.index(b"\0")]
    try:
        document = json.loads(body, parse_constant=Literal)
    except (ValueError, RecursionError):
        raise parse_error(body) from None
    if not isinstance(document, dict):
        raise format_error(document, "Is not object")
    return document


def signature_name(document: dict) -> str:
    """The optional `signature_name` of a parsed request; '' when there is none. Raises RequestError when it is no string."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise format_error(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def is_base64(value: dict) -> bool:
    """Whether `value` is `{"b64": "..."}`, JSON's form of bytes."""
    return len(value) == 1 and isinstance(value.get("b64"), str)


def to_array(value: Any, kind: ValueType, *, shape: Optional[Sequence[int]] = None, level: int = 0) -> np.ndarray:
    """A JSON value or nested list as an array of type `kind`; a number that it can't hold exactly is refused.

    Args:
      value: of JSON.
      kind: the type of the array.
      shape: that the array must have; None takes it from the first elements.
      level: lists around `value`, for messages.

    Raises:
      RequestError: the first place where it is ragged or has a value of another type.
    """
    wanted = shape_of(value) if shape is None else shape
    items = [value]
    for size in wanted[:MAX_RANK]:
        if set(map(type, items)) != {list} or set(map(len, items)) != {size}:
            break
        items = list(chain.from_iterable(items))
    fits = level + len(wanted) <= MAX_RANK and len(items) == math.prod(wanted) and list not in set(map(type, items))
    whole = (*(0 for _ in range(level)), *wanted)

    def leaf_error(leaf: Any) -> Optional[RequestError]:
        try:
            _leaves([leaf], kind)
        except RequestError as error:
            return error
        return None

    first = None if fits else shape_error(value, whole, level, leaf_error)
    if first is not None:
        raise first
    try:
        return _leaves(items, kind).reshape(wanted)
    except RequestError as error:
        raise shape_error(value, whole, level, leaf_error) or error from None


def _leaves(values: list, kind: ValueType) -> np.ndarray:
    target = kind.dtype
    if target is None:
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"Conversion of JSON Value to type: DT_{kind.name.upper()}")
    if target.kind == "O":
        array = np.empty(len(values), object)
        array[:] = [_string(value, kind) for value in values]
        return array
    kinds: dict[str, set[type]] = {"f": {int, float, Literal}, "b": {bool}}
    wanted = kinds.get(target.kind, {int})
    for value in values if set(map(type, values)) - wanted else ():
        if type(value) not in wanted:
            raise type_error(value, kind.name)
    if target.kind == "f":
        return _floats(values, target, kind.name)
    try:
        return np.array(values, target)
    except OverflowError:
        limits = np.iinfo(target)
        raise type_error(next(v for v in values if not limits.min <= v <= limits.max), kind.name) from None


def _floats(values: list, target: np.dtype, wanted: str) -> np.ndarray:
    limits = np.finfo(target)
    largest, largest_int = float(limits.max), (1 << (limits.nmant + 1)) - 1
    try:
        suspicious = bool((np.abs(np.array(values, np.float64)) > largest_int).any())
    except OverflowError:  # an integer beyond any float
        suspicious = True
    for value in values if suspicious else ():
        check_size(value)
        lossy = abs(value) > largest_int if is_integer(value) else largest < abs(value) < np.inf
        if lossy:
            raise lossy_error(value, wanted)
    return np.array(values, target)


def check_size(value: Any) -> None:
    """Refuses a number too large for a double, like 1e400, which Python parses as an infinity, or an integer of 400 digits."""
    try:
        if type(value) is not Literal and abs(float(value)) == float("inf"):
            raise too_big_error()
    except OverflowError:
        raise too_big_error() from None


def is_integer(value: Any) -> bool:
    """Whether a parsed number is an integer for rapidjson: one of more than 64 bits is a double there."""
    return type(value) is int and -(2**63) <= value < 2**64


def _string(value: Any, kind: ValueType) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict):
        return decode_base64(value)
    raise type_error(value, kind.name)


def decode_base64(value: dict) -> bytes:
    """The bytes of `{"b64": "..."}`; raises RequestError for any other object and text."""
    if not is_base64(value):
        raise format_error(value, "not formatted correctly for base64 data")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def to_json(name: str, array: np.ndarray) -> Any:
    """The value of output `name` as JSON, strings of one named `*_bytes` as base64; raises RequestError for complex numbers."""
    if array.dtype == object:
        if name.endswith("_bytes"):
            return _mapped(array, lambda value: {"b64": base64.b64encode(value).decode()})
        return _mapped(array, lambda value: value.decode("utf-8", "replace"))
    if array.dtype.kind in "iub":
        return array.tolist()
    if array.dtype.kind == "c":
        raise invalid_argument(f"Failed to write JSON value for tensor type: {array.dtype.name}")
    if array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    # The shortest digits that give the same float32 back, not those of its double.
    return array.tolist() if array.dtype == np.float64 else array.astype(str).astype(np.float64).tolist()


def _mapped(array: np.ndarray, function):
    result = np.empty(array.shape, object)
    result.ravel()[:] = [function(value) for value in array.ravel()]
    return result.tolist()


def dump(document: Any) -> bytes:
    """JSON bytes; NaN and the infinities as the literals TensorFlow Serving writes."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
