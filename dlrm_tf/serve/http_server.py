"""The HTTP side of a server: aiohttp's event loop on a thread of its own, with limits on sizes, times and connections."""

import asyncio
import logging
import socket
import threading
import time
import zlib
from typing import Callable, Optional

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from dlrm_tf.serve import rest
from dlrm_tf.serve.core import ServerCore
from dlrm_tf.serve.json_parsers import BIG_BODY_BYTES, JsonParsers
from dlrm_tf.serve.metrics import CONTENT_TYPE
from dlrm_tf.serve.options import ServerOptions
from dlrm_tf.serve.reception import Workers

# Request bodies in memory at a time may be this many times as large as the limit of one body, all together.
BODIES_IN_MEMORY = 4
# Processes that read large bodies, so many large requests are answered at a time; they don't occupy the threads of the others.
PARSERS = 2
# Seconds between two looks for connections that have been idle too long.
IDLE_CHECK_SECONDS = 1.0
# Seconds between two looks whether a connection that the client has closed on its side is still owed an answer.
HALF_CLOSED_SECONDS = 0.05
# A compressed body is decompressed to so many bytes at a time.
DECOMPRESSED_BYTES = 1 << 20
# zlib's number for "gzip or zlib, whichever the data is".
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

# aiohttp answers malformed HTTP with 400; it must not log that, as clients could then fill the log.
log = logging.getLogger("dlrm_tf.serve.http")
log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))


class _Body:
    """A request's body and the bytes it counts for until the request is answered."""

    def __init__(self) -> None:
        self.data, self.counted = bytearray(), 0


class HalfClosable(asyncio.Protocol):
    """aiohttp's protocol of a connection, which stays open for the answer when the client closes its own side after its request.

    Args:
      inner: aiohttp's.
      is_owed: function `inner -> bool`: it has a whole request, not answered yet.
    """

    def __init__(self, inner: asyncio.Protocol, is_owed: Callable[[asyncio.Protocol], bool]):
        self._inner, self._is_owed = inner, is_owed
        self.data_received, self.connection_lost = inner.data_received, inner.connection_lost  # type: ignore[method-assign]
        self.pause_writing, self.resume_writing = inner.pause_writing, inner.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._inner.connection_made(transport)

    def eof_received(self) -> bool:
        # aiohttp may not have begun with what it received a moment ago.
        asyncio.get_running_loop().call_later(HALF_CLOSED_SECONDS, self._close_when_answered)
        return True

    def _close_when_answered(self) -> None:
        if self._is_owed(self._inner):
            asyncio.get_running_loop().call_later(HALF_CLOSED_SECONDS, self._close_when_answered)
        else:
            self._transport.close()


