"""What TensorFlow Serving's own black-box tests ask of a server, asked of ours over real sockets.

The behaviours are those of tensorflow_model_server_test.py: half_plus_two and half_plus_three, models of TF 1, TF 2 and TFLite,
every service over gRPC and REST, the unix socket, the metrics page, a bad configuration. The model answers `y = x / 2 + bias`.
"""

import grpc
import pytest
import tensorflow as tf
import urllib3
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving_models import config_text, example, model, refused
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from waiting import PATIENCE

from dlrm_tf.errors import ServingError, UsageError
from dlrm_tf.serve import ModelServer

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def save_tf1(base, bias):
    """A TF 1 graph with one placeholder for examples, as version 123."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x, examples = v1.placeholder(tf.float32, name="x"), v1.placeholder(tf.string, [None], name="examples")
        y = tf.identity(0.5 * x + bias, name="y")
        parsed = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        scores = 0.5 * parsed + bias
        info, signature = v1.saved_model.build_tensor_info, v1.saved_model.build_signature_def
        builder = v1.saved_model.Builder(str(base / "00000123"))
        signatures = {
            "serving_default": signature({"x": info(x)}, {"y": info(y)}, "tensorflow/serving/predict"),
            "classify_x_to_y": signature({"inputs": info(examples)}, {"scores": info(scores)}, CLASSIFY),
            "regress_x_to_y": signature({"inputs": info(examples)}, {"outputs": info(scores)}, REGRESS),
        }
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()


def save_tf2(base):
    root = tf.train.Checkpoint()
    root.v1, root.v2 = tf.Variable(3.0), tf.Variable(2.0)
    spec = [tf.TensorSpec(None, tf.float32, name="x")]
    root.f = tf.function(lambda x: {"y": root.v1 * root.v2 * x}, input_signature=spec)
    root.g = tf.function(lambda x: {"y": 2.0 + 0 * x}, input_signature=spec)
    tf.saved_model.save(root, str(base / "00000123"), signatures={"serving_default": root.f, "custom_signature_key": root.g})


def save_lite(base, signatures):
    """A version folder with a model.tflite only; without `signatures` as files of TF 1 are."""
    root = tf.Module()
    root.f = tf.function(lambda x: {"y": 0.5 * x + 2}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    concrete = root.f.get_concrete_function()
    (base / "123").mkdir(parents=True)
    if signatures:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], root)
        (base / "123" / "model.tflite").write_bytes(converter.convert())
        return
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [1], name="x")
        y = tf.identity(0.5 * x + 2, name="y")
        converter = tf.compat.v1.lite.TFLiteConverter.from_session(session, [x], [y])
        (base / "123" / "model.tflite").write_bytes(converter.convert())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("black_box")
    bases = {name: folder / name for name in ("default", "half_plus_three", "tf2", "lite", "unsigned")}
    save_tf1(bases["default"], 2)
    save_tf1(bases["half_plus_three"], 3)
    save_tf2(bases["tf2"])
    save_lite(bases["lite"], signatures=True)
    save_lite(bases["unsigned"], signatures=False)
    models, monitoring = folder / "models.config", folder / "monitoring.config"
    models.write_text(config_text(*(model(name, base) for name, base in bases.items())))
    monitoring.write_text("prometheus_config { enable: true }")
    options = {
        "model_config_file": str(models),
        "monitoring_config_file": str(monitoring),
        "grpc_channel_arguments": "grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb",
        "grpc_socket_path": str(folder / "socket"),
        "prefer_tflite_model": True,
        "num_load_threads": 4,
        "rest_api_enable_cors_support": True,
    }
    with ModelServer(rest_api_port=0, **options) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def predicted(stub, name, *, signature="", outputs=(), shape=(1,)):
    """The model's answer to 2, and its ModelSpec."""
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = name, signature
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([2.0], tf.float32, shape))
    response = stub.Predict(request, timeout=PATIENCE)
    assert list(response.outputs) == ["y"] and len(response.outputs["y"].float_val) == 1
    return response.outputs["y"].float_val[0], response.model_spec


@pytest.mark.parametrize("outputs", [(), ("y",)])
@pytest.mark.parametrize(
    "name, signature, expected",
    [
        ("default", "", 3.0),
        ("half_plus_three", "", 4.0),
        ("tf2", "", 12.0),
        ("tf2", "custom_signature_key", 2.0),
        ("lite", "", 3.0),
        ("unsigned", "", 3.0),
    ],
)
def test_predict(stub, name, signature, expected, outputs):
    value, spec = predicted(stub, name, signature=signature, outputs=outputs)
    assert value == expected
    assert (spec.name, spec.signature_name, spec.version.value) == (name, signature or "serving_default", 123)


def test_a_tflite_model_refuses_as_a_graph_does(stub):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "lite"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([2]))
    assert refused(stub.Predict, request) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Expects arg[0] to be float but int32 is provided",
    )
    assert predicted(stub, "lite")[0] == 3.0


