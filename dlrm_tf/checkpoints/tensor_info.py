"""`TensorInfo`: name, dtype and shape of a stored tensor, and where its bytes are in the file."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

# MindSpore's tensor_type -> one element as it lies in the file (little-endian).
# BFloat16 has no NumPy dtype of its own: its bits are read as uint16 and widened to float32, which is exact.
STORED_DTYPES: dict[str, np.dtype] = {
    "Bool": np.dtype("?"),
    "Int8": np.dtype("i1"),
    "UInt8": np.dtype("u1"),
    "Int16": np.dtype("<i2"),
    "UInt16": np.dtype("<u2"),
    "Int32": np.dtype("<i4"),
    "UInt32": np.dtype("<u4"),
    "Int64": np.dtype("<i8"),
    "UInt64": np.dtype("<u8"),
    "Float16": np.dtype("<f2"),
    "BFloat16": np.dtype("<u2"),
    "Float32": np.dtype("<f4"),
    "Float64": np.dtype("<f8"),
    "Complex64": np.dtype("<c8"),
    "Complex128": np.dtype("<c16"),
    "str": np.dtype("<u4"),  # UTF-32 code points
}
# Read at a time: small enough to be still in the processor's cache when it is written (measured: benchmarks/convert.py).
CHUNK_BYTES = 1 << 20
# A weight may be stored as any of these; it becomes float32.
FLOATING = ("Float16", "BFloat16", "Float32", "Float64")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint.

    Attributes:
      name: parameter name, for example `"bottom_mlp.0.weight"`.
      dtype: MindSpore's name of the element type, a key of `STORED_DTYPES`.
      shape: dimensions; `()` for a scalar.
      slices: `(offset in the file, bytes)` of every piece of the content, in order; empty if it does not lie plainly in a file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    slices: tuple[tuple[int, int], ...] = ()

    @property
    def stored_dtype(self) -> np.dtype:
        """NumPy dtype of the bytes in the file."""
        return STORED_DTYPES[self.dtype]

    @property
    def size(self) -> int:
        """Number of elements."""
        return element_count(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the content in the file."""
        return self.size * self.stored_dtype.itemsize


# A tensor to write: what it is, and its elements in order, as arrays that are drawn one at a time.
TensorToWrite = tuple[TensorInfo, Iterable[np.ndarray]]


def element_count(shape: Iterable[int]) -> int:
    """Product of `shape` in Python integers, which can't overflow."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def row_chunks(info: TensorInfo, max_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Yields `(start, stop)` over a tensor's rows: as many whole rows as fit into `max_bytes`, but at least one."""
    if not info.size:
        return
    step = max(1, max_bytes * info.shape[0] // info.nbytes)
    for start in range(0, info.shape[0], step):
        yield start, min(start + step, info.shape[0])


def dtype_name(dtype: Any) -> str:
    """MindSpore's name of a NumPy dtype, for example `"Float32"`.

    Args:
      dtype: anything that `np.dtype` takes.

    Raises:
      ValueError: MindSpore's files have no such element type.
    """
    wanted = np.dtype(dtype)
    if wanted.name == "bfloat16":  # ml_dtypes
        return "BFloat16"
    for name, stored in STORED_DTYPES.items():
        if name != "BFloat16" and stored == wanted.newbyteorder("<"):
            return name
    raise ValueError(f"dtype must be one of {', '.join(STORED_DTYPES)}. Received {wanted}")


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits held as uint16, any shape."""
    return (bits.astype("<u4") << 16).view("<f4")


def is_impossible_shape(shape: Iterable[int]) -> bool:
    """Whether NumPy could not make an array of this shape; a dimension of zero hides the size of the others."""
    return element_count(max(dim, 1) for dim in shape) >= 1 << 48
