"""Row quantization: an embedding row as signed integers and, in its first byte, the logarithm of its scale."""

import dataclasses

import numpy as np

from dlrm_tf.errors import CheckpointError

# The byte that holds a scale's code is symmetric too.
CODE_LIMIT = 127
# A row's scale is at most this factor (as a logarithm) coarser than the ideal one. Rows so small that the 255 codes do not
# reach them at this step share the lowest code; they are then below 3e-6 of the largest value of the table.
MAX_STEP = 0.05


@dataclasses.dataclass(frozen=True)
class RowQuantizer:
    """Turns float rows `[n, D]` into int8 rows `[n, 1 + D]` and back.

    Column 0 is the code c of the row's scale, `scale = exp(step * c + mid)`; the others are `round(x / scale)`. The code is
    rounded up and the row is divided by the *decoded* scale, so that the largest value never saturates. A scale a row costs
    one byte and is read by the same GATHER as the row.

    Attributes:
      step: distance of two codes, natural logarithm of the scale; float32 value.
      mid: natural logarithm of the scale with code 0; float32 value.
      limit: largest magnitude of an integer, 127 for eight bits.
    """

    step: float
    mid: float
    limit: int = 127

    @classmethod
    def fit(cls, smallest: float, largest: float, limit: int = 127) -> "RowQuantizer":
        """Spreads the codes over the table's range.

        Args:
          smallest: the least of all rows' largest magnitudes, rows of zeros left out.
          largest: the largest magnitude of the table; 0 for a table of zeros.
          limit: largest magnitude of an integer.
        """
        if largest <= 0:
            return cls(float(np.float32(MAX_STEP)), 0.0, limit)
        high = np.log(largest / limit)
        low = max(np.log(smallest / limit), high - 2 * CODE_LIMIT * MAX_STEP)
        # Never exactly 0: the code of a row is a division by it.
        step = np.float32(max((high - low) / (2 * CODE_LIMIT), 1e-6))
        # The highest code must reach the largest row in the device's float32 arithmetic as well.
        mid = np.float32(high - step * CODE_LIMIT + 1e-6)
        return cls(float(step), float(mid), limit)

    def scales(self, codes: np.ndarray) -> np.ndarray:
        """Scales float32 of codes, computed as the device does."""
        return np.exp(codes.astype(np.float32) * np.float32(self.step) + np.float32(self.mid))

    def quantize(self, rows: np.ndarray) -> np.ndarray:
        """int8 `[n, 1 + D]` of float32 `[n, D]`."""
        largest = np.abs(rows).max(axis=1)
        codes = np.full(len(rows), -CODE_LIMIT, np.float32)
        used = largest > 0
        wanted = np.log(largest[used] / np.float32(self.limit))
        codes[used] = np.clip(np.ceil((wanted - np.float32(self.mid)) / np.float32(self.step)), -CODE_LIMIT, CODE_LIMIT)
        packed = np.empty((len(rows), 1 + rows.shape[1]), np.int8)
        packed[:, 0] = codes
        integers = rows / self.scales(codes)[:, None]
        np.rint(integers, out=integers)
        np.clip(integers, -self.limit, self.limit, out=integers)
        packed[:, 1:] = integers
        return packed

    def dequantize(self, packed: np.ndarray) -> np.ndarray:
        """float32 `[n, D]` of what `quantize` gave: what the device computes with."""
        return packed[:, 1:].astype(np.float32) * self.scales(packed[:, 0])[:, None]


def table_range(chunks, source: str) -> tuple:
    """`(smallest, largest)` for `RowQuantizer.fit`, over an iterable of `(first row, rows [n, D])`.

    Raises:
      CheckpointError: a value is not finite; the row is named.
    """
    smallest, largest = np.inf, 0.0
    for start, rows in chunks:
        magnitude = np.abs(rows).max(axis=1)
        if not np.isfinite(magnitude).all():
            row = start + int(np.flatnonzero(~np.isfinite(magnitude))[0])
            raise CheckpointError(f"{source}: row {row} of the embedding table is not finite: this model can't be quantized")
        magnitude = magnitude[magnitude > 0]
        if magnitude.size:
            smallest, largest = min(smallest, float(magnitude.min())), max(largest, float(magnitude.max()))
    return (smallest, largest) if largest > 0 else (0.0, 0.0)


def quantize_kernel(kernel: np.ndarray) -> tuple:
    """Symmetric int8 with a scale per output: `(int8 [out, in], scales float32 [out])` of a dense kernel `[in, out]`."""
    transposed = kernel.T
    scales = (np.abs(transposed).max(axis=1) / 127).astype(np.float32)
    scales[scales == 0] = 1
    return np.clip(np.rint(transposed / scales[:, None]), -127, 127).astype(np.int8), scales
