"""Plan: where every shard's lines are, known after the first pass, and how shards are shared out to tasks."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np

from dlrm_tf.data.scan import Stretch


class Plan:
    """The lines of a log, piece by piece.

    Args:
      parts: `(reader's number, offset, stop)` of all parts, in order.
      pieces: of each part `(offset, lines)` of its pieces.
      shard_lines: lines a shard.

    Attributes:
      lines: of the whole log, bad ones counted.
      shards: how many shards.
    """

    def __init__(
        self, parts: Sequence[tuple[int, int, Optional[int]]], pieces: Sequence[Sequence[tuple[int, int]]], shard_lines: int
    ):
        self._parts, self._pieces, self._shard_lines = parts, pieces, shard_lines
        flat = np.array([piece for of_part in pieces for piece in of_part], np.int64).reshape(-1, 2)
        self._part = np.repeat(np.arange(len(parts)), [len(of_part) for of_part in pieces])
        self._file = np.array([file for file, _, _ in parts], np.int64)[self._part]
        self._offset, ends = flat[:, 0], np.cumsum(flat[:, 1])
        self._begin = ends - flat[:, 1]  # number of each piece's first line, in the whole log
        self.lines = int(ends[-1]) if ends.size else 0
        self.shards = -(-self.lines // shard_lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"parts": self._parts, "pieces": self._pieces, "shard_lines": self._shard_lines}

    def line_of_part(self, number: int) -> int:
        """Number of a part's first line in its input, from 0, where the pieces of the parts before it are known."""
        file = self._parts[number][0]
        return sum(n for part, pieces in zip(self._parts[:number], self._pieces) if part[0] == file for _, n in pieces)

    def stretches(self, missing: Sequence[int]) -> Iterator[Stretch]:
        """Tasks that make shards: neighbouring ones whose first lines are in one part are made together.

        Args:
          missing: numbers of the shards, ascending.
        """

        def group(item: tuple[int, int]) -> tuple[int, int]:
            i, shard = item
            return int(self._part[self._piece_of(shard * self._shard_lines)]), shard - i

        for _, items in itertools.groupby(enumerate(missing), group):
            shards = [shard for _, shard in items]
            yield self._stretch(shards[0], len(shards))

    def _piece_of(self, line: int) -> int:
        return int(np.searchsorted(self._begin, line, "right")) - 1

    def _stretch(self, first: int, shards: int) -> Stretch:
        line, stop = first * self._shard_lines, min((first + shards) * self._shard_lines, self.lines)
        begin, last = self._piece_of(line), self._piece_of(stop - 1)
        line_of_file = self._begin[np.searchsorted(self._file, self._file[begin])]
        place = {
            "file": int(self._file[begin]),
            "offset": int(self._offset[begin]),
            "line": int(self._begin[begin] - line_of_file),
            "skip": int(line - self._begin[begin]),
            "read": 0,
        }
        parts = list(self._parts[self._part[begin] : self._part[last] + 1])
        if last + 1 < len(self._part) and self._part[last + 1] == self._part[last]:  # no more is read than is needed
            parts[-1] = (parts[-1][0], parts[-1][1], int(self._offset[last + 1]))
        return Stretch(first, place, parts, shards, stop - line)
