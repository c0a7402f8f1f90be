"""Requests that wait together become one run of the graph, as TensorFlow Serving's BatchingSession does it.

No thread of its own: the oldest waiting request's thread forms and runs the batch for all of them, then wakes the next. A lone
request therefore runs at once on its own thread, and batches form by themselves while all batch slots are busy.
"""

import threading
import time

import grpc
import numpy as np

from dlrm_tf.serving_api.status import RequestError, invalid_argument

# Defaults of tensorflow/core/kernels/batching_util/shared_batch_scheduler.h.
MAX_BATCH_SIZE, MAX_ENQUEUED_BATCHES = 1000, 10


class _Task:
    """One request's rows, waiting."""

    __slots__ = ("arrays", "size", "since", "leads", "event", "outputs", "error")

    def __init__(self, arrays, size: int):
        self.arrays, self.size, self.since = arrays, size, time.monotonic()
        self.leads, self.outputs, self.error = False, None, None
        self.event = threading.Event()


class _Queue:
    """Tasks that may share a batch: same tensors, dtypes and shapes but for the number of rows."""

    def __init__(self, lock):
        self.tasks: list[_Task] = []
        self.rows = 0
        self.led = False
        self.filled = threading.Condition(lock)


class Batcher:
    """Puts requests to one servable into batches.

    Args:
      run: function `(feeds, arrays, fetches) -> arrays` that runs the graph.
      parameters: `BatchingParameters`, checked.
      slots: semaphore of `num_batch_threads`, shared by all servables: batches that run at a time.
      observe: called with the rows of every batch run.
    """

    def __init__(self, run, parameters, slots: threading.Semaphore, observe=lambda rows: None):
        self._run, self._slots, self._observe = run, slots, observe
        self._limit = parameters.max_batch_size.value or MAX_BATCH_SIZE
        self._splits = parameters.enable_large_batch_splitting.value
        self._batch = (self._splits and parameters.max_execution_batch_size.value) or self._limit
        self._timeout = parameters.batch_timeout_micros.value / 1e6
        self._enqueued = (parameters.max_enqueued_batches.value or MAX_ENQUEUED_BATCHES) * self._batch
        self._allowed = list(parameters.allowed_batch_sizes)
        self._pads = parameters.pad_variable_length_inputs
        self._lock = threading.Lock()
        self._queues: dict[tuple, _Queue] = {}

    def run(self, feeds, arrays, fetches) -> list[np.ndarray]:
        """Runs one request, possibly together with others; same result as alone.

        Raises:
          RequestError: rows that don't fit each other or the limits, a full queue, or what the graph says.
        """
        size = self._rows(arrays)
        if size == 0:
            return self._run(feeds, arrays, fetches)
        if size > self._limit:
            raise invalid_argument(f"Task size {size} is larger than maximum input batch size {self._limit}")
        if size <= self._batch:
            return self._submit(feeds, arrays, fetches, size)
        parts = [
            self._submit(feeds, [array[i : i + self._batch] for array in arrays], fetches, min(self._batch, size - i))
            for i in range(0, size, self._batch)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts)]

    @staticmethod
    def _rows(arrays) -> int:
        if not arrays:
            raise invalid_argument("Batching Run() must have at least one input tensor")
        if any(array.ndim == 0 for array in arrays):
            raise invalid_argument("Batching Run() input tensors must have at least one dimension")
        size = len(arrays[0])
        if any(len(array) != size for array in arrays):
            raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
        return size

    def _submit(self, feeds, arrays, fetches, size: int):
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

    def _lead(self, key, queue: _Queue, leader: _Task) -> None:
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

    def _finish(self, feeds, fetches, tasks, rows: int) -> None:
        try:
            outputs = self._together(feeds, fetches, tasks, rows)
        except Exception as error:
            if len(tasks) == 1:
                tasks[0].error = error
                return
            # One bad request must not fail the others that happened to wait with it.
            for task in tasks:
                self._finish(feeds, fetches, [task], task.size)
            return
        start = 0
        for task in tasks:
            task.outputs = [array[start : start + task.size] for array in outputs]
            start += task.size

    def _together(self, feeds, fetches, tasks, rows: int):
        size = next((allowed for allowed in self._allowed if allowed >= rows), rows)
        self._observe(size)
        merged = [self._merge([task.arrays[i] for task in tasks], size - rows) for i in range(len(feeds))]
        outputs = self._run(feeds, merged, fetches)
        for name, output in zip(fetches, outputs):
            if np.ndim(output) == 0 or len(output) != size:
                raise RequestError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                    f"tensors: {name} has shape {list(np.shape(output))}, wanted {size} rows",
                )
        return outputs

    def _merge(self, parts, padding: int) -> np.ndarray:
        if self._pads and len({part.shape[1:] for part in parts}) > 1:
            inner = np.max([part.shape[1:] for part in parts], axis=0)
            parts = [_grow(part, inner) for part in parts]
        if padding:
            parts = [*parts, np.repeat(parts[0][:1], padding, axis=0)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _grow(array: np.ndarray, inner) -> np.ndarray:
    """`array` with its dimensions behind the first grown to `inner`, filled with 0 or ''."""
    grown = np.full((len(array), *inner), b"" if array.dtype == object else 0, array.dtype)
    grown[tuple(slice(0, size) for size in array.shape)] = array
    return grown
