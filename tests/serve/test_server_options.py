"""The server around the models: TLS, unix socket, health, reflection, metrics, a stop without a lost request."""

import pathlib
import socket
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
import trustme
import urllib3
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving_models import INPUTS, bias
from tensorflow_serving.apis import model_pb2
from waiting import PATIENCE, eventually

from dlrm_tf.errors import ServingError, UsageError
from dlrm_tf.score import Client, Tls
from dlrm_tf.serve import ModelServer


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Files of an authority, a server certificate for localhost and a client certificate."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    files = {"ca": folder / "ca.pem", "client": folder / "client.pem", "key": folder / "key.pem"}
    authority.cert_pem.write_to_path(str(files["ca"]))
    client = authority.issue_cert("client.example")
    client.cert_chain_pems[0].write_to_path(str(files["client"]))
    client.private_key_pem.write_to_path(str(files["key"]))
    return authority.issue_cert("localhost"), {name: str(path) for name, path in files.items()}


def ssl_config(path, authority, client_verify):
    server, files = authority

    def pem(text):
        return '"' + text.replace("\n", "\\n") + '"'

    path.write_text(
        f"server_key: {pem(server.private_key_pem.bytes().decode())}\n"
        f"server_cert: {pem(server.cert_chain_pems[0].bytes().decode())}\n"
        f"custom_ca: {pem(pathlib.Path(files['ca']).read_text())}\n"
        f"client_verify: {'true' if client_verify else 'false'}\n"
    )
    return str(path)


@pytest.mark.parametrize("client_verify", [False, True])
def test_tls_with_and_without_client_verification(save_linear, tmp_path, authority, client_verify):
    config, (_, files) = ssl_config(tmp_path / "ssl.config", authority, client_verify), authority
    tls = Tls(files["ca"], files["client"], files["key"], "localhost")
    with ModelServer(model_name="dlrm", model_base_path=save_linear(4), ssl_config_file=config) as server:
        with Client(server.target, tls=tls) as client:
            assert bias(client) == 4
        with Client(server.target, retries=0) as client, pytest.raises(ServingError, match="UNAVAILABLE"):
            bias(client)
        anonymous = Tls(files["ca"], server_name="localhost")
        with Client(server.target, tls=anonymous, retries=0) as client:
            if client_verify:
                with pytest.raises(ServingError, match="UNAVAILABLE"):
                    bias(client)
            else:
                assert bias(client) == 4


def test_bad_ssl_files(save_linear, tmp_path):
    path = tmp_path / "ssl.config"
    for text, message in (
        ('server_key: "/etc/key.pem" server_cert: "x"', "server_key must be the PEM text itself"),
        ('server_key: "-----BEGIN" server_cert: "-----BEGIN" client_verify: true', "client_verify needs custom_ca"),
        ("server_kex: 1", 'no field named "server_kex"'),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            ModelServer(model_base_path=str(tmp_path), ssl_config_file=str(path))
    path.write_text('server_key: "-----BEGIN" server_cert: "-----BEGIN"')
    server = ModelServer(model_name="dlrm", model_base_path=save_linear(1), ssl_config_file=str(path))
    with pytest.raises(ServingError, match="bad key or certificate"):
        server.start()


def test_unix_socket(save_linear, tmp_path):
    path = tmp_path / "s"
    options = {"model_name": "dlrm", "model_base_path": save_linear(4)}
    with ModelServer(grpc_socket_path=str(path), **options), Client(f"unix://{path}") as client:
        assert bias(client) == 4


def test_an_ipv6_address(save_linear):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with ModelServer(model_name="dlrm", model_base_path=save_linear(4), host="::1", rest_api_port=0) as server:
        for target in (server.target, server.rest_target):
            with Client(target) as client:
                assert bias(client) == 4


def test_health_says_serving_then_not_serving(save_linear):
    server = ModelServer(model_name="dlrm", model_base_path=save_linear(1)).start()
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=120).status == 1
        states = []

        def watch():
            try:
                for response in (call := stub.Watch(health_pb2.HealthCheckRequest())):
                    states.append(response.status)
                    if states[-1] == health_pb2.HealthCheckResponse.NOT_SERVING:
                        call.cancel()  # the server waits for nothing more
            except grpc.RpcError:
                pass

        watcher = threading.Thread(target=watch)
        watcher.start()
        eventually(lambda: states)
        server.stop(grace=PATIENCE)
        watcher.join(120)
    assert states == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


