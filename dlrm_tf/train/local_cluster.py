"""A cluster of processes on this machine, for trying the strategies that need one.

    options = FitOptions(strategy="multi_worker")
    with local_cluster("data", "run", options=options, workers=2):
        fit("data", "run", options=options)

The calling process is the first worker or the coordinator; the others run `fit` with the same options in processes of their own
and end with it. On real machines start the same command on each, with `TF_CONFIG` set.
"""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Union

from dlrm_tf.errors import UsageError
from dlrm_tf.train.fit import fit
from dlrm_tf.train.options import FitOptions


@contextlib.contextmanager
def local_cluster(
    data: Union[str, os.PathLike], run_dir: Union[str, os.PathLike], *, options: FitOptions, workers: int, ps: int = 0
) -> Iterator[dict[str, subprocess.Popen]]:
    """Starts the other processes of a cluster and sets `TF_CONFIG` for this one; call it before TensorFlow runs anything.

    Args:
      data: the folder made by `prepare`.
      run_dir: folder of the run; what the other processes print goes to logs/<job>-<index>.log in it.
      options: the options of `fit`, with strategy `"multi_worker"` or `"parameter_server"`.
      workers: number of workers; of `multi_worker` this process is one.
      ps: number of parameter servers.

    Yields:
      `"<job>-<index>"` -> process, for the other processes.

    Raises:
      UsageError: another strategy, or numbers that do not go with it.
    """
    strategy, log_dir = options.strategy, os.path.join(run_dir, "logs")
    if strategy not in ("multi_worker", "parameter_server"):
        raise UsageError(f"a local cluster goes with strategy multi_worker or parameter_server. Received {strategy!r}")
    if workers < 1 or (ps < 1) == (strategy == "parameter_server"):
        wanted = "at least one worker and one ps" if strategy == "parameter_server" else "at least one worker and no ps"
        raise UsageError(f"strategy {strategy} needs {wanted}. Received {workers} workers, {ps} ps")
    counts = {"worker": workers}
    if strategy == "parameter_server":
        counts.update(chief=1, ps=ps)
    ports = iter(_free_ports(sum(counts.values())))
    cluster = {job: [f"127.0.0.1:{next(ports)}" for _ in range(count)] for job, count in counts.items()}
    tasks = [(job, index) for job, count in counts.items() for index in range(count)]
    own = ("chief", 0) if strategy == "parameter_server" else ("worker", 0)
    os.makedirs(log_dir, exist_ok=True)
    before, processes, quiet = os.environ.get("TF_CONFIG"), {}, dataclasses.replace(options, quiet=True)
    try:
        for job, index in tasks:
            config = json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})
            if (job, index) == own:
                os.environ["TF_CONFIG"] = config
                continue
            with open(os.path.join(log_dir, f"{job}-{index}.log"), "wb") as log:
                processes[f"{job}-{index}"] = subprocess.Popen(
                    [sys.executable, "-m", "dlrm_tf.train.local_cluster", os.fspath(data), os.fspath(run_dir), quiet.to_json()],
                    env={**os.environ, "TF_CONFIG": config},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        yield processes
    finally:
        if before is None:
            os.environ.pop("TF_CONFIG", None)
        else:
            os.environ["TF_CONFIG"] = before
        if strategy == "multi_worker":
            _end(processes.values(), patience=20 if sys.exc_info()[0] is None else 0)
        # Parameter servers hold variables of this process as long as it lives; they end with it (see `_end_with_parent`).


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _end(processes, patience: float) -> None:
    """Waits up to `patience` seconds for each process to end, then kills those that have not."""
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()


def _end_with_parent() -> None:
    """Ends this process when its parent has ended, which closes the standard input."""

    def watch():
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":  # one of the other processes
    _end_with_parent()
    fit(sys.argv[1], sys.argv[2], options=FitOptions.from_json(sys.argv[3]))
