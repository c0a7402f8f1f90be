"""A conversion that is killed, or runs out of disk, leaves the file that was there before, and a later one works."""

import os
import pathlib
import resource
import signal
import subprocess
import sys

import pytest
from tensors import table_bytes

from dlrm_tf import DLRMConfig, convert
from dlrm_tf.files import sha256_file

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
from initial_checkpoint import write_initial_checkpoint  # noqa: E402

# 100 MB of table: more than is ever held in memory at once.
CONFIG = DLRMConfig((1_600_000, 3), dense_dim=4, bottom_mlp=(16,), top_mlp=(1,))
WAYS = [("m.ckpt", "t.weights.h5"), ("m.weights.h5", "t.ckpt"), ("m.weights.h5", "t.safetensors")]
# Converts, and is killed by itself after 20 MB: nothing of Python's own cleaning up is run.
CONVERT_AND_DIE = """
import os, signal, sys
import dlrm_tf
from dlrm_tf.progress import Progress

def update(self, count, note=""):
    self.done += count
    if self.done > 20_000_000:
        os.kill(os.getpid(), signal.SIGKILL)

Progress.update = update
dlrm_tf.convert(sys.argv[1], sys.argv[2], quiet=True)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with a checkpoint of 300 MB and its weights file."""
    folder = tmp_path_factory.mktemp("large")
    write_initial_checkpoint(folder / "m.ckpt", CONFIG)
    convert(folder / "m.ckpt", folder / "m.weights.h5", quiet=True)
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("source,target", WAYS)
def test_killed_in_the_middle(large, tmp_path, source, target):
    out = tmp_path / target
    out.write_bytes(b"what was there before")
    done = subprocess.run([sys.executable, "-c", CONVERT_AND_DIE, str(large / source), str(out)])
    assert done.returncode == -signal.SIGKILL
    assert out.read_bytes() == b"what was there before"
    (part,) = (path for path in tmp_path.iterdir() if path != out)
    assert part.name.startswith(".") and part.suffix == ".part"  # never taken for a result
    assert part.stat().st_size > 10_000_000


@pytest.mark.parametrize("source,target", WAYS)
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


def test_the_next_one_works(large, tmp_path):
    (tmp_path / ".t.weights.h5.abc.part").write_bytes(b"left by a kill")
    convert(large / "m.ckpt", tmp_path / "t.weights.h5", quiet=True)
    assert table_bytes(tmp_path / "t.weights.h5") == table_bytes(large / "m.weights.h5")
    convert(tmp_path / "t.weights.h5", tmp_path / "t.ckpt", quiet=True)
    convert(large / "m.weights.h5", tmp_path / "u.ckpt", quiet=True)
    assert sha256_file(tmp_path / "t.ckpt") == sha256_file(tmp_path / "u.ckpt")
    for path in tmp_path.iterdir():  # pytest keeps folders for a while
        path.unlink()
