"""What REST says of a wrong body, in the words of TensorFlow Serving's json_tensor.cc and of the JSON parser it uses, rapidjson.

A type is given by its name as TensorFlow's messages have it: `float`, `int64`, `string`.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

from dlrm_tf.serving_api.errors import RequestError, invalid_argument
from dlrm_tf.serving_api.limits import MAX_RANK

# Characters of a value that an error shows: the message goes on after it, and must fit a status message.
SHOWN = 512
# A longer body that is no JSON is not read a second time to say where.
MAX_EXPLAINED = 1 << 20

# What Python's parser says, as a regular expression, and rapidjson's words for it.
_PARSE_ERRORS = (
    ("Extra data", "The document root must not be followed by other values."),
    ("Expecting value|trailing comma before end of array", "Invalid value."),
    ("Expecting property name|trailing comma before end of object", "Missing a name for object member."),
    ("Expecting ':'", "Missing a colon after a name of object member."),
    ("Unterminated string", "Missing a closing quotation mark in string."),
    (r"Invalid \\u", "Incorrect hex digit after \\u escape in string."),
    (r"Invalid \\", "Invalid escape character in string."),
    ("Invalid control character", "Invalid encoding in string."),
)
_MISSING_COMMA = {
    "[": "Missing a comma or ] after an array element.",
    "{": "Missing a comma or } after an object member.",
}


class NotJson(Exception):
    """A text, read a piece at a time, that is no JSON."""


class TooDeep(NotJson):
    """Containers in more containers than a text may have."""


def shown(value: Any) -> str:
    """`value` as rapidjson's PrettyWriter prints it, cut at `SHOWN` characters; a text that is not loaded prints itself."""
    printed = getattr(value, "printed", None)
    pieces, length = [], 0
    try:
        for piece in printed() if printed else json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(value):
            pieces.append(piece)
            length += len(piece)
            if length > SHOWN:
                return "".join(pieces)[:SHOWN] + "..."
    except (ValueError, RecursionError):
        return f"a {kind_name(value)}"
    return "".join(pieces)


def kind_name(value: Any) -> str:
    """A JSON value's type: Null, True, False, Number, String, Array, Object."""
    if hasattr(value, "is_list"):  # not loaded
        return "Array" if value.is_list else "Object"
    if value is None or isinstance(value, bool):
        return {None: "Null", True: "True", False: "False"}[value]
    return next(
        (name for kind, name in ((str, "String"), (list, "Array"), (dict, "Object")) if isinstance(value, kind)), "Number"
    )


def format_error(document: Any, words: str) -> RequestError:
    """The error of a document that is not of the wanted form."""
    return invalid_argument(f"JSON Value: {shown(document)} {words}")


def type_error(value: Any, wanted: str) -> RequestError:
    """The error of a value that is not of the type `wanted`."""
    return format_error(value, f"Type: {kind_name(value)} is not of expected type: {wanted}")


def lossy_error(value: Any, wanted: str) -> RequestError:
    """The error of a number that the floating-point type `wanted` can't hold."""
    return invalid_argument(f"Cannot convert JSON value: {shown(value)} to {wanted} without loss of precision.")


def too_big_error() -> RequestError:
    """The error of a number that no double can hold."""
    return invalid_argument("JSON Parse error: Number too big to be stored in double.")


def too_deep_error() -> RequestError:
    """The error of a text whose containers are nested too deeply."""
    return invalid_argument("JSON Parse error: nested too deeply")


def parse_error(body: Union[bytes, bytearray, memoryview]) -> RequestError:
    """The error of a `body` that is no JSON."""
    if len(body) > MAX_EXPLAINED:
        return invalid_argument("JSON Parse error: Invalid value.")
    try:
        text = bytes(body).decode("utf-8-sig")
        json.loads(text)
    except UnicodeDecodeError as e:
        return invalid_argument(f"JSON Parse error: Invalid encoding in string. at offset: {e.start}")
    except RecursionError:
        return too_deep_error()
    except json.JSONDecodeError as e:
        before = text[: e.pos]
        words = next((words for pattern, words in _PARSE_ERRORS if re.search(pattern, e.msg)), None)
        return invalid_argument(f"JSON Parse error: {words or _missing_comma(before)} at offset: {len(before.encode())}")
    except ValueError:  # Python's limit on the digits of an integer
        pass
    return too_big_error()


def _missing_comma(before: str) -> str:
    open_brackets = ["{"]
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', before, re.DOTALL):
        if token[0] in "[{":
            open_brackets.append(token[0])
        elif token[0] in "]}":
            open_brackets.pop()
    return _MISSING_COMMA[open_brackets[-1]]


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a nested list, taken from its first elements."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def level_error(shape: Sequence[int], level: int) -> Optional[RequestError]:
    """The error of a list with `level` lists around it in a tensor of `shape`; None where the tensor has a list there."""
    deepest = min(len(shape), MAX_RANK)
    if level >= deepest:
        return invalid_argument(f"Encountered list at unexpected level: {level} expected < {deepest}")
    return None


def list_error(size: int, shape: Sequence[int], level: int) -> Optional[RequestError]:
    """The error of a list of `size` elements, with `level` lists around it, in a tensor of `shape`; None when it fits."""
    if level < min(len(shape), MAX_RANK) and size != shape[level]:
        return invalid_argument(f"Encountered list at unexpected size: {size} at level: {level} expected size: {shape[level]}")
    return level_error(shape, level)


def shape_error(
    value: Any, shape: Sequence[int], level: int = 0, leaf_error: Callable[[Any], Optional[RequestError]] = lambda leaf: None
) -> Optional[RequestError]:
    """The first place where a nested list is not of `shape` or has a wrong leaf; None when it is right.

    Args:
      value: of JSON.
      shape: as of `shape_of`; of the outer lists, too, when there are any.
      level: lists around `value`.
      leaf_error: the error of a leaf; None for a right one.
    """
    rank = len(shape)
    if not isinstance(value, list):
        if level == rank:
            return leaf_error(value)
        return format_error(value, f"found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {rank}")
    error = list_error(len(value), shape, level)
    if error is not None:
        return error
    inner = (shape_error(item, shape, level + 1, leaf_error) for item in value)
    return next((error for error in inner if error is not None), None)


def unlike_error(shape: Sequence[int], first: Sequence[int]) -> Optional[RequestError]:
    """The error of a row whose value has another `shape` than that of the `first` row; None when they are alike."""
    if math.prod(shape) != math.prod(first):
        return invalid_argument(f"Expecting tensor size: {math.prod(first)} but got: {math.prod(shape)}")
    if tuple(shape) != tuple(first):
        shapes = ["[" + ",".join(map(str, sizes)) + "]" for sizes in (first, shape)]
        return invalid_argument(f"Expecting shape {shapes[0]} but got: {shapes[1]}")
    return None


def row_error(row: int, name: Optional[str], error: RequestError) -> RequestError:
    """`error` of the value called `name` (None: without a name) of a row of `instances`, counted from 0."""
    key = "" if name is None else f" key: {name}"
    return invalid_argument(
        f"Failed to process element: {row}{key} of 'instances' list. Error: {error.code.name}: {error.message}"
    )
