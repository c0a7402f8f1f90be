"""Row quantization: hand-computed codes and bounds that hold for any table."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dlrm_tf.errors import CheckpointError
from dlrm_tf.export.tflite.quantize import CODE_LIMIT, MAX_STEP, RowQuantizer, quantize_kernel, table_range

ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(4)), elements=st.floats(-1e3, 1e3, width=32))


def test_codes_by_hand():
    quantizer = RowQuantizer(step=float(np.float32(np.log(2))), mid=0.0)
    # 254 / 127 = 2 = 2^1: code 1, and 3.9 -> 2 (1.95 rounds to 2). 100 / 127 < 1: code 0, scale 1.
    packed = quantizer.quantize(np.array([[254, -254, 3.9, 0], [100, -1.4, 0.4, -0.6], [0, 0, 0, 0]], np.float32))
    assert packed.dtype == np.int8
    np.testing.assert_array_equal(packed, [[1, 127, -127, 2, 0], [0, 100, -1, 0, -1], [-127, 0, 0, 0, 0]])
    np.testing.assert_allclose(quantizer.dequantize(packed)[:2], [[254, -254, 4, 0], [100, -1, 0, -1]], rtol=1e-6)


def test_four_bit_codes_by_hand():
    quantizer = RowQuantizer(step=float(np.float32(np.log(2))), mid=0.0, bits=4)
    # Scale 2^1: 14, -7, 3, -14 -> 7, -4 (-3.5 to even), 2 (1.5 to even), -7. Bytes 16 * 7 + (2 + 8), 16 * -4 + (-7 + 8).
    rows = np.array([[14, -7, 3, -14]], np.float32)
    packed = quantizer.quantize(rows)
    np.testing.assert_array_equal(packed, [[1, 122, -63]])
    np.testing.assert_allclose(quantizer.dequantize(packed), [[14, -8, 4, -14]], rtol=1e-6)
    assert quantizer.width(16) == 9


@given(rows=hnp.arrays(np.int8, (20, 6), elements=st.integers(-7, 7)), codes=hnp.arrays(np.int8, (20, 1)))
def test_every_pair_of_four_bit_integers_comes_back(rows, codes):
    packed = np.concatenate([codes, 16 * rows[:, :3].astype(int) + rows[:, 3:] + 8], axis=1).astype(np.int8)
    quantizer = RowQuantizer(step=0.01, mid=0.0, bits=4)
    np.testing.assert_allclose(quantizer.dequantize(packed), rows * quantizer.scales(codes[:, 0])[:, None], rtol=1e-6)


def test_saturating_four_bit_rows_lowers_the_squared_error():
    rows = np.random.default_rng(0).normal(0, 1, (2000, 16)).astype(np.float32)
    quantizer = RowQuantizer.fit(*table_range([(0, rows)], "t"), bits=4)
    scale = np.abs(rows).max(axis=1, keepdims=True) / 7
    plain = ((np.rint(rows / scale) * scale - rows) ** 2).mean()
    ours = ((quantizer.dequantize(quantizer.quantize(rows)) - rows) ** 2).mean()
    assert ours < 0.95 * plain


@settings(deadline=None)
@given(rows=ROWS)
def test_error_is_at_most_half_a_scale(rows):
    smallest, largest = table_range([(0, rows)], "t")
    quantizer = RowQuantizer.fit(smallest, largest)
    restored = quantizer.dequantize(quantizer.quantize(rows))
    ideal = np.abs(rows).max(axis=1) / 127
    coarser = np.exp(quantizer.step) * (1 + 1e-4)
    floor = largest / 127 * np.exp(-2 * CODE_LIMIT * MAX_STEP)
    bound = 0.5 * np.maximum(ideal * coarser, floor * 1.01) + 1e-30
    assert quantizer.step <= MAX_STEP * 1.000001
    assert (np.abs(restored - rows) <= bound[:, None] * (1 + 1e-4)).all()


def test_scales_span_the_table():
    quantizer = RowQuantizer.fit(1e-2, 10.0)
    np.testing.assert_allclose(quantizer.scales(np.array([-127, 127])) * 127, [1e-2, 10.0], rtol=1e-4)
    # ln(1000) / 254 between two codes: 2.7 %.
    assert quantizer.step == pytest.approx(np.log(1000) / 254, rel=1e-6)


def test_one_tiny_row_does_not_coarsen_the_others():
    assert RowQuantizer.fit(1e-30, 1.0).step == pytest.approx(MAX_STEP)


def test_a_row_that_is_not_finite_is_named():
    rows = np.ones((5, 4), np.float32)
    rows[3, 1] = np.nan
    with pytest.raises(CheckpointError, match=r"w\.h5: row 103 of the embedding table is not finite"):
        table_range([(0, np.ones((100, 4), np.float32)), (100, rows)], "w.h5")


def test_zero_table_has_a_range():
    quantizer = RowQuantizer.fit(*table_range([(0, np.zeros((3, 4), np.float32))], "t"))
    np.testing.assert_array_equal(quantizer.dequantize(quantizer.quantize(np.zeros((3, 4), np.float32))), 0)


def test_kernel_scale_per_output():
    integers, scales = quantize_kernel(np.array([[1.27, 0, 0.5], [-0.635, 0, -2.54]], np.float32))
    np.testing.assert_allclose(scales, [0.01, 1, 0.02], rtol=1e-6)
    np.testing.assert_array_equal(integers, [[127, -64], [0, 0], [25, -127]])
