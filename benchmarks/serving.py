"""Latency and throughput of the model server, by callers, rows a request and batching; a load generator for any server.

    python benchmarks/serving.py                                    # our server, batching off and on, 1 to 64 callers
    python benchmarks/serving.py --callers 16 --rows 1 --seconds 20
    python benchmarks/serving.py --batching off --request_log --seconds 1 --rounds 9    # what the request log costs
    python benchmarks/serving.py --rate 500 --rows 1                # open loop: 500 requests a second, whatever the answers
    python benchmarks/serving.py --target 127.0.0.1:8500            # a server that runs already, the real TF Serving too
    python benchmarks/serving.py --target 127.0.0.1:8500 --replay requests/dlrm    # the requests of a request log, in its order

Closed loop: each caller sends its next request when the last is answered. Open loop: requests leave at random times of the given
rate and a latency counts from the time the request should have left, so a slow server can't hide its queue. Requests are
serialized once, and answers are not parsed: the generator costs as little as it can of the cores it shares with the server.
"""

import argparse
import contextlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from logged_requests import PREDICTION_SERVICE, LoggedRequest, read_requests

WARMUP_SECONDS = 1.0
PREDICT = PREDICTION_SERVICE + "Predict"
# The settings of serving/batching.config, and the same with a timeout, to show what it costs.
BATCHING = {
    "off": None,
    "timeout 0": "max_batch_size { value: 1024 } batch_timeout_micros { value: 0 } max_enqueued_batches { value: 64 } "
    "num_batch_threads { value: 2 }",
    "timeout 1 ms": "max_batch_size { value: 1024 } batch_timeout_micros { value: 1000 } max_enqueued_batches { value: 64 } "
    "num_batch_threads { value: 2 }",
}


class Load:
    """Sends requests over and over; collects latencies (seconds) and errors by status.

    Args:
      target: `host:port`.
      requests: sent one after the other, then again from the first one on.
      channels: connections the calls are spread over.
    """

    def __init__(self, target: str, requests: list[LoggedRequest], channels: int):
        import grpc

        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.insecure_channel(target, options) for _ in range(channels)]
        methods = {request.method for request in requests}
        self._calls = [{method: channel.unary_unary(method) for method in methods} for channel in self._channels]
        for channel in self._channels:
            grpc.channel_ready_future(channel).result(30)
        self._requests = itertools.cycle(requests)
        self._lock = threading.Lock()
        self.latencies, self.errors = [], {}

    def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels:
            channel.close()

    def _send(self, number: int, due: float, then) -> None:
        with self._lock:
            request = next(self._requests)
        future = self._calls[number % len(self._calls)][request.method].future(request.message, timeout=60)

        def done(future):
            latency = time.perf_counter() - due
            code = future.code().name
            with self._lock:
                if code == "OK":
                    self.latencies.append(latency)
                else:
                    self.errors[code] = self.errors.get(code, 0) + 1
            then()

        future.add_done_callback(done)

    def closed(self, callers: int, seconds: float) -> None:
        """`callers` callers, each with one request under way, for `seconds`."""
        end, left = time.perf_counter() + seconds, threading.Semaphore(0)

        def again(number):
            now = time.perf_counter()
            if now < end:
                self._send(number, now, lambda: again(number))
            else:
                left.release()

        for number in range(callers):
            again(number)
        for _ in range(callers):
            left.acquire()

    def open(self, rate: float, seconds: float) -> None:
        """Poisson arrivals of `rate` requests a second for `seconds`."""
        start, sent, left = time.perf_counter(), 0, threading.Semaphore(0)
        due = start
        while due < start + seconds:
            time.sleep(max(due - time.perf_counter(), 0))
            self._send(sent, due, left.release)
            sent += 1
            due += random.expovariate(rate)
        for _ in range(sent):
            left.acquire()


def percentiles(latencies) -> tuple:
    """p50, p99 and p99.9 in milliseconds."""
    return tuple(np.percentile(latencies, (50, 99, 99.9)) * 1e3) if latencies else (float("nan"),) * 3


def histogram(latencies, bars: int = 24) -> str:
    """Latencies on a logarithmic scale, a line a bucket."""
    milliseconds = np.array(latencies) * 1e3
    edges = np.geomspace(milliseconds.min(), milliseconds.max() * 1.001, bars + 1)
    counts, _ = np.histogram(milliseconds, edges)
    return "\n".join(
        f"{low:9.3f} ms {count:7d} {'#' * int(60 * count / counts.max())}" for low, count in zip(edges, counts) if count
    )


def predict_request(rows: int, model_name: str) -> bytes:
    """A serialized request with random rows."""
    from tensorflow_serving.apis import predict_pb2

    from dlrm_tf.serving_api.tensors import to_proto

    generator = np.random.default_rng(rows)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model_name
    dense = generator.random((rows, 13), np.float32) * 3
    request.inputs["dense"].CopyFrom(to_proto(dense, as_content=True))
    request.inputs["categorical"].CopyFrom(to_proto(generator.integers(0, 3, (rows, 26)).astype(np.int32), as_content=True))
    request.output_filter.append("probability")
    return request.SerializeToString()


def export_model(folder: str, share: float) -> str:
    """The Hub's layers with `share` of its vocabulary and seeded weights, exported; gives the base path."""
    from savedmodel import make_inputs

    from dlrm_tf import export_savedmodel

    make_inputs(folder, share)
    export_savedmodel(os.path.join(folder, "m.weights.h5"), folder)
    return os.path.join(folder, "dlrm")


