"""Row quantization: an embedding row as signed integers and, in its first byte, the logarithm of its scale."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from dlrm_tf.errors import CheckpointError

# The byte that holds a scale's code is symmetric too.
CODE_LIMIT = 127
# A row's scale is at most this factor (as a logarithm) coarser than the ideal one. Rows so small that the 255 codes do not
# reach them at this step share the lowest code; they are then below 3e-6 of the largest value of the table.
MAX_STEP = 0.05
# Shares of the largest magnitude at which a four-bit row may saturate.
SATURATIONS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclasses.dataclass(frozen=True)
class RowQuantizer:
    """Turns float rows `[n, D]` into rows of bytes and back: `[n, 1 + D]` of eight bits, `[n, 1 + D / 2]` of four.

    Column 0 is the code c of the row's scale, `scale = exp(step * c + mid)`; the others are `round(x / scale)`. The code is
    rounded up and the row is divided by the *decoded* scale, so that the largest value never saturates. A scale per row costs
    one byte and is read by the same GATHER as the row.

    With four bits a byte is `16 * a + (b + 8)` of the integers a (first half of the row) and b (second half), which plain
    float operators take apart again. Seven levels are so coarse that the largest value of a row may saturate where that
    lowers the row's squared error.

    Attributes:
      step: distance of two codes, natural logarithm of the scale; float32 value.
      mid: natural logarithm of the scale with code 0; float32 value.
      bits: 8 or 4.
    """

    step: float
    mid: float
    bits: int = 8

    @property
    def limit(self) -> int:
        """Largest magnitude of an integer."""
        return 2 ** (self.bits - 1) - 1

    def width(self, embedding_dim: int) -> int:
        """Bytes of a row of `embedding_dim` numbers."""
        return 1 + embedding_dim * self.bits // 8

    @classmethod
    def fit(cls, smallest: float, largest: float, bits: int = 8) -> "RowQuantizer":
        """Spreads the codes over the table's range.

        Args:
          smallest: the least of all rows' largest magnitudes, rows of zeros left out.
          largest: the largest magnitude of the table; 0 for a table of zeros.
          bits: 8 or 4.
        """
        if largest <= 0:
            return cls(float(np.float32(MAX_STEP)), 0.0, bits)
        limit = 2 ** (bits - 1) - 1
        high = np.log(largest / limit)
        low = max(np.log(smallest / limit), high - 2 * CODE_LIMIT * MAX_STEP)
        # Never exactly 0: the code of a row is a division by it.
        step = np.float32(max((high - low) / (2 * CODE_LIMIT), 1e-6))
        # The highest code must reach the largest row in the device's float32 arithmetic as well.
        mid = np.float32(high - step * CODE_LIMIT + 1e-6)
        return cls(float(step), float(mid), bits)

    def scales(self, codes: np.ndarray) -> np.ndarray:
        """Scales float32 of codes, computed as the device does."""
        return np.exp(codes.astype(np.float32) * np.float32(self.step) + np.float32(self.mid))

    def quantize(self, rows: np.ndarray) -> np.ndarray:
        """Quantizes `rows`, float32 `[n, D]`, to int8 `[n, width(D)]`."""
        codes = self._codes(rows)
        integers = self._integers(rows, codes)
        if self.bits == 4:
            best = self._squared_error(rows, codes, integers)
            for share in SATURATIONS:
                lower = np.maximum(codes + np.rint(np.log(share) / self.step), -CODE_LIMIT).astype(np.float32)
                candidate = self._integers(rows, lower)
                error = self._squared_error(rows, lower, candidate)
                better = error < best
                best[better], codes[better], integers[better] = error[better], lower[better], candidate[better]
            half = rows.shape[1] // 2
            integers = 16 * integers[:, :half] + integers[:, half:] + 8
        return np.column_stack((codes, integers)).astype(np.int8)

    def dequantize(self, packed: np.ndarray) -> np.ndarray:
        """Decodes `packed`, what `quantize` gave, to float32 `[n, D]`: what the device computes with."""
        integers = packed[:, 1:].astype(np.float32)
        if self.bits == 4:
            high = np.floor(integers / 16)
            integers = np.concatenate([high, integers - 16 * high - 8], axis=1)
        return integers * self.scales(packed[:, 0])[:, None]

    def _codes(self, rows: np.ndarray) -> np.ndarray:
        """Code of each row's scale, float32 `[n]`: the least one with which no value saturates."""
        largest = np.abs(rows).max(axis=1)
        codes = np.full(len(rows), -CODE_LIMIT, np.float32)
        used = largest > 0
        wanted = np.log(largest[used] / np.float32(self.limit))
        codes[used] = np.clip(np.ceil((wanted - np.float32(self.mid)) / np.float32(self.step)), -CODE_LIMIT, CODE_LIMIT)
        return codes

    def _integers(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        integers = rows / self.scales(codes)[:, None]
        np.rint(integers, out=integers)
        return np.clip(integers, -self.limit, self.limit, out=integers)

    def _squared_error(self, rows, codes, integers) -> np.ndarray:
        return ((integers * self.scales(codes)[:, None] - rows) ** 2).sum(axis=1)


def table_range(chunks: Iterable[tuple[int, np.ndarray]], source: str) -> tuple[float, float]:
    """The range of a table, for `RowQuantizer.fit`.

    Args:
      chunks: `(first row, rows float32 [n, D])`, all of the table in any order.
      source: named in errors.

    Returns:
      `(smallest, largest)`: the least and the greatest of the rows' largest magnitudes, rows of zeros left out; `(0, 0)` for a
      table of zeros.

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
