"""`RequestLog`: a sample of the answered requests as `PredictionLog` records, after TensorFlow Serving's request_logger.cc."""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from dlrm_tf.serve.log_files import FRAME_BYTES, LogFiles
from dlrm_tf.serve.metrics import Metrics
from dlrm_tf.serve.options import ServerOptions

# Records that wait to be written may take so many bytes, and each some more for its objects; the next one is dropped.
QUEUE_BYTES, OBJECT_BYTES = 64 << 20, 256
# The writer looks so often: woken for each request it would take the interpreter from the next one.
PAUSE_SECONDS = 0.1
# Of a stop; a disk that hangs must not hold up the end of the process.
CLOSE_SECONDS = 2.0

# Gives a request and its response, as gRPC has them.
Messages = Callable[[], tuple[Any, Any]]

log = logging.getLogger("dlrm_tf.serve")


class _Waiting(NamedTuple):
    """A record that waits to be written."""

    model: str
    size: int
    record: bytes


class RequestLog:
    """Writes a sample of the answered requests into `LogFiles`, on a thread of its own.

    A request never waits for a disk: one that comes while too much waits is dropped. Its record is made on the request's own
    thread, in some microseconds: a writer that made many at once would hold the interpreter while requests want it.

    Written and dropped ones are counted in `:tensorflow:serving:request_log_count` with the status `OK`, `RESOURCE_EXHAUSTED`
    (too much waited, or too large) or `UNAVAILABLE` (the disk refused).

    Args:
      folder: where the files go.
      options: whose `request_log_...` say how many and how large.
      metrics: where they are counted.
    """

    def __init__(self, folder: str, options: ServerOptions, metrics: Metrics):
        self._folder, self._options, self._metrics = folder, options, metrics
        self._rate = options.request_log_sampling_rate
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._writer: Optional[threading.Thread] = None

    def start(self) -> None:
        """Opens the folder.

        Raises:
          ServingError: it can't be used.
        """
        options = self._options
        files = LogFiles(
            self._folder,
            file_bytes=options.request_log_file_bytes,
            file_seconds=options.request_log_file_seconds,
            total_bytes=options.request_log_max_bytes,
            count=self._metrics.logged,
        )
        self._writer = threading.Thread(target=self._write, args=(files,), name="request log", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Writes what waits, names the files; no request may be under way."""
        if self._writer is not None:
            self._closing.set()
            self._writer.join(CLOSE_SECONDS)

    def sampled(self) -> bool:
        """Whether a request is to be added."""
        return random.random() < self._rate

    def add(self, kind: str, model: str, size: int, messages: Messages) -> None:
        """Takes an answered request; returns at once.

        Args:
          kind: field of `PredictionLog`, such as `predict_log`.
          model: name of the model that answered.
          size: about the bytes of both messages.
          messages: gives them; not called when the request is dropped.
        """
        size += OBJECT_BYTES
        with self._lock:
            fits = self._waiting_bytes + size <= QUEUE_BYTES
            self._waiting_bytes += size if fits else 0
        if not fits:
            self._metrics.logged(model, "RESOURCE_EXHAUSTED", 1)
            return
        try:
            record = self._record(kind, *messages())
            dropped = "RESOURCE_EXHAUSTED" if len(record) + FRAME_BYTES > self._options.request_log_file_bytes else None
        except Exception:  # a defect; the request has been answered all the same
            log.exception("request log: a record was lost")
            dropped = "INTERNAL"
        if dropped is None:
            self._waiting.append(_Waiting(model, size, record))
        else:
            self._metrics.logged(model, dropped, 1)
            self._release(size)

    def _release(self, size: int) -> None:
        with self._lock:
            self._waiting_bytes -= size

    def _write(self, files: LogFiles) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(PAUSE_SECONDS)
            while self._waiting:
                waiting = self._waiting.popleft()
                files.write(waiting.model, waiting.record)
                self._release(waiting.size)
            files.flush()
        files.close()

    def _record(self, kind: str, request: Any, response: Any) -> bytes:
        record = PredictionLog()
        metadata = record.log_metadata
        # The model that answered: its name, version and signature, of several (MultiInference) the first one's.
        metadata.model_spec.CopyFrom(response.results[0].model_spec if hasattr(response, "results") else response.model_spec)
        metadata.sampling_config.sampling_rate = self._rate
        metadata.saved_model_tags.extend(self._options.tags)
        metadata.timestamp_secs = int(time.time())
        exchange = getattr(record, kind)
        exchange.request.CopyFrom(request)
        exchange.response.CopyFrom(response)
        return record.SerializeToString()
