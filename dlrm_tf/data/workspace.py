"""The work folder of a running `prepare`: finished shards, and the state needed to resume after the process was killed."""

import contextlib
import fcntl
import glob
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np

from dlrm_tf.data.key_file import Keys, read_keys, write_keys
from dlrm_tf.data.record_files import write_rows
from dlrm_tf.errors import DataError
from dlrm_tf.files import atomic_file, write_file

_FOLDER = ".prepare"


class Workspace:
    """`OUT/.prepare`: the job, and of each scanned shard the rows (`.bin`) and a note with the keys new in it (`.npz`).

    A shard counts only when its note is there, which is written last. Scanned rows are moved out when `prepare` finishes.
    """

    def __init__(self, out_dir: str):
        """Use `Workspace.open`."""
        self.out_dir, self.folder = out_dir, os.path.join(out_dir, _FOLDER)

    @classmethod
    @contextlib.contextmanager
    def open(cls, out_dir: str, job: dict[str, Any], *, resume: bool = True) -> Iterator["Workspace"]:
        """Starts a job, or continues the same one; holds a lock meanwhile.

        Args:
          out_dir: the data folder that is to be made.
          job: the arguments that must be the same for a job to be resumed, JSON values.
          resume: False removes what an interrupted run of the same job made, as its input can't be read again.

        Raises:
          DataError: the folder holds something else, another job, or a job that another process is doing.
        """
        workspace = cls(out_dir)
        workspace.check_free()
        os.makedirs(workspace.folder, exist_ok=True)
        with open(os.path.join(workspace.folder, "lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(f"{out_dir}: another dlrm-tf prepare is running there") from None
            # Temporary files of a killed run: with the lock held, no other process is writing them.
            for folder in (workspace.folder, out_dir, os.path.join(out_dir, "train"), os.path.join(out_dir, "test")):
                for leftover in glob.glob(os.path.join(glob.escape(folder), ".*.part")):
                    os.unlink(leftover)
            started = workspace.read_json("job.json")
            if started is None:
                workspace.write_json("job.json", job)
            elif started != job:
                other = sorted(key for key in {*started, *job} if started.get(key) != job.get(key))
                raise DataError(
                    f"{out_dir}: holds an interrupted prepare with other {', '.join(other)}; "
                    f"call it with the same arguments to resume, or remove {workspace.folder} to start again"
                )
            elif not resume:
                workspace._clear()
                workspace.write_json("job.json", job)
            yield workspace

    def check_free(self) -> None:
        """Raises DataError where the data folder holds something else than an interrupted job."""
        if os.path.isdir(self.out_dir) and os.listdir(self.out_dir) and not os.path.isdir(self.folder):
            raise DataError(f"{self.out_dir}: already holds files; choose another folder, or empty it first")

    def _clear(self) -> None:
        """Removes all but the lock, in the data folder too."""
        for folder in (self.out_dir, self.folder):
            for entry in list(os.scandir(folder)):
                if entry.path == self.folder or entry.name == "lock":
                    continue
                if entry.is_dir():
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)

    def path(self, name: str) -> str:
        """Path of a file of the work folder."""
        return os.path.join(self.folder, name)

    def read_json(self, name: str) -> Optional[dict[str, Any]]:
        """A note, or None when it is not there."""
        try:
            with open(self.path(name), encoding="utf-8") as file:
                note: dict[str, Any] = json.load(file)
                return note
        except FileNotFoundError:
            return None

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Writes a note; it appears whole or not at all."""
        write_file(self.path(name), json.dumps(values))

    def rows_path(self, number: int) -> str:
        """File of the rows of a scanned shard."""
        return self.path(f"{number:05d}.bin")

    def save_shard(
        self, number: int, rows: np.ndarray, *, new_keys: list[Keys], bad_lines: np.ndarray, note: dict[str, Any]
    ) -> None:
        """Keeps a scanned shard.

        Args:
          number: of the shard, from 0.
          rows: `[n]` of `row_dtype`.
          new_keys: of each of `Vocabulary.key_sets` the keys that this shard added, from `FeatureKeys.take_new`.
          bad_lines: positions of the bad lines in the shard, ascending.
          note: counts and place of the shard, JSON values.
        """
        with atomic_file(self.rows_path(number)) as temporary:
            write_rows(temporary, rows)
        write_keys(self._note_path(number), {"note": note, "bad_lines": bad_lines.tolist()}, new_keys)

    def shards(self) -> Iterator[tuple[dict[str, Any], list[Keys]]]:
        """`(note, new_keys)` of the finished shards, in order."""
        for number in itertools.count():
            if not self.has_shard(number):
                return
            read = read_keys(self._note_path(number))
            yield read.header["note"], read.parts

    def has_shard(self, number: int) -> bool:
        """Whether a shard is finished."""
        return os.path.exists(self._note_path(number))

    def bad_lines(self, number: int) -> np.ndarray:
        """Positions of the bad lines in a shard, int64, ascending."""
        return np.array(read_keys(self._note_path(number)).header["bad_lines"], np.int64)

    def _note_path(self, number: int) -> str:
        return self.path(f"{number:05d}.npz")

    def remove(self) -> None:
        """Removes the work folder, and the data folder when nothing else is in it."""
        shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):
            os.rmdir(self.out_dir)
