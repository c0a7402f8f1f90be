"""Time, memory and disk of `prepare --engine spark` by rows, the one-machine engine beside it, and what follows for Criteo 1TB.

python benchmarks/spark.py                         # generates 100 k, 1 M and 4 M lines with Criteo's cardinalities
python benchmarks/spark.py --lines 100000 1000000 --folder /data
"""

import argparse
import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time

CRITEO_1TB_LINES = 4_373_472_329
_COLUMNS = "{:<8}{:>11}{:>12}{:>9}{:>9}{:>9}{:>9}{:>13}{:>11}{:>11}{:>12}{:>9}"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class Run:
    """What one call of `prepare` took: seconds, CPU seconds of all its processes, and peaks in MB."""

    lines: int
    keys: int = 0
    seconds: float = 0.0
    first_pass: float = 0.0
    second_pass: float = 0.0
    cpu: float = 0.0
    all_memory: float = 0.0
    worker_memory: float = 0.0
    shuffle: float = 0.0
    work: float = 0.0


def processes_of(pid: int) -> dict[int, tuple[str, float, float]]:
    """`{process: (name, CPU seconds, resident MB)}` of a process and all its descendants."""
    found, parents = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                command, fields = file.read().split("(", 1)[1].rsplit(")", 1)
            fields = fields.split()
            cpu, megabytes = (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            found[int(name)], parents[int(name)] = (command, cpu, megabytes), int(fields[1])
        except (FileNotFoundError, ProcessLookupError, IndexError):
            pass
    inside = {pid}
    while more := {child for child, parent in parents.items() if parent in inside} - inside:
        inside |= more
    return {process: found[process] for process in inside if process in found}


def megabytes_in(folder: str) -> float:
    """What the files below a folder hold, whose files come and go meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total / 1e6


def measure(lines: int, tsv: str, folder: str, engine: str, master: str) -> Run:
    """Runs `prepare` and looks at its processes meanwhile."""
    out, scratch, log = (os.path.join(folder, name) for name in ("out", "scratch", "log"))
    os.makedirs(scratch)
    command = [sys.executable, "-m", "dlrm_tf", "prepare", tsv, "-o", out]
    if engine == "spark":
        command += ["--engine", "spark", "--master", master, "--spark-conf", f"spark.local.dir={scratch}"]
    run, cpu = Run(lines), {}
    start = time.perf_counter()
    with open(log, "w") as errors, open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=errors)
        while process.poll() is None:
            found = processes_of(process.pid)
            cpu.update({pid: seconds for pid, (_, seconds, _) in found.items()})
            run.all_memory = max(run.all_memory, sum(megabytes for _, _, megabytes in found.values()))
            workers = [
                megabytes for pid, (name, _, megabytes) in found.items() if name.startswith("python") and pid != process.pid
            ]
            run.worker_memory = max(run.worker_memory, max(workers, default=0.0))
            run.shuffle = max(run.shuffle, megabytes_in(scratch))
            run.work = max(run.work, megabytes_in(out))
            time.sleep(0.2)
    run.seconds, run.cpu = time.perf_counter() - start, sum(cpu.values())
    with open(log) as errors:
        text = errors.read()
    if process.returncode:
        raise SystemExit(text)
    passes = dict(re.findall(r"prepare: (keys|rows): .* ([\d.,]+) s  done", text))
    run.first_pass, run.second_pass = (float(passes.get(name, "0").replace(",", "")) for name in ("keys", "rows"))
    from dlrm_tf.data.records import Records

    run.keys = sum(Records.open(out).sizes)
    subprocess.run(["rm", "-r", out, scratch, log], check=True)
    return run


def slope(runs: list[Run], field: str) -> float:
    """By which `field` grows from the smallest run to the biggest, a million lines."""
    low, high = runs[0], runs[-1]
    return (getattr(high, field) - getattr(low, field)) / (high.lines - low.lines) * 1e6


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000], help="default: %(default)s")
    parser.add_argument("--master", default="local[*]", help="of Spark (default: %(default)s)")
    parser.add_argument("--folder", help="where temporary files go (default: the system's)")
    options = parser.parse_args()
    from dlrm_tf import synth

    print(f"{os.cpu_count()} CPUs, {options.master}; MB are peaks; `seconds` has Spark's start in it, `CPU s` all processes")
    heads = (
        "lines",
        "keys",
        "seconds",
        "pass 1",
        "pass 2",
        "CPU s",
        "lines/CPU s",
        "memory MB",
        "worker MB",
        "shuffle MB",
        "work MB",
    )
    print(_COLUMNS.format("engine", *heads))
    runs: dict[str, list[Run]] = {"local": [], "spark": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for lines in sorted(options.lines):
            tsv = os.path.join(folder, "rows.tsv")
            synth(tsv, lines, seed=1, cardinalities="criteo")
            for engine, done in runs.items():
                run = measure(lines, tsv, folder, engine, options.master)
                done.append(run)
                times = (f"{run.seconds:.1f}", f"{run.first_pass:.1f}", f"{run.second_pass:.1f}", f"{run.cpu:.1f}")
                sizes = (run.all_memory, run.worker_memory, run.shuffle, run.work)
                rate = f"{lines / run.cpu:,.0f}"
                row = f"{lines:,}", f"{run.keys:,}", *times, rate, *(f"{size:,.0f}" for size in sizes)
                print(_COLUMNS.format(engine, *row), flush=True)
    if len(options.lines) < 2:
        return
    for engine, done in runs.items():
        cpu, keys = slope(done, "cpu"), slope(done, "keys")
        print(f"{engine}: {cpu:.2f} CPU s, {slope(done, 'shuffle'):.1f} MB of shuffle and {keys:,.0f} keys a million lines more")
        hours = cpu * CRITEO_1TB_LINES / 1e6 / 3600
        print(f"  Criteo 1TB's {CRITEO_1TB_LINES:,} lines at this slope: {hours:.1f} CPU hours")


if __name__ == "__main__":
    main()
