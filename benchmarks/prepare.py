"""Lines a second and peak memory of `dlrm_tf.prepare`, against upstream's rules in pure Python on the same file.

python benchmarks/prepare.py                       # generates 1 M lines with Criteo's cardinalities in a temporary folder
python benchmarks/prepare.py --lines 10000000 --python-lines 0
python benchmarks/prepare.py --tsv train.txt
"""

import argparse
import os
import subprocess
import sys
import tempfile

CRITEO_LINES = 45_840_617
_COLUMNS = "{:<34}{:>12}{:>10}{:>14}{:>14}{:>14}"


def measured(code: str, *args: str) -> tuple[float, float, float]:
    """Runs Python `code` in a process of its own: `(seconds, CPU seconds, peak resident MB)`."""
    program = (
        "import resource, sys, time\nstart = time.perf_counter()\n"
        + code
        + "\nprint(time.perf_counter() - start, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", program, *args], check=True, stdout=subprocess.PIPE, text=True)
    seconds, cpu, megabytes = map(float, done.stdout.split()[-3:])
    return seconds, cpu, megabytes


def report(name: str, lines: int, seconds: float, cpu: float, megabytes: float) -> None:
    """One line of the table."""
    rates = f"{lines / seconds:,.0f}", f"{lines / cpu:,.0f}"
    print(_COLUMNS.format(name, f"{lines:,}", f"{seconds:.1f}", *rates, f"{megabytes:,.0f}"), flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tsv", help="measure on this file instead of a generated one")
    parser.add_argument("--lines", type=int, default=1_000_000, help="lines to generate (default: %(default)s)")
    parser.add_argument(
        "--python-lines", type=int, default=200_000, help="lines for pure Python; 0 leaves it out (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="*", default=[1, os.cpu_count()], help="threads of prepare (default: 1 and all)"
    )
    parser.add_argument("--folder", help="where temporary files go (default: the system's)")
    options = parser.parse_args()
    here = os.path.dirname(os.path.abspath(__file__))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tsv = options.tsv
        if not tsv:
            from dlrm_tf import synth

            tsv = os.path.join(folder, "rows.tsv")
            synth(tsv, options.lines, seed=1, cardinalities="criteo", quiet=False)
        print(f"{tsv}: {os.path.getsize(tsv) / 1e6:,.0f} MB, {os.cpu_count()} CPUs")
        print(_COLUMNS.format("", "lines", "seconds", "lines/s", "lines/CPU s", "peak RSS MB"))
        if options.python_lines:
            head = os.path.join(folder, "head.tsv")
            with open(tsv, "rb") as source, open(head, "wb") as target:
                target.writelines(line for line, _ in zip(source, range(options.python_lines)))
            code = f"sys.path.insert(0, {here!r}); import pure_python; print(pure_python.preprocess(sys.argv[1])['lines'])"
            report("pure Python (upstream's rules)", options.python_lines, *measured(code, head))
        for threads in options.threads:
            out = os.path.join(folder, f"out{threads}")
            code = f"import dlrm_tf; dlrm_tf.prepare(sys.argv[1], sys.argv[2], threads={threads}, quiet=False)"
            seconds, cpu, megabytes = measured(code, tsv, out)
            from dlrm_tf.data.records import Records

            records = Records.open(out)
            lines = records.manifest["counts"]["lines"]
            report(f"prepare, {threads} thread{'s' * (threads > 1)}", lines, seconds, cpu, megabytes)
            criteo = f"Criteo's {CRITEO_LINES:,} lines at this rate: {CRITEO_LINES * seconds / lines:,.0f} s"
            print(f"  {sum(records.sizes):,} categories; {criteo}")
            for path, _, names in os.walk(out):
                for name in names:
                    os.unlink(os.path.join(path, name))


if __name__ == "__main__":
    main()
