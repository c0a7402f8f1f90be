"""A web server that cuts, stalls, lies about lengths and ranges and sends other bytes, and some that behave."""

import hashlib
import http.server
import re
import threading
import urllib.parse

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


# Path -> arguments of `Handler.answer`; where it redirects to; or its error. Other paths are methods of `Handler`.
ANSWERS = {
    "good": {},
    "cuts": {"send": 70_000},
    "cuts-at-once": {"send": 10},
    "other-bytes": {"content": CONTENT[:-1] + b"?"},
    "says-less": {"length": 1000},
    "says-more": {"length": len(CONTENT) + 1000},
    "gzipped": {"headers": [("Content-Encoding", "gzip")]},
}
MOVED = {
    "redirects": "/good",
    "redirects-to-file": "file:///etc/passwd",
    "redirects-to-ftp": "ftp://127.0.0.1/x",
    "circles": "/circles",
}
ERRORS = {"missing": 404}


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; what is asked for by path says how it misbehaves."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.paths, self.released = [], [], threading.Event()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path.strip("/")
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.server.ranges.append(start)
        self.server.paths.append(self.path)
        self.close_connection = True
        name = path.split(".")[0]
        if name in ANSWERS:
            self.answer(start, **ANSWERS[name])
        elif name in MOVED:
            self.move(MOVED[name])
        elif name in ERRORS:
            self.send_error(ERRORS[name])
        else:
            getattr(self, name.replace("-", "_"))(start)

    def answer(self, start, content=CONTENT, length=None, send=None, status=None, headers=()):
        """Answers with content from start on; `length` is what is said, `send` how much is sent."""
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        self.send_response(status or (206 if start else 200))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if send is None else body[:send])

    def no_ranges(self, start):
        """Always sends all, cut the first time."""
        self.answer(0, send=100_000 if len(self.server.ranges) == 1 else None)

    def stalls(self, start):
        self.answer(start, send=50_000 if start == 0 else None)
        if start == 0:
            self.wfile.flush()
            self.server.released.wait()

    def drips(self, start):
        self.answer(start, send=None if start else 100_000)
        for i in range(0 if start else 200_000):
            if self.server.released.wait(0.1):
                break
            self.wfile.write(CONTENT[100_000 + i : 100_001 + i])

    def wrong_range(self, start):
        """Asked for the rest it sends the beginning, and calls it that."""
        self.answer(0, send=80_000, status=206 if start else 200, headers=[("Content-Range", "bytes 0-299999/300000")])

    def lies_about_range(self, start):
        """Asked for the rest it sends the beginning, and says it is the rest."""
        if start:
            self.answer(start, content=bytes(start) + CONTENT[: len(CONTENT) - start])
        else:
            self.answer(0, send=80_000 if len(self.server.ranges) == 1 else None)

    def busy(self, start):
        if len(self.server.ranges) < 3:
            self.send_error(503)
        else:
            self.answer(start)

    def no_length(self, start):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def move(self, where):
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()
