"""Rows a second of the tf.data pipeline over records alone, from the page cache, for several ways of reading.

python benchmarks/reader.py                 # prepares 1 M generated rows in a temporary folder
python benchmarks/reader.py --data DIR
"""

import argparse
import os
import statistics
import tempfile
import time

import dlrm_tf


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="prepared folder; default: generated rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to generate (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="passes each; the median is shown (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        if not data:
            tsv, data = os.path.join(folder, "rows.tsv"), os.path.join(folder, "data")
            dlrm_tf.synth(tsv, options.rows, seed=1, quiet=False)
            dlrm_tf.prepare(tsv, data, quiet=False)
        measure(data, options.repeats)


def measure(data: str, repeats: int) -> None:
    """One line of the table for each way; the ways take turns, so that a noisy moment does not fall on one of them."""
    from dlrm_tf.data.records import Records

    records = Records.open(data)
    rows = records.rows("train")
    ways = [(size, seed) for size in (128, 2048, 8192) for seed in (None, 1)]
    seconds: dict[tuple, list[tuple[float, float]]] = {way: [] for way in ways}  # passed, and of all CPUs
    for _ in range(repeats):
        for size, seed in ways:
            dataset = records.dataset("train", size, shuffle_seed=seed)
            start = time.perf_counter(), time.process_time()
            for _ in dataset:
                pass
            seconds[size, seed].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    print(f"{rows:,} train rows, {os.cpu_count()} CPUs, median of {repeats}")
    print(f"{'batch':>8}{'order':>12}{'rows/s':>14}{'batches/s':>12}{'rows/CPU s':>14}")
    for size, seed in ways:
        rate, of_cpu = (rows / statistics.median(times) for times in zip(*seconds[size, seed]))
        print(f"{size:>8}{'log' if seed is None else 'shuffled':>12}{rate:>14,.0f}{rate / size:>12,.0f}{of_cpu:>14,.0f}")


if __name__ == "__main__":
    main()