@contextlib.contextmanager
def server(base_path: str, *flags: str):
    """`dlrm-tf serve` as a process of its own; yields `(targets, process)`: gRPC's, then REST's where there is one."""
    command = [
        sys.executable,
        "-m",
        "dlrm_tf",
        "serve",
        "--model_name=dlrm",
        f"--model_base_path={base_path}",
        "--port=0",
        *flags,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            ready = process.stdout.readline()
            if not ready.startswith("ready"):
                sys.exit(f"the server did not start: {' '.join(command)}")
            yield [word.split("=", 1)[1] for word in ready.split()[1:]], process
        finally:
            process.terminate()
            process.wait(30)


def send(load: Load, args, callers, seconds: float) -> float:
    """Sends requests for `seconds`; gives the seconds until the last answer."""
    start = time.perf_counter()
    load.open(args.rate, seconds) if args.rate else load.closed(callers, seconds)
    return time.perf_counter() - start


def measure(targets: dict[str, str], args) -> None:
    """Prints a line a server and combination of callers (or the rate) and rows; of callers alone where a log is replayed.

    Args:
      targets: `host:port` by the name of the server.
      args: of `main`.
    """
    if args.replay:
        choices = [read_requests(args.replay, args.model_name)]
    else:
        choices = [[LoggedRequest(PREDICT, predict_request(rows, args.model_name or "dlrm"), rows)] for rows in args.rows]
    for requests in choices:
        rows = sum(request.rows for request in requests) / len(requests)
        for callers in [None] if args.rate else args.callers:
            loads = {name: Load(target, requests, min(callers or 8, 8)) for name, target in targets.items()}
            elapsed = dict.fromkeys(loads, 0.0)
            for load in loads.values():
                send(load, args, callers, WARMUP_SECONDS)
                load.latencies.clear()
            for _ in range(args.rounds):
                for name, load in loads.items():
                    elapsed[name] += send(load, args, callers, args.seconds)
            for name, load in loads.items():
                load.close()
                rate = len(load.latencies) / elapsed[name]
                who = f"{args.rate:g}/s" if args.rate else str(callers)
                p50, p99, p999 = percentiles(load.latencies)
                errors = ", ".join(f"{count} {code}" for code, count in load.errors.items()) or "0"
                speed = f"{rate:>12,.0f}{rate * rows:>12,.0f}{p50:>9.2f}{p99:>9.2f}{p999:>9.2f}"
                print(f"{name:<14}{who:>8}{rows:>7.4g}{speed}  {errors}", flush=True)
                if args.histogram and load.latencies:
                    print(histogram(load.latencies))


def batching_flags(folder: str, name: str) -> list:
    """Flags of a server that batches as `BATCHING[name]` says, by a file in `folder`."""
    if BATCHING[name] is None:
        return []
    file = os.path.join(folder, f"{name}.config")
    with open(file, "w", encoding="utf-8") as f:
        f.write(BATCHING[name])
    return ["--enable_batching", f"--batching_parameters_file={file}"]


def numbers(text: str) -> list:
    """`1,4,16` as numbers."""
    return [int(part) for part in text.split(",")]


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", help="host:port of a server that runs already (default: starts ours)")
    parser.add_argument("--model_name", help="(default: dlrm, with --replay the log's)")
    parser.add_argument(
        "--replay", metavar="PATH", help="with --target: send the requests of this log, a file or a folder of them"
    )
    parser.add_argument("--callers", type=numbers, default=[1, 4, 16, 64], help="closed loop (default: 1,4,16,64)")
    parser.add_argument("--rate", type=float, help="open loop: requests a second, instead of callers")
    parser.add_argument("--rows", type=numbers, default=[1, 64, 1024], help="rows a request (default: 1,64,1024)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a line's round (default: 5)")
    parser.add_argument("--batching", default=",".join(BATCHING), help=f"of {', '.join(BATCHING)} (default: all)")
    parser.add_argument("--request_log", action="store_true", help="also a server without batching that logs every request")
    parser.add_argument("--rounds", type=int, default=1, help="times that the servers take turns for a line (default: 1)")
    parser.add_argument("--share", type=float, default=0.01, help="of Criteo Kaggle's vocabulary (default: 0.01)")
    parser.add_argument("--histogram", action="store_true", help="latencies by bucket under each line")
    args = parser.parse_args()
    if args.replay and not args.target:
        parser.error("--replay: wanted --target, a server with the models of the log. Received none")
    unknown = [name for name in args.batching.split(",") if name not in BATCHING]
    if unknown:
        parser.error(f"--batching: wanted some of {', '.join(BATCHING)}. Received {unknown[0]!r}")
    print(f"{'server':<14}{'callers':>8}{'rows':>7}{'requests/s':>12}{'rows/s':>12}{'p50 ms':>9}{'p99':>9}{'p99.9':>9}  errors")
    if args.target:
        measure({"as it runs": args.target}, args)
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        base_path = export_model(folder, args.share)
        flags = {name: batching_flags(folder, name) for name in args.batching.split(",")}
        if args.request_log:
            flags["request log"] = [f"--request_log_dir={os.path.join(folder, 'log')}"]
        started = {name: servers.enter_context(server(base_path, *flags[name])) for name in flags}
        measure({name: targets[0] for name, (targets, _) in started.items()}, args)


if __name__ == "__main__":
    main()
