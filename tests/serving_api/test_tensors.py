"""TensorProto conversion against TensorFlow's own."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework.tensor_pb2 import TensorProto

from dlrm_tf.serving_api.errors import RequestError
from dlrm_tf.serving_api.tensors import to_array, to_proto

DTYPES = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
ARRAYS = st.sampled_from([*DTYPES, "complex64", "complex128"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@settings(deadline=None)
@given(ARRAYS, st.booleans())
def test_both_ways_as_tensorflow_does(array, as_content):
    proto = to_proto(array, as_content)
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)
    for written in (proto, tf.make_tensor_proto(array)):
        back = to_array(written, "x")
        assert back.dtype == array.dtype and back.shape == array.shape
        np.testing.assert_array_equal(back, array)


def test_bfloat16_both_ways():
    array = tf.constant([1.5, -2.25], tf.bfloat16).numpy()
    for as_content in (False, True):
        np.testing.assert_array_equal(to_array(to_proto(array, as_content), "x"), array)
    np.testing.assert_array_equal(tf.make_ndarray(to_proto(array)), array)


def test_strings_both_ways():
    array = np.array([[b"a", b"\xff\x00"], [b"", "\u00e9".encode()]], object)
    back = to_array(to_proto(array), "x")
    assert back.tolist() == array.tolist()
    assert to_array(to_proto(np.array(["\u00e9"])), "x").tolist() == ["\u00e9".encode()]


@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
def test_short_lists_repeat_and_no_list_is_zeros(dtype):
    proto = to_proto(tf.cast([0, 1], dtype).numpy())
    proto.tensor_shape.dim[0].size = 4
    assert tf.cast(to_array(proto, "x"), tf.float32).numpy().tolist() == [0, 1, 1, 1]
    empty = to_proto(tf.cast([], dtype).numpy())
    empty.tensor_shape.dim[0].size = 2
    assert tf.cast(to_array(empty, "x"), tf.float32).numpy().tolist() == [0, 0]


def test_values_beyond_the_shape_are_ignored():
    proto = to_proto(np.array([1.0, 2.0, 3.0], np.float32))
    proto.tensor_shape.dim[0].size = 2
    assert to_array(proto, "x").tolist() == [1.0, 2.0]


def shape(*sizes):
    return {"tensor_shape": {"dim": [{"size": size} for size in sizes]}}


@pytest.mark.parametrize(
    "damage",
    [
        {"dtype": tf.resource.as_datatype_enum},
        {"tensor_shape": {"unknown_rank": True}},
        shape(*[1] * 255),
        shape(*[1 << 40] * 8),
    ],
)
def test_damaged_protos_are_invalid_argument(damage):
    proto = TensorProto(**{"dtype": tf.float32.as_datatype_enum, "float_val": [1.0], **shape(1), **damage})
    with pytest.raises(RequestError, match="tensor parsing error: x"):
        to_array(proto, "x")


def test_how_many_values_may_be_left_out():
    proto = to_proto(np.array([1.0, 2.0], np.float32))
    proto.tensor_shape.dim[0].size = 10
    assert to_array(proto, "x", max_repeated=8).tolist() == [1.0] + [2.0] * 9
    for limit in (7, 0):
        with pytest.raises(RequestError, match=rf"x .*with 2 values; this server repeats the last value {limit} times"):
            to_array(proto, "x", max_repeated=limit)
    proto.tensor_shape.dim[0].size = 2
    assert to_array(proto, "x", max_repeated=0).tolist() == [1.0, 2.0]
