"""Sigmoid, logit and the AUC of a histogram against numbers computed by hand."""

import math

import numpy as np
import pytest

from dlrm_tf.probability import histogram_auc, logit, sigmoid


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("error")
def test_sigmoid_of_any_size(dtype):
    x = np.array([-np.inf, -1e30, -math.log(3), 0, math.log(3), 1e30, np.inf], dtype)
    came = sigmoid(x)
    assert came.dtype == dtype
    np.testing.assert_allclose(came, [0, 0, 0.25, 0.5, 0.75, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(logit(came[2:5]), x[2:5], atol=1e-6)
    assert np.isnan(sigmoid(np.array([np.nan], dtype))).all()


def test_auc_of_a_histogram():
    assert histogram_auc(np.array([[1, 0, 1], [0, 2, 0]])) == 0.5
    assert histogram_auc(np.array([[2, 0], [0, 3]])) == 1.0
    assert histogram_auc(np.array([[1, 1], [1, 1]])) == 0.5
    # Pairs of a negative and a positive: 2 x 1 tied in the first bin, 2 x 3 right, 1 x 3 tied in the second: (1 + 6 + 1.5) / 12.
    assert histogram_auc(np.array([[2, 1], [1, 3]])) == pytest.approx(8.5 / 12)
    assert math.isnan(histogram_auc(np.array([[1, 1], [0, 0]])))
