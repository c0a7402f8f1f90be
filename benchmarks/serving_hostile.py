"""What a caller of one row sees of a server while others send it what is legal but hostile: latency, errors, the server's memory.

    python benchmarks/serving_hostile.py                        # every case
    python benchmarks/serving_hostile.py --cases lists,rows --megabytes 10
    python benchmarks/serving_hostile.py --seconds 30 --cases headers,resets

The caller sends its next Predict over gRPC when the last is answered, on a connection of its own. Cases: `none`; a JSON body of
empty lists (`lists`), of rows as a client has them (`rows`), of numbers in one list (`numbers`), over REST; calls of headers
only, 150 a second on one connection (`headers`); calls that are reset at once, as fast as one connection takes them (`resets`).
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np
from serving_soak import resident_megabytes

from serving import PREDICT, export_model, predict_request, server

ROW = {"dense": [0.25] * 13, "categorical": [1] * 26}


def json_body(case: str, size: int) -> bytes:
    """A legal body of about `size` bytes."""
    if case == "rows":
        row = json.dumps(ROW).encode()
        return b'{"instances": [' + b", ".join([row] * (size // (len(row) + 2))) + b"]}"
    element = {"lists": b"[]", "numbers": b"1"}[case]
    return b'{"inputs": {"dense": [' + (element + b",") * (size // (len(element) + 1)) + element + b'], "categorical": [[1]]}}'


def post(address: str, body: bytes) -> str:
    """Sends a body to REST's Predict; gives a line that says how long it took and how the answer begins."""
    host, port = address.removeprefix("http://").split(":")
    start = time.perf_counter()
    with socket.create_connection((host, int(port)), timeout=600) as connection:
        connection.sendall(b"POST /v1/models/dlrm:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = connection.recv(4096)
    status, _, text = answer.partition(b"\r\n")[0].decode(), *answer.partition(b"\r\n\r\n")[1:]
    return f"    {len(body) / 1e6:.0f} MB answered in {time.perf_counter() - start:.1f} s: {status} {text[:100].decode()}"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def call_headers(path: str) -> bytes:
    """The header block of a gRPC call, no name compressed."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields.items()
    )


def flood(address: str, end: threading.Event, rate: float, reset: bool) -> None:
    """Opens calls that have headers only on one connection after the other; with `reset` each is taken back at once."""
    host, port = address.split(":")
    sent, headers = 0, call_headers(PREDICT)
    start = time.perf_counter()
    while not end.is_set():
        with contextlib.suppress(ConnectionError), socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
            threading.Thread(target=_drain, args=(connection,), daemon=True).start()
            for stream in range(1, 1 << 30, 2):
                if end.is_set():
                    break
                connection.sendall(frame(1, 4, stream, headers) + (frame(3, 0, stream, struct.pack(">I", 8)) if reset else b""))
                sent += 1
                end.wait(max(start + sent / rate - time.perf_counter(), 0))
    print(f"    {sent} calls, {sent / (time.perf_counter() - start):,.0f}/s", flush=True)


def _drain(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(1 << 16):
            pass


@contextlib.contextmanager
def caller(target: str, latencies: list, errors: dict) -> Iterator[None]:
    """Sends requests of one row, one after the other, while the block runs."""
    import grpc

    end, request = threading.Event(), predict_request(1, "dlrm")

    def call() -> None:
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            predict = channel.unary_unary(PREDICT)
            while not end.is_set():
                start = time.perf_counter()
                try:
                    predict(request, timeout=60)
                except grpc.RpcError as e:
                    errors[e.code().name] = errors.get(e.code().name, 0) + 1
                else:
                    latencies.append(time.perf_counter() - start)
                end.wait(0.002)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def measure(case: str, args: argparse.Namespace, targets: list, pid: int) -> None:
    """Prints a line for a case."""
    end, memory, latencies, errors = threading.Event(), [], [], {}

    def watch() -> None:
        while not end.wait(0.02):
            memory.append(resident_megabytes(pid) + sum(map(resident_megabytes, children(pid))))

    body = json_body(case, args.megabytes * 1_000_000) if case in ("lists", "rows", "numbers") else b""
    hostile = threading.Thread(target=flood, args=(targets[0], end, 150 if case == "headers" else 1e9, case == "resets"))
    with caller(targets[0], [], {}):
        time.sleep(1)
        if body:
            post(targets[1], json_body(case, 100_000))  # from now on there is a process that reads large bodies
    watcher = threading.Thread(target=watch)
    watcher.start()
    time.sleep(0.2)
    before = max(memory)
    with caller(targets[0], latencies, errors):
        if body:
            for _ in range(args.bodies):
                print(post(targets[1], body), flush=True)
        else:
            if case != "none":
                hostile.start()
            time.sleep(args.seconds)
    end.set()
    watcher.join()
    if hostile.ident:
        hostile.join()
    p50, p999 = np.percentile(latencies, (50, 99.9)) * 1e3 if latencies else (np.nan, np.nan)
    grown = f"{max(memory) - before:,.0f} MB" + (f" ({(max(memory) - before) * 1e6 / len(body):.1f} times)" if body else "")
    worst = max(latencies, default=0) * 1e3
    print(
        f"{case:<10}{len(latencies):>8}{p50:>10.2f}{p999:>10.1f}{worst:>10.1f}  {grown}  {errors or ''}",
        flush=True,
    )


def children(pid: int) -> list:
    """The processes that the threads of another one have started."""
    found = []
    for file in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, file.read_text().split())
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="none,lists,rows,numbers,headers,resets")
    parser.add_argument("--megabytes", type=int, default=10, help="of a JSON body (default: 10)")
    parser.add_argument("--bodies", type=int, default=1, help="JSON bodies, one after the other (default: 1)")
    parser.add_argument("--flags", default="", help="further flags of the server, in one argument")
    parser.add_argument("--seconds", type=float, default=10, help="of the other cases (default: 10)")
    args = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as folder:
        base_path = export_model(folder, 0.01)
        flags = ("--rest_api_port=0", "--rest_api_timeout_in_ms=300000", *args.flags.split())
        with server(base_path, *flags) as (targets, process):
            print(f"{'case':<10}{'calls':>8}{'p50 ms':>10}{'p99.9':>10}{'max':>10}  memory added, errors")
            for case in args.cases.split(","):
                measure(case, args, targets, process.pid)


if __name__ == "__main__":
    main()
