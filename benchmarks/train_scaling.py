"""How a step's time, memory and traffic grow: with table rows, width and optimizer, and with workers and parameter servers.

    python benchmarks/train_scaling.py table      one process: rows x width x optimizer, batch 2048
    python benchmarks/train_scaling.py cluster    processes on this machine, joined over its loopback interface

`cluster` trains on generated rows and reads the traffic off the loopback interface: it needs a machine that does
nothing else over loopback. All its processes share this machine's cores: the rates show the cost of distribution, no speed-up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

BATCH, STEPS, WARM_UP = 2048, 20, 5
ROWS, WIDTHS = (1_000_000, 10_000_000, 33_762_577), (16, 64)
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "lazy_adam")
# Table, accumulators and moments, in floats of the table's size; row-wise Adagrad has one a row.
STATE = {"sgd": 1, "adagrad": 2, "rowwise_adagrad": 1, "lazy_adam": 3}
# (strategy, workers, ps)
CLUSTERS = (
    ("default", 0, 0),
    ("multi_worker", 2, 0),
    ("parameter_server", 1, 1),
    ("parameter_server", 2, 1),
    ("parameter_server", 2, 2),
)
CLUSTER_WIDTH = 256


def memory_mb(pid="self", field="VmHWM") -> float:
    """Peak (VmHWM) or current (VmRSS) resident memory of a process."""
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) / 1e3 for line in f if line.startswith(field))


def measure_table(rows: int, width: int, optimizer: str) -> None:
    """Prints one line of JSON: milliseconds a step, and memory before and after."""
    import numpy as np

    import dlrm_tf

    full = dlrm_tf.DLRMConfig.preset("criteo_kaggle")
    scale = rows / sum(full.categorical_feature_sizes)
    sizes = tuple(max(2, int(size * scale)) for size in full.categorical_feature_sizes)
    config = dlrm_tf.DLRMConfig(sizes, embedding_dim=width, bottom_mlp=(512, 256, 64, width))
    model = dlrm_tf.DLRM(config, initializer="zeros")
    model.compile(optimizer)
    generator, train = np.random.default_rng(0), model.make_train_function()
    batches = []
    for _ in range(STEPS + WARM_UP):
        ids = (generator.integers(0, 1 << 40, (BATCH, len(sizes))) % np.array(sizes)).astype(np.int32)
        features = {"dense": generator.random((BATCH, 13), np.float32), "categorical": ids}
        batches.append((features, generator.integers(0, 2, (BATCH, 1)).astype(np.float32)))
    import tensorflow as tf

    iterator = iter(
        tf.data.Dataset.from_generator(
            lambda: iter(batches), output_signature=tf.nest.map_structure(lambda a: tf.TensorSpec(a.shape, a.dtype), batches[0])
        ).prefetch(4)
    )
    times = []
    for _ in range(STEPS + WARM_UP):
        start = time.perf_counter()
        float(train(iterator)["loss"])
        times.append(time.perf_counter() - start)
    print(json.dumps({"ms": 1e3 * float(np.median(times[WARM_UP:])), "peak_mb": memory_mb(), "rows": config.table_rows}))


def table() -> None:
    print("      rows  width        optimizer   ms/step  peak MB  of it table and state")
    for width in WIDTHS:
        for rows in ROWS:
            for optimizer in OPTIMIZERS:
                state = rows * (width * STATE[optimizer] + (optimizer == "rowwise_adagrad")) * 4 / 1e6
                if state > 9000:
                    continue
                command = [sys.executable, os.path.abspath(__file__), "measure", str(rows), str(width), optimizer]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                seen = json.loads(out.splitlines()[-1])
                print(
                    f"{seen['rows']:>10,}{width:>7}{optimizer:>17}{seen['ms']:>10.1f}{seen['peak_mb']:>9,.0f}{state:>12,.0f}",
                    flush=True,
                )


def loopback_bytes() -> int:
    """Bytes received on the loopback interface since boot."""
    with open("/proc/net/dev") as f:
        return next(int(line.split(":")[1].split()[0]) for line in f if line.strip().startswith("lo:"))


def measure_cluster(strategy: str, workers: int, ps: int, folder: str) -> None:
    """Prints one line of JSON: rows a second, bytes a row over loopback, and the memory of every process."""
    import contextlib

    import dlrm_tf
    from dlrm_tf.data.records import Records
    from dlrm_tf.train.local_cluster import local_cluster

    records = Records.open(os.path.join(folder, "data"))
    config = dlrm_tf.DLRMConfig(records.sizes, embedding_dim=CLUSTER_WIDTH, bottom_mlp=(512, 256, CLUSTER_WIDTH))
    with tempfile.TemporaryDirectory(dir=folder) as run, contextlib.ExitStack() as stack:
        folders = (records.folder, os.path.join(run, "run"))
        options = dlrm_tf.FitOptions(
            config=config, optimizer="adagrad", batch_size=BATCH, validate=False, quiet=True, strategy=strategy
        )
        others = {}
        if strategy != "default":
            others = stack.enter_context(local_cluster(*folders, options=options, workers=workers, ps=ps))
        before = loopback_bytes()
        trained = dlrm_tf.fit(*folders, options=options)
        moved = loopback_bytes() - before
        memory = {name: memory_mb(p.pid) for name, p in others.items() if p.poll() is None}
        print(
            json.dumps(
                {
                    "rate": trained.history[0]["rows_per_second"],
                    "bytes": moved / records.rows("train"),
                    "own_mb": memory_mb(),
                    "others_mb": memory,
                    "table_mb": config.table_rows * CLUSTER_WIDTH * 4 / 1e6,
                }
            ),
            flush=True,
        )
        # Parameter servers end with this process; the run's folder goes first.
        if strategy == "parameter_server":
            stack.pop_all()
            os._exit(0)


def cluster(rows: int) -> None:
    import dlrm_tf

    with tempfile.TemporaryDirectory() as folder:
        dlrm_tf.synth(os.path.join(folder, "train.txt"), rows, seed=1)
        dlrm_tf.prepare(os.path.join(folder, "train.txt"), os.path.join(folder, "data"))
        print("strategy            workers  ps   rows/s   kB/row  table MB  peak MB of each process")
        for strategy, workers, ps in CLUSTERS:
            command = [sys.executable, os.path.abspath(__file__), "measure", strategy, str(workers), str(ps), folder]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seen = json.loads(out.splitlines()[-1])
            each = ", ".join(f"{name} {mb:,.0f}" for name, mb in sorted(seen["others_mb"].items()))
            print(
                f"{strategy:<20}{workers:>7}{ps:>4}{seen['rate']:>9,.0f}{seen['bytes'] / 1e3:>9.1f}{seen['table_mb']:>10,.0f}"
                f"  this {seen['own_mb']:,.0f} {each}",
                flush=True,
            )


def main():
    if sys.argv[1:2] == ["measure"]:
        if sys.argv[2].isdecimal():
            measure_table(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        else:
            measure_cluster(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "cluster"))
    parser.add_argument("--rows", type=int, default=100_000, help="with cluster: generated rows")
    args = parser.parse_args()
    if args.what == "table":
        table()
    else:
        cluster(args.rows)


if __name__ == "__main__":
    main()
