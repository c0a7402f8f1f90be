"""First half of `prepare`: text to rows with ids, shard by shard, on threads (NumPy works outside Python's global lock)."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.data.bad_lines import BadLines
from dlrm_tf.data.block import Block
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.readers.reader import Piece, Reader
from dlrm_tf.data.records import row_dtype
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import DataError
from dlrm_tf.progress import Progress

_EXAMPLES = 5  # bad lines of a shard that are quoted in its note
_Numbered = tuple[int, Piece, Reader]


@dataclasses.dataclass
class _Shard:
    """A shard that is being filled."""

    lines: int = 0
    rows: list[np.ndarray] = dataclasses.field(default_factory=list)
    bad_lines: list[int] = dataclasses.field(default_factory=list)
    examples: list[str] = dataclasses.field(default_factory=list)
    bad: BadLines = dataclasses.field(default_factory=BadLines)
    missing: Union[int, np.ndarray] = 0  # both: a count for each feature, int64, once there are rows
    out_of_vocabulary: Union[int, np.ndarray] = 0
    bags: Union[int, np.ndarray] = 0  # int64 [bags, 2]: keys, and rows with too many


class Scan:
    """Turns the rows of readers into shards of a workspace, continuing where the workspace ends.

    Shard k holds the good ones of lines `[k, k + 1) * shard_lines`, so what is in it depends on the input alone.

    Attributes:
      notes: of all shards so far: their rows, positives, bad lines, counts by feature, SHA-256, and where the next one begins.
      features: the keys so far, of each feature.
    """

    def __init__(
        self,
        workspace: Workspace,
        readers: Sequence[Reader],
        spec: FeatureSpec,
        known: list[FeatureKeys],
        learning: bool,
        shard_lines: int,
        stop_at_bad_line: bool,
        max_bad_share: float = 1.0,
    ):
        """Takes up the shards that the workspace already has.

        Args:
          workspace: where shards are kept.
          readers: the inputs, in order.
          spec: the columns.
          known: the keys before the first line, of each feature.
          learning: unknown keys get new ids; else they are out of vocabulary.
          shard_lines: lines a shard.
          stop_at_bad_line: a bad line raises DataError; else it is counted.
          max_bad_share: the most bad lines among those so far, as `BadLines.check` takes it at the end of each shard.
        """
        self.workspace, self.readers, self.spec, self.learning = workspace, readers, spec, learning
        self.shard_lines, self.stop_at_bad_line, self.max_bad_share = shard_lines, stop_at_bad_line, max_bad_share
        self.bad = BadLines()
        self.notes: list[dict[str, Any]] = []
        self.features = [feature.copy() for feature in known]
        for note, new_keys in workspace.shards():
            self.notes.append(note)
            self.bad.update(note.get("reasons"))
            for feature, (numeric, others) in zip(self.features, new_keys):
                feature.append(numeric, others)
        self.encoder = Encoder(spec, Vocabulary(list(zip(spec.categorical_names, self.features))))

    def run(self, threads: int, quiet: bool) -> None:
        """Scans to the end of the last input.

        Args:
          threads: of parsing and look-up.
          quiet: show no progress.

        Raises:
          DataError: an input is damaged, a line is bad and bad lines stop, or too many are bad.
        """
        # Where the last finished shard ends: `skip` lines after the piece at `offset`, at line `line`, of an input.
        start = {"file": 0, "offset": 0, "line": 0, "skip": 0, "read": 0}
        place = self.notes[-1]["next"] if self.notes else start
        file, line, skip, read = place["file"], place["line"], place["skip"], place["read"]
        lines = sum(note["lines"] for note in self.notes)
        shard, saving = _Shard(), None
        progress = Progress("prepare", sum(reader.size for reader in self.readers), "B", quiet=quiet)
        with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as writer, progress:
            progress.update(read)
            for number, piece, block in _parse_ahead(self._pieces(file, place["offset"]), pool, threads + 2):
                if number != file:
                    file, line = number, 0
                read += piece.read
                at = min(skip, block.lines)
                skip -= at
                while at < block.lines:
                    stop = min(block.lines, at + self.shard_lines - shard.lines)
                    self._add(shard, block.rows(at, stop), self.readers[file], line + at, pool)
                    at = stop
                    if shard.lines == self.shard_lines:
                        following = {"file": file, "offset": piece.offset, "line": line, "skip": at, "read": read}
                        saving = self._finish_shard(shard, following, writer, saving)
                        shard = _Shard()
                line += block.lines
                lines += block.lines
                progress.update(piece.read, f"{lines:,} lines")
            if shard.lines:
                following = {"file": len(self.readers), "offset": 0, "line": 0, "skip": 0, "read": read}
                saving = self._finish_shard(shard, following, writer, saving)
            if saving:
                saving.result()

    def _pieces(self, first: int, offset: int) -> Iterator[_Numbered]:
        """The pieces of all readers with the reader's number, from `offset` of reader `first` on."""
        for number in range(first, len(self.readers)):
            for piece in self.readers[number].pieces(offset if number == first else 0):
                yield number, piece, self.readers[number]

    def _add(self, shard: _Shard, block: Block, reader: Reader, first_line: int, pool: Executor) -> None:
        """Gives the block's keys ids and adds its rows to the shard."""
        for line, what in block.bad:
            if self.stop_at_bad_line:
                raise DataError(f"{reader.where(first_line + line)}: {what} (--on-bad-line skip passes over such lines)")
            example = f"{reader.where(first_line + line)}: {what}"
            if len(shard.examples) < _EXAMPLES:
                shard.examples.append(example)
            shard.bad.add(what, example)
            shard.bad_lines.append(shard.lines + line)
        rows = np.empty(len(block.label), row_dtype(self.spec))
        rows["label"], rows["dense"] = block.label, block.dense
        weights = rows["weights"] if self.spec.weighted else None
        shard.out_of_vocabulary += self.encoder.write_ids(
            block, rows["categorical"], weights=weights, learn=self.learning, run=pool.map
        )
        if block.bags:
            shard.bags += np.array([[bag.lengths.sum(), bag.truncated.sum()] for bag in block.bags.values()], np.int64)
        shard.missing += np.concatenate((block.dense_missing.sum(0), block.empty.sum(1)))
        shard.rows.append(rows)
        shard.lines += block.lines

    def _finish_shard(
        self, shard: _Shard, following: dict[str, int], writer: Executor, saving: Optional[Future[None]]
    ) -> Future[None]:
        """Hands the shard to the writing thread, after the one before (`saving`) is on the disk; returns what to wait for."""
        if saving:
            saving.result()
        rows = np.concatenate(shard.rows)
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
        self.bad.check(sum(note["lines"] for note in self.notes), self.max_bad_share)
        new_keys = [feature.take_new() for feature in self.features]
        bad_lines = np.array(shard.bad_lines, np.int64)

        def save(number: int) -> None:
            note.update(describe_rows(rows))
            self.workspace.save_shard(number, rows, new_keys=new_keys, bad_lines=bad_lines, note=note)

        return writer.submit(save, len(self.notes) - 1)


def describe_rows(rows: np.ndarray) -> dict[str, Any]:
    """`rows`, `positives` and `sha256` of a shard."""
    positives = int(rows["label"].sum(dtype=np.float64))
    return {"rows": len(rows), "positives": positives, "sha256": hashlib.sha256(rows.data).hexdigest()}


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
