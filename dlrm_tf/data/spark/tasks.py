"""What Spark's Python workers do: `prepare`'s own readers, parser and Encoder on a part of the log."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

from dlrm_tf.data.readers.reader import Reader
from dlrm_tf.data.scan import Rules, Scan, Stretch
from dlrm_tf.data.spark.first_seen import PartKeys, Share, merge_shares, save_share
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import DataError


@dataclasses.dataclass(frozen=True)
class Job:
    """What all tasks must know.

    Attributes:
      readers: the inputs.
      parts: `(reader's number, offset, stop)`, as `Reader.part` takes them, of the parts of all inputs, in order.
      rules: what becomes of the lines.
      collecting: keys are wanted, not only lines.
      counting: it is wanted how often each key occurs.
      buckets: so many tasks merge keys.
      folder: the driver's working folder, to which names of files relate.
      out_dir: the data folder, absolute.
    """

    readers: Sequence[Reader]
    parts: Sequence[tuple[int, int, Optional[int]]]
    rules: Rules
    collecting: bool
    counting: bool
    buckets: int
    folder: str
    out_dir: str

    def enter(self) -> None:
        """Makes relative names of files mean what they mean at the driver."""
        with contextlib.suppress(FileNotFoundError):  # then they must be absolute
            os.chdir(self.folder)


@dataclasses.dataclass
class PartNote:
    """What is in a part.

    Attributes:
      pieces: `(offset, lines)` of each piece.
      read: bytes.
      bad: `(line within the part, what is wrong)` where a bad line ended the job.
      error: what is wrong with the input.
    """

    pieces: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    read: int = 0
    bad: Optional[tuple[int, str]] = None
    error: Optional[str] = None


def scan_part(job: Job, number: int) -> tuple[PartNote, Iterator[tuple[int, Share]]]:
    """First pass over a part: its lines, and its keys by bucket.

    What is wrong with the input stands in the note: an exception would make Spark try again, which is of no use.
    """
    job.enter()
    file, offset, stop = job.parts[number]
    reader, keys, note = job.readers[file], PartKeys(job.rules.spec, job.counting), PartNote()
    try:
        for piece in reader.part(offset, stop):
            block = reader.parse(piece)
            if block.bad and job.rules.stops:
                line, what = block.bad[0]
                note.bad = sum(lines for _, lines in note.pieces) + line, what
                break
            note.pieces.append((piece.offset, block.lines))
            note.read += piece.read
            if job.collecting:
                keys.add(block)
    except (DataError, FileNotFoundError) as e:
        where = f"{reader.name}: no such file on a worker: inputs must be where every worker sees them"
        note.error = where if isinstance(e, FileNotFoundError) else str(e)
    return note, keys.shares(number, job.buckets)


def merge_bucket(job: Job, bucket: int, shares: Iterable[Share]) -> str:
    """Merges the keys of one bucket and keeps them in the work folder; returns where, for `MergedKeys`."""
    job.enter()
    path = _workspace(job).path(f"keys-{bucket:05d}")
    save_share(path, merge_shares(shares))
    return path


def make_shards(job: Job, vocabulary: Vocabulary, stretch: Stretch) -> int:
    """Second pass: rows with ids, in whole shards of the work folder; returns how many shards."""
    job.enter()
    # The keys are known, and how many lines are bad in all is seen at the driver.
    rules = dataclasses.replace(job.rules, learning=False, max_bad_share=1)
    scan = Scan(_workspace(job), job.readers, vocabulary, rules)
    scan.run(1, True, stretch)
    lines = sum(note["lines"] for note in scan.notes)
    if lines != stretch.lines:
        raise DataError(
            f"{job.readers[stretch.place['file']].name}: wanted {stretch.lines:,} lines. Received {lines:,}: it changed"
        )
    return stretch.shards


def _workspace(job: Job) -> Workspace:
    workspace = Workspace(job.out_dir)
    # A task that outlives its killed driver must not make the folder again after it was removed.
    if not os.path.isdir(workspace.folder):
        raise DataError(f"{workspace.folder}: no such folder on a worker: the data folder must be where every worker sees it")
    return workspace
