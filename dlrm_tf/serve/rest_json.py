"""JSON values of the REST API to arrays and back, after TensorFlow Serving's json_tensor.cc. Needs no TensorFlow."""

import base64
import binascii
import json
from itertools import chain
from typing import Any, NamedTuple, Optional, Union

import grpc
import numpy as np

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

    Raises:
      RequestError: not JSON, or not an object.
    """
    if not body:
        raise parse_error("The document is empty")
    try:
        document = json.loads(body, parse_constant=Literal)
    except (ValueError, RecursionError) as e:
        raise parse_error(e) from None
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {shown(document)} Is not object")
    return document


def parse_error(reason: Union[str, Exception]) -> RequestError:
    """The error of a text that is no JSON, from its reason or from what `json.loads` raised."""
    if isinstance(reason, Exception):
        reason = "nested too deeply" if isinstance(reason, RecursionError) else f"Invalid value. {reason}"
    return invalid_argument(f"JSON Parse error: {reason}")


def signature_name(document: dict) -> str:
    """The optional `signature_name` of a parsed request; '' when there is none. Raises RequestError when it is no string."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {shown(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def is_base64(value: dict) -> bool:
    """Whether `value` is `{"b64": "..."}`, JSON's form of bytes."""
    return len(value) == 1 and isinstance(value.get("b64"), str)


def to_array(value: Any, kind: ValueType) -> np.ndarray:
    """A JSON value or nested list as an array of type `kind`; a number that it can't hold exactly is refused.

    Raises:
      RequestError: ragged, or a value of another type.
    """
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        sizes = set(map(len, level)) if all(type(item) is list for item in level) else set()
        if len(sizes) != 1:
            raise invalid_argument(f"Encountered values at level: {len(shape)} that are not all lists of size: {len(level[0])}")
        shape.append(sizes.pop())
        if len(shape) > MAX_RANK:
            raise invalid_argument(f"Encountered list at unexpected level: {len(shape)} expected < {MAX_RANK}")
        level = list(chain.from_iterable(level))
    for item in level:
        if type(item) is list:
            raise invalid_argument(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return _leaves(level, kind).reshape(shape)


def _leaves(values: list, kind: ValueType) -> np.ndarray:
    target = kind.dtype
    if target is None:
        raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"Conversion of JSON Value to type: DT_{kind.name.upper()}")
    if target.kind == "O":
        array = np.empty(len(values), object)
        array[:] = [_string(value, kind) for value in values]
        return array
    classes: dict[str, set[type]] = {"f": {int, float, Literal}, "b": {bool}}
    wanted = classes.get(target.kind, {int})
    for value in values if set(map(type, values)) - wanted else ():
        if type(value) not in wanted:
            raise _type_error(value, kind)
    if target.kind == "f":
        return _floats(values, target)
    try:
        return np.array(values, target)
    except OverflowError:
        limits = np.iinfo(target)
        raise _type_error(next(v for v in values if not limits.min <= v <= limits.max), kind) from None


def _floats(values: list, target: np.dtype) -> np.ndarray:
    limits = np.finfo(target)
    largest, largest_int = float(limits.max), (1 << (limits.nmant + 1)) - 1
    try:
        suspicious = bool((np.abs(np.array(values, np.float64)) > largest_int).any())
    except OverflowError:  # an integer beyond any float
        suspicious = True
    for value in values if suspicious else ():
        check_size(value)
        lossy = abs(value) > largest_int if type(value) is int else largest < abs(value) < np.inf
        if lossy:
            raise invalid_argument(f"Cannot convert JSON value: {shown(value)} to {target.name} without loss of precision.")
    return np.array(values, target)


def check_size(value: Any) -> None:
    """Refuses a number too large for a double, like 1e400, which Python parses as an infinity."""
    if type(value) is float and abs(value) == float("inf"):
        raise invalid_argument("JSON Parse error: Number too big to be stored in double.")


def _string(value, kind: ValueType) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict):
        return decode_base64(value)
    raise _type_error(value, kind)


def decode_base64(value: dict) -> bytes:
    """The bytes of `{"b64": "..."}`; raises RequestError for any other object and text."""
    if not is_base64(value):
        raise invalid_argument(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def _type_error(value, kind: ValueType) -> RequestError:
    numbers = dict.fromkeys((int, float, Literal), "Number")
    found = {**numbers, bool: str(value), str: "String", type(None): "Null"}.get(type(value), "Object")
    return invalid_argument(f"JSON Value: {shown(value)} Type: {found} is not of expected type: {kind.name}")


def shown(value: Any, limit: int = 200) -> str:
    """`value` as JSON for an error message, cut at `limit` characters; what is not loaded yet is shown by its beginning."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[:limit] + "..."


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
