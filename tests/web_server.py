"""A web server with ranged requests, as object stores have them, for tests."""

import contextlib
import functools
import http.server
import threading


class _Ranged(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a log. `no_size` in a name leaves its size out; what `broken` is in answers no GET."""

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, with_body):
        try:
            with open(self.translate_path(self.path), "rb") as file:
                body = file.read()
        except OSError:
            self.send_error(404)
            return
        if with_body and "broken" in self.path:
            self.send_error(503)
            return
        sized = "no_size" not in self.path
        wanted = self.headers.get("Range") if sized else None
        start, stop = 0, len(body)
        if wanted:
            start, last = (int(part) for part in wanted.split("=")[1].split("-"))
            stop = min(stop, last + 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
        if sized:
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(body)}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body[start:stop])

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve_folder(folder):
    """Yields the URL of a server of the files in `folder`."""
    handler = functools.partial(_Ranged, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
