"""`TensorProto` to numpy and back, as TensorFlow's C++ `Tensor::FromProto` and `AsProtoField` do it.

`tf.make_ndarray` is several times slower and allocates whatever size a message names.
"""

import math
from typing import Optional

import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.python.framework import dtypes

from dlrm_tf.serving_api.errors import invalid_argument
from dlrm_tf.serving_api.limits import MAX_RANK, MAX_REPEATED_VALUES

# DataType -> field of TensorProto with its values.
_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
    **dict.fromkeys((types_pb2.DT_INT32, types_pb2.DT_INT16, types_pb2.DT_INT8), "int_val"),
    **dict.fromkeys((types_pb2.DT_UINT16, types_pb2.DT_UINT8), "int_val"),
}
_NUMPY = {number: np.dtype(dtypes.as_dtype(number).as_numpy_dtype) for number in _FIELDS}
_ENUM = {dtype: number for number, dtype in _NUMPY.items()}
_BITS = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
_COMPLEX = (types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128)


def numpy_dtype(enum: int) -> Optional[np.dtype]:
    """The numpy dtype of a `DataType`, or None when there is no conversion for it."""
    return _NUMPY.get(enum)


def type_name(enum: int) -> str:
    """A DataType as TensorFlow's messages have it: `float`, `int64`, `string`."""
    return types_pb2.DataType.Name(enum)[3:].lower()


def array_type_name(array: np.ndarray) -> str:
    """`type_name` of an array's dtype."""
    return type_name(types_pb2.DT_STRING if array.dtype == object else _ENUM[array.dtype])


def check_type(position: int, array: np.ndarray, enum: int) -> None:
    """Refuses the argument at `position` of a call when it is of another type than `enum`; raises RequestError."""
    if array.dtype != numpy_dtype(enum):
        raise invalid_argument(f"Expects arg[{position}] to be {type_name(enum)} but {array_type_name(array)} is provided")


def to_array(proto: tensor_pb2.TensorProto, name: str, max_repeated: int = MAX_REPEATED_VALUES) -> np.ndarray:
    """The tensor in `proto`; a value list shorter than the shape repeats its last value.

    Args:
      proto: from a request; nothing in it is taken to be right.
      name: of the input, for the error.
      max_repeated: values that may be missing at the end of the list.

    Returns:
      Array of the proto's shape; strings are an object array of bytes. May be a read-only view of the message.

    Raises:
      RequestError: INVALID_ARGUMENT "tensor parsing error: NAME".
    """
    dtype = _NUMPY.get(proto.dtype)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if dtype is None or proto.tensor_shape.unknown_rank or len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise invalid_argument(f"tensor parsing error: {name}")
    count, content = math.prod(shape), proto.tensor_content
    if content:
        if proto.dtype == types_pb2.DT_STRING or len(content) != count * dtype.itemsize:
            raise invalid_argument(f"tensor parsing error: {name}")
        return np.frombuffer(content, dtype).reshape(shape)
    values = getattr(proto, _FIELDS[proto.dtype])
    # A size of 0 makes the tensor empty, but the graph may compute with the other sizes.
    declared = math.prod(max(size, 1) for size in shape)
    if declared - len(values) > max_repeated:
        raise invalid_argument(
            f"tensor parsing error: {name} (shape {list(shape)} with {len(values)} values; this server repeats the last value "
            f"{max_repeated} times at most, --max_repeated_values)"
        )
    return _from_values(proto.dtype, values, dtype, count).reshape(shape)


def _from_values(enum: int, values, dtype: np.dtype, count: int) -> np.ndarray:
    if enum == types_pb2.DT_STRING:
        array = np.empty(count, object)
        array[: len(values)] = values[:count]
        array[len(values) :] = values[-1] if values else b""
        return array
    if enum in _BITS:
        array = np.array(values, np.int64).astype(np.uint16).view(dtype)
    elif enum in _COMPLEX:
        parts = np.array(values, np.float32 if dtype == np.complex64 else np.float64)
        array = parts[: len(parts) // 2 * 2].view(dtype)
    else:
        array = np.array(values, np.int32).astype(dtype) if dtype.itemsize < 4 else np.array(values, dtype)
    if len(array) >= count:
        return array[:count]
    fill = array[-1] if len(array) else dtype.type(0)
    return np.concatenate([array, np.full(count - len(array), fill, dtype)])


def to_proto(array: np.ndarray, as_content: bool = False) -> tensor_pb2.TensorProto:
    """`array` as a TensorProto: values in the typed field, or as raw bytes with `as_content`.

    Raises:
      TypeError: a dtype that TensorProto has no field for.
    """
    array = np.asarray(array)
    if array.dtype.kind in "US":
        array = array.astype(object)
    enum = types_pb2.DT_STRING if array.dtype == object else _ENUM.get(array.dtype)
    if enum is None:
        raise TypeError(f"TensorProto has no field for dtype {array.dtype}")
    proto = tensor_pb2.TensorProto(dtype=enum)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    values = getattr(proto, _FIELDS[enum])
    if enum == types_pb2.DT_STRING:
        values.extend(v if isinstance(v, bytes) else str(v).encode() for v in array.ravel())
    elif as_content:
        proto.tensor_content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    elif enum in _BITS:
        values.extend(np.ascontiguousarray(array).view(np.uint16).ravel().tolist())
    elif enum in _COMPLEX:
        parts = np.float32 if enum == types_pb2.DT_COMPLEX64 else np.float64
        values.extend(np.ascontiguousarray(array).ravel().view(parts).tolist())
    else:
        values.extend(array.ravel().tolist())
    return proto
