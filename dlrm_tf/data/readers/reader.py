"""Reader: one input of rows, read in pieces from any place on."""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

from dlrm_tf.data.block import Block
from dlrm_tf.data.spec import FeatureSpec


@dataclasses.dataclass(frozen=True)
class Piece:
    """Neighbouring rows of one input, not parsed yet.

    Attributes:
      offset: where the piece starts, as `Reader.pieces` takes it.
      content: the rows, as `Reader.parse` takes them.
      read: bytes of the input that were read for it, for progress.
    """

    offset: int
    content: Any
    read: int


class Reader(abc.ABC):
    """One input of rows: a file, or a table in memory.

    Reading is for one thread at a time; pieces are parsed on any thread. An offset means the same in every process, so that an
    interrupted job goes on at it.

    Attributes:
      name: the input in errors, such as its path.
      spec: the columns.
      size: bytes to be read, for progress.
      first_line: number of the first row in errors.
      resumable: it can be read again; else an interrupted job starts from the beginning.
    """

    name: str
    spec: FeatureSpec
    size: int
    first_line: int = 1
    resumable: bool = True

    @abc.abstractmethod
    def identity(self) -> list[Any]:
        """What is the same exactly when the input is the same, as JSON values: an interrupted job compares it."""

    @abc.abstractmethod
    def pieces(self, offset: int = 0) -> Iterator[Piece]:
        """All pieces from one on.

        Args:
          offset: of the first piece.

        Raises:
          DataError: the input is damaged.
        """

    @abc.abstractmethod
    def has_label(self, piece: Piece) -> bool:
        """Whether the input has the label column.

        Args:
          piece: its first piece.
        """

    @abc.abstractmethod
    def parse(self, piece: Piece, *, labelled: bool = True) -> Block:
        """Parses a piece.

        Args:
          piece: what `pieces` gave.
          labelled: False when the rows lack the label column; each label is 0 then.
        """

    def where(self, line: int) -> str:
        """Text that names a row in errors.

        Args:
          line: its number, from 0 at the beginning of the input.
        """
        return f"{self.name}:{self.first_line + line}"
