"""Storage: the same bytes, sizes and refusals from a local file, fsspec's memory and a web server."""

import functools
import http.server
import threading

import pytest

from dlrm_tf.data.readers.storage import identity_of, open_bytes, size_of
from dlrm_tf.errors import DataError, DLRMError, MissingExtraError

fsspec = pytest.importorskip("fsspec")
CONTENT = bytes(range(256)) * 1000


class _Ranged(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ranged requests, as object stores do; without a log. `no_size` in a name leaves the size out."""

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
        start, stop, wanted = 0, len(body), self.headers.get("Range")
        if wanted and "no_size" not in self.path:
            start, last = (int(part) for part in wanted.split("=")[1].split("-"))
            stop = min(stop, last + 1)
        self.send_response(206 if wanted and "no_size" not in self.path else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
        if "no_size" not in self.path:
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(body)}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def web(tmp_path):
    """`(folder, its URL)`."""
    folder = tmp_path / "web"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Ranged, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=["local", "memory", "http"])
def stored(request, tmp_path):
    """`(path of CONTENT, function that replaces it)`."""
    if request.param == "memory":
        fsspec.filesystem("memory").pipe("/storage/log", CONTENT)
        yield "memory://storage/log", lambda content: fsspec.filesystem("memory").pipe("/storage/log", content)
        fsspec.filesystem("memory").rm("/storage", recursive=True)
    elif request.param == "http":
        pytest.importorskip("aiohttp")
        folder, url = request.getfixturevalue("web")
        (folder / "log").write_bytes(CONTENT)
        yield f"{url}/log", (folder / "log").write_bytes
    else:
        (tmp_path / "log").write_bytes(CONTENT)
        yield str(tmp_path / "log"), (tmp_path / "log").write_bytes


def test_reads_and_seeks(stored):
    path, _ = stored
    assert size_of(path) == len(CONTENT)
    with open_bytes(path) as file:
        assert file.read(10) == CONTENT[:10]
        assert (file.seek(200_000), file.tell(), file.read(300)) == (200_000, 200_000, CONTENT[200_000:200_300])
        assert (file.seek(-5, 2), file.read()) == (len(CONTENT) - 5, CONTENT[-5:])
        assert (file.seek(0), file.read()) == (0, CONTENT)


def test_identity_changes_with_the_content(stored):
    path, replace = stored
    before = identity_of(path)
    assert before == identity_of(path)
    replace(CONTENT[:-1])
    assert before != identity_of(path)


@pytest.mark.parametrize("call", [open_bytes, size_of, identity_of])
def test_no_such_input(call, web, tmp_path):
    for path in (str(tmp_path / "none"), "memory://none/log", f"{web[1]}/none"):
        with pytest.raises(FileNotFoundError) as error:
            call(path)
        assert error.value.filename == path


def test_what_is_refused(web, tmp_path):
    with pytest.raises(DataError, match="wanted a file. Received a folder"):
        open_bytes(str(tmp_path))
    fsspec.filesystem("memory").pipe("/storage/folder/log", b"")
    with pytest.raises(DataError, match="memory://storage/folder: wanted a file. Received a folder"):
        open_bytes("memory://storage/folder")
    fsspec.filesystem("memory").rm("/storage", recursive=True)
    with pytest.raises(DLRMError, match="abc://x: can't be read .*Protocol not known"):
        open_bytes("abc://x")
    (web[0] / "no_size").write_bytes(b"text")
    with pytest.raises(DataError, match="no_size: wanted a server that says the size"):
        open_bytes(f"{web[1]}/no_size")


def test_says_which_package_a_protocol_needs():
    with pytest.raises(MissingExtraError, match="s3://bucket/log: .*s3fs"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            open_bytes("s3://bucket/log")
        else:
            pytest.skip("s3fs is installed")
