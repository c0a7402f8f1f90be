"""Requests that wait together become one run of the graph, as TensorFlow Serving's BatchingSession does it.

There is no batching thread: the thread of the oldest waiting request forms the batch and runs it for all, then the next oldest
takes over. A lone request therefore runs at once on its own thread, and batches form while all `num_batch_threads` are busy.
"""

import threading
import time
from collections.abc import Sequence
from typing import Callable, Optional

import grpc
import numpy as np

from dlrm_tf.serve.any_servable import AnyServable
from dlrm_tf.serving_api.config_protos import BatchingParameters
from dlrm_tf.serving_api.errors import RequestError, invalid_argument
from dlrm_tf.serving_api.limits import MAX_BATCH_SIZE, MAX_ENQUEUED_BATCHES


class TooManyRows(RequestError):
    """A request of more rows than a batch may have."""

    def __init__(self, rows: int, limit: int):
        super().__init__(grpc.StatusCode.INVALID_ARGUMENT, f"Task size {rows} is larger than maximum input batch size {limit}")


class _Task:
    """One request's rows, waiting."""

    __slots__ = ("arrays", "size", "since", "leads", "event", "outputs", "error")

    def __init__(self, arrays: Sequence[np.ndarray], size: int):
        self.arrays, self.size, self.since = arrays, size, time.monotonic()
        self.leads = False
        self.outputs: list[np.ndarray] = []
        self.error: Optional[Exception] = None
        self.event = threading.Event()


class _Queue:
    """Tasks that may share a batch: same tensors, dtypes and shapes but for the number of rows."""

    def __init__(self, lock: threading.Lock):
        self.tasks: list[_Task] = []
        self.rows = 0
        self.led = False
        self.filled = threading.Condition(lock)


