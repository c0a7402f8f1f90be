"""First half of `prepare`: text to rows with ids, shard by shard, on threads (NumPy works outside Python's global lock)."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.data.bad_lines import MAX_SHARE, BadLines
from dlrm_tf.data.block import Block
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.readers.reader import Piece, Reader
from dlrm_tf.data.record_files import SHARD_LINES, describe_rows, row_dtype
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.progress import Progress

_EXAMPLES = 5  # bad lines of a shard that are quoted in its note
_Numbered = tuple[int, Piece, Reader]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What becomes of the lines of a log, whichever engine reads them.

    Attributes:
      spec: the columns.
      learning: unknown keys get new ids; else they are out of vocabulary.
      shard_lines: lines a shard.
      on_bad_line: `"stop"`: a bad line raises DataError; `"skip"`: it is counted.
      max_bad_share: the most bad lines among those so far, as `BadLines.check` takes it at the end of each shard.

    Raises:
      UsageError: a value is out of range.
    """

    spec: FeatureSpec
    learning: bool
    shard_lines: int
    on_bad_line: str = "skip"
    max_bad_share: float = MAX_SHARE

    def __post_init__(self) -> None:
        if self.shard_lines < 1:
            raise UsageError(f"shard_lines must be at least 1. Received {self.shard_lines}")
        if self.on_bad_line not in ("skip", "stop"):
            raise UsageError(f"on_bad_line must be 'skip' or 'stop'. Received {self.on_bad_line!r}")
        if not 0 <= self.max_bad_share <= 1:
            raise UsageError(f"max_bad_share must be from 0 to 1. Received {self.max_bad_share}")

    @property
    def stops(self) -> bool:
        """Whether a bad line ends the job."""
        return self.on_bad_line == "stop"


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Neighbouring shards, and where their lines are.

    Attributes:
      first: number of the first shard.
      place: where its lines begin, as `next` of the note of the shard before.
      parts: `(reader's number, offset, stop)`, as `Reader.part` takes them, of what the lines are in, in order; the first one
        begins at the place's offset.
      shards: how many shards.
      lines: how many lines.
    """

    first: int
    place: dict[str, int]
    parts: list[tuple[int, int, Optional[int]]]
    shards: int
    lines: int


@dataclasses.dataclass
class _Shard:
    """A shard that is being filled."""

    memory: np.ndarray  # the first `good` rows of it
    good: int = 0
    lines: int = 0
    bad_lines: list[int] = dataclasses.field(default_factory=list)
    examples: list[str] = dataclasses.field(default_factory=list)
    bad: BadLines = dataclasses.field(default_factory=BadLines)
    missing: Union[int, np.ndarray] = 0  # both: a count for each feature, int64, once there are rows
    out_of_vocabulary: Union[int, np.ndarray] = 0
    bags: Union[int, np.ndarray] = 0  # int64 [bags, 2]: keys, and rows with too many

    def more_rows(self, count: int) -> np.ndarray:
        """Rows `[count]` to be written to, after those that are there."""
        while self.good + count > len(self.memory):
            self.memory = np.concatenate((self.memory, np.empty_like(self.memory)))
        self.good += count
        return self.memory[self.good - count : self.good]


class Scan:
    """Turns the rows of readers into shards of a workspace, continuing where the workspace ends.

    Shard k holds the good ones of lines `[k, k + 1) * shard_lines`, so what is in it depends on the input alone.

    Attributes:
      notes: of all shards so far: their rows, positives, bad lines, counts by feature, SHA-256, and where the next one begins.
      vocabulary: the keys so far.
    """

    def __init__(self, workspace: Workspace, readers: Sequence[Reader], known: Vocabulary, rules: Rules):
        """Changes nothing yet.

        Args:
          workspace: where shards are kept.
          readers: the inputs, in order.
          known: the keys before the first line; they are copied.
          rules: what becomes of the lines.
        """
        self.workspace, self.readers, self.rules, self.spec = workspace, readers, rules, rules.spec
        self.bad = BadLines()
        self.notes: list[dict[str, Any]] = []
        self.vocabulary = known.copy()
        self.encoder = Encoder(rules.spec, self.vocabulary)
        self._spare: list[np.ndarray] = []

    def resume(self) -> None:
        """Takes up the shards that the workspace already has: `run` goes on after them."""
        for note, new_keys in self.workspace.shards():
            self.notes.append(note)
            self.bad.update(note.get("reasons"))
            for keys, (numeric, others) in zip(self.vocabulary.key_sets, new_keys):
                keys.append(numeric, others)

    def run(self, threads: int, quiet: bool, stretch: Optional[Stretch] = None) -> None:
        """Scans to the end of the last input, or some shards.

        Args:
          threads: of parsing and look-up.
          quiet: show no progress.
          stretch: the shards to make; None is all that are not there yet.

        Raises:
          DataError: an input is damaged, a line is bad and bad lines stop, or too many are bad.
        """
        # Where the last finished shard ends: `skip` lines after the piece at `offset`, at line `line`, of an input.
        start = {"file": 0, "offset": 0, "line": 0, "skip": 0, "read": 0}
        place = self.notes[-1]["next"] if self.notes else start
        pieces = self._pieces([(i, 0, None) for i in range(place["file"], len(self.readers))], place["offset"])
        if stretch:
            place, pieces = stretch.place, self._pieces(stretch.parts, stretch.place["offset"])
        first, end = (stretch.first, stretch.shards) if stretch else (0, None)
        file, line, skip, read = place["file"], place["line"], place["skip"], place["read"]
        lines = sum(note["lines"] for note in self.notes)
        shard, saving = self._new_shard(), None
        progress = Progress("prepare", sum(reader.size for reader in self.readers) or None, "B", quiet=quiet)
        with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as writer, progress:
            progress.update(read)
            for number, piece, block in _parse_ahead(pieces, pool, threads + 2):
                if number != file:
                    file, line = number, 0
                read += piece.read
                at = min(skip, block.lines)
                skip -= at
                while at < block.lines and len(self.notes) != end:
                    stop = min(block.lines, at + self.rules.shard_lines - shard.lines)
                    self._add(shard, block.rows(at, stop), self.readers[file], line + at, pool)
                    at = stop
                    if shard.lines == self.rules.shard_lines:
                        following = {"file": file, "offset": piece.offset, "line": line, "skip": at, "read": read}
                        saving = self._finish_shard(shard, following, writer, saving, first)
                        shard = self._new_shard()
                line += block.lines
                lines += block.lines
                progress.update(piece.read, f"{lines:,} lines")
            if shard.lines:
                following = {"file": len(self.readers), "offset": 0, "line": 0, "skip": 0, "read": read}
                saving = self._finish_shard(shard, following, writer, saving, first)
            if saving:
                saving.result()

    def _new_shard(self) -> _Shard:
        """An empty shard, in the memory of a written one where there is any: fresh memory costs more than filling it."""
        rows = min(self.rules.shard_lines, SHARD_LINES)
        return _Shard(self._spare.pop() if self._spare else np.empty(rows, row_dtype(self.spec)))

    def _pieces(self, parts: Sequence[tuple[int, int, Optional[int]]], offset: int) -> Iterator[_Numbered]:
        """The pieces of parts with their reader's number; the first part begins at `offset`."""
        for i, (number, begin, stop) in enumerate(parts):
            for piece in self.readers[number].part(begin if i else offset, stop):
                yield number, piece, self.readers[number]

    def _add(self, shard: _Shard, block: Block, reader: Reader, first_line: int, pool: Executor) -> None:
        """Gives the block's keys ids and adds its rows to the shard."""
        for line, what in block.bad:
            if self.rules.stops:
                raise bad_line_error(reader, first_line + line, what)
            example = f"{reader.where(first_line + line)}: {what}"
            if len(shard.examples) < _EXAMPLES:
                shard.examples.append(example)
            shard.bad.add(what, example)
            shard.bad_lines.append(shard.lines + line)
        rows = shard.more_rows(len(block.label))
        rows["label"], rows["dense"] = block.label, block.dense
        weights = rows["weights"] if self.spec.weighted else None
        shard.out_of_vocabulary += self.encoder.write_ids(
            block, rows["categorical"], weights=weights, learn=self.rules.learning, run=pool.map
        )
        if block.bags:
            shard.bags += np.array([[bag.lengths.sum(), bag.truncated.sum()] for bag in block.bags.values()], np.int64)
        shard.missing += np.concatenate((block.dense_missing.sum(0), block.empty.sum(1)))
        shard.lines += block.lines

    def _finish_shard(
        self, shard: _Shard, following: dict[str, int], writer: Executor, saving: Optional[Future[None]], first: int
    ) -> Future[None]:
        """Hands the shard to the writing thread, after the one before (`saving`) is on the disk; returns what to wait for."""
        if saving:
            saving.result()
        rows = shard.memory[: shard.good]
        note = {
            "lines": shard.lines,
            "bad_lines": len(shard.bad_lines),
            "examples": shard.examples,
            "missing": np.asarray(shard.missing).tolist(),
            "out_of_vocabulary": np.asarray(shard.out_of_vocabulary).tolist(),
            "next": following,
        }
        if self.spec.bags:
            note["bags"] = np.asarray(shard.bags).tolist()
        if shard.bad.reasons:
            note["reasons"] = shard.bad.reasons
        self.notes.append(note)
        self.bad.update(shard.bad.reasons)
        self.bad.check(sum(note["lines"] for note in self.notes), self.rules.max_bad_share)
        new_keys = [keys.take_new() for keys in self.vocabulary.key_sets]
        bad_lines = np.array(shard.bad_lines, np.int64)

        def save(number: int) -> None:
            note.update(describe_rows(rows))
            self.workspace.save_shard(number, rows, new_keys=new_keys, bad_lines=bad_lines, note=note)
            self._spare.append(shard.memory)

        return writer.submit(save, first + len(self.notes) - 1)


def bad_line_error(reader: Reader, line: int, what: str) -> DataError:
    """The error of a bad line where bad lines stop.

    Args:
      reader: the input.
      line: number of the line, from 0.
      what: is wrong with it.
    """
    return DataError(f"{reader.where(line)}: {what} (--on-bad-line skip passes over such lines)")


def _parse_ahead(pieces: Iterator[_Numbered], pool: Executor, ahead: int) -> Iterator[tuple[int, Piece, Block]]:
    """Pieces with their blocks, in order; reading and parsing run `ahead` pieces before on other threads."""
    with ThreadPoolExecutor(1) as reading_thread:
        parsing: collections.deque[tuple[int, Piece, Future[Block]]] = collections.deque()
        reading = reading_thread.submit(next, pieces, None)
        while (found := reading.result()) is not None:
            reading = reading_thread.submit(next, pieces, None)
            number, piece, reader = found
            parsing.append((number, piece, pool.submit(reader.parse, piece)))
            if len(parsing) > ahead:
                number, piece, block = parsing.popleft()
                yield number, piece, block.result()
        for number, piece, block in parsing:
            yield number, piece, block.result()
