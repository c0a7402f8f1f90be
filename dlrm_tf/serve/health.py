"""grpc.health.v1: whether the server and its services answer requests, for probes and for watchers.

grpcio-health's own servicer tells watchers while it holds the lock that a watcher's leaving needs: a server that stops in the
moment a watcher leaves then waits for ever. Here nothing is sent under a lock that anything else needs.
"""

import threading
from typing import Callable, Optional

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class _Watcher:
    """A caller of Watch, told a service's status when it is not the one told before."""

    def __init__(self, status: Callable[[], int], send: Callable[[health_pb2.HealthCheckResponse], None]):
        self._status, self._send = status, send
        self._told: Optional[int] = None
        self._lock = threading.Lock()  # for the order of what it is told

    def tell(self) -> None:
        with self._lock:
            status = self._status()
            if status != self._told:
                self._told = status
                self._send(health_pb2.HealthCheckResponse(status=status))


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Check and Watch, for the services that `set` named."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statuses: dict[str, int] = {}
        self._watchers: dict[_Watcher, str] = {}

    def set(self, service: str, status: int) -> None:
        """Changes a service's status ('' is the whole server) and tells those who watch it."""
        with self._lock:
            self._statuses[service] = status
            watchers = [watcher for watcher, watched in self._watchers.items() if watched == service]
        for watcher in watchers:
            watcher.tell()

    def enter_graceful_shutdown(self) -> None:
        """Every service is NOT_SERVING from now on; returns at once, watchers are told meanwhile: one may read nothing."""
        with self._lock:
            self._statuses = dict.fromkeys(self._statuses, health_pb2.HealthCheckResponse.NOT_SERVING)
            watchers = list(self._watchers)
        for watcher in watchers:
            threading.Thread(target=watcher.tell, name="grpc health", daemon=True).start()

    def Check(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> health_pb2.HealthCheckResponse:
        """Answers a probe; NOT_FOUND for an unknown service."""
        status = self._statuses.get(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send: Callable) -> None:
        """Sends the service's status now and whenever it changes, until the caller leaves; occupies no thread."""
        service = request.service
        watcher = _Watcher(lambda: self._statuses.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN), send)
        with self._lock:
            self._watchers[watcher] = service
        if context.add_callback(lambda: self._forget(watcher)):
            watcher.tell()
        else:  # it has left already
            self._forget(watcher)

    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]  # gRPC then passes the function that sends

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.pop(watcher, None)