class BatchedServable:
    """A servable that runs waiting requests together; same members as `Servable`, same answers.

    Args:
      servable: runs the batches.
      parameters: `BatchingParameters`, checked.
      slots: semaphore of `num_batch_threads`, shared by all servables: batches that run at a time.
      observe: called with the number of rows, padding included, of every batch run.
    """

    def __init__(
        self, servable: AnyServable, parameters: BatchingParameters, *, slots: threading.Semaphore, observe: Callable[[int], None]
    ):
        self.path, self.signatures = servable.path, servable.signatures
        self.check_method_names = servable.check_method_names
        self._servable, self._slots, self._observe = servable, slots, observe
        self._limit = parameters.max_batch_size.value or MAX_BATCH_SIZE
        splits = parameters.enable_large_batch_splitting.value
        self._batch = (splits and parameters.max_execution_batch_size.value) or self._limit
        self._timeout = parameters.batch_timeout_micros.value / 1e6
        self._enqueued = (parameters.max_enqueued_batches.value or MAX_ENQUEUED_BATCHES) * self._batch
        self._allowed = list(parameters.allowed_batch_sizes)
        self._pads = parameters.pad_variable_length_inputs
        self._lock = threading.Lock()
        self._queues: dict[tuple, _Queue] = {}

    def run(self, feeds: tuple[str, ...], arrays: Sequence[np.ndarray], fetches: tuple[str, ...]) -> list[np.ndarray]:
        """As `Servable.run`, possibly together with other requests; the arrays are `[rows, ...]`.

        Raises:
          RequestError: numbers of rows that differ or exceed the limit, a full queue, or what the graph refuses.
        """
        size = _rows(arrays)
        if size == 0:
            return self._servable.run(feeds, arrays, fetches)
        if size > self._limit:
            raise TooManyRows(size, self._limit)
        if size <= self._batch:
            return self._submit(feeds, arrays, fetches, size)
        parts = [
            self._submit(feeds, [array[i : i + self._batch] for array in arrays], fetches, min(self._batch, size - i))
            for i in range(0, size, self._batch)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts)]

    def close(self) -> None:
        """Frees the model's memory; no call may be under way."""
        self._servable.close()

    def _submit(self, feeds, arrays, fetches, size: int) -> list[np.ndarray]:
        inner = tuple(array.ndim if self._pads else array.shape[1:] for array in arrays)
        key = (feeds, fetches, tuple(array.dtype for array in arrays), inner)
        task = _Task(arrays, size)
        with self._lock:
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = _Queue(self._lock)
            if queue.rows + size > self._enqueued:
                raise RequestError(
                    grpc.StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; currently "
                    f"{queue.rows} rows are enqueued and {self._enqueued} is the limit",
                )
            queue.tasks.append(task)
            queue.rows += size
            if not queue.led:
                queue.led = task.leads = True
            elif queue.rows >= self._batch:
                queue.filled.notify()
        if not task.leads:
            task.event.wait()
        if task.leads:
            self._lead(key, queue, task)
        if task.error is not None:
            raise task.error
        return task.outputs

    def _lead(self, key: tuple, queue: _Queue, leader: _Task) -> None:
        """Waits for rows (until the leader's timeout) and for a slot, then runs what is queued by then."""
        with self._lock:
            due = leader.since + self._timeout
            queue.filled.wait_for(lambda: queue.rows >= self._batch, max(due - time.monotonic(), 0))
        with self._slots:
            with self._lock:
                taken, rows = 0, 0
                for task in queue.tasks:
                    if rows + task.size > self._batch:
                        break
                    taken, rows = taken + 1, rows + task.size
                tasks, queue.tasks = queue.tasks[:taken], queue.tasks[taken:]
                queue.rows -= rows
                if queue.tasks:
                    queue.tasks[0].leads = True
                    queue.tasks[0].event.set()
                else:
                    queue.led = False
                    del self._queues[key]
            self._finish(key[0], key[1], tasks, rows)
        for task in tasks:
            task.event.set()

    def _finish(self, feeds, fetches, tasks: list[_Task], rows: int) -> None:
        """Gives each task its outputs or its error."""
        try:
            outputs = self._run_batch(feeds, fetches, tasks, rows)
        except Exception as error:
            if len(tasks) == 1:
                tasks[0].error = error
                return
            # A request that the graph refuses must not fail the others in its batch.
            for task in tasks:
                self._finish(feeds, fetches, [task], task.size)
            return
        start = 0
        for task in tasks:
            task.outputs = [array[start : start + task.size] for array in outputs]
            start += task.size

    def _run_batch(self, feeds, fetches, tasks: list[_Task], rows: int) -> list[np.ndarray]:
        size = next((allowed for allowed in self._allowed if allowed >= rows), rows)
        self._observe(size)
        merged = [self._merge([task.arrays[i] for task in tasks], size - rows) for i in range(len(feeds))]
        outputs = self._servable.run(feeds, merged, fetches)
        for name, output in zip(fetches, outputs):
            if np.ndim(output) == 0 or len(output) != size:
                raise RequestError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                    f"tensors: {name} has shape {list(np.shape(output))}, wanted {size} rows",
                )
        return outputs

    def _merge(self, parts: list[np.ndarray], padding: int) -> np.ndarray:
        if self._pads and len({part.shape[1:] for part in parts}) > 1:
            inner = np.max([part.shape[1:] for part in parts], axis=0)
            parts = [_grow(part, inner) for part in parts]
        if padding:
            parts = [*parts, np.repeat(parts[0][:1], padding, axis=0)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _rows(arrays: Sequence[np.ndarray]) -> int:
    if not arrays:
        raise invalid_argument("Batching Run() must have at least one input tensor")
    if any(array.ndim == 0 for array in arrays):
        raise invalid_argument("Batching Run() input tensors must have at least one dimension")
    size = len(arrays[0])
    if any(len(array) != size for array in arrays):
        raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
    return size


def _grow(array: np.ndarray, inner) -> np.ndarray:
    """`array` with its dimensions after the first grown to `inner`, filled with 0 or ''."""
    grown = np.full((len(array), *inner), b"" if array.dtype == object else 0, array.dtype)
    grown[tuple(slice(0, size) for size in array.shape)] = array
    return grown
