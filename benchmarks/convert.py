"""Time and peak memory of converting a checkpoint of the Hub model's exact layout, beside a plain copy of what is kept.

    python benchmarks/convert.py                      full size (6.49 GB source; needs 15 GB of disk), a few minutes
    python benchmarks/convert.py --fraction 0.1       tables a tenth as large
    python benchmarks/convert.py --mindspore PYTHON   also MindSpore's own load_checkpoint, in the Python that has it

Every run is a process of its own; its peak memory is the system's figure (ru_maxrss). "cold" has the source's pages dropped from
the page cache first, "warm" has them read once. Writing always ends with fsync.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

from dlrm_tf import DLRMConfig
from dlrm_tf.config import CRITEO_KAGGLE_SIZES

# What MindSpore 2.10 writes for the Hub model with SGD's state.
HUB_BYTES = 6_488_134_830

MAKE = (
    "import sys, dlrm_tf; from dlrm_tf.mindspore.initial import write_initial_checkpoint as write; "
    "write(sys.argv[1], dlrm_tf.DLRMConfig.from_json(sys.argv[2]))"
)
COPY = "import os, shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2]); f = open(sys.argv[2], 'rb+'); os.fsync(f.fileno())"
CONVERT = "import sys, dlrm_tf; dlrm_tf.convert(sys.argv[1], sys.argv[2], quiet=True)"
LOAD = "import sys, dlrm_tf; dlrm_tf.load(sys.argv[1])"
IMPORT = "import dlrm_tf; dlrm_tf.DLRM"
MINDSPORE = "import sys, mindspore; mindspore.load_checkpoint(sys.argv[1])"


def measure(code: str, *paths: str, python: str = sys.executable):
    """`(seconds, peak bytes)` of a process; None when it failed."""
    start = time.perf_counter()
    pid = os.posix_spawn(python, [python, "-c", code, *paths], {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        return None
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def set_cache(path: str, warm: bool) -> None:
    """Reads a file into the page cache, or drops it from there."""
    with open(path, "rb") as f:
        if warm:
            while f.read(16 << 20):
                pass
        else:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=1.0, help="scale of the tables' rows")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", help="where the files are made (and removed again)")
    parser.add_argument("--mindspore", metavar="PYTHON", help="a Python that has MindSpore")
    parser.add_argument("--load", action="store_true", help="also dlrm_tf.load of the result")
    args = parser.parse_args()
    config = DLRMConfig(tuple(max(3, int(size * args.fraction)) for size in CRITEO_KAGGLE_SIZES))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, target, copy = (os.path.join(folder, name) for name in ("hub.ckpt", "hub.weights.h5", "copy.weights.h5"))
        made, _ = measure(MAKE, source, config.to_json())
        size = os.path.getsize(source)
        as_hub = f", the Hub's size is {HUB_BYTES:,}" if args.fraction == 1 else ""
        print(f"source {size:,} bytes{as_hub}; made in {made:.1f} s; kept {4 * config.num_parameters:,} bytes")
        measure(CONVERT, source, target)
        print(f"{'':<34}{'seconds (median)':>18}{'all':>34}{'peak memory':>14}")
        for warm in (False, True):
            times = {"copy of the kept bytes": [], "convert": []}
            for _ in range(args.repeat):  # interleaved, so that a slow moment of the disk hits both
                for name, code, first in (("copy of the kept bytes", COPY, target), ("convert", CONVERT, source)):
                    out = copy if code == COPY else os.path.join(folder, "again.weights.h5")
                    set_cache(first, warm)
                    times[name].append(measure(code, first, out))
                    os.unlink(out)
            for name, runs in times.items():
                report(f"{name}, {'warm' if warm else 'cold'}", runs)
            ratio = statistics.median(s for s, _ in times["convert"]) / statistics.median(
                s for s, _ in times["copy of the kept bytes"]
            )
            print(f"convert takes {ratio:.2f} times the copy ({'warm' if warm else 'cold'})")
        if args.load:
            base, loaded = measure(IMPORT), measure(LOAD, target)
            report("import of the model's parts", [base])
            report("dlrm_tf.load", [loaded])
            table = 4 * config.table_rows * config.embedding_dim
            print(f"dlrm_tf.load needs {(loaded[1] - base[1]) / table:.2f} times the table of {table / 1e9:.2f} GB")
        if args.mindspore:
            run = measure(MINDSPORE, source, python=args.mindspore)
            if run is None:
                print(f"MindSpore's load_checkpoint failed on this file ({size / 1e9:.2f} GB)")
            else:
                report("MindSpore's load_checkpoint, warm", [run])


def report(name: str, runs: list) -> None:
    """Prints one line: median and all seconds, largest peak memory."""
    seconds = [s for s, _ in runs]
    every = " ".join(f"{s:.2f}" for s in seconds)
    print(f"{name:<34}{statistics.median(seconds):>18.2f}{every:>34}{max(m for _, m in runs) / 1e6:>11,.0f} MB")


if __name__ == "__main__":
    main()
