"""Large JSON bodies and answers in processes of their own, so that they hold up no other request of the server."""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, Optional

import grpc
import numpy as np

import dlrm_tf
from dlrm_tf.serve.json_worker import ERROR, RESULT, TAG, TEXT, pack, send
from dlrm_tf.serve.rest_json import ValueType
from dlrm_tf.serving_api.errors import RequestError

# A body of more bytes is read, an answer of more values written by another process. Below, the way there and back takes longer.
BIG_BODY_BYTES, BIG_ANSWER_VALUES = 1 << 16, 1 << 13


class _Process:
    """A `json_worker` and the connection to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        root = os.path.dirname(os.path.dirname(os.path.abspath(dlrm_tf.__file__)))
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dlrm_tf.serve.json_worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        self.connection = Connection(ours.detach())

    def kill(self) -> None:
        """Ends it; whoever waits for an answer of it gets EOFError."""
        self._process.kill()
        self._process.wait()

    def answers(self, deadline: float) -> Iterator[tuple[int, memoryview]]:
        """Tags and data of its messages, up to the result; raises RequestError when that is an error or comes too late."""
        tag = TEXT
        while tag != RESULT:
            if not self.connection.poll(max(deadline - time.monotonic(), 0)):
                raise _too_late()
            message = memoryview(self.connection.recv_bytes())
            (tag,) = TAG.unpack_from(message)
            if tag == ERROR:
                raise RequestError(*pickle.loads(message[TAG.size :]))
            yield tag, message[TAG.size :]


class JsonParsers:
    """Reads bodies and writes answers of Predict in at most `count` processes; each is started when it is first needed.

    A job that takes longer than `timeout` seconds ends with its process.
    """

    def __init__(self, *, count: int, timeout: float):
        self._timeout = timeout
        self._places = threading.Semaphore(count)
        # Guards the two lists of processes.
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._working: list[_Process] = []
        self._stopped = False

    def decode(self, body: bytearray, types: Mapping[str, Mapping[str, ValueType]]) -> tuple[str, bool, dict[str, np.ndarray]]:
        """Reads a body, and empties it.

        Args:
          body: of a Predict request.
          types: input types by input name by signature name.

        Returns:
          `(signature name, whether the body has rows, arrays by input name)`.

        Raises:
          RequestError: the body's fault; DEADLINE_EXCEEDED after `timeout`, UNAVAILABLE when the server stops.
        """
        buffers: dict[int, Any] = {}
        with self._process() as (process, deadline):
            process.connection.send(("decode", len(body), types))
            send(process.connection, body)
            body.clear()  # the process has it
            for tag, data in process.answers(deadline):
                if tag == RESULT:
                    name, in_rows, inputs = pickle.loads(data)
                elif tag % 2:
                    buffers.setdefault(tag, []).extend(pickle.loads(data))
                else:
                    buffers.setdefault(tag, bytearray()).extend(data)
        return (
            name,
            in_rows,
            {key: _array(buffers.get(tag, b""), types[name][key], shape) for key, (tag, shape) in inputs.items()},
        )

    def encode(self, outputs: Mapping[str, np.ndarray], in_rows: bool) -> bytes:
        """The JSON of a Predict answer, as `rest_columns.encode` has it; raises RequestError as `decode` does."""
        packed = {name: pack(array) for name, array in outputs.items()}
        header = {name: (array.dtype, array.shape, len(packed[name])) for name, array in outputs.items()}
        with self._process() as (process, deadline):
            process.connection.send(("encode", header, in_rows))
            for data in packed.values():
                send(process.connection, data)
            return b"".join(data for tag, data in process.answers(deadline) if tag == TEXT)

    def stop(self) -> None:
        """Ends the processes; jobs under way fail with UNAVAILABLE."""
        with self._lock:
            self._stopped = True
            for process in self._working + self._idle:
                process.kill()

    @contextlib.contextmanager
    def _process(self) -> Iterator[tuple[_Process, float]]:
        """A process for one job, and the `time.monotonic()` by which the job must have ended."""
        deadline = time.monotonic() + self._timeout
        if not self._places.acquire(timeout=self._timeout):
            raise _too_late()
        process: Optional[_Process] = None
        fit = False  # to do another job: it has sent the whole answer of this one
        try:
            with self._lock:
                if self._stopped:
                    raise _ended("the server stops")
                process = self._idle.pop() if self._idle else _Process()
                self._working.append(process)
            yield process, deadline
            fit = True
        except RequestError as e:
            fit = e.code not in _UNFINISHED
            raise
        except (OSError, EOFError) as e:
            raise _ended("the process that read it has ended") from e
        finally:
            with self._lock:
                if process is not None:
                    self._working.remove(process)
                    if fit:
                        self._idle.append(process)
                    else:
                        process.kill()
                        process.connection.close()
            self._places.release()


def _array(values: Any, kind: ValueType, shape: tuple[int, ...]) -> np.ndarray:
    if kind.dtype != object:
        return np.frombuffer(values, kind.dtype).reshape(shape)
    array = np.empty(len(values), object)
    array[:] = values if values else []
    return array.reshape(shape)


# Codes that none of the body's own errors has.
_UNFINISHED = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


def _too_late() -> RequestError:
    return RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "The request's JSON takes too long")


def _ended(why: str) -> RequestError:
    return RequestError(grpc.StatusCode.UNAVAILABLE, f"The request's JSON was not read to its end: {why}")
