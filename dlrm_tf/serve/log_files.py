"""`LogFiles`: records in TFRecord files, a folder a model, each file whole under its name and all together bounded."""

import contextlib
import datetime
import fcntl
import logging
import os
import time
import urllib.parse
from collections.abc import Callable
from typing import NamedTuple, Optional

import tensorflow as tf

from dlrm_tf.errors import ServingError
from dlrm_tf.serving_api.limits import MAX_WARMUP_RECORDS

PREFIX, SUFFIX, PART = "requests-", ".tfrecord", ".part"
# Bytes of a TFRecord beside its record: length, and two checksums.
FRAME_BYTES = 16
# After a failure records are dropped for so long: a disk that is almost full must not fill with files of one record.
RETRY_SECONDS = 10.0

log = logging.getLogger("dlrm_tf.serve")


class _Complete(NamedTuple):
    """A file under its name; sorted by age, as names begin with the time."""

    name: str
    path: str
    bytes: int


class _OpenFile:
    """A file that is being written, hidden until `finish`."""

    def __init__(self, folder: str):
        name = f"{PREFIX}{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S.%f}{SUFFIX}"
        os.makedirs(folder, mode=0o700, exist_ok=True)  # requests may be private
        self._path, self._part = os.path.join(folder, name), os.path.join(folder, f".{name}{PART}")
        self._writer = tf.io.TFRecordWriter(self._part)
        self.since = time.monotonic()
        self.records = self.bytes = 0
        self._safe_records = self._safe_bytes = 0  # those that have been flushed

    @property
    def unsafe(self) -> int:
        """Records since the last flush."""
        return self.records - self._safe_records

    def write(self, record: bytes) -> None:
        self.records += 1
        self.bytes += len(record) + FRAME_BYTES
        self._writer.write(record)

    def flush(self) -> None:
        self._writer.flush()
        self._safe_records, self._safe_bytes = self.records, self.bytes

    def finish(self) -> None:
        """Gives the file its name, with the records that have been flushed."""
        with contextlib.suppress(tf.errors.OpError):  # what was flushed is there, whatever happens to the rest
            self._writer.close()
        if not self._safe_records:
            os.unlink(self._part)
            return
        os.truncate(self._part, self._safe_bytes)
        os.rename(self._part, self._path)


