"""The HTTP side: aiohttp on a thread of its own, with limits on sizes, times and connections; requests go to `rest.answer`."""

import asyncio
import logging
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from dlrm_tf.serve import rest
from dlrm_tf.serve.metrics import CONTENT_TYPE

# All bodies being read or answered together may hold this many times one body's limit.
BODIES_IN_MEMORY = 4
SWEEP_SECONDS = 1.0
# Bytes a compressed body is unpacked by at a time.
UNPACKED = 1 << 20
# zlib's number for "gzip or zlib, as the data says".
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

# Bytes that are no HTTP are the client's fault and answered with 400: nothing to log, whoever sends them and how often.
log = logging.getLogger("dlrm_tf.serve.http")
log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))


class HttpServer:
    """Answers REST and, when a path is given, Prometheus.

    Args:
      core: `ServerCore`.
      sock: bound, not yet listening.
      threads: requests worked on at a time.
      timeout: seconds a request may take, from its first byte to its answer; also how long a connection may stay silent.
      max_body: bytes of a body, decompressed.
      metrics_path: of the Prometheus page, or None.
    """

    def __init__(self, core, sock: socket.socket, threads: int, timeout: float, max_body: int, metrics_path=None):
        self._core, self._sock, self._timeout, self._max_body = core, sock, timeout, max_body
        self._metrics_path = metrics_path
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rest")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rest loop", daemon=True)
        self._buffered = 0
        # Connection -> when it last finished a request (or was first seen); None while a request is being worked on.
        self._seen = {}
        self._runner = self._site = self._sweeper = None

    def start(self) -> None:
        """Starts listening."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def stop(self, grace: float) -> None:
        """Takes no new connections, gives requests under way `grace` seconds."""
        asyncio.run_coroutine_threadsafe(self._stop(grace), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown()

    async def _start(self):
        # Bodies are unpacked in `_unpacked`: aiohttp answers what it can't unpack with text and a traceback in the log.
        server = web.Application(client_max_size=0)
        server.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            server,
            access_log=None,
            logger=log,
            auto_decompress=False,
            keepalive_timeout=self._timeout,
            handle_signals=False,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        self._site = web.SockSite(self._runner, self._sock, backlog=4096)
        await self._site.start()
        self._sweeper = asyncio.ensure_future(self._sweep())

    async def _stop(self, grace: float):
        self._sweeper.cancel()
        await self._site.stop()
        deadline = time.monotonic() + grace
        while None in self._seen.values() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        self._seen[request.protocol] = None
        try:
            return await asyncio.wait_for(self._answer(request), self._timeout)
        except asyncio.TimeoutError:
            return self._reply(504, rest.error_body(f"The request took longer than {self._timeout:g} s"), close=True)
        finally:
            self._seen[request.protocol] = time.monotonic()

    async def _answer(self, request: web.Request) -> web.Response:
        path = request.rel_url.raw_path
        if path == self._metrics_path:
            return web.Response(body=self._core.metrics.page(), headers={"Content-Type": CONTENT_TYPE})
        body = bytearray()
        try:
            refused = await self._read(request, body)
            if refused is not None:
                return self._reply(*refused, close=True)
            status, answer = await asyncio.get_running_loop().run_in_executor(
                self._pool, rest.answer, self._core, request.method, path, bytes(body)
            )
            return self._reply(status, answer)
        finally:
            self._buffered -= len(body)

    async def _read(self, request: web.Request, body: bytearray):
        """Reads the body; gives `(status, error)` when it may not be had."""
        if (request.content_length or 0) > self._max_body:
            return self._too_large()
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            return 415, rest.error_body(f"Unsupported Content-Encoding: {encoding}, wanted gzip, deflate or identity")
        pieces = request.content.iter_any()
        try:
            async for piece in pieces if encoding == "identity" else _unpacked(pieces):
                body += piece
                self._buffered += len(piece)
                if len(body) > self._max_body:
                    return self._too_large()
                if self._buffered > BODIES_IN_MEMORY * self._max_body:
                    return 429, rest.error_body("Too many large requests at a time; try again")
        except (web.RequestPayloadError, zlib.error, ConnectionError) as e:  # the last one: the client has left
            return 400, rest.error_body(f"Malformed request body: {e}")
        return None

    def _too_large(self):
        return 413, rest.error_body(f"Request body is larger than {self._max_body} bytes (--rest_api_max_body_bytes)")

    @staticmethod
    def _reply(status: int, body: bytes, close: bool = False) -> web.Response:
        response = web.Response(status=status, body=body, content_type="application/json")
        if close:
            response.force_close()
        return response

    async def _sweep(self):
        """Closes connections that sent no whole request for `timeout` seconds: half-open ones, and dribblers of headers."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            open_now = {connection: self._seen.get(connection, now) for connection in self._runner.server.connections}
            self._seen = open_now
            for connection, since in open_now.items():
                if since is not None and now - since > self._timeout:
                    connection.force_close()


async def _unpacked(pieces):
    """The content of a gzip or zlib stream, in pieces.

    Raises:
      zlib.error: not such a stream, or cut short.
    """
    unpacker = zlib.decompressobj(GZIP_OR_ZLIB)
    async for piece in pieces:
        while piece:
            if unpacker.eof:  # gzip streams may follow one another
                unpacker = zlib.decompressobj(GZIP_OR_ZLIB)
            yield unpacker.decompress(piece, UNPACKED)
            piece = unpacker.unconsumed_tail or unpacker.unused_data
            await asyncio.sleep(0)  # a body that unpacks to a thousand times its size must not stop the others
    yield unpacker.flush()
    if not unpacker.eof:
        raise zlib.error("the compressed data ends too early")
