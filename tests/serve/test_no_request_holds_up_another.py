"""Legal but hostile requests: others are answered meanwhile, the server's memory stays bounded, it ends when it is told to."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving_models import INPUTS, failure, predict_log, save_first, served, write_warmup
from waiting import PATIENCE, eventually

from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer
from dlrm_tf.serve.version_files import check_version_files
from dlrm_tf.versions import WARMUP_FILE

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
from serving_hostile import call_headers, children, frame  # noqa: E402

from serving import PREDICT  # noqa: E402


class Slow(tf.Module):
    """A step of many seconds, which nothing can interrupt, and an answer of gigabytes."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def wait(self, x):
        matrix = tf.random.uniform([600, 600])
        for _ in tf.range(100_000):
            matrix = tf.linalg.l2_normalize(matrix @ matrix)
        return {"y": x + matrix[0, 0]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def large(self, x):
        return {"y": tf.ensure_shape(tf.tile(x[:, None], [1, 1 << 20]), [None, 1 << 20])}


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory):
    module = Slow()
    return save_first(tmp_path_factory.mktemp("slow"), module, serving_default=module.wait, large=module.large)


@pytest.fixture(scope="module")
def process(linear_model):
    """`dlrm-tf serve` of the linear model as a process of its own: `(process, gRPC's address, REST's host and port)`."""
    with serving(linear_model) as ready:
        yield ready


@contextlib.contextmanager
def serving(base_path):
    command = [sys.executable, "-m", "dlrm_tf", "serve", "--model_name=dlrm", "--port=0", "--rest_api_port=0"]
    with subprocess.Popen([*command, f"--model_base_path={base_path}"], stdout=subprocess.PIPE, text=True) as process:
        try:
            targets = [word.partition("=")[2] for word in process.stdout.readline().split()[1:]]
            host, _, port = targets[1].removeprefix("http://").rpartition(":")
            yield process, targets[0], (host, int(port))
        finally:
            if process.poll() is None:
                process.kill()


def peak_bytes(pid):
    """The most memory the process has had, and its children have now at their most."""
    total = 0
    for one in [pid, *children(pid)]:
        with open(f"/proc/{one}/status") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) << 10
    return total


def post(address, body, path="/v1/models/dlrm:predict"):
    """A request on a connection whose own side is closed after it; gives status and JSON."""
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, text = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(text)


@contextlib.contextmanager
def innocent(target):
    """A caller that sends one request after the other without retries; gives the list of its answers, all right at the end."""
    end, answers, errors = threading.Event(), [], []

    def call():
        with Client(target, retries=0) as client:
            while not end.is_set():
                try:
                    answers.append(float(client.predict(INPUTS)["logit"][0, 0]))
                except Exception as e:
                    errors.append(str(e))

    thread = threading.Thread(target=call)
    thread.start()
    try:
        eventually(lambda: answers or errors)
        yield answers
    finally:
        end.set()
        thread.join()
    assert not errors and set(answers) == {-20.0}


ELEMENTS = {"lists": b"[]", "numbers": b"1", "objects": b"{}", "strings": b'""', "deep": b"[" * 60 + b"]" * 60}


@pytest.mark.parametrize("kind", ELEMENTS)
def test_a_body_of_many_values_takes_little_memory_and_holds_up_nobody(process, kind):
    server, target, rest = process
    post(rest, json.dumps({"inputs": {"dense": [[0.0] * 13] * 9000, "categorical": [[0] * 26] * 9000}}).encode())  # warm
    before = peak_bytes(server.pid)
    element = ELEMENTS[kind]
    body = (
        b'{"inputs": {"dense": ['
        + (element + b",") * (12_000_000 // (len(element) + 1))
        + element
        + b'], "categorical": [[1], [1]]}}'
    )
    readers = children(server.pid)
    assert readers
    with innocent(target) as answers, ThreadPoolExecutor(1) as pool:
        try:
            for reader in readers:
                os.kill(reader, signal.SIGSTOP)  # the body takes as long as it likes
            posted = pool.submit(post, rest, body)
            count = len(answers)
            eventually(lambda: len(answers) > count + 20)
            assert not posted.done()
        finally:
            for reader in readers:
                os.kill(reader, signal.SIGCONT)
        status, answer = posted.result()
        assert status == 400 and answer["error"]
        count = len(answers)
        eventually(lambda: len(answers) > count)
    # The calls beside it take some, too: threads keep arenas of their own.
    assert peak_bytes(server.pid) - before < 4 * len(body) + (16 << 20)


def test_large_rows_are_scored_as_small_ones(process):
    rows = [{"dense": [0.5 * (i % 3)] * 13, "categorical": [i % 2] * 26} for i in range(4000)]
    status, answer = post(process[2], json.dumps({"instances": rows}).encode())
    assert status == 200
    logits = np.array([[row["logit"][0], row["probability"][0]] for row in answer["predictions"]])
    expected = np.array([6.5 * (i % 3) + 26 * (i % 2) - 20 for i in range(4000)])
    np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(logits[:, 1], 1 / (1 + np.exp(-expected)), rtol=1e-5)


@pytest.mark.parametrize("reset", [False, True], ids=["headers only", "reset at once"])
def test_calls_that_are_never_made_on_one_connection_starve_no_other(process, reset):
    host, _, port = process[1].rpartition(":")
    headers = call_headers(PREDICT)
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection, innocent(process[1]) as answers:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        for stream in range(1, 20_000 if reset else 2_000, 2):
            taken_back = frame(3, 0, stream, struct.pack(">I", 8)) if reset else b""
            try:
                connection.sendall(frame(1, 4, stream, headers) + taken_back)
            except ConnectionError:  # the server has had enough of it
                break
        count = len(answers)
        eventually(lambda: len(answers) > count + 20)


def test_health_watchers_that_leave_while_the_server_stops(linear_model):
    for _ in range(3):
        server = ModelServer(model_name="dlrm", model_base_path=linear_model, rest_api_port=0).start()
        channels = [grpc.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)]
        watchers = [health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()) for channel in channels]
        assert all(next(watcher).status == health_pb2.HealthCheckResponse.SERVING for watcher in watchers)

        def leave_when_told(watcher):
            with contextlib.suppress(grpc.RpcError):
                assert next(watcher).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watcher.cancel()

        leaving = [threading.Thread(target=leave_when_told, args=(watcher,)) for watcher in watchers]
        for thread in leaving:
            thread.start()
        assert server.stop()
        assert server.stop()  # once more is harmless
        for thread in leaving:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        for channel in channels:
            channel.close()