def test_reflection_describes_the_services(save_linear):
    with (
        ModelServer(model_name="dlrm", model_base_path=save_linear(1)) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest
        symbol = "tensorflow.serving.PredictionService"
        listed, described = stub.ServerReflectionInfo(
            iter([ask(list_services=""), ask(file_containing_symbol=symbol)]), timeout=120
        )
    names = {service.name for service in listed.list_services_response.service}
    assert {symbol, "tensorflow.serving.ModelService", "grpc.health.v1.Health"} <= names
    file = descriptor_pb2.FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
    assert {method.name for method in file.service[0].method} >= {"Predict", "Classify", "Regress", "MultiInference"}


@pytest.mark.parametrize("path", [None, "/metrics"])
def test_prometheus_counts_requests(save_linear, tmp_path, path):
    config = tmp_path / "monitoring.config"
    config.write_text("prometheus_config { enable: true" + (f' path: "{path}"' if path else "") + " }")
    options = {"rest_api_port": 0, "monitoring_config_file": str(config)}
    with ModelServer(model_name="dlrm", model_base_path=save_linear(1), **options) as server:
        with (
            Client(server.target) as over_grpc,
            Client(server.rest_target) as over_rest,
            Client(server.target, model_name="no") as unknown,
        ):
            over_grpc.predict(INPUTS)
            over_grpc.predict(INPUTS)
            over_rest.predict(INPUTS)
            with pytest.raises(ServingError):
                over_grpc.predict({})
            with pytest.raises(ServingError):
                unknown.predict(INPUTS)
        response = urllib3.request("GET", server.rest_target + (path or "/monitoring/prometheus/metrics"))
    lines = response.data.decode().splitlines()
    assert response.status == 200 and response.headers["Content-Type"].startswith("text/plain")
    assert ':tensorflow:serving:request_count{model_name="dlrm",status="OK"} 3.0' in lines
    assert ':tensorflow:serving:request_count{model_name="dlrm",status="INVALID_ARGUMENT"} 1.0' in lines
    # A name a client made up must not become a label: clients could fill the server's memory.
    assert ':tensorflow:serving:request_count{model_name="",status="NOT_FOUND"} 1.0' in lines
    count = ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="%s",model_name="dlrm"} %s.0'
    assert count % ("GRPC", 2) in lines and count % ("REST", 1) in lines


def test_options_that_exclude_each_other(tmp_path):
    for options, message in (
        ({"rest_api_port": 70000}, "--rest_api_port: wanted a port from 0 to 65535. Received 70000"),
        ({"port": 8500, "rest_api_port": 8500}, "wanted another port than gRPC's"),
        ({"batching_parameters_file": "x"}, "needs --enable_batching"),
        ({"monitoring_config_file": "x"}, "needs --rest_api_port"),
        ({"grpc_max_threads": 0}, "wanted at least 1. Received 0"),
        ({"max_repeated_values": -1}, "wanted at least 0. Received -1"),
        ({"grpc_channel_arguments": "a"}, "wanted name=value. Received 'a'"),
        ({"model_config_file": "x"}, "exclude each other"),
    ):
        with pytest.raises(UsageError, match=message):
            ModelServer(model_base_path=str(tmp_path), **options)


def test_message_limit_of_the_channel_arguments(save_linear):
    options = {"model_name": "dlrm", "model_base_path": save_linear(1)}
    with (
        ModelServer(grpc_channel_arguments="grpc.max_receive_message_length=4096", **options) as server,
        Client(server.target) as client,
    ):
        assert bias(client) == 1
        with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED"):
            client.score(np.zeros((100, 13)), np.zeros((100, 26), np.int32))
        assert bias(client) == 1


class Waits(tf.Module):
    """Answers as soon as a file exists."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="path")])
    def wait(self, path):
        files = tf.while_loop(lambda n: n == 0, lambda n: [tf.size(tf.io.matching_files(path))], [tf.constant(0)])
        return {"files": files[0]}


def test_a_stop_lets_requests_under_way_finish(tmp_path):
    module, gate, answers = Waits(), tmp_path / "gate", []
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.wait})
    options = {"rest_api_port": 0, "rest_api_timeout_in_ms": 120_000}
    server = ModelServer(model_name="slow", model_base_path=str(tmp_path), **options).start()
    clients = [Client(target, model_name="slow") for target in (server.target, server.rest_target)]
    for client in clients:
        client.metadata()
    threads = [
        threading.Thread(target=lambda c=c: answers.append(int(c.predict({"path": str(gate).encode()})["files"])))
        for c in clients
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: any(v.requests == 2 for v in server._manager.status(model_pb2.ModelSpec(name="slow"))))
    threads.append(threading.Thread(target=server.stop, kwargs={"grace": PATIENCE}))
    threads[-1].start()

    def new_ones_are_refused():
        try:
            with Client(server.target, model_name="slow", retries=0) as client:
                client.status()
        except ServingError:
            return True
        return False

    eventually(new_ones_are_refused)
    assert not answers
    gate.touch()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [1, 1]


@pytest.mark.slow
def test_every_flag_reaches_the_server(save_linear, tmp_path, authority):
    batching, monitoring = tmp_path / "batching.config", tmp_path / "monitoring.config"
    batching.write_text("max_batch_size { value: 4 } num_batch_threads { value: 2 }")
    monitoring.write_text("prometheus_config { enable: true }")
    command = [sys.executable, "-m", "dlrm_tf", "serve", "--model_name=dlrm", f"--model_base_path={save_linear(7)}", "--port=0"]
    command += ["--rest_api_port=0", "--enable_batching=true", f"--batching_parameters_file={batching}", "--grpc_max_threads=3"]
    command += [f"--monitoring_config_file={monitoring}", "--enable_model_warmup=false", f"--grpc_socket_path={tmp_path / 's'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            ready = dict(word.split("=") for word in process.stdout.readline().split()[1:])
            for target in (ready["grpc"], ready["rest"], f"unix://{tmp_path / 's'}"):
                with Client(target) as client:
                    assert bias(client) == 7
            page = urllib3.request("GET", ready["rest"] + "/monitoring/prometheus/metrics").data.decode()
            assert "processed_batch_size_count 3.0" in page
            process.terminate()
            assert process.wait(120) == 0
        finally:
            process.kill()
