"""The definition of a dense feature: NumPy and TensorFlow give the same, and both what the formula says."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dlrm_tf.data.features import LARGEST, dense_numbers, is_missing, log_dense, log_dense_tensor, recorded
from dlrm_tf.errors import DataError
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()
# Both compute log1p in float32, each with a polynomial of its own: at most 3 units in the last place apart (seen over all
# exponents: 3.4e-7). TensorFlow's kernels flush denormals to 0, so below float32's smallest normal number the error is absolute.
RELATIVE, SMALLEST_NORMAL = 5e-7, float(np.finfo(np.float32).tiny)
SPECIAL = [math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 1e38, LARGEST, -LARGEST, 1e-45, 1e-40, 1.2e-38, 1.0, 2**24]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)))
@example(np.array(SPECIAL, np.float32))
def test_numpy_tensorflow_and_the_formula_agree(x):
    formula = [math.log1p(max(v, 0.0)) if math.isfinite(v) else 0.0 for v in x.tolist()]
    of_numpy = log_dense(x)
    eager, graph = log_dense_tensor(tf.constant(x)).numpy(), tf.function(log_dense_tensor)(tf.constant(x)).numpy()
    for result in (of_numpy, eager, graph):
        assert result.dtype == np.float32 and np.isfinite(result).all()
        np.testing.assert_allclose(result, formula, rtol=RELATIVE, atol=SMALLEST_NORMAL)
    np.testing.assert_allclose(eager, of_numpy, rtol=RELATIVE, atol=SMALLEST_NORMAL)


def test_by_hand():
    np.testing.assert_allclose(log_dense([[0, 1, -3, math.nan]]), [[0, math.log(2), 0, 0]], rtol=1e-7)
    assert recorded([math.nan, -2, math.inf, -math.inf, 1e39, 7]).tolist() == [0, 0, 0, 0, 0, 7]
    assert recorded(np.float64(1e300)) == 0


def test_missing():
    assert [is_missing(cell) for cell in (None, math.nan, np.float32("nan"), np.datetime64("NaT"))] == [True] * 4
    assert [is_missing(cell) for cell in (0, "", "nan", math.inf, np.zeros(2), [math.nan])] == [False] * 6


@pytest.mark.parametrize(
    "values",
    [
        [[1, None, 3], [math.nan, 2.5, -1]],
        [["1", "", b"3"], [None, " 2.5", "-1"]],
        np.array([["1", "", "3"], ["", "2.5", "-1"]]),
        np.array([[1, np.nan, 3], [np.nan, 2.5, -1]]),
    ],
)
def test_numbers_as_python_has_them(values):
    numbers = dense_numbers(values)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, [[1, math.nan, 3], [math.nan, 2.5, -1]])


def test_whole_numbers_and_truth_values_are_numbers():
    np.testing.assert_array_equal(dense_numbers([[2**40, True]]), np.array([[2**40, 1]], np.float32))
    np.testing.assert_array_equal(dense_numbers(np.array([[True], [False]])), [[1], [0]])


@pytest.mark.parametrize(
    "bad",
    [math.inf, -math.inf, 1e39, -1e39, "inf", "nan", "x", b"1e39", 10**400, "9" * 400, [1], object(), 1j, np.datetime64("2024")],
)
def test_what_is_not_a_number_is_named_with_row_and_column(bad):
    values = np.zeros((3, 2), object)
    values[1, 1] = bad
    with pytest.raises(
        DataError, match="^dense: row 8, price: wanted a finite number, or None, NaN or '' where it is missing. Rec"
    ):
        dense_numbers(values, ["shop", "price"], first_row=7)


@pytest.mark.parametrize("values", [[math.inf], np.array([1e39]), np.array(["2024-01-01"], "datetime64[ns]"), np.array([1j])])
def test_arrays_of_other_types(values):
    with pytest.raises(DataError, match="log: row 0, column 0: wanted a finite number"):
        dense_numbers(values, source="log")


def test_rows_of_several_lengths():
    with pytest.raises(DataError, match="^dense: .*wanted a.* number"):
        dense_numbers([[1.0], [2.0, 3.0]])
