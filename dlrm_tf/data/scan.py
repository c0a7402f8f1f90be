"""First half of `prepare`: text to rows with ids, shard by shard, on threads (NumPy works outside Python's global lock)."""

import collections
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.lines import Piece, read_pieces, total_bytes
from dlrm_tf.data.parse import Block, parse_block
from dlrm_tf.data.records import row_dtype
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import DataError
from dlrm_tf.progress import Progress

_AHEAD = 4  # pieces read and parsed before they are needed
_EXAMPLES = 5  # bad lines that are told about


class Scan:
    """Turns the lines of `paths` into shards of a workspace, continuing where the workspace ends.

    Shard k holds the good ones of lines `[k, k + 1) * shard_lines`, so what is in it depends on the input alone.
    """

    def __init__(
        self,
        workspace: Workspace,
        paths: list[str],
        spec: FeatureSpec,
        features: list[FeatureKeys],
        grow: bool,
        shard_lines: int,
        on_bad_line: str,
        threads: int,
    ):
        """`features`: keys known before the first line. `grow`: unknown keys get new ids; else they are out of vocabulary."""
        self.workspace, self.paths, self.spec, self.grow = workspace, paths, spec, grow
        self.shard_lines, self.on_bad_line, self.threads = shard_lines, on_bad_line, threads
        self.notes = workspace.notes()
        self.features = self._restore(features)

    def _restore(self, features: list[FeatureKeys]) -> list[FeatureKeys]:
        numeric = [[feature.numeric()[0]] for feature in features]
        others = [feature.others() for feature in features]
        for number in range(len(self.notes)):
            for i, (new_numeric, new_others) in enumerate(self.workspace.new_keys(number)):
                numeric[i].append(new_numeric)
                others[i] += new_others
        return [FeatureKeys(np.concatenate(values), rest) for values, rest in zip(numeric, others)]

    def run(self, quiet: bool) -> None:
        """Scans to the end of the last file."""
        place = (
            self.notes[-1]["next"] if self.notes else {"file": 0, "offset": 0, "line": 1 + self.spec.header, "skip": 0, "read": 0}
        )
        progress = Progress("prepare", total_bytes(self.paths), "B", quiet=quiet)
        with ThreadPoolExecutor(self.threads) as self._pool, ThreadPoolExecutor(1) as self._writer, progress:
            progress.update(place["read"])
            self._start_shard()
            self._read, self._writing = place["read"], None
            self._number, self._line = len(self.notes), place["line"]
            lines = sum(note["lines"] for note in self.notes)
            skip = place["skip"]
            previous = place["file"]
            for piece, block in self._blocks(read_pieces(self.paths, self.spec.header, place["file"], place["offset"])):
                if piece.file != previous:
                    previous, self._line = piece.file, 1 + self.spec.header
                self._read += piece.read
                at = min(skip, block.lines)
                skip -= at
                while at < block.lines:
                    stop = min(block.lines, at + self.shard_lines - self._lines)
                    self._add(block.rows(at, stop), piece, at)
                    at, lines = stop, lines + stop - at
                    if self._lines == self.shard_lines:
                        self._finish_shard({"file": piece.file, "offset": piece.offset, "line": self._line, "skip": at})
                self._line += block.lines
                progress.update(piece.read, f"{lines:,} lines")
            if self._lines:
                self._finish_shard({"file": len(self.paths), "offset": 0, "line": 1, "skip": 0})
            if self._writing:
                self._writing.result()

    def _blocks(self, pieces: Iterator[Piece]) -> Iterator[tuple[Piece, Block]]:
        """Pieces with their blocks in order, read and parsed ahead."""
        with ThreadPoolExecutor(1) as reader:
            parsing: collections.deque = collections.deque()
            reading = reader.submit(next, pieces, None)
            while (piece := reading.result()) is not None:
                reading = reader.submit(next, pieces, None)
                parsing.append((piece, self._pool.submit(parse_block, piece.text, self.spec)))
                if len(parsing) > _AHEAD:
                    piece, block = parsing.popleft()
                    yield piece, block.result()
            for piece, block in parsing:
                yield piece, block.result()

    def _start_shard(self) -> None:
        self._lines = self._bad = 0
        self._parts: list[np.ndarray] = []
        self._bad_lines: list[int] = []
        self._examples: list[str] = []
        self._missing = np.zeros(len(self.spec.dense_names) + len(self.spec.categorical_names), np.int64)
        self._oov = np.zeros(len(self.features), np.int64)

    def _add(self, block: Block, piece: Piece, skipped: int) -> None:
        """Gives the block's keys ids and adds its rows to the shard."""
        for line, what in block.bad:
            if self.on_bad_line == "stop" or len(self._examples) < _EXAMPLES:
                what = f"{self.paths[piece.file]}:{self._line + skipped + line}: {what}"
                if self.on_bad_line == "stop":
                    raise DataError(f"{what} (--on-bad-line skip passes over such lines)")
                self._examples.append(what)
            self._bad_lines.append(self._lines + line)
        rows = np.empty(len(block.label), row_dtype(self.spec))
        rows["label"], rows["dense"] = block.label, block.dense

        def number(i: int) -> int:
            feature = self.features[i]
            ids = (feature.assign if self.grow else feature.find)(block.keys[i], block.empty[i], block.odd[i])
            unknown = ids < 0
            ids[unknown] = feature.size
            rows["categorical"][:, i] = ids
            return int(np.count_nonzero(unknown))

        self._oov += list(self._pool.map(number, range(len(self.features))))
        self._missing += np.concatenate((block.dense_missing.sum(0), block.empty.sum(1)))
        self._parts.append(rows)
        self._lines += block.lines

    def _finish_shard(self, following: dict) -> None:
        """Hands the shard to the writing thread, after the one before is on the disk."""
        if self._writing:
            self._writing.result()
        rows = np.concatenate(self._parts)
        note = {
            "lines": self._lines,
            "rows": len(rows),
            "bad_lines": len(self._bad_lines),
            "examples": self._examples,
            "missing": self._missing.tolist(),
            "out_of_vocabulary": self._oov.tolist(),
            "next": {**following, "read": self._read},
        }
        new_keys = [feature.take_new() for feature in self.features]
        self._writing = self._writer.submit(self._save, self._number, rows, new_keys, np.array(self._bad_lines, np.int64), note)
        self.notes.append(note)
        self._number += 1
        self._start_shard()

    def _save(self, number, rows, new_keys, bad_lines, note) -> None:
        note.update(describe_rows(rows))
        self.workspace.save_shard(number, rows, new_keys, bad_lines, note)


def describe_rows(rows: np.ndarray) -> dict:
    """Rows, positives and SHA-256 of a shard."""
    return {"rows": len(rows), "positives": int(rows["label"].sum(dtype=np.float64)), "sha256": hashlib.sha256(rows).hexdigest()}
