"""serving/: every file parsed, and its settings run: canary, promotion and rollback as serving/README.md tells them."""

import dataclasses
import os
import pathlib
import re

import pytest
import yaml
from google.protobuf import text_format
from serving_models import served
from tensorflow_serving.config import model_server_config_pb2

from dlrm_tf.errors import ServingError, UsageError
from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer, ServerOptions
from dlrm_tf.serving_api.config_files import read_batching_parameters, read_model_config, read_monitoring_config
from dlrm_tf.serving_api.config_protos import BatchingParameters, MonitoringConfig, SSLConfig

SERVING = pathlib.Path(__file__).parents[2] / "serving"
# Weights, the vocabulary's tables in the graph, the process without a model.
MODEL_GIGABYTES, VOCABULARY_GIGABYTES, SERVER_GIGABYTES = 2.16, 0.405, 0.3


def compose():
    return yaml.safe_load((SERVING / "docker-compose.yaml").read_text())["services"]["serving"]


def kubernetes():
    deployment, service = yaml.safe_load_all((SERVING / "kubernetes.yaml").read_text())
    return deployment, service


def flags(arguments):
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


def test_models_config_is_the_real_proto_with_labels_of_served_versions():
    config = text_format.Parse((SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("dlrm", "/models/dlrm", "tensorflow")
    assert set(model.version_labels) == {"stable", "canary"}
    assert set(model.version_labels.values()) <= set(model.model_version_policy.specific.versions)


def test_batching_and_monitoring_configs():
    batching = read_batching_parameters(str(SERVING / "batching.config"))
    assert (batching.max_batch_size.value, batching.batch_timeout_micros.value, batching.num_batch_threads.value) == (1024, 0, 2)
    prometheus = read_monitoring_config(str(SERVING / "monitoring.config")).prometheus_config
    assert prometheus.enable and prometheus.path == "/monitoring/prometheus/metrics"


@pytest.mark.parametrize(
    "message, fields",
    [
        (
            BatchingParameters,
            {
                "max_batch_size": "Int64Value",
                "batch_timeout_micros": "Int64Value",
                "max_enqueued_batches": "Int64Value",
                "num_batch_threads": "Int64Value",
                "thread_pool_name": "StringValue",
                "allowed_batch_sizes": "int64",
                "pad_variable_length_inputs": "bool",
                "enable_large_batch_splitting": "BoolValue",
                "max_execution_batch_size": "Int64Value",
            },
        ),
        (MonitoringConfig, {"prometheus_config": "PrometheusConfig"}),
        (SSLConfig, {"server_key": "string", "server_cert": "string", "custom_ca": "string", "client_verify": "bool"}),
    ],
)
def test_descriptors_are_those_of_tensorflow_serving(message, fields):
    """The field lists of session_bundle_config.proto, monitoring_config.proto and ssl_config.proto of TensorFlow Serving."""
    kinds = {3: "int64", 8: "bool", 9: "string"}
    found = {f.name: f.message_type.name if f.message_type else kinds[f.type] for f in message.DESCRIPTOR.fields}
    assert found == fields and message.DESCRIPTOR.full_name == f"tensorflow.serving.{message.__name__}"


def test_compose_and_kubernetes_run_the_same_server():
    deployment, _ = kubernetes()
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == compose()["image"]
    assert flags(container["args"]) == flags(compose()["command"])
    known = {field.name for field in dataclasses.fields(ServerOptions)}
    assert set(flags(container["args"])) <= known
    # Traps of the C++ server: REST answers 0.0 with this one.
    assert "enable_serialization_as_tensor_content" not in flags(container["args"])


def test_compose_mounts_what_the_flags_name():
    service = compose()
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in service["volumes"])
    inside = {target: (SERVING / source).resolve() for source, target in mounts.items()}
    for name, value in flags(service["command"]).items():
        if name.endswith("_file"):
            assert inside[value].is_file()
    assert inside["/models"] == SERVING.parent / "saved_models"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_kubernetes_manifest_fits_together():
    deployment, service = kubernetes()
    pod = deployment["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        check = container[probe].get("httpGet") or container[probe]["tcpSocket"]
        assert check["port"] in ports
    annotations = pod["metadata"]["annotations"]
    prometheus = read_monitoring_config(str(SERVING / "monitoring.config")).prometheus_config
    assert annotations["prometheus.io/path"] == prometheus.path
    assert int(annotations["prometheus.io/port"]) == ports["rest"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    kustomization = yaml.safe_load((SERVING / "kustomization.yaml").read_text())
    (generated,) = kustomization["configMapGenerator"]
    assert pod["spec"]["volumes"][1]["configMap"]["name"] == generated["name"]
    assert all((SERVING / file).is_file() for file in generated["files"] + kustomization["resources"])
    wanted = {os.path.basename(value) for name, value in flags(container["args"]).items() if name.endswith("_file")}
    assert wanted == set(generated["files"])


def test_memory_is_enough_for_two_versions():
    needed = 2 * (MODEL_GIGABYTES + VOCABULARY_GIGABYTES) + SERVER_GIGABYTES
    limit = kubernetes()[0]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    assert int(re.fullmatch(r"(\d+)Gi", limit)[1]) * 1.0737 > needed
    assert int(re.fullmatch(r"(\d+)g", compose()["mem_limit"])[1]) > needed


def test_canary_promotion_and_rollback_with_these_settings(save_linear, tmp_path):
    """The steps of README.md, on the flags of docker-compose.yaml and the text of models.config."""
    base, text = save_linear(1), (SERVING / "models.config").read_text()
    save_linear(2)
    file = tmp_path / "models.config"

    def write(policy="versions: 1", stable=1, canary=1):
        changed = text.replace("/models/dlrm", base).replace("versions: 1", policy)
        for label, value in (("stable", stable), ("canary", canary)):
            changed = changed.replace(f'key: "{label}" value: 1', f'key: "{label}" value: {value}')
        file.write_text(changed)
        return str(file)

    def labelled(label):
        return served(server.target, label=label)

    def reload(*arguments, **labels):
        with Client(server.target) as client:
            client.reload(write(*arguments, **labels))

    options = {"port": 0, "rest_api_port": 0, "model_config_file": write()}
    for name, value in flags(compose()["command"]).items():
        if name.endswith("_file"):
            options.setdefault(name, str(SERVING / os.path.basename(value)))
        elif name not in options:
            options[name] = value == "true" or int(value)
    with ModelServer(**options) as server:
        assert (labelled("stable"), labelled("canary")) == (1, 1)
        both = "versions: 1 versions: 2"
        for stable, canary in ((1, 1), (1, 2), (2, 2), (1, 1), (2, 2)):
            reload(both, stable=stable, canary=canary)
            assert (labelled("stable"), labelled("canary")) == (stable, canary)
        reload("versions: 2", stable=2, canary=2)
        assert labelled("stable") == 2
        with pytest.raises(ServingError, match="not currently available for inference"):
            reload("versions: 2", stable=1, canary=2)
        assert labelled("stable") == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("model_config_list { config { nam: 'x' } }", '1:30 : .*no field named "nam"'),
        ("", "wanted model_config_list with at least one config. Received none"),
        ("\xff\xfe", "it is not UTF-8 text"),
        ("model_config_list {", "Error parsing text-format tensorflow.serving.ModelServerConfig: "),
    ],
)
def test_a_bad_models_config_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "models.config"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        read_model_config(str(path))


@pytest.mark.parametrize(
    "text, message",
    [
        ("max_batch_size: 4", "1:.*max_batch_size"),
        ("max_batch_size { value: 0 }", "max_batch_size must be at least 1. Received 0"),
        ("batch_timeout_micros { value: -1 }", "must not be negative. Received -1"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [4, 2, 8]", r"positive and increasing. Received \[4, 2, 8\]"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]", "the last of allowed_batch_sizes must be max_batch_size"),
        (
            "max_batch_size { value: 8 } enable_large_batch_splitting { value: true } max_execution_batch_size { value: 9 }",
            "must not be over max_batch_size",
        ),
    ],
)
def test_a_bad_batching_config_is_refused(tmp_path, text, message):
    path = tmp_path / "batching.config"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_batching_parameters(str(path))