class HttpServer:
    """Answers REST and, with a metrics path, Prometheus, on a bound socket.

    The timeout of the options limits the time of a request and how long a connection may stay idle.
    """

    def __init__(self, core: ServerCore, options: ServerOptions, sock: socket.socket):
        self._core, self._sock = core, sock
        self._timeout = options.rest_api_timeout_in_ms / 1e3
        self._max_body, self._metrics_path = options.rest_api_max_body_bytes, options.metrics_path
        self._headers = rest.CORS_HEADERS if options.rest_api_enable_cors_support else {}
        # Daemon threads: one that a model keeps busy does not keep the process from ending.
        self._workers, self._big_workers = Workers("rest", options.rest_threads()), Workers("rest large", PARSERS)
        self._parsers = JsonParsers(count=PARSERS, timeout=self._timeout)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rest loop", daemon=True)
        self._buffered_bytes = 0
        # Connection -> the request it is owed an answer to.
        self._requests: dict[asyncio.Protocol, web.Request] = {}
        # Connection -> time of its last answer (or when it was first seen); None while a request is being answered.
        self._idle_since: dict[asyncio.Protocol, Optional[float]] = {}

    def start(self) -> None:
        """Starts listening."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def stop(self, grace: float) -> None:
        """Accepts no new connections, gives requests under way `grace` seconds; returns when all are answered or given up."""
        asyncio.run_coroutine_threadsafe(self._stop(grace), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._parsers.stop()
        self._workers.shutdown()
        self._big_workers.shutdown()

    async def _start(self):
        # Bodies are decompressed in `_decompressed`: aiohttp would answer damaged ones with plain text and log a traceback.
        server = web.Application(client_max_size=0)
        server.router.add_route("*", "/{path:.*}", self._handle)
        limits = {"keepalive_timeout": self._timeout, "shutdown_timeout": 1.0}
        self._runner = web.AppRunner(server, access_log=None, logger=log, auto_decompress=False, handle_signals=False, **limits)
        await self._runner.setup()
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: HalfClosable(self._runner.server(), self._has_whole_request), sock=self._sock, backlog=4096
        )
        self._idle_check = asyncio.ensure_future(self._close_idle())

    async def _stop(self, grace: float):
        self._idle_check.cancel()
        self._listener.close()
        deadline = time.monotonic() + grace
        while None in self._idle_since.values() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await self._runner.cleanup()

    def _has_whole_request(self, connection: asyncio.Protocol) -> bool:
        request = self._requests.get(connection)
        return request is not None and request.content.is_eof()

    async def _handle(self, request: web.Request) -> web.Response:
        self._requests[request.protocol] = request
        self._idle_since[request.protocol] = None
        try:
            return await asyncio.wait_for(self._answer(request), self._timeout)
        except asyncio.TimeoutError:
            return self._reply(504, rest.error_body(f"The request took longer than {self._timeout:g} s"), close=True)
        finally:
            self._idle_since[request.protocol] = time.monotonic()
            del self._requests[request.protocol]

    async def _answer(self, request: web.Request) -> web.Response:
        path = request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs
        if path == self._metrics_path:
            return web.Response(body=self._core.metrics.page(), headers={"Content-Type": CONTENT_TYPE})
        body = _Body()
        try:
            refused = await self._read(request, body)
            if refused is not None:
                return self._reply(*refused, close=True)
            workers = self._big_workers if body.counted > BIG_BODY_BYTES else self._workers
            origin = request.headers.get("Origin", "")
            status, answer = await asyncio.get_running_loop().run_in_executor(
                workers, rest.answer, self._core, self._parsers, request.method, path, body.data, origin
            )
            return self._reply(status, answer)
        finally:
            self._buffered_bytes -= body.counted

    async def _read(self, request: web.Request, body: _Body) -> Optional[tuple[int, bytes]]:
        """Reads the request's body into `body`; gives `(status, error)` when it is refused."""
        if (request.content_length or 0) > self._max_body:
            return self._too_large()
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            return 415, rest.error_body(f"Unsupported Content-Encoding: {encoding}, wanted gzip, deflate or identity")
        pieces = request.content.iter_any()
        try:
            async for piece in pieces if encoding == "identity" else _decompressed(pieces):
                body.data += piece
                body.counted += len(piece)
                self._buffered_bytes += len(piece)
                if body.counted > self._max_body:
                    return self._too_large()
                if self._buffered_bytes > BODIES_IN_MEMORY * self._max_body:
                    return 429, rest.error_body("Too many large requests at a time; try again")
        except (web.RequestPayloadError, zlib.error, ConnectionError) as e:  # ConnectionError: the client has disconnected
            return 400, rest.error_body(f"Malformed request body: {e}")
        return None

    def _too_large(self) -> tuple[int, bytes]:
        return 413, rest.error_body(f"Request body is larger than {self._max_body} bytes (--rest_api_max_body_bytes)")

    def _reply(self, status: int, body: bytes, close: bool = False) -> web.Response:
        response = web.Response(status=status, body=body, content_type="application/json", headers=self._headers)
        if close:
            response.force_close()
        return response

    async def _close_idle(self) -> None:
        """Closes connections on which no complete request header arrived for `timeout` seconds, silent or very slow ones."""
        while True:
            await asyncio.sleep(IDLE_CHECK_SECONDS)
            now = time.monotonic()
            open_now = {connection: self._idle_since.get(connection, now) for connection in self._runner.server.connections}
            self._idle_since = open_now
            for connection, since in open_now.items():
                if since is not None and now - since > self._timeout:
                    connection.force_close()


async def _decompressed(pieces):
    """The content of a gzip or zlib stream, in pieces; raises zlib.error when it is none or cut short."""
    decompressor = zlib.decompressobj(GZIP_OR_ZLIB)
    async for piece in pieces:
        while piece:
            if decompressor.eof:  # a body may be several gzip streams, one after the other
                decompressor = zlib.decompressobj(GZIP_OR_ZLIB)
            yield decompressor.decompress(piece, DECOMPRESSED_BYTES)
            piece = decompressor.unconsumed_tail or decompressor.unused_data
            await asyncio.sleep(0)  # others get their turn: a body may decompress to a thousand times its size
    yield decompressor.flush()
    if not decompressor.eof:
        raise zlib.error("the compressed data ends too early")
