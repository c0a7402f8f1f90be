"""Downloading from a local server that cuts, stalls, lies about lengths and ranges, sends other bytes, and from good ones."""

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import threading

import pytest
from bad_server import CONTENT, SHA, Server

from dlrm_tf.checkpoints import fetch as fetch_module
from dlrm_tf.checkpoints import file_sha256
from dlrm_tf.checkpoints.convert import convert
from dlrm_tf.checkpoints.describe import describe_checkpoint
from dlrm_tf.checkpoints.fetch import fetch
from dlrm_tf.checkpoints.file_sha256 import known_sha256
from dlrm_tf.cli.main import main
from dlrm_tf.errors import CheckpointError, DLRMError, UsageError


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(fetch_module, "BLOCK_BYTES", 1 << 15)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(server, tmp_path):
    """Function that fetches paths of the server into x.ckpt."""

    def run(*paths, **options):
        options = {"sha256": SHA, "timeout": 60, "pause": 0.001, "quiet": True, **options}
        return fetch(tmp_path / "x.ckpt", urls=[server.url(p) for p in paths], **options)

    return run


def assert_complete(folder):
    assert (folder / "x.ckpt").read_bytes() == CONTENT
    assert sorted(os.listdir(folder)) == ["x.ckpt", "x.ckpt.sha256"]
    stat = (folder / "x.ckpt").stat()
    assert (folder / "x.ckpt.sha256").read_text() == f"{SHA}  x.ckpt\n# size {stat.st_size} mtime_ns {stat.st_mtime_ns}\n"


GOOD_IN_THE_END = {
    "good": [0],
    "cuts": [0, 70_000, 140_000, 210_000, 280_000],
    "no-ranges": [0, 100_000],
    "busy": [0, 0, 0],
    "redirects": [0, 0],
    "lies-about-range": [0, 80_000, 0],
    "says-more": [0, 300_000],
}


@pytest.mark.parametrize("path", GOOD_IN_THE_END)
def test_arrives_complete(get, server, tmp_path, path):
    assert get(path) == server.url(path)
    assert server.ranges == GOOD_IN_THE_END[path]
    assert_complete(tmp_path)


@pytest.mark.parametrize("path, sent", [("stalls", 50_000), ("drips", 100_000)])
def test_a_connection_that_stalls_or_drips_is_given_up_and_resumed(get, server, tmp_path, path, sent):
    """The server does not end it: without the time limit the test would hang."""
    get(path, timeout=0.5)
    # On a busy machine a good connection may be given up as well.
    assert server.ranges[0] == 0 and any(0 < start < sent + 100 for start in server.ranges)
    assert_complete(tmp_path)


