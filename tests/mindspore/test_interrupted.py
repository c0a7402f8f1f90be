"""A conversion that is killed, or runs out of disk, leaves the file that was there before, and a later one works."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest

from dlrm_tf import DLRMConfig, convert
from dlrm_tf.mindspore.digest import sha256_file
from dlrm_tf.mindspore.initial import write_initial_checkpoint
from dlrm_tf.model.weights import WeightsReader

# 100 MB of table: long enough to be caught in the middle.
CONFIG = DLRMConfig((1_600_000, 3), dense_dim=4, bottom_mlp=(16,), top_mlp=(1,))
CONVERT = "import sys, dlrm_tf; dlrm_tf.convert(sys.argv[1], sys.argv[2], quiet=True)"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 300 MB, and its weights file."""
    folder = tmp_path_factory.mktemp("large")
    write_initial_checkpoint(folder / "m.ckpt", CONFIG)
    convert(folder / "m.ckpt", folder / "m.weights.h5", quiet=True)
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "source,target", [("m.ckpt", "t.weights.h5"), ("m.weights.h5", "t.ckpt"), ("m.weights.h5", "t.safetensors")]
)
def test_killed_in_the_middle(large, tmp_path, source, target):
    out = tmp_path / target
    out.write_bytes(b"what was there before")
    process = subprocess.Popen([sys.executable, "-c", CONVERT, str(large / source), str(out)])
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in _parts(tmp_path)) < 20_000_000:
        assert process.poll() is None and time.monotonic() < deadline, "it was over before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert out.read_bytes() == b"what was there before"
    for part in _parts(tmp_path):
        assert part.name.startswith(".")  # never taken for a result
        part.unlink()


@pytest.mark.parametrize("source,target", [("m.ckpt", "t.weights.h5"), ("m.weights.h5", "t.ckpt")])
def test_disk_full_in_the_middle(large, tmp_path, source, target):
    """The system refuses to let the file grow beyond 30 MB."""
    out = tmp_path / target
    out.write_bytes(b"what was there before")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, 30_000_000))

    command = [sys.executable, "-m", "dlrm_tf", "convert", str(large / source), "-o", str(out)]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "too large" in done.stderr.lower()
    assert out.read_bytes() == b"what was there before" and os.listdir(tmp_path) == [target]


def test_full_disk(large):
    """On a disk (in memory) of 30 MB, where the system lets us make one."""
    folder = pathlib.Path("/dev/shm") / f"dlrm_tf-full-{os.getpid()}"
    folder.mkdir()
    try:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(folder)], capture_output=True).returncode:
            pytest.skip("no permission to mount a small disk")
        try:
            out = folder / "t.weights.h5"
            out.write_bytes(b"old")
            skip_check = CONVERT.replace("dlrm_tf.convert(", "dlrm_tf.mindspore.convert._need_space = print; dlrm_tf.convert(")
            code = skip_check.replace("import sys, dlrm_tf", "import sys, dlrm_tf, dlrm_tf.mindspore.convert")
            done = subprocess.run([sys.executable, "-c", code, str(large / "m.ckpt"), str(out)], capture_output=True, text=True)
            assert done.returncode == 1 and "no space left on the disk" in done.stderr
            assert out.read_bytes() == b"old" and os.listdir(folder) == ["t.weights.h5"]
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    finally:
        folder.rmdir()


def test_the_next_one_works(large, tmp_path):
    (tmp_path / ".t.weights.h5.abc.part").write_bytes(b"left by a kill")
    convert(large / "m.ckpt", tmp_path / "t.weights.h5", quiet=True)
    with WeightsReader(tmp_path / "t.weights.h5") as a, WeightsReader(large / "m.weights.h5") as b:
        assert a.table(0, CONFIG.table_rows).tobytes() == b.table(0, CONFIG.table_rows).tobytes()
    convert(tmp_path / "t.weights.h5", tmp_path / "t.ckpt", quiet=True)
    convert(large / "m.weights.h5", tmp_path / "u.ckpt", quiet=True)
    assert sha256_file(tmp_path / "t.ckpt") == sha256_file(tmp_path / "u.ckpt")


def _parts(folder):
    return [path for path in folder.iterdir() if path.suffix == ".part"]
