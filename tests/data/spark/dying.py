"""A reader that kills processes for real, and `prepare` with it."""

import os
import pathlib
import signal
import sys

from dlrm_tf.data import prepare as prepare_module
from dlrm_tf.data.readers.text import TextReader

# Many parts (six of the golden log with PART_BYTES) and shards.
PART_BYTES = 30_000
ARGUMENTS = {"shard_lines": 50, "min_count": 2}
WORKER, EXECUTOR = "worker", "executor"


class DyingReader(TextReader):
    """Kills a process once, just before the `dies_at`-th time that any worker begins to read; or, with -1, each time.

    `victim` is a process id, or `WORKER`, the Python worker that reads, or `EXECUTOR`, the JVM of that worker's daemon.
    """

    def __init__(self, path, spec, *, dies_at, victim, marks: pathlib.Path):
        super().__init__(path, spec)
        self.dies_at, self.victim, self.marks = dies_at, victim, marks

    def pieces(self, offset=0):
        if self._is_time():
            os.kill(self._pid(), signal.SIGKILL)
        yield from super().pieces(offset)

    def _is_time(self) -> bool:
        if self.dies_at < 0:
            return True
        for i in range(self.dies_at + 1):  # counts over all processes: a file can be made once
            try:
                (self.marks / str(i)).touch(exist_ok=False)
                return i == self.dies_at
            except FileExistsError:
                pass
        return False

    def _pid(self) -> int:
        if self.victim == EXECUTOR:
            fields = pathlib.Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[1])  # the parent of the daemon
        return os.getpid() if self.victim == WORKER else self.victim


def prepare_dying(log, out, marks: pathlib.Path, dies_at: int, victim, engine) -> None:
    """`prepare` with a `DyingReader`; `marks` is a folder to make, in which reads are counted."""
    import pyspark.cloudpickle

    pyspark.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import this file
    marks.mkdir()
    open_readers = prepare_module.open_readers
    prepare_module.open_readers = lambda path, spec: [DyingReader(path, spec, dies_at=dies_at, victim=victim, marks=marks)]
    try:
        prepare_module.prepare(str(log), out, engine=engine, **ARGUMENTS)
    finally:
        prepare_module.open_readers = open_readers


def tree(folder) -> dict[str, bytes]:
    """All files of a folder by relative path."""
    folder = pathlib.Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
