"""Words of errors over REST: values as rapidjson prints them, and where a nested list stops being a tensor."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_tf.serve.rest_errors import MAX_EXPLAINED, SHOWN, kind_name, parse_error, shape_error, shape_of, shown, unlike_error
from dlrm_tf.serve.rest_json import ValueType, to_array
from dlrm_tf.serving_api.errors import RequestError

FLOAT = ValueType("float", np.dtype(np.float32))
LISTS = st.recursive(st.floats(-8, 8, width=16), lambda inner: st.lists(inner, max_size=3), max_leaves=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20
)


@given(JSON)
def test_a_value_is_shown_indented_and_cut(value):
    text = json.dumps(value, indent=4, ensure_ascii=False)
    assert shown(value) == (text if len(text) <= SHOWN else text[:SHOWN] + "...")


class Watched(list):
    """A list that must not be read beyond its first thousand elements."""

    def __iter__(self):
        yield from (0.0 for _ in range(1000))
        raise AssertionError("read too far")


def test_a_large_value_is_not_printed_to_its_end():
    text = shown({"inputs": Watched([0.0])})
    assert len(text) == SHOWN + 3 and text.startswith('{\n    "inputs": [\n        0.0,\n')


def test_a_value_nested_too_deeply_to_print():
    value = []
    for _ in range(100_000):
        value = [value]
    assert shown(value).startswith("[\n") and shown(value).endswith("...")


@pytest.mark.parametrize(
    "value, name", [(None, "Null"), (True, "True"), (False, "False"), (1, "Number"), (1.5, "Number"), ("", "String")]
)
def test_kinds(value, name):
    assert kind_name(value) == name and kind_name([value]) == "Array" and kind_name({"": value}) == "Object"


@given(LISTS)
def test_a_tensor_is_what_numpy_takes_as_one(value):
    try:
        expected = np.array(value, np.float32)
    except ValueError:
        expected = None
    error = shape_error(value, shape_of(value))
    assert (error is None) == (expected is not None)
    try:
        array = to_array(value, FLOAT)
    except RequestError as e:
        assert error is not None and e.message == error.message
    else:
        assert expected is not None and array.shape == expected.shape == shape_of(value)
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    "first, other, message",
    [
        ((2,), (3,), "Expecting tensor size: 2 but got: 3"),
        ((2, 3), (3, 2), "Expecting shape [2,3] but got: [3,2]"),
        ((), (1,), "Expecting shape [] but got: [1]"),
        ((2, 3), (2, 3), None),
    ],
)
def test_rows_unlike_each_other(first, other, message):
    error = unlike_error(other, first)
    assert (None if error is None else error.message) == message


def test_a_long_body_is_not_explained():
    body = b" " * MAX_EXPLAINED + b"x"
    assert parse_error(body).message == "JSON Parse error: Invalid value."
    assert parse_error(body[1:]).message == f"JSON Parse error: Invalid value. at offset: {MAX_EXPLAINED - 1}"
    assert parse_error(b'{"\xff": 1}').message == "JSON Parse error: Invalid encoding in string. at offset: 2"
    assert parse_error('{"é": x}'.encode()).message == "JSON Parse error: Invalid value. at offset: 7"
