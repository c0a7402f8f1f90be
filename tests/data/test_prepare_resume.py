"""prepare is killed, for real and at any moment, and called again: the same bytes as without, and never half a data set."""

import dataclasses
import json
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dlrm_tf import prepare, synth
from dlrm_tf.data.records import Records
from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.errors import DataError

# Small pieces and shards, so that there are many moments to be killed at.
SHARD_LINES = 700
CHILD = f"""
import json, os, signal, sys
from dlrm_tf.data.readers import text
text.PIECE_BYTES = 40_000
left = int(sys.argv[4])
if left:
    def dying(call):  # killed just before the n-th change of the file system
        def wrapper(*args, **kwargs):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return wrapper
    os.replace, os.rename, os.unlink = dying(os.replace), dying(os.rename), dying(os.unlink)
from dlrm_tf import FeatureSpec, prepare
from dlrm_tf.data.spec import CRITEO
options = json.loads(sys.argv[3])
spec = FeatureSpec.from_dict(options.pop("spec", None) or CRITEO.to_dict())
prepare(sys.argv[1], sys.argv[2], spec=spec, shard_lines={SHARD_LINES}, **options)
"""


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of a folder by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """5000 lines, some of them bad."""
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    synth(path, 5000, seed=4)
    lines = path.read_bytes().splitlines(keepends=True)
    for at in (3, 699, 700, 4321, 4999):
        lines[at] = b"broken\n"
    path.write_bytes(b"".join(lines))
    return path


ADMISSION = {"min_count": 3, "max_ids": 100, "last_seen": "2026-11-25"}
SPACES = dataclasses.replace(CRITEO, hashed={"C3": 50, "C4": 50}, shared={"s": ("C1", "C5")}, unified={"u": ("C3", "C4")})
OPTIONS = [{}, {"spec": SPACES.to_dict(), **ADMISSION}]


@pytest.fixture(scope="module", params=OPTIONS, ids=["all keys", "admission, hashed and shared features"])
def uninterrupted(request, log, tmp_path_factory):
    """`(options, files)` of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    spec = FeatureSpec.from_dict(request.param.get("spec", CRITEO.to_dict()))
    prepare(log, folder, shard_lines=SHARD_LINES, **{**request.param, "spec": spec})
    return request.param, tree(folder)


def start(log, out, options, steps=0):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(log), str(out), json.dumps(options), str(steps)])


def assert_whole_or_refused(out, expected) -> None:
    """A reader gets the finished set or an error."""
    try:
        Records.open(out)
    except DataError:
        return
    assert {name: content for name, content in tree(out).items() if not name.startswith(".prepare")} == expected


@pytest.mark.slow
def test_killed_at_random_moments(log, uninterrupted, tmp_path):
    options, expected = uninterrupted
    rng = random.Random(len(options))
    out = tmp_path / "out"
    kills = 0
    while not kills or not (out / "manifest.json").exists() or (out / ".prepare").exists():
        if (out / "manifest.json").exists() and not (out / ".prepare").exists():
            shutil.rmtree(out)  # on a busy machine it may end before it is killed: again
        process = start(log, out, options)
        notes = set(out.glob(".prepare/0*.npz"))
        while process.poll() is None and set(out.glob(".prepare/0*.npz")) <= notes:  # it has done something new
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        if kills < 8 and process.poll() is None:
            process.kill()
            kills += 1
        assert process.wait() in (0, -9)
        assert_whole_or_refused(out, expected)
    assert tree(out) == expected


@pytest.mark.slow
def test_killed_between_changes_of_the_file_system(log, uninterrupted, tmp_path):
    """Every run is killed just before its sixth rename or removal, through scan and finish to the end."""
    options, expected = uninterrupted
    out = tmp_path / "out"
    for _ in range(40):
        process = start(log, out, options, steps=6)
        code = process.wait()
        assert code in (0, -9)
        assert_whole_or_refused(out, expected)
        if code == 0:
            break
    assert code == 0
    assert tree(out) == expected


def test_disk_full(log, uninterrupted, tmp_path):
    """The system lets no file grow beyond 100 kB: one line that names the file; with room again the call goes on."""
    options, expected = uninterrupted
    out = tmp_path / "out"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-c", CHILD, str(log), str(out), json.dumps(options), "0"]
    done = subprocess.run(command, preexec_fn=limit, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "File too large: '" in done.stderr.splitlines()[-1]
    assert "00000.bin" in done.stderr.splitlines()[-1]
    assert_whole_or_refused(out, expected)
    assert start(log, out, options).wait() == 0
    assert tree(out) == expected


def test_another_call_does_not_continue(log, tmp_path):
    process = start(log, tmp_path / "out", {}, steps=8)
    assert process.wait() == -9
    with pytest.raises(DataError, match="interrupted prepare with other min_count"):
        prepare(log, tmp_path / "out", min_count=2, shard_lines=SHARD_LINES)
    with pytest.raises(DataError, match="interrupted prepare with other last_seen, max_ids"):
        prepare(log, tmp_path / "out", max_ids=9, last_seen="2026-11-25", shard_lines=SHARD_LINES)
    log_stat = log.stat()
    try:
        with open(log, "a") as file:
            file.write("\n")
        with pytest.raises(DataError, match="interrupted prepare with other inputs"):
            prepare(log, tmp_path / "out", shard_lines=SHARD_LINES)
    finally:
        import os

        os.truncate(log, log_stat.st_size)
        os.utime(log, ns=(log_stat.st_atime_ns, log_stat.st_mtime_ns))


def test_two_at_once(log, tmp_path):
    from dlrm_tf.data.workspace import Workspace

    with Workspace.open(str(tmp_path / "out"), {}), pytest.raises(DataError, match="another dlrm-tf prepare is running"):
        prepare(log, tmp_path / "out")


def test_a_finished_shard_is_not_scanned_again(log, tmp_path, monkeypatch):
    """What a killed run has finished is kept: the rerun reads only what comes after."""
    process = start(log, tmp_path / "out", {}, steps=10)  # two changes for a shard, one for the job
    assert process.wait() == -9
    kept = len(list((tmp_path / "out" / ".prepare").glob("0*.npz")))
    assert kept >= 3
    from dlrm_tf.data.readers.text import TextReader

    scanned, parse = [], TextReader.parse
    monkeypatch.setattr(TextReader, "parse", lambda reader, piece: scanned.append(piece.content) or parse(reader, piece))
    prepare(log, tmp_path / "out", shard_lines=SHARD_LINES)
    # It starts at the piece in which the last finished shard ends.
    assert b"".join(scanned).count(b"\n") < 5000 - (kept - 1) * SHARD_LINES