REFUSED = {
    "other-bytes": (CheckpointError, f"not the file wanted: .*wanted sha256 {SHA}. Received [0-9a-f]{{64}}"),
    "says-less": (CheckpointError, "wanted sha256"),
    "missing": (DLRMError, "HTTP 404"),
    "no-length": (DLRMError, "does not send the file's size"),
    "wrong-range": (DLRMError, "ended 220,000 bytes too early"),
    "gzipped": (DLRMError, "gzip-encoded"),
    "cuts-at-once": (DLRMError, "ended 299,950 bytes too early, after 50 bytes; what was received is kept"),
    "redirects-to-file": (DLRMError, "HTTP 302"),
    "redirects-to-ftp": (DLRMError, "unknown url type: ftp"),
    "circles": (DLRMError, "HTTP 302"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_refused(get, tmp_path, path):
    error, wanted = REFUSED[path]
    with pytest.raises(error, match=wanted) as e:
        get(path)
    assert "\n" not in str(e.value)
    kept = path in ("cuts-at-once", "wrong-range")
    assert os.listdir(tmp_path) == [f".x.ckpt.{SHA[:12]}.part"] * kept


@pytest.mark.parametrize("bad, ranges", [(["missing", "cuts-at-once"], [0, 0, 10, 20, 30, 40, 50]), (["other-bytes"], [0, 0])])
def test_next_mirror_goes_on_or_starts_over_after_other_bytes(get, server, tmp_path, bad, ranges):
    assert get(*bad, "good") == server.url("good")
    assert server.ranges == ranges
    assert_complete(tmp_path)


def test_a_later_call_resumes(get, server, tmp_path):
    with pytest.raises(DLRMError, match="kept"):
        get("cuts-at-once")
    server.ranges.clear()
    get("good")
    assert server.ranges == [50]
    assert_complete(tmp_path)


@pytest.mark.parametrize("left", [b"?" * 1000, b"?" * 300_000, b"?" * 400_000, CONTENT])
def test_a_part_file_of_any_content(get, tmp_path, left):
    (tmp_path / f".x.ckpt.{SHA[:12]}.part").write_bytes(left)
    get("good")
    assert_complete(tmp_path)


def test_already_there(get, server, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(CONTENT)
    assert get("good") == "" and server.ranges == []
    assert_complete(tmp_path)
    (tmp_path / "x.ckpt").write_bytes(b"mine")
    with pytest.raises(DLRMError, match="wanted sha256 .* Received another file"):
        get("good")
    assert (tmp_path / "x.ckpt").read_bytes() == b"mine"


@pytest.fixture
def noted(get, tmp_path, monkeypatch):
    """A fetched file with its note, treated as too large to be hashed without being asked."""
    get("good")
    monkeypatch.setattr(file_sha256, "CHEAP_BYTES", 1000)
    assert known_sha256(tmp_path / "x.ckpt") == SHA
    return tmp_path / "x.ckpt"


def other_size(path):
    stat = path.stat()
    path.write_bytes(CONTENT + b"?")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def other_time(path):
    """Other bytes, older than the note, as `cp -p` and `mv` bring them."""
    path.write_bytes(CONTENT[:-1] + b"?")
    os.utime(path, (1, 1))


def note_of(text):
    return lambda path: path.with_name("x.ckpt.sha256").write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        other_size,
        other_time,
        note_of(f"{SHA}  x.ckpt\n"),
        note_of(f"{SHA}  other.ckpt\n# size 300000 mtime_ns 1\n"),
        note_of("?"),
        note_of(""),
        lambda path: path.with_name("x.ckpt.sha256").write_bytes(b"\xff" * 99),
        lambda path: path.with_name("x.ckpt.sha256").unlink(),
    ],
)
def test_a_note_that_does_not_fit_does_not_count(noted, change):
    change(noted)
    assert known_sha256(noted) == ""


def test_convert_and_inspect_ignore_the_note_of_another_file(golden_ckpt, tmp_path, monkeypatch):
    monkeypatch.setattr(file_sha256, "CHEAP_BYTES", 1000)
    path = tmp_path / "x.ckpt"
    path.write_bytes(golden_ckpt("tiny", "init").read_bytes())
    file_sha256.write_note(path, SHA, path.stat())
    monkeypatch.setitem(file_sha256.KNOWN, SHA, "what was fetched")
    assert describe_checkpoint(path)["known_as"] == "what was fetched"
    assert convert(path, tmp_path / "m.weights.h5", quiet=True).notes[0] == "the source is what was fetched"
    shutil.copy2(golden_ckpt("tiny", "trained"), path)
    assert path.stat().st_mtime < path.with_name("x.ckpt.sha256").stat().st_mtime
    assert describe_checkpoint(path)["sha256"] == describe_checkpoint(path)["known_as"] == ""
    assert not any("fetched" in note for note in convert(path, tmp_path / "m.weights.h5", quiet=True).notes)


def test_an_existing_file_is_hashed_whatever_its_note_says(noted, get):
    other_time(noted)
    file_sha256.write_note(noted, SHA, noted.stat())
    with pytest.raises(DLRMError, match="wanted sha256 .* Received another file"):
        get("good")


def test_command_line_is_not_fooled_by_a_note(tmp_path, capsys):
    """A sparse file of 70 MB, older than a note with the Hub's digest."""
    path = tmp_path / "x.ckpt"
    path.touch()
    os.truncate(path, 70 << 20)
    os.utime(path, (1577836800, 1577836800))
    (tmp_path / "x.ckpt.sha256").write_text(f"{file_sha256.HUB_SHA256}  x.ckpt\n")
    assert main(["fetch", "-o", str(path)]) == 1
    assert "Received another file" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_sha256sum_reads_the_note(noted):
    command = ["sha256sum", "--check", "--strict", "x.ckpt.sha256"]
    done = subprocess.run(command, cwd=noted.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x.ckpt: OK\n", "")


def test_proxy_variable(get, server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url(""))
    fetch(tmp_path / "x.ckpt", urls=["http://nowhere.invalid/good"], sha256=SHA, pause=0.001, quiet=True)
    assert server.paths == ["http://nowhere.invalid/good"]
    assert_complete(tmp_path)


def test_second_fetch_at_once_is_refused(get, tmp_path):
    with open(tmp_path / f".x.ckpt.{SHA[:12]}.part", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DLRMError, match="another fetch"):
            get("good")


def test_no_room(get, no_room):
    with pytest.raises(DLRMError, match="GB free"):
        get("good")


def test_full_disk_while_writing(get, tmp_path):
    """The system lets no file grow beyond 100 kB."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DLRMError, match=f"{tmp_path}: cannot write what was received: File too large"):
            get("good")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "x.ckpt").exists()


def test_nobody_listens(tmp_path):
    with pytest.raises(DLRMError, match="refused"):
        fetch(tmp_path / "x", urls=["http://127.0.0.1:9/x"], sha256=SHA, pause=0.001, quiet=True)


@pytest.mark.parametrize("url,sha", [("file:///etc/passwd", SHA), ("ftp://a/b", SHA), ("x.ckpt", SHA), ("http://a/b", "123")])
def test_wrong_usage(tmp_path, url, sha):
    with pytest.raises(UsageError):
        fetch(tmp_path / "x", urls=[url], sha256=sha)
    assert os.listdir(tmp_path) == []


def test_command_line(server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", "--url", server.url("good.ckpt"), "--sha256", SHA]) == 0
    assert f"good.ckpt: sha256 right, from {server.url('good.ckpt')}" in capsys.readouterr().out
    assert (tmp_path / "good.ckpt").read_bytes() == CONTENT
    assert main(["fetch", "--url", server.url("good.ckpt"), "--sha256", SHA]) == 0
    assert "was there already" in capsys.readouterr().out
    assert main(["fetch", "--url", server.url("other-bytes"), "-o", "y", "--sha256", SHA]) == 1
    assert main(["fetch", "--url", server.url(""), "--sha256", SHA]) == 2