def test_classify_regress_and_multi_inference(stub):
    classify, regress = classification_pb2.ClassificationRequest(), regression_pb2.RegressionRequest()
    multi = inference_pb2.MultiInferenceRequest()
    for request, signature in ((classify, "classify_x_to_y"), (regress, "regress_x_to_y")):
        request.model_spec.name, request.model_spec.signature_name = "default", signature
    multi.tasks.add(method_name=REGRESS).model_spec.CopyFrom(regress.model_spec)
    multi.tasks.add(method_name=CLASSIFY).model_spec.CopyFrom(classify.model_spec)
    for request in (classify, regress, multi):
        request.input.example_list.examples.append(example(x=2.0))
    answer = stub.Classify(classify, timeout=PATIENCE)
    assert [[entry.score for entry in row.classes] for row in answer.result.classifications] == [[3.0]]
    assert (answer.model_spec.signature_name, answer.model_spec.version.value) == ("classify_x_to_y", 123)
    assert [value.value for value in stub.Regress(regress, timeout=PATIENCE).result.regressions] == [3.0]
    first, second = stub.MultiInference(multi, timeout=PATIENCE).results
    assert first.regression_result.regressions[0].value == 3.0
    assert second.classification_result.classifications[0].classes[0].score == 3.0
    assert [entry.model_spec.version.value for entry in (first, second)] == [123, 123]


def test_model_status(channel):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name, request.model_spec.version_label = "default", "no such label"
    (status,) = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=PATIENCE).model_version_status
    assert (status.version, status.status.error_code) == (123, 0)


@pytest.mark.parametrize(
    "service",
    ["", "PredictionService", "ModelService", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"],
)
def test_health(channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_unix_socket(server):
    with grpc.insecure_channel(f"unix:{server.options.grpc_socket_path}") as channel:
        assert predicted(prediction_service_pb2_grpc.PredictionServiceStub(channel), "default")[0] == 3.0


@pytest.mark.parametrize(
    "path, body, answer",
    [
        (":classify", '{"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]}', {"results": [[["", 3.0]]]}),
        (":regress", '{"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}', {"results": [3.0]}),
        (":predict", '{"instances": [2.0, 3.0, 4.0]}', {"predictions": [3.0, 3.5, 4.0]}),
        (":predict", '{"inputs": [2.0, 3.0, 4.0]}', {"outputs": [3.0, 3.5, 4.0]}),
    ],
)
def test_rest(server, path, body, answer):
    response = urllib3.request("POST", f"{server.rest_target}/v1/models/default{path}", body=body.encode(), timeout=PATIENCE)
    assert (response.status, response.json()) == (200, answer)


def test_the_metrics_page(server):
    page = "/monitoring/prometheus/metrics"
    response = urllib3.request("GET", server.rest_target + page, timeout=PATIENCE)
    assert response.status == 200 and "# TYPE" in response.data.decode()
    assert urllib3.request("GET", f"{server.rest_target}{page}?a=b", timeout=PATIENCE).status == 404


def test_pages_of_other_origins(server):
    url, origin = f"{server.rest_target}/v1/models/default:predict", {"Origin": "https://page.example"}
    preflight = urllib3.request("OPTIONS", url, headers=origin, timeout=PATIENCE)
    assert (preflight.status, preflight.data) == (200, b"")
    answer = urllib3.request("POST", url, body=b'{"instances": [2.0]}', headers=origin, timeout=PATIENCE)
    assert answer.json() == {"predictions": [3.0]}
    for response in (preflight, answer):
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Access-Control-Allow-Methods"] == "POST, GET"
        assert response.headers["Access-Control-Allow-Headers"] == "Content-Type"


def test_a_bad_configuration_ends_the_start(tmp_path):
    config = tmp_path / "models.config"
    config.write_text("improperly formatted file")
    with pytest.raises(UsageError) as caught:
        ModelServer(model_config_file=str(config))
    assert f"Invalid protobuf file: '{config}'" in str(caught.value)
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in str(caught.value)
    expected = r"Expected model default to have an absolute path or URI; got base_path\(\)=models"
    with pytest.raises(UsageError, match=expected):
        ModelServer(model_base_path="models")
    config.write_text(config_text(model("default", "models")))
    with pytest.raises(ServingError, match=expected):
        ModelServer(model_config_file=str(config)).start()


def test_a_broken_model_ends_the_start(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(ServingError) as caught:
        ModelServer(model_base_path=str(tmp_path)).start()
    assert str(caught.value) == (
        "1 servable(s) did not become available: {{{name: default version: 1} due to error: NOT_FOUND: Could not find "
        f"SavedModel .pb or .pbtxt at supplied export directory path: {tmp_path}/1}}, }}"
    )
