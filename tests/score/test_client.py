"""The client: deadlines, retries of calls that were not run, batches split to a limit."""

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from dlrm_tf import score, serve
from dlrm_tf.cli.main import main
from dlrm_tf.errors import ServingError
from dlrm_tf.score import Client, Tls
from dlrm_tf.serving_api.tensors import to_array, to_proto


class Scripted(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Fails as told, then answers row sums; remembers the rows of each request."""

    def __init__(self):
        self.failures, self.rows, self.released = [], [], threading.Event()

    def Predict(self, request, context):
        dense = to_array(request.inputs["dense"], "dense")
        self.rows.append(len(dense))
        if self.failures:
            code = self.failures.pop(0)
            if code == "hang":
                self.released.wait()
            else:
                context.abort(code, "as told")
        response = predict_pb2.PredictResponse()
        response.outputs["probability"].CopyFrom(to_proto(dense.sum(1, keepdims=True)))
        return response


@pytest.fixture
def scripted():
    service = Scripted()
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    service.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield service
    service.released.set()
    server.stop(0)


def rows(n):
    return np.arange(n * 13, dtype=np.float32).reshape(n, 13), np.zeros((n, 26), np.int32)


def test_rows_are_split_to_the_limit_and_come_back_in_order(scripted):
    with Client(scripted.target, batch_size=4) as client:
        dense, categorical = rows(11)
        np.testing.assert_array_equal(client.score(dense, categorical), dense.sum(1))
        assert scripted.rows == [4, 4, 3]
        assert client.score(*rows(0)).shape == (0,)


def test_batch_size_of_the_command_line_is_the_rows_of_a_request(scripted, tmp_path):
    dense, categorical = rows(3000)
    np.savez(tmp_path / "rows.npz", dense=dense, categorical=categorical)
    command = ["score", str(tmp_path / "rows.npz"), "--target", scripted.target, "--batch_size", "2000"]
    assert main([*command, "-o", str(tmp_path / "p.npy")]) == 0
    assert scripted.rows == [2000, 1000]
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), dense.sum(1))


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED"])
def test_a_call_that_was_not_run_is_tried_again_within_the_deadline(scripted, code):
    scripted.failures = [grpc.StatusCode[code]] * 2
    with Client(scripted.target, timeout=120, retries=3) as client:
        timeouts, predict = [], client._transport.predict

        def recorded(arrays, signature_name, outputs, timeout):
            timeouts.append(timeout)
            return predict(arrays, signature_name, outputs, timeout)

        client._transport.predict = recorded
        assert client.score(*rows(1)).shape == (1,)
    assert len(scripted.rows) == 3
    assert 120 >= timeouts[0] > timeouts[1] > timeouts[2] > 0


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "INTERNAL", "NOT_FOUND", "ABORTED", "UNKNOWN"])
def test_nothing_else_is_tried_again(scripted, code):
    scripted.failures = [grpc.StatusCode[code]]
    with Client(scripted.target) as client, pytest.raises(ServingError, match=f"{code}: as told"):
        client.score(*rows(1))
    assert len(scripted.rows) == 1


def test_retries_end(scripted):
    scripted.failures = [grpc.StatusCode.UNAVAILABLE] * 1000
    with Client(scripted.target, retries=2) as client, pytest.raises(ServingError, match="UNAVAILABLE: as told"):
        client.score(*rows(1))
    assert len(scripted.rows) == 3
    # The pauses double: the deadline comes long before the last attempt.
    ended = "UNAVAILABLE|DEADLINE_EXCEEDED"
    with Client(scripted.target, retries=900, timeout=0.5) as client, pytest.raises(ServingError, match=ended):
        client.score(*rows(1))
    assert len(scripted.rows) < 100


def test_a_deadline_ends_the_call(scripted):
    scripted.failures = ["hang"]
    with Client(scripted.target, timeout=0.2) as client, pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
        client.score(*rows(1))
    assert len(scripted.rows) <= 1  # 0 when the call did not get there in time


class ScriptedHttp(BaseHTTPRequestHandler):
    script, seen, released = [], [], threading.Event()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(self.path)
        status = self.script.pop(0) if self.script else 200
        if status == "hang":
            self.released.wait()
            status = 200
        self._reply(status, {"outputs": {"probability": [[0.5]], "logit": [[0.0]]}} if status == 200 else {"error": "as told"})

    def do_GET(self):
        outputs = {name: {"dtype": "DT_FLOAT"} for name in ("probability", "logit")}
        signature = {"serving_default": {"outputs": outputs}}
        self._reply(200, {"metadata": {"signature_def": {"signature_def": signature}}})

    def _reply(self, status, document):
        body = json.dumps(document).encode() if document != b"" else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def http():
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedHttp)
    ScriptedHttp.script, ScriptedHttp.seen, ScriptedHttp.released = [], [], threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    ScriptedHttp.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_rest_retries_503_only(http):
    ScriptedHttp.script = [503, 503]
    with Client(http, model_name="a b", version=3) as client:
        assert client.score(*rows(1)).tolist() == [0.5]
        assert ScriptedHttp.seen == ["/v1/models/a%20b/versions/3:predict"] * 3
        for status in (400, 404, 429, 500, 504):
            ScriptedHttp.script, ScriptedHttp.seen = [status], []
            with pytest.raises(ServingError, match=f"HTTP {status}: as told"):
                client.score(*rows(1))
            assert len(ScriptedHttp.seen) == 1


def test_rest_deadline(http):
    ScriptedHttp.script = ["hang"]
    with Client(http, timeout=0.5) as client, pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
        client.score(*rows(1))


def test_nobody_listening_is_unavailable_over_both():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for target in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
        with Client(target, retries=1) as client, pytest.raises(ServingError, match="UNAVAILABLE"):
            client.score(*rows(1))


def test_an_output_the_model_lacks_is_an_error_over_rest(http):
    with (
        Client(http) as client,
        pytest.raises(ServingError, match="alias not found in signature: nope .* set {logit,probability}"),
    ):
        client.predict({"dense": rows(1)[0]}, outputs=("logit", "nope"))
    assert not ScriptedHttp.seen


def test_an_answer_that_is_not_json(http, monkeypatch):
    monkeypatch.setattr(ScriptedHttp, "do_GET", lambda self: self._reply(200, b""))
    with Client(http) as client, pytest.raises(ServingError, match="the answer is not JSON"):
        client.metadata()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="exclude each other"):
        Client("a:1", version=1, label="x")
    with pytest.raises(ValueError, match="timeout must be over 0"):
        Client("a:1", timeout=0)
    with pytest.raises(ValueError, match="go together"):
        Tls(cert_file="x")
    with Client("127.0.0.1:1") as client, pytest.raises(ServingError, match="must have the same rows. Received 1 and 2"):
        client.score(rows(1)[0], rows(2)[1])
    with Client("http://127.0.0.1:1") as client, pytest.raises(ServingError, match="over gRPC only"):
        client.reload("models.config")


@pytest.mark.parametrize("name", ["Client", "Tls", "open_target"])
def test_the_names_that_were_in_serve_are_deprecated_aliases(name):
    with pytest.warns(DeprecationWarning, match=f"dlrm_tf.serve.{name} is dlrm_tf.score.{name} now"):
        assert getattr(serve, name) is getattr(score, name)


@pytest.mark.slow
def test_a_program_with_keras_3_can_be_a_client(scripted):
    program = (
        "import tensorflow as tf, numpy as np\nassert tf.keras.__version__.startswith('3')\n"
        "from dlrm_tf.score import Client\n"
        f"print(Client('{scripted.target}').score(np.ones((1, 13)), np.zeros((1, 26), int)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[13.]", done.stderr