class LogFiles:
    """The files `FOLDER/MODEL/requests-TIME.tfrecord`, used by one thread.

    A file has at most `MAX_WARMUP_RECORDS` records, so that it serves as a version's warm-up file. A failure (a full disk) costs
    the records since the last flush and those of the next `RETRY_SECONDS`; it is told in the log once.

    Args:
      folder: made when it is missing. A part file that a killed server left is removed.
      file_bytes: of a file, at most.
      file_seconds: a file gets its name at this age.
      total_bytes: of all files together, at most; the oldest leave. Not below `file_bytes`.
      count: called with model, status (`OK`, `UNAVAILABLE`) and how many records ended so.

    Raises:
      ServingError: the folder can't be made or read, or another server uses it.
    """

    def __init__(
        self, folder: str, *, file_bytes: int, file_seconds: float, total_bytes: int, count: Callable[[str, str, int], None]
    ):
        self._folder, self._count = folder, count
        self._file_bytes, self._file_seconds, self._total_bytes = file_bytes, file_seconds, total_bytes
        self._open: dict[str, _OpenFile] = {}
        self._retry_at: Optional[float] = None  # set while writing fails
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._lock = os.open(folder, os.O_RDONLY)
            _lock(self._lock, folder)
            self._complete_bytes = sum(file.bytes for file in self._complete(remove_parts=True))
        except OSError as e:
            raise ServingError(f"--request_log_dir: wanted a folder for files. Received {folder} ({e.strerror})") from e

    def write(self, model: str, record: bytes) -> None:
        """Appends a record, which has to fit into a file, to the file of a model."""
        size = len(record) + FRAME_BYTES
        if self._retry_at is not None and time.monotonic() < self._retry_at:
            self._count(model, "UNAVAILABLE", 1)
            return
        try:
            file = self._open.get(model)
            if file is not None and (file.records >= MAX_WARMUP_RECORDS or file.bytes + size > self._file_bytes):
                self._finish(model)
            self._make_room(size)
            if model not in self._open:
                self._open[model] = _OpenFile(self._folder_of(model))
            self._open[model].write(record)
        except (OSError, tf.errors.OpError) as e:
            self._failed(model, e, 0 if model in self._open else 1)

    def flush(self) -> None:
        """Makes sure of what was written; names the files that are old enough."""
        for model in list(self._open):
            self._flush(model)
            file = self._open.get(model)
            if file is not None and time.monotonic() - file.since >= self._file_seconds:
                self._finish(model)

    def close(self) -> None:
        """Names all files."""
        for model in list(self._open):
            self._finish(model)
        os.close(self._lock)

    def _flush(self, model: str) -> None:
        file = self._open[model]
        count = file.unsafe
        if not count:
            return
        try:
            file.flush()
        except (OSError, tf.errors.OpError) as e:
            self._failed(model, e, 0)
            return
        self._count(model, "OK", count)
        if self._retry_at is not None:
            self._retry_at = None
            log.info("request log %s: written again", self._folder)

    def _finish(self, model: str) -> None:
        self._flush(model)
        file = self._open.pop(model, None)
        if file is None:  # the flush failed
            return
        try:
            file.finish()
        except OSError as e:
            self._failed(model, e, 0)
        self._recount()

    def _failed(self, model: str, error: Exception, more: int) -> None:
        """Counts what is lost with the file of a model, and `more`; what was flushed before is kept."""
        if self._retry_at is None:
            why = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
            log.warning("request log %s: records are dropped until it can be written again: %s", self._folder, why)
        self._retry_at = time.monotonic() + RETRY_SECONDS
        file = self._open.pop(model, None)
        if file is not None:
            more += file.unsafe
            with contextlib.suppress(OSError):
                file.finish()
            self._recount()
        self._count(model, "UNAVAILABLE", more)

    def _recount(self) -> None:
        with contextlib.suppress(OSError):  # the folder is gone; the next write makes it
            self._complete_bytes = sum(file.bytes for file in self._complete())

    def _make_room(self, size: int) -> None:
        """Removes the oldest files until `size` more bytes are allowed."""
        while self._complete_bytes + sum(file.bytes for file in self._open.values()) + size > self._total_bytes:
            oldest = min(self._complete(), default=None)
            if oldest is None:
                if not self._open:
                    return
                for model in list(self._open):  # many models with a file each: the oldest of them leaves next
                    self._finish(model)
                continue
            with contextlib.suppress(FileNotFoundError):  # somebody has taken it away
                os.unlink(oldest.path)
            self._complete_bytes -= oldest.bytes

    def _folder_of(self, model: str) -> str:
        name = urllib.parse.quote(model, safe="")
        return os.path.join(self._folder, name.replace(".", "%2E") if name.startswith(".") else name)

    def _complete(self, *, remove_parts: bool = False) -> list[_Complete]:
        """The files under their names, listed anew each time: others may take them away."""
        found = []
        for folder in os.scandir(self._folder):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX):
                    with contextlib.suppress(FileNotFoundError):
                        found.append(_Complete(entry.name, entry.path, entry.stat().st_size))
                elif remove_parts and entry.name.startswith(f".{PREFIX}") and entry.name.endswith(PART):
                    os.unlink(entry.path)
        return found


def _lock(descriptor: int, folder: str) -> None:
    """Raises ServingError where another server has locked the folder."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ServingError(f"--request_log_dir: wanted a folder of this server alone. Received {folder}") from None
    except OSError:
        log.info("request log %s: a file system without locks; no second server may use it", folder)
