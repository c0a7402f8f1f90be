"""Lines a second and peak memory of `dlrm_tf.prepare`: of a log, of other formats, and of upstream's rules in pure Python.

python benchmarks/prepare.py                       # generates 1 M lines with Criteo's cardinalities in a temporary folder
python benchmarks/prepare.py --lines 10000000 --python-lines 0
python benchmarks/prepare.py --tsv train.txt
python benchmarks/prepare.py --python-lines 0 --threads 2 --formats parquet feather csv --rounds 5

Several rounds take turns, every second one backwards; a line has the best of them, by wall and by CPU time each.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

CRITEO_LINES = 45_840_617
# Arguments: input, folder, threads, 1 where the input is CSV with quotes.
PREPARE = """
import dataclasses, dlrm_tf
from dlrm_tf.data.spec import CRITEO
spec = dataclasses.replace(CRITEO, separator=",", quote='"') if sys.argv[4] == "1" else CRITEO
dlrm_tf.prepare(sys.argv[1], sys.argv[2], spec=spec, threads=int(sys.argv[3]), quiet=False)
"""
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


def write_as(kind: str, tsv: str, folder: str) -> str:
    """Writes the rows of a Criteo log in another format, as its library does by default; returns the file's path."""
    import pyarrow as pa
    import pyarrow.csv as text
    import pyarrow.feather
    import pyarrow.parquet

    from dlrm_tf.data.spec import CRITEO

    types = {"label": pa.int8(), "int": pa.int32(), "categorical": pa.string()}
    table = text.read_csv(
        tsv,
        read_options=text.ReadOptions(column_names=[name for name, _ in CRITEO.columns]),
        parse_options=text.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=text.ConvertOptions(
            column_types={name: types[what] for name, what in CRITEO.columns}, strings_can_be_null=True, null_values=[""]
        ),
    )
    path = os.path.join(folder, f"rows.{kind}")
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, path)
    else:
        text.write_csv(table, path, text.WriteOptions(include_header=False, quoting_style="needed"))
    return path


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
    parser.add_argument(
        "--formats",
        nargs="*",
        default=[],
        choices=("parquet", "feather", "csv"),
        help="also the same rows in these (not timed: writing)",
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, taking turns (default: %(default)s)")
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
        files = {"tsv": tsv, **{kind: write_as(kind, tsv, folder) for kind in options.formats}}
        contenders = [(kind, threads) for kind in files for threads in options.threads]
        taken: dict[tuple[str, int], list[tuple[float, float, float]]] = {contender: [] for contender in contenders}
        out = os.path.join(folder, "out")
        for number in range(options.rounds):
            for kind, threads in contenders[:: -1 if number % 2 else 1]:
                shutil.rmtree(out, ignore_errors=True)
                taken[kind, threads].append(measured(PREPARE, files[kind], out, str(threads), str(int(kind == "csv"))))
        from dlrm_tf.data.records import Records

        records = Records.open(out)
        lines = records.manifest["counts"]["lines"]
        for (kind, threads), figures in taken.items():
            seconds, cpu, megabytes = (min(column) for column in zip(*figures))
            report(f"prepare {kind}, {threads} thread{'s' * (threads > 1)}", lines, seconds, cpu, megabytes)
            print(f"  Criteo's {CRITEO_LINES:,} lines at this rate: {CRITEO_LINES * seconds / lines:,.0f} s")
        print(f"{sum(records.sizes):,} categories")


if __name__ == "__main__":
    main()
