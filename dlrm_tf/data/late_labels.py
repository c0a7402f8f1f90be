"""LateLabels: clicks that become known only after the day's file was written."""

import numpy as np

from dlrm_tf.data.world_tables import random_bits


class LateLabels:
    """Decides which positive rows of a day are still 0 at its end.

    A row's time in its day is its place in the file. Its click becomes known after a delay of an exponential distribution.

    Args:
      rows: of the day.
      seed: of the world.
      day: of the world.
      mean_delay: in days, > 0.

    Attributes:
      count: late rows so far.
    """

    HEADER = b"line\tday\n"

    def __init__(self, rows: int, seed: int, day: int, mean_delay: float):
        # A stream of its own: the rows are the same with and without delays.
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(2, day, 2)))
        self._rows, self._day, self._mean_delay = rows, day, mean_delay
        self.count = 0

    def split(self, start: int, label: np.ndarray) -> tuple[np.ndarray, bytes]:
        """Takes the late ones out of the labels of the next rows.

        Args:
          start: number of the first of these rows, from 0.
          label: bool `[n]`.

        Returns:
          `(labels known at the day's end bool [n], lines of the late file)`.
        """
        delay = -self._mean_delay * np.log((random_bits(self._bits, np.uint32, len(label)) + 0.5) / 2.0**32)
        known_at = (np.arange(start, start + len(label)) + 0.5) / self._rows + delay
        late = np.flatnonzero(label & (known_at >= 1))
        self.count += len(late)
        known = label.copy()
        known[late] = False
        return known, "".join(f"{start + i + 1}\t{self._day + known_at[i]:.6f}\n" for i in late).encode()
