"""Sample: some of the rows of a stream, each as likely as any other, in bounded memory."""

import numpy as np

from dlrm_tf.fresh.side import Rows, joined

_SEED = 0


class Sample:
    """Keeps all rows of a stream of up to `2 * rows`, and of a longer one between about `rows` and `2 * rows`, in their order.

    Every row draws a number, and those with a number below a bound stay; when too many have stayed the bound is halved. Drawn
    from one seed, so that the same stream gives the same sample, whatever the size of its pieces.

    Args:
      rows: half of the most rows that are kept.

    Attributes:
      size: how many rows are kept.
    """

    def __init__(self, rows: int):
        self._rows, self._bound, self.size = rows, 1 << 32, 0
        self._bits = np.random.Generator(np.random.PCG64(_SEED))
        self._parts: list[tuple[np.ndarray, Rows]] = []

    def add(self, rows: Rows) -> None:
        """Takes the next rows of the stream."""
        drawn = self._bits.integers(0, 1 << 32, len(rows.label), dtype=np.uint64)
        self._keep(drawn, rows)
        while self.size > 2 * self._rows:
            self._bound //= 2
            parts, self._parts, self.size = self._parts, [], 0
            for part in parts:
                self._keep(*part)

    def _keep(self, drawn: np.ndarray, rows: Rows) -> None:
        stay = drawn < self._bound
        self._parts.append((drawn[stay], rows.at(stay)))
        self.size += int(stay.sum())

    def rows(self) -> Rows:
        """The sample."""
        return joined([rows for _, rows in self._parts])
