"""Who may hold a thread of the gRPC server: a call that does not send its message must not keep the others waiting.

gRPC's Python server gives a call its thread first and waits there for the message, without a time limit.
"""

import queue
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import grpc

# So many threads may wait for messages at most.
WAITING_THREADS = 256
# A call that has waited for its message this long is counted as holding its thread, and another thread is added for it.
HELD_SECONDS = 0.02
# It is ended after the first of these, and after the second as soon as half of `WAITING_THREADS` wait.
MESSAGE_SECONDS, HURRIED_SECONDS = 30.0, 2.0


class Workers(Executor):
    """A pool of `count` threads, and as many more as `hold` says are held up; ThreadPoolExecutor can't grow and shrink.

    Args:
      name: of the threads.
      count: jobs worked on at a time.
    """

    def __init__(self, name: str, count: int):
        self._name, self._count = name, count
        self._jobs, self._lock = queue.SimpleQueue(), threading.Lock()
        self._alive = self._wanted = 0
        self.hold(0)

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future = Future()
        self._jobs.put((future, fn, args, kwargs))
        return future

    def hold(self, held: int) -> None:
        """Has `count` threads beside the `held` ones; surplus threads end with their job."""
        with self._lock:
            self._wanted = self._count + held
            while self._alive < self._wanted:
                self._alive += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for _ in range(self._alive):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, fn, args, kwargs = job
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as e:
                future.set_exception(e)
            del job, future, fn, args, kwargs  # not held until the next job comes
            if self._alive > self._wanted:
                with self._lock:
                    if self._alive > self._wanted:
                        self._alive -= 1
                        return


class Waiting:
    """The calls that wait for a message."""

    def __init__(self):
        self._since = {}

    def messages(self, requests, context):
        """The messages of a call as they come; ends with the client's side of it.

        Raises:
          grpc.RpcError: the call was ended, by the client or by `sweep`.
        """
        while True:
            self._since[context] = time.monotonic()
            try:
                message = next(requests, None)
            finally:
                del self._since[context]
            if message is None:
                return
            yield message

    def sweep(self) -> int:
        """Ends the calls that wait too long; gives how many others hold their thread."""
        waiting, now = list(self._since.items()), time.monotonic()
        limit = HURRIED_SECONDS if len(waiting) > WAITING_THREADS // 2 else MESSAGE_SECONDS
        for context, since in waiting:
            if now - since > limit:
                context.cancel()
        return min(sum(now - since > HELD_SECONDS for _, since in waiting), WAITING_THREADS)


class Reception(grpc.ServerInterceptor):
    """Has one service's calls worked on by `workers` threads, and everything else (health, reflection) by others.

    gRPC gives a handler of single messages no hold on a call before its message, so all are handled as streams, which is the same
    on the wire.

    Args:
      service: full name of the service.
      workers: its calls worked on at a time.

    Attributes:
      workers: the pool for the service, to be the server's own.
    """

    def __init__(self, service: str, workers: int):
        self._prefix = f"/{service}/"
        self.workers, self._others = Workers("grpc", workers), ThreadPoolExecutor(WAITING_THREADS, "grpc other")
        self._waiting, self._others_waiting = Waiting(), Waiting()
        self._handlers = {}
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begins to watch the waiting calls."""
        threading.Thread(target=self._sweep, name="grpc sweep", daemon=True).start()

    def stop(self) -> None:
        """Ends the threads; no call may be under way."""
        self._stopped.set()
        self.workers.shutdown()
        self._others.shutdown(wait=False)

    def _sweep(self) -> None:
        while not self._stopped.wait(HELD_SECONDS):
            self.workers.hold(self._waiting.sweep())
            self._others_waiting.sweep()

    def intercept_service(self, continuation, handler_call_details):
        method = handler_call_details.method
        if method not in self._handlers:
            handler = continuation(handler_call_details)
            if handler is None:  # an unknown method; not remembered, for there is no end of them
                return None
            self._handlers[method] = self._received(method, handler)
        return self._handlers[method]

    def _received(self, method: str, handler) -> grpc.RpcMethodHandler:
        ours = method.startswith(self._prefix)
        waiting = self._waiting if ours else self._others_waiting
        inner = handler.stream_stream or handler.unary_stream or handler.unary_unary

        def stream(requests, context):
            return inner(waiting.messages(requests, context), context)

        def single(requests, context, *callback):
            message = next(waiting.messages(requests, context), None)
            if message is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f'"{method}" requires exactly one request message.')
            try:
                request = handler.request_deserializer(message)
            except Exception:  # protobuf's DecodeError, in the words gRPC has for it
                context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
            return inner(request, context, *callback)

        behavior, deserializer = (stream, handler.request_deserializer) if handler.request_streaming else (single, None)
        if not ours:
            behavior.experimental_thread_pool = self._others
        # Health's Watch, which keeps no thread.
        behavior.experimental_non_blocking = getattr(inner, "experimental_non_blocking", False)
        make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
        return make(behavior, deserializer, handler.response_serializer)
