"""A cluster of processes on this machine, for trying the strategies that need one.

    with local_cluster("multi_worker", workers=2, ps=0, arguments=dict(data=..., run_dir=...), log_dir="logs"):
        fit(strategy="multi_worker", data=..., run_dir=...)

The calling process is the first worker or the coordinator; the others run `fit` with the same arguments in processes of their own
and end with it. On real machines start the same command on each, with `TF_CONFIG` set.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading

from dlrm_tf.errors import UsageError


@contextlib.contextmanager
def local_cluster(strategy: str, workers: int, ps: int, arguments: dict, log_dir: str):
    """Starts the other processes of a cluster and sets `TF_CONFIG` for this one; call it before TensorFlow is at work.

    Args:
      strategy: `"multi_worker"` or `"parameter_server"`.
      workers: number of workers; of `multi_worker` this process is one.
      ps: number of parameter servers.
      arguments: keyword arguments of `fit` for the other processes, such as JSON can hold.
      log_dir: what they print goes to `<job>-<index>.log` there.

    Yields:
      Dict `"job-index"` -> `subprocess.Popen` of the other processes.

    Raises:
      UsageError: numbers that do not go with the strategy.
    """
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
    before, processes = os.environ.get("TF_CONFIG"), {}
    try:
        for job, index in tasks:
            config = json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})
            if (job, index) == own:
                os.environ["TF_CONFIG"] = config
                continue
            with open(os.path.join(log_dir, f"{job}-{index}.log"), "wb") as log:
                processes[f"{job}-{index}"] = subprocess.Popen(
                    [sys.executable, "-m", __name__, json.dumps({**arguments, "strategy": strategy, "quiet": True})],
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
        # Parameter servers and their workers hold this process's variables until its very end, and then end by themselves.


def _free_ports(count: int) -> list:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _end(processes, patience: float) -> None:
    """Waits for processes that end by themselves, then ends the others."""
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, which closes our stdin."""

    def watch():
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """One of the other processes: runs `fit` with the arguments given as JSON."""
    _end_with_parent()
    from dlrm_tf.config import DLRMConfig
    from dlrm_tf.train.fit import fit

    arguments = json.loads(sys.argv[1])
    if arguments.get("config"):
        arguments["config"] = DLRMConfig.from_json(arguments["config"])
    fit(**arguments)


if __name__ == "__main__":
    main()
