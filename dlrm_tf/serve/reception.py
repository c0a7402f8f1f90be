"""Calls that have not sent their request message yet must not occupy the gRPC server's threads.

gRPC's Python server gives a call a thread and waits there for the message, without a time limit. A few calls that send nothing
("half-open" calls) would stop the server. Here a thread that waits is replaced by another one until its message comes, and a call
that sends nothing for too long is cancelled.
"""

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Callable

import grpc

# Threads that may wait for messages at most.
MAX_WAITING_THREADS = 256
# A thread that has waited this long for a message is replaced by another one until the message comes.
REPLACE_SECONDS = 0.02
# A call without a message is cancelled after this time; after the second one while more than half of the threads above wait.
MESSAGE_SECONDS, CROWDED_MESSAGE_SECONDS = 30.0, 2.0


class Workers(Executor):
    """A pool of `count` threads that can grow and shrink, which ThreadPoolExecutor can't."""

    def __init__(self, name: str, count: int):
        self._name, self._count = name, count
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._alive = self._wanted = 0
        self.resize(0)

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        self._jobs.put((future, fn, args, kwargs))
        return future

    def resize(self, waiting: int) -> None:
        """Keeps `count` threads and one more for each of `waiting` threads; surplus threads end after their job."""
        with self._lock:
            self._wanted = self._count + waiting
            while self._alive < self._wanted:
                self._alive += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for _ in range(self._alive):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, fn, args, kwargs = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as e:
                    future.set_exception(e)
            del job, future, fn, args, kwargs  # a request's memory is freed before the next one comes
            if self._alive > self._wanted:
                with self._lock:
                    if self._alive > self._wanted:
                        self._alive -= 1
                        return


class PendingMessages:
    """The calls whose next message has not arrived."""

    def __init__(self) -> None:
        self._since: dict[grpc.ServicerContext, float] = {}

    def messages(self, requests: Iterator, context: grpc.ServicerContext) -> Iterator:
        """The messages of a call, from gRPC's iterator `requests`; raises grpc.RpcError when the call is cancelled."""
        while True:
            self._since[context] = time.monotonic()
            try:
                message = next(requests, None)
            finally:
                del self._since[context]
            if message is None:
                return
            yield message

    def cancel_overdue(self) -> int:
        """Cancels the calls that wait too long; returns how many threads wait for messages, short waits left out."""
        pending, now = list(self._since.items()), time.monotonic()
        limit = CROWDED_MESSAGE_SECONDS if len(pending) > MAX_WAITING_THREADS // 2 else MESSAGE_SECONDS
        for context, since in pending:
            if now - since > limit:
                context.cancel()
        return min(sum(now - since > REPLACE_SECONDS for _, since in pending), MAX_WAITING_THREADS)


class Reception(grpc.ServerInterceptor):
    """Runs the calls of `service` on `workers` threads, and all other calls (health, reflection) on a pool of their own.

    A handler of a single message gets no access to a call before its message, so every handler is registered as one that reads a
    stream of messages. On the wire that is the same.

    Attributes:
      workers: executor of the service's calls, to be the gRPC server's own.
    """

    def __init__(self, service: str, workers: int):
        self._prefix = f"/{service}/"
        self.workers = Workers("grpc", workers)
        self._others = ThreadPoolExecutor(MAX_WAITING_THREADS, "grpc other")
        self._pending, self._others_pending = PendingMessages(), PendingMessages()
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begins to watch the pending calls."""
        threading.Thread(target=self._watch, name="grpc pending", daemon=True).start()

    def stop(self) -> None:
        """Ends the threads; no call may be under way."""
        self._stopped.set()
        self.workers.shutdown()
        self._others.shutdown(wait=False)

    def _watch(self) -> None:
        while not self._stopped.wait(REPLACE_SECONDS):
            self.workers.resize(self._pending.cancel_overdue())
            self._others_pending.cancel_overdue()

    def intercept_service(self, continuation, handler_call_details):
        method = handler_call_details.method
        if method not in self._handlers:
            handler = continuation(handler_call_details)
            if handler is None:  # an unknown method; not kept, as clients can send any number of names
                return None
            self._handlers[method] = self._wrapped(method, handler)
        return self._handlers[method]

    def _wrapped(self, method: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        ours = method.startswith(self._prefix)
        pending = self._pending if ours else self._others_pending
        inner = handler.stream_stream or handler.unary_stream or handler.unary_unary

        def stream(requests, context):
            return inner(pending.messages(requests, context), context)

        def single(requests, context, *callback):
            message = next(pending.messages(requests, context), None)
            if message is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f'"{method}" requires exactly one request message.')
            try:
                request = handler.request_deserializer(message)
            except Exception:  # protobuf's DecodeError; the message is gRPC's own
                context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
            return inner(request, context, *callback)

        behavior: Any = stream if handler.request_streaming else single
        deserializer = handler.request_deserializer if handler.request_streaming else None
        # gRPC reads these two from a handler's function: the pool it runs on, and whether it returns at once (health's Watch).
        if not ours:
            behavior.experimental_thread_pool = self._others
        behavior.experimental_non_blocking = getattr(inner, "experimental_non_blocking", False)
        make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
        return make(behavior, deserializer, handler.response_serializer)
