"""The server around the models: TLS, unix socket, health, reflection, metrics, a stop without a lost request."""

import pathlib
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
import trustme
import urllib3
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving_models import bias, failure, served
from tensorflow_serving.apis import model_pb2
from waiting import PATIENCE, eventually

from dlrm_tf.errors import ServingError, UsageError
from dlrm_tf.score import Client, Tls
from dlrm_tf.serve import ModelServer
from dlrm_tf.serving_api.config_protos import SSLConfig


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


@pytest.mark.parametrize("client_verify", [False, True])
def test_tls_with_and_without_client_verification(save_linear, tmp_path, authority, start, client_verify):
    certificate, files = authority
    server_key, server_cert = (pem.bytes() for pem in (certificate.private_key_pem, *certificate.cert_chain_pems[:1]))
    custom_ca = pathlib.Path(files["ca"]).read_bytes()
    config = SSLConfig(server_key=server_key, server_cert=server_cert, custom_ca=custom_ca, client_verify=client_verify)
    (tmp_path / "ssl.config").write_text(str(config))
    server = start(model_base_path=save_linear(4), ssl_config_file=str(tmp_path / "ssl.config"))
    assert served(server.target, tls=Tls(files["ca"], files["client"], files["key"], "localhost")) == 4
    assert "UNAVAILABLE" in failure(served, server.target, retries=0)
    anonymous = Tls(files["ca"], server_name="localhost")
    assert ("UNAVAILABLE" in failure(served, server.target, tls=anonymous, retries=0)) == client_verify


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


def test_an_ipv6_address(save_linear, start):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    server = start(model_base_path=save_linear(4), host="::1", rest_api_port=0)
    assert served(server.target) == served(server.rest_target) == 4


def test_reflection_describes_the_services(save_linear, start):
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="tensorflow.serving.PredictionService")
    with grpc.insecure_channel(start(model_base_path=save_linear(1)).target) as channel:
        (described,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=120)
    file = descriptor_pb2.FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
    assert {method.name for method in file.service[0].method} >= {"Predict", "Classify", "Regress", "MultiInference"}


@pytest.mark.parametrize("path", [None, "/metrics"])
def test_prometheus_counts_requests(save_linear, tmp_path, start, path):
    config = tmp_path / "monitoring.config"
    config.write_text("prometheus_config { enable: true" + (f' path: "{path}"' if path else "") + " }")
    server = start(model_base_path=save_linear(1), rest_api_port=0, monitoring_config_file=str(config))
    for target in (server.target, server.target, server.rest_target):
        served(target)
    assert failure(served, server.target, model_name="no")
    with Client(server.target) as client:
        assert failure(client.predict, {})
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


def test_message_limit_of_the_channel_arguments(save_linear, start):
    server = start(model_base_path=save_linear(1), grpc_channel_arguments="grpc.max_receive_message_length=4096")
    with Client(server.target) as client:
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
    module, gate = Waits(), tmp_path / "gate"
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.wait})
    options = {"rest_api_port": 0, "rest_api_timeout_in_ms": 120_000}
    server = ModelServer(model_name="dlrm", model_base_path=str(tmp_path), **options).start()
    clients = [Client(target) for target in (server.target, server.rest_target)]
    for client in clients:
        client.metadata()
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(client.predict, {"path": str(gate).encode()}) for client in clients]
        eventually(lambda: any(v.requests == 2 for v in server._manager.status(model_pb2.ModelSpec(name="dlrm"))))
        pool.submit(server.stop, grace=PATIENCE)
        eventually(lambda: failure(Client(server.target, retries=0).status))
        assert not any(answer.done() for answer in answers)
        gate.touch()
        assert [int(answer.result(PATIENCE)["files"]) for answer in answers] == [1, 1]


@pytest.mark.slow
def test_every_flag_reaches_the_server(save_linear, tmp_path, authority):
    batching, monitoring = tmp_path / "batching.config", tmp_path / "monitoring.config"
    batching.write_text("max_batch_size { value: 4 } num_batch_threads { value: 2 }")
    monitoring.write_text("prometheus_config { enable: true }")
    command = [sys.executable, "-m", "dlrm_tf", "serve", "--model_name=dlrm", f"--model_base_path={save_linear(7)}", "--port=0"]
    command += ["--rest_api_port=0", "--enable_batching=true", f"--batching_parameters_file={batching}", "--grpc_max_threads=3"]
    command += [f"--monitoring_config_file={monitoring}", "--enable_model_warmup=false", f"--grpc_socket_path={tmp_path / 's'}"]
    command += ["--rest_api_num_threads=2", "--tensorflow_session_parallelism=2", "--saved_model_tags=serve", "--enable_profiler"]
    command += [f"--request_log_dir={tmp_path / 'log'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            ready = dict(word.split("=") for word in process.stdout.readline().split()[1:])
            assert served(ready["grpc"]) == served(ready["rest"]) == served(f"unix://{tmp_path / 's'}") == 7
            page = urllib3.request("GET", ready["rest"] + "/monitoring/prometheus/metrics").data.decode()
            assert "processed_batch_size_count 3.0" in page
            process.terminate()
            assert process.wait(120) == 0
            (log,) = (tmp_path / "log" / "dlrm").iterdir()  # named at the end, though it is young
            assert len(list(tf.data.TFRecordDataset(str(log)).as_numpy_iterator())) == 3
        finally:
            process.kill()
