"""SparkEngine: `prepare` on a Spark cluster, with the same bytes as on one machine."""

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from dlrm_tf.data.admit import Admission
from dlrm_tf.data.bad_lines import check_notes
from dlrm_tf.data.finish import Finish
from dlrm_tf.data.readers.reader import Reader
from dlrm_tf.data.record_files import VOCABULARY
from dlrm_tf.data.scan import Rules, bad_line_error
from dlrm_tf.data.spark import tasks
from dlrm_tf.data.spark.context import run_job, spark_context, spark_errors
from dlrm_tf.data.spark.first_seen import MergedKeys, Share
from dlrm_tf.data.spark.plan import Plan
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.progress import Progress

# A part is what a worker reads at a time in the first pass; it holds the part's different keys in memory.
_PART_BYTES = 16 << 20, 256 << 20
_PARTS_A_CORE = 4
_BUCKET_BYTES = 256 << 20  # of the log for each task that merges keys
_MOST_BUCKETS = 4096
_PLAN = "plan.json"


class SparkEngine:
    """Runs `prepare` on Spark.

    Inputs and the data folder must be where the driver and all workers see them under one name. Plain files are read in parts,
    compressed ones each by one task.

    Args:
      master: as Spark takes it: `local[4]`, `spark://host:7077`, `yarn`, `k8s://…`.
      conf: Spark's settings by name, such as `{"spark.executor.memory": "8g"}`.
      context: a SparkContext to use instead of starting one; it is left running.
      part_bytes: bytes of the log that a task of the first pass reads; None is 16 to 256 MB, four parts for each core.
      debug: leave Spark's own messages on standard error.

    Example:
      dlrm_tf.prepare(["day_0.tsv", "day_1.tsv"], "data", engine=dlrm_tf.SparkEngine("spark://host:7077"))
    """

    job = {"engine": "spark"}

    def __init__(
        self,
        master: str = "local[*]",
        *,
        conf: Optional[Mapping[str, str]] = None,
        context: Any = None,
        part_bytes: Optional[int] = None,
        debug: bool = False,
    ):
        if part_bytes is not None and part_bytes < 1:
            raise UsageError(f"part_bytes must be at least 1. Received {part_bytes}")
        self.master, self.conf, self.context = master, dict(conf or {}), context
        self.part_bytes, self.debug = part_bytes, debug

    def check(self, readers: Sequence[Reader], workspace: Workspace) -> None:
        """What can be said before Spark's start, which takes seconds.

        Args:
          readers: the inputs.
          workspace: of the data folder.

        Raises:
          UsageError: an input can be read once only.
          DataError: the data folder holds something else.
        """
        workspace.check_free()
        once = next((reader.name for reader in readers if not reader.resumable), None)
        if once is not None:
            raise UsageError(f"inputs must be files with an engine, whose workers read them. Received {once}")

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Starts Spark where no context was given, and stops it at the end.

        Raises:
          MissingExtraError: pyspark or Java is not installed.
          UsageError: not a master's URL, or this process has a context already.
          SparkError: Spark does not start, or gives up what is done meanwhile.
        """
        if self.context is not None:
            with spark_errors(self.context.master):
                yield
            return
        with spark_context(self.master, self.conf, debug=self.debug) as self.context:
            try:
                yield
            finally:
                self.context = None

    def scan(
        self,
        workspace: Workspace,
        readers: Sequence[Reader],
        known: Vocabulary,
        rules: Rules,
        *,
        admission: Admission,
        quiet: bool,
    ) -> Finish:
        """Turns the rows of readers into shards of a workspace; goes on where an interrupted call of the same job ended.

        Args:
          workspace: where shards are kept, on a file system that all workers see.
          readers: the inputs, in order.
          known: the keys before the first line.
          rules: what becomes of the lines.
          admission: which keys stay.
          quiet: show no progress.

        Returns:
          What remains to be done with the shards.

        Raises:
          DataError: an input is damaged, a line is bad and bad lines stop, or too many are bad.
        """
        total = sum(reader.size for reader in readers)
        cores = self.context.defaultParallelism
        part_bytes = self.part_bytes or min(max(total // (cores * _PARTS_A_CORE), _PART_BYTES[0]), _PART_BYTES[1])
        job = tasks.Job(
            readers=readers,
            parts=[(i, *part) for i, reader in enumerate(readers) for part in reader.parts(part_bytes)],
            rules=rules,
            collecting=rules.learning or admission.counts_keys,
            counting=admission.counts_keys,
            buckets=min(max(total // _BUCKET_BYTES, cores), _MOST_BUCKETS),
            folder=os.getcwd(),
            out_dir=os.path.abspath(workspace.out_dir),
        )
        saved = workspace.read_json(_PLAN)
        if saved is None:
            pieces, paths = self._first_pass(job, total, quiet)
            plan = Plan(job.parts, pieces, rules.shard_lines)
            vocabulary = _learnt(paths, known, rules.learning, admission)
            vocabulary.save(workspace.path(VOCABULARY))
            for path in glob.glob(workspace.path("keys-*")):
                os.unlink(path)
            workspace.write_json(_PLAN, plan.to_dict())
        else:
            plan = Plan(**saved)
            vocabulary = Vocabulary.load(workspace.path(VOCABULARY))
        self._second_pass(job, plan, workspace, vocabulary, quiet)
        notes = [note for note, _ in workspace.shards()]
        check_notes(notes, rules.max_bad_share)
        return Finish(workspace, rules.spec, notes, vocabulary)

    def _first_pass(self, job: tasks.Job, total: int, quiet: bool) -> tuple[list[list[tuple[int, int]]], list[str]]:
        """Of each part the pieces, and where the merged keys are."""
        notes = self.context.accumulator({}, _notes_parameter())

        def scan(numbers: Iterable[int]) -> Iterator[tuple[int, Share]]:
            for number in numbers:
                note, shares = tasks.scan_part(job, number)
                notes.add({number: note})
                yield from shares

        def merge(bucket: int, items: Iterable[tuple[int, Share]]) -> Iterator[str]:
            yield tasks.merge_bucket(job, bucket, (share for _, share in items))

        parts = self.context.parallelize(range(len(job.parts)), len(job.parts))
        merged = parts.mapPartitions(scan).partitionBy(job.buckets, int).mapPartitionsWithIndex(merge)
        progress = Progress("prepare: keys", total, "B", quiet=quiet)
        paths = run_job(self.context, merged.collect, progress, lambda: sum(n.read for n in list(notes.value.values())))
        found = [notes.value[number] for number in range(len(job.parts))]
        pieces = [note.pieces for note in found]
        for number, note in enumerate(found):
            if note.bad:
                line = Plan(job.parts, pieces[:number] + [[]] * (len(pieces) - number), 1).line_of_part(number)
                raise bad_line_error(job.readers[job.parts[number][0]], line + note.bad[0], note.bad[1])
            if note.error:
                raise DataError(note.error)
        return pieces, paths

    def _second_pass(self, job: tasks.Job, plan: Plan, workspace: Workspace, vocabulary: Vocabulary, quiet: bool) -> None:
        """Makes the shards that are not there yet."""
        missing = [number for number in range(plan.shards) if not workspace.has_shard(number)]
        if not missing:
            return
        mapped = self.context.broadcast(vocabulary.mapped(workspace.path("index-")))
        shards = self.context.accumulator(0)

        def make(stretch: Any) -> None:
            shards.add(tasks.make_shards(job, mapped.value, stretch))

        stretches = list(plan.stretches(missing))
        progress = Progress("prepare: rows", plan.shards, "shards", quiet=quiet, done=plan.shards - len(missing))
        job_of_all = self.context.parallelize(stretches, len(stretches))
        before = progress.done
        run_job(self.context, lambda: job_of_all.foreach(make), progress, lambda: before + min(shards.value, len(missing)))
        mapped.unpersist()


def _notes_parameter() -> Any:
    """An accumulator's parameter: notes by part; of a task that ran twice they are the same."""
    from pyspark import AccumulatorParam

    class Notes(AccumulatorParam):  # type: ignore[misc]
        def zero(self, value: dict[int, Any]) -> dict[int, Any]:
            return {}

        def addInPlace(self, a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
            a.update(b)
            return a

    return Notes()


def _learnt(paths: Sequence[str], known: Vocabulary, learning: bool, admission: Admission) -> Vocabulary:
    """The keys that stay after a log whose merged keys are in the files `paths`."""
    merged, vocabulary = MergedKeys(paths), known.copy()
    counts = [merged.append_to(keys, i, learning=learning) for i, keys in enumerate(vocabulary.key_sets)]
    return vocabulary.keep(admission.choose(vocabulary, counts)) if admission.counts_keys else vocabulary
