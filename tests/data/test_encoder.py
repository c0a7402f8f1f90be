"""Encoder: the same row gives the same numbers, as text, as columns, as arrays; and what is refused says where it is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.key_column import as_column
from dlrm_tf.data.parse import parse_block
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError

# The label in the middle, a column that is read over, and columns of other kinds in between.
SPEC = FeatureSpec(
    (("c", "categorical"), ("x", "float"), ("y", "label"), ("s", "skip"), ("d", "categorical"), ("n", "int")), separator=","
)
VOCABULARY = Vocabulary.from_keys({"c": ["deadbeef", "", "Zürich", "DEADBEEF"], "d": ["123456789", "7", "deadbeef"]})
COLUMNS = {
    "c": ["deadbeef", b"", None, "Zürich", "DEADBEEF", math.nan, "unknown"],
    "x": [1.5, None, math.nan, "", "2.5", -3, np.float32(1e38)],
    "d": ["123456789", 7, b"7", np.int64(7), None, "deadbeef", ""],
    "n": [0, 1, 2, 3, "4", b"5", None],
}
TEXTS = ["deadbeef,1.5,1,,123456789,0", ",,1,,7,1", ",,0,,7,2", "Zürich,,1,,7,3", "DEADBEEF,2.5,1,,,4", ",-3,1,,deadbeef,5"]
TEXTS.append("unknown,1e38,0,,,")
DENSE = np.array([[1.5, 0], [0, 1], [0, 2], [0, 3], [2.5, 4], [0, 5], [1e38, 0]])
IDS = [[0, 0], [1, 1], [1, 1], [2, 1], [3, 3], [1, 2], [4, 3]]


def without_label(line):
    return ",".join(field for i, field in enumerate(line.split(",")) if i != 2)


def check(batch, times=1):
    dense, ids = batch
    assert dense.dtype == np.float32 and ids.dtype == np.int32
    np.testing.assert_allclose(dense, np.tile(np.log1p(DENSE), (times, 1)), rtol=1e-6)
    assert ids.tolist() == IDS * times


@pytest.mark.parametrize("times", [1, 100])  # few rows and many are looked up in other ways
def test_one_row_in_every_form(times):
    encoder = Encoder(SPEC, VOCABULARY)
    lines = TEXTS * times
    columns = {name: column * times for name, column in COLUMNS.items()}
    check(encoder.lines(lines), times)
    check(encoder.lines([without_label(line).encode() + b"\r\n" for line in lines]), times)
    check(encoder.block(parse_block("\r".join(lines).encode(), SPEC)), times)
    check(encoder.columns({**columns, "more": None}), times)
    check(encoder.columns({name: np.array(column, object) for name, column in columns.items()}), times)
    check(encoder.arrays(*(np.array([columns[n] for n in names], object).T for names in ("xn", "cd"))), times)
    check(encoder.arrays(*([list(row) for row in zip(*(columns[n] for n in names))] for names in ("xn", "cd"))), times)
    for rows in (lines, columns):
        batches = list(encoder.batches(rows, 3))
        assert {len(dense) for dense, _ in batches[:-1]} == {3}
        check([np.concatenate(part) for part in zip(*batches)], times)


def frame_of(library, columns):
    if library == "pandas":
        pandas = pytest.importorskip("pandas")
        return pandas.DataFrame(
            {
                "c": pandas.array(columns["c"], dtype="string"),
                "d": pandas.array(columns["d"], dtype="Int64"),
                "x": pandas.array(columns["x"], dtype="Float32"),
                "n": columns["n"],  # becomes float64 with NaN
            },
            index=np.arange(len(columns["c"]))[::-1] * 1.5,  # not the position
        )
    frame = pytest.importorskip("polars").DataFrame(columns)
    if library == "polars":
        return frame
    pytest.importorskip("pyarrow")
    return frame.to_arrow()


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize("times", [1, 100])
def test_frames_with_typed_columns(library, times):
    """A missing cell has another form in each library: pandas.NA, NaN, null."""
    columns = {"c": ["deadbeef", "", None], "d": [7, None, 8], "x": [1.5, None, -2.0], "n": [5, None, 7]}
    frame = frame_of(library, {name: column * times for name, column in columns.items()})
    encoder = Encoder(SPEC, VOCABULARY)
    for dense, ids in (encoder.columns(frame), [np.concatenate(part) for part in zip(*encoder.batches(frame, 2))]):
        np.testing.assert_allclose(dense, np.log1p([[1.5, 5], [0, 0], [0, 7]] * times), rtol=1e-6)
        assert ids.tolist() == [[0, 1], [1, 3], [1, 3]] * times


def test_a_pandas_frame_of_objects():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({name: pandas.Series(column, dtype=object) for name, column in COLUMNS.items()})
    check(Encoder(SPEC, VOCABULARY).columns(frame.replace({None: pandas.NA})))
    with pytest.raises(DataError, match="rows: wanted one column 'n'"):
        Encoder(SPEC, VOCABULARY).columns(pandas.concat([frame, frame[["n"]]], axis=1))


@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, r"wanted a column 'x' \(TypeError"),
        ({"n": 3}, r"wanted a column 'n' \(TypeError"),
        ({"d": "7"}, "wanted one column 'd'. Received '7'"),
        ({"d": ["7"]}, "wanted columns of one length. Received .* rows of x, 1 of d"),
        ({"x": [1, 2, math.inf, 4, 5, 6, 7]}, "row 2, x: wanted a finite number, .* Received 'inf'"),
        ({"n": [1, 2, 3, 4, 5, "five", 7]}, "row 5, n: wanted a finite number, .* Received 'five'"),
        (
            {"c": ["a", "b", 5.0, "d", "e", "f", "g"]},
            r"row 2, c: wanted a category .* Received '5.0' \(float\); write it",
        ),
        ({"d": [1, 2, 3, True, 5, 6, 7]}, r"row 3, d: wanted a category .* Received 'True' \(bool\)"),
        ({"d": [1, 2, 3, 4, [5, 6], 6, 7]}, r"row 4, d: wanted a category .* Received '\[5, 6\]' \(list\)"),
    ],
)
def test_columns_that_are_not_as_they_should_be(change, message, times):
    columns = {name: column * times for name, column in COLUMNS.items()}
    changed = {name: value * times if isinstance(value, list) and len(value) == 7 else value for name, value in change.items()}
    with pytest.raises(DataError, match=f"^rows: {message}"):
        Encoder(SPEC, VOCABULARY).columns({**columns, **changed})


def test_a_missing_column_and_rows_in_no_known_form():
    encoder = Encoder(SPEC, VOCABULARY, source="day.parquet")
    with pytest.raises(DataError, match=r"day.parquet: wanted a column 'n' \(KeyError"):
        encoder.columns({name: column for name, column in COLUMNS.items() if name != "n"})
    for rows in (None, 5, "a,b", b"a,b", {1, 2}, iter([])):
        with pytest.raises(DataError, match=f"wanted a list of lines, .* Received {type(rows).__name__}"):
            list(encoder.batches(rows, 2))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,1,0,,b,inf"], r"row 10: column 6 \(n\): wanted an integer. Received 'inf'"),
        (["a,inf,0,,b,1"], r"row 10: column 2 \(x\): wanted a finite number. Received 'inf'"),
        (["a,1,0,,b,1", "a,1,,b,1"], "row 11: wanted 6 fields. Received 5"),
        (["a,1,,b,1", "a,1,,b,1e39"], r"row 11: column 5 \(n\): wanted an integer"),
        (["a,1,0,,b,1", 5], "row 11: wanted a line of text. Received int"),
        (["a,1,0,,b,1\na,1,0,,b,1"], "row 10: wanted one line. Received several"),
        ([""], "row 10: wanted 6 fields. Received 1"),
    ],
)
def test_lines_that_are_not_as_they_should_be(lines, message):
    with pytest.raises(DataError, match=f"^rows: {message}"):
        Encoder(SPEC, VOCABULARY).lines(lines, first_row=10)


def test_arrays_that_are_not_as_they_should_be():
    encoder = Encoder(SPEC, VOCABULARY, source="m.tflite")
    with pytest.raises(DataError, match=r"m.tflite: dense must be \[batch_size, 2\]. Received \[2\]"):
        encoder.arrays([1, 2], [["a", "b"]])
    with pytest.raises(DataError, match=r"m.tflite: categorical must be \[batch_size, 2\]"):
        encoder.arrays([[1, 2]], [["a", "b", "c"]])
    with pytest.raises(DataError, match="m.tflite: dense has 1 rows, categorical 2"):
        encoder.arrays([[1, 2]], [["a", "b"]] * 2)
    with pytest.raises(DataError, match="m.tflite: row 1, n: wanted a finite number"):
        encoder.arrays([[1, 2], [3, math.inf]], [["a", "b"]] * 2)
    with pytest.raises(DataError, match="m.tflite: row 1, d: wanted a category"):
        encoder.arrays([[1, 2], [3, 4]], [["a", "b"], ["a", 5.5]])


def test_no_rows():
    encoder, none = Encoder(SPEC, VOCABULARY), np.zeros((0, 2))
    for dense, ids in (encoder.lines([]), encoder.columns(dict.fromkeys("cdxn", [])), encoder.arrays(none, none)):
        assert (dense.shape, ids.shape) == ((0, 2), (0, 2))


def test_another_vocabulary_is_refused():
    with pytest.raises(DataError, match="rows: wanted a vocabulary of the features c, d. Received one that has d, c; "):
        Encoder(SPEC, Vocabulary.from_keys({"d": [], "c": []}))


CELLS = st.one_of(
    st.text(max_size=10), st.binary(max_size=10), st.integers(), st.none(), st.just(math.nan), st.sampled_from(COLUMNS["c"])
)


@settings(max_examples=200, deadline=None)
@given(st.lists(CELLS, max_size=20))
def test_keys_of_any_type_are_found_under_their_text(cells):
    texts = ["" if cell is None or cell != cell else cell if isinstance(cell, bytes) else str(cell) for cell in cells]
    for came, expected in zip(as_column(cells), as_column(texts)):
        np.testing.assert_array_equal(came, expected)
