"""Time and peak memory of converting a checkpoint of the Hub model's exact layout, beside a plain copy of what is kept.

    python benchmarks/convert.py                      full size (6.49 GB source; needs 15 GB of disk), a few minutes
    python benchmarks/convert.py --fraction 0.1       tables a tenth as large
    python benchmarks/convert.py --mindspore PYTHON   also MindSpore's own load_checkpoint, in the Python that has it

Every run is a process of its own; its peak memory is the system's figure (ru_maxrss). "cold" has the source's pages dropped from
the page cache first, "warm" has them read once. Writing always ends with fsync. On a busy machine trust the CPU column.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

from dlrm_tf import DLRMConfig
from dlrm_tf.config import CRITEO_KAGGLE_SIZES

# What MindSpore 2.10 writes for the Hub model with SGD's state.
HUB_BYTES = 6_488_134_830

MAKE = (
    f"import sys, dlrm_tf; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r}); "
    "from initial_checkpoint import write_initial_checkpoint as write; "
    "write(sys.argv[1], dlrm_tf.DLRMConfig.from_json(sys.argv[2]))"
)
COPY = "import os, shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2]); f = open(sys.argv[2], 'rb+'); os.fsync(f.fileno())"
CONVERT = "import sys, dlrm_tf; dlrm_tf.convert(sys.argv[1], sys.argv[2], quiet=True)"
LOAD = "import sys, dlrm_tf; dlrm_tf.load(sys.argv[1])"
IMPORT = "import dlrm_tf; dlrm_tf.DLRM"
MINDSPORE = "import sys, mindspore; mindspore.load_checkpoint(sys.argv[1])"


class Run(NamedTuple):
    """What one process took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(code: str, *arguments: str, python: str = sys.executable):
    """Runs Python code in a process of its own; None when it failed."""
    start = time.perf_counter()
    pid = os.posix_spawn(python, [python, "-c", code, *arguments], {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        return None
    return Run(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def set_cache(path: str, warm: bool) -> None:
    """Reads a file into the page cache, or drops it from there."""
    with open(path, "rb") as f:
        if warm:
            while f.read(16 << 20):
                pass
        else:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(source: str, target: str, folder: str, repeat: int, warm: bool) -> None:
    """Copies `target` and converts `source` in turn, so that a slow moment of the disk hits both."""
    copies, conversions = [], []
    for _ in range(repeat):
        for code, path, runs in ((COPY, target, copies), (CONVERT, source, conversions)):
            out = os.path.join(folder, "again.weights.h5")
            set_cache(path, warm)
            runs.append(measure(code, path, out))
            os.unlink(out)
    state = "warm" if warm else "cold"
    report(f"copy of the kept bytes, {state}", copies)
    report(f"convert, {state}", conversions)
    by_clock, by_cpu = (
        statistics.median(run[i] for run in conversions) / statistics.median(run[i] for run in copies) for i in (0, 1)
    )
    print(f"  {state}: convert takes {by_clock:.2f} times the copy by the clock, {by_cpu:.2f} times its CPU")


def report(name: str, runs: list) -> None:
    """Prints one line: median seconds and CPU seconds, all seconds, largest peak memory."""
    seconds, cpu = (statistics.median(run[i] for run in runs) for i in (0, 1))
    every = " ".join(f"{run.seconds:.2f}" for run in runs)
    print(f"{name:<34}{seconds:>9.2f}{cpu:>9.2f}{max(run.peak_bytes for run in runs) / 1e6:>9,.0f} MB   {every}", flush=True)


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
        source, target = (os.path.join(folder, name) for name in ("hub.ckpt", "hub.weights.h5"))
        made = measure(MAKE, source, config.to_json())
        size = os.path.getsize(source)
        as_hub = f" (the Hub's layout has {HUB_BYTES:,})" if args.fraction == 1 else ""
        print(f"source {size:,} bytes{as_hub}, made in {made.seconds:.1f} s; kept {4 * config.num_parameters:,} bytes")
        print(f"{'':<34}{'seconds':>9}{'CPU':>9}{'memory':>12}   every run")
        measure(CONVERT, source, target)
        for warm in (False, True):
            compare(source, target, folder, args.repeat, warm)
        if args.load:
            base, loaded = measure(IMPORT), measure(LOAD, target)
            report("import of the model's parts", [base])
            report("dlrm_tf.load", [loaded])
            table = config.table_bytes
            extra = (loaded.peak_bytes - base.peak_bytes) / table
            print(f"  dlrm_tf.load needs {extra:.2f} times the table of {table / 1e9:.2f} GB, beside what the import takes")
        if args.mindspore:
            run = measure(MINDSPORE, source, python=args.mindspore)
            if run is None:
                print(f"MindSpore's load_checkpoint failed on this file ({size / 1e9:.2f} GB)")
            else:
                report("MindSpore's load_checkpoint, warm", [run])


if __name__ == "__main__":
    main()
