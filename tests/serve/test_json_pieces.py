"""JSON cut into pieces is read as `json.loads` reads the whole, and refused when it refuses it."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.serve import json_pieces, rest_columns, rest_json
from dlrm_tf.serve.rest_json import ValueType
from dlrm_tf.serving_api.errors import RequestError

TYPES = {
    "serving_default": {
        "a": ValueType("float", np.dtype(np.float32)),
        "b": ValueType("int64", np.dtype(np.int64)),
        "s": ValueType("string", np.dtype(object)),
    },
    "one": {"a": ValueType("float", np.dtype(np.float32))},
}
NUMBERS = st.sampled_from([0, 1, -3, 2.5, 1e10, float("nan"), float("inf")])
STRINGS = st.sampled_from(["", "a", "[x,]", '\\"q,', "\\\\", "\u00e9\u20ac\U0001f600", "{", {"b64": "YQ=="}])
# What a change puts into a text.
MARKS = st.sampled_from([*'[]{},:"\\ 1x', ""])


def filled(draw, values, shape):
    """Nested lists of drawn values."""
    return [filled(draw, values, shape[1:]) for _ in range(shape[0])] if shape else draw(values)


@st.composite
def bodies(draw):
    """A body that is right, or nearly."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    kind = draw(st.sampled_from(["rows", "columns", "one"]))
    if kind == "rows":
        inputs = ((NUMBERS, [2]), (st.integers(-5, 5), []), (STRINGS, [1, 2]))
        rows = [{name: filled(draw, *i) for name, i in zip("abs", inputs)} for _ in range(draw(st.integers(0, 4)))]
        document = {"instances": rows}
    elif kind == "columns":
        columns = {"a": filled(draw, NUMBERS, shape), "b": filled(draw, st.integers(), [2]), "s": filled(draw, STRINGS, [2, 2])}
        document = {"inputs": columns, "x": filled(draw, NUMBERS, shape)}
    else:
        document = {"instances": filled(draw, NUMBERS, [3, 2]), "signature_name": "one"}
    text = json.dumps(document, indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(MARKS) + text[at + draw(st.integers(0, 1)) :]
    return text.encode()


VALUES = st.recursive(
    NUMBERS | STRINGS | st.sampled_from([None, True, -1, 2**63, 2**70, 1e300, 16777217, {}, {"b64": 1}, {"b64": "?"}]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@st.composite
def wrong_bodies(draw):
    """A body whose values are, more often than not, of wrong types, shapes, names."""
    names = st.sampled_from(["a", "b", "s", "x"])
    value = draw(st.sampled_from([VALUES, st.lists(NUMBERS, min_size=2, max_size=2) | VALUES, NUMBERS | VALUES]))
    row = st.fixed_dictionaries({"a": value, "b": st.integers(0, 3) | value, "s": STRINGS | value}) | st.dictionaries(
        names, value
    )
    rows = st.lists(draw(st.sampled_from([row, value, row | value])), max_size=5)
    document = {
        **draw(st.sampled_from([{}, {"signature_name": "one"}, {"signature_name": "x"}, {"signature_name": 1}, {"x": [[]]}])),
        **draw(st.sampled_from(["instances", "inputs"]).flatmap(lambda name: st.fixed_dictionaries({name: rows | row | value}))),
        **draw(st.sampled_from([{}, {}, {"inputs": 1}, {"examples": []}])),
    }
    return json.dumps(document, indent=draw(st.sampled_from([None, 1]))).encode() + draw(
        st.sampled_from([b"", b"", b" ", b"x", b"\0x"])
    )


@contextlib.contextmanager
def loaded(body):
    yield rest_json.parse(body)


def read(document):
    """What is read from a body, or why it is refused."""
    values = {}
    try:
        with document as members:
            name, in_rows, shapes = rest_columns.decode(
                members, TYPES.get, lambda name, kind, array: values.setdefault(name, []).append(array.ravel())
            )
    except RequestError as e:
        return e.code, e.message
    return name, in_rows, shapes, repr({name: np.concatenate(values[name]).tolist() if name in values else [] for name in shapes})


@settings(deadline=None, max_examples=400)
@given(bodies() | wrong_bodies(), st.sampled_from([1, 5, 20, 60]), st.sampled_from([1, 7, 64, 1000]))
def test_pieces_are_read_as_the_whole(body, piece, scan):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "PIECE_BYTES", piece)
        patch.setattr(json_pieces, "SCAN_BYTES", scan)
        in_pieces = read(json_pieces.read_object(bytearray(body), rest_columns.MEMBERS))
    assert in_pieces == read(loaded(body))


@pytest.mark.parametrize(
    "body, message",
    [
        (b"[1]", "JSON Value: [\n    1\n] Is not object"),
        (b"[" * 100_000, "JSON Parse error: nested too deeply"),
        (b'{"inputs": [1}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 13"),
        (b'{"inputs": 1]}', "JSON Parse error: Missing a comma or } after an object member. at offset: 12"),
        (b'{"inputs": "}', "JSON Parse error: Missing a closing quotation mark in string. at offset: 11"),
        (b'{"inputs": 1,, "x": 2}', "JSON Parse error: Missing a name for object member. at offset: 13"),
        (b'{"x": [{"a":: 1}, 2]}', "JSON Parse error: Invalid value. at offset: 12"),
        (b'{"inputs": 1, "x": [2, y]}', "JSON Parse error: Invalid value. at offset: 23"),
    ],
)
def test_the_message_says_where(body, message):
    with pytest.raises(RequestError) as caught, json_pieces.read_object(bytearray(body), rest_columns.MEMBERS):
        pass
    assert caught.value.message == message
    with pytest.raises(RequestError) as whole:
        rest_json.parse(body)
    assert whole.value.message == message


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(NUMBERS, st.integers(-9, 9), st.text(max_size=3)), max_size=9),
    st.booleans(),
    st.integers(1, 4),
    st.booleans(),
)
def test_an_answer_in_pieces_is_what_json_dumps_writes(rows, in_rows, step, single):
    outputs = {
        "p": np.array([row[0] for row in rows], np.float64),
        "n": np.array([row[1] for row in rows], np.int64),
        "t": np.array([row[2].encode() for row in rows], object),
    }
    outputs = {"p": outputs["p"]} if single else outputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rest_columns, "ROWS_AT_A_TIME", step)
        written = b"".join(rest_columns.encode(outputs, in_rows))
    columns = {name: rest_json.to_json(name, array) for name, array in outputs.items()}
    listed = [dict(zip(columns, row)) for row in zip(*columns.values())]
    if single:
        columns = listed = columns["p"]
    assert written == rest_json.dump({"predictions": listed} if in_rows else {"outputs": columns})