def test_health_of_what_the_server_has_not(start, linear_model):
    with grpc.insecure_channel(start(model_base_path=linear_model).target) as channel:
        stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service="x")
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(request, timeout=PATIENCE)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert next(stub.Watch(request)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.slow
def test_sigterm_ends_the_process_while_a_model_runs(slow_model):
    with serving(slow_model) as (process, target, rest), Client(target, retries=0) as client:
        running = [threading.Thread(target=failure, args=(client.predict, {"x": np.zeros(1, np.float32)})) for _ in range(2)]
        body = json.dumps({"instances": [0.0]}).encode()
        running.append(threading.Thread(target=_ignore, args=(post, rest, body)))
        for thread in running:
            thread.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)  # long enough for the calls to have come to the model
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        for thread in running:
            thread.join(PATIENCE)


@pytest.mark.slow
def test_sigterm_ends_the_process_while_a_version_loads(slow_model, tmp_path):
    base = tmp_path / "models"
    shutil.copytree(slow_model, base)
    with serving(base) as (process, target, _), Client(target) as client:
        shutil.copytree(base / "1", tmp_path / "2")
        # Its warm-up is a step of many seconds, so it stays in this state.
        write_warmup(tmp_path / "2" / WARMUP_FILE, [predict_log(x=np.zeros(1, np.float32))])
        os.rename(tmp_path / "2", base / "2")
        eventually(lambda: (2, "LOADING") in [(version["version"], version["state"]) for version in client.status()])
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def _ignore(call, *arguments):
    with contextlib.suppress(Exception):
        call(*arguments)


@pytest.mark.parametrize("kind", ["FIFO", "socket", "circle"])
@pytest.mark.parametrize("where", ["variables/variables.index", "assets.extra/tf_serving_warmup_requests", "assets/x"])
def test_what_is_no_file_in_a_version_is_refused(save_linear, where, kind):
    base = save_linear(1)
    file = os.path.join(base, "1", where)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.remove(file)
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "FIFO":
            os.mkfifo(file)
        elif kind == "circle":
            os.symlink(file, file)
        else:
            here = os.getcwd()
            os.chdir(os.path.dirname(file))  # a socket's path is limited to about 100 bytes
            try:
                listener.bind(os.path.basename(file))
            finally:
                os.chdir(here)
        message = failure(ModelServer(model_name="dlrm", model_base_path=base).start, timeout=PATIENCE)
    assert f"{file}: wanted a" in message and ("symbolic links" if kind == "circle" else f"Received a {kind}") in message


def test_links_to_files_and_folders_are_followed(save_linear, tmp_path):
    base = save_linear(1)
    os.rename(os.path.join(base, "1", "variables"), tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", os.path.join(base, "1", "variables"))
    os.symlink("..", os.path.join(base, "1", "assets", "above"))
    check_version_files(os.path.join(base, "1"))
    with ModelServer(model_name="dlrm", model_base_path=base) as server:
        assert served(server.target) == 1


def test_an_answer_of_gigabytes_is_refused_before_it_is_computed(start, slow_model):
    server = start(model_base_path=slow_model, max_answer_bytes=10 << 20)
    with Client(server.target) as client:
        assert client.predict({"x": np.ones(2, np.float32)}, signature_name="large")["y"].shape == (2, 1 << 20)
        message = failure(client.predict, {"x": np.ones(100_000, np.float32)}, signature_name="large")
    assert f"RESOURCE_EXHAUSTED: The answer would have {100_000 << 22} bytes, more than {10 << 20}" in message
