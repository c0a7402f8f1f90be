"""Soak: the model server under constant load while its versions swap; counts errors and wrong scores, watches its memory.

    python benchmarks/serving_soak.py --seconds 600

Each version answers with its own known score (the logit is shifted by its number), so a request answered by neither the old nor
the new version, or by a mixture of both, is seen. Callers use gRPC and REST side by side, with batching on.
"""

import argparse
import os
import shutil
import tempfile
import threading
import time

import numpy as np

from serving import server

ROWS = 16


def save_version(base: str, version: int, table_rows: int) -> None:
    """A small scorer with a table of its own, so that a leaked version shows in memory."""
    import tensorflow as tf

    class Scorer(tf.Module):
        def __init__(self):
            self.table = tf.Variable(tf.zeros([table_rows, 16]))
            self.number = tf.Variable(float(version))

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 13], tf.float32, name="dense"),
                tf.TensorSpec([None, 26], tf.int32, name="categorical"),
            ]
        )
        def predict(self, dense, categorical):
            rows = tf.reduce_sum(tf.gather(self.table, categorical), (1, 2))
            return {"probability": (tf.reduce_sum(dense, 1) + rows + self.number)[:, None]}

    scorer = Scorer()
    tf.saved_model.save(scorer, os.path.join(base, ".saving"), signatures={"serving_default": scorer.predict})
    os.rename(os.path.join(base, ".saving"), os.path.join(base, str(version)))


def resident_megabytes(pid: int) -> float:
    """Memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Callers:
    """Threads that score without pause and check every answer."""

    def __init__(self, targets, count: int):
        self.answered, self.errors, self.wrong, self.versions = 0, [], 0, set()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._call, args=(targets[i % len(targets)],)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _call(self, target: str) -> None:
        from dlrm_tf.errors import ServingError
        from dlrm_tf.score import Client

        dense, categorical = np.zeros((ROWS, 13), np.float32), np.zeros((ROWS, 26), np.int32)
        dense[:, 0] = np.arange(ROWS) / ROWS
        with Client(target, retries=0, timeout=30) as client:
            while not self._stop.is_set():
                try:
                    versions = client.score(dense, categorical) - dense[:, 0]
                except ServingError as e:
                    with self._lock:
                        self.errors.append(str(e))
                    continue
                good = np.ptp(versions) < 1e-3 and abs(versions[0] - round(float(versions[0]))) < 1e-3
                with self._lock:
                    self.answered += 1
                    self.wrong += not good
                    self.versions.add(round(float(versions[0])))

    def stop(self) -> None:
        """Returns when all have their last answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def main():
    """Prints a line a minute and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="default: 600")
    parser.add_argument("--swap_seconds", type=float, default=3, help="between two new versions (default: 3)")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--table_rows", type=int, default=500_000, help="of 64 bytes, a version (default: 500000, 32 MB)")
    args = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as base:
        save_version(base, 1, args.table_rows)
        with server(base, "--rest_api_port=0", "--enable_batching", "--file_system_poll_wait_seconds=0.5") as (ready, process):
            callers, version, memory = Callers(ready, args.callers), 1, []
            start = report = time.monotonic()
            while time.monotonic() < start + args.seconds:
                time.sleep(args.swap_seconds)
                memory.append(resident_megabytes(process.pid))
                version += 1
                save_version(base, version, args.table_rows)
                # The version before the last is certainly let go; its folder may go too.
                shutil.rmtree(os.path.join(base, str(version - 2)), ignore_errors=True)
                if time.monotonic() > report + 60 or len(memory) == 10:
                    report = time.monotonic()
                    counts = f"{callers.answered:9,} answered  {len(callers.errors)} errors  {callers.wrong} wrong"
                    print(f"{report - start:6.0f} s  {counts}  version {version}  {memory[-1]:7.0f} MB", flush=True)
            callers.stop()
    tenth = max(len(memory) // 10, 1)
    early, late = np.median(memory[tenth : 2 * tenth + 1]), np.median(memory[-tenth:])
    print(
        f"{callers.answered:,} requests of {ROWS} rows, {len(callers.errors)} errors, {callers.wrong} wrong scores, "
        f"{len(callers.versions)} versions answered of {version} made; memory {early:.0f} MB after a tenth, {late:.0f} MB at the "
        "end"
    )
    for error in callers.errors[:5]:
        print("error:", error)


if __name__ == "__main__":
    main()
