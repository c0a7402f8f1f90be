"""Method names of signatures: looked at only with --enable_signature_method_name_check, over gRPC and REST."""

import math

import grpc
import pytest
import tensorflow as tf
import urllib3
from serving_models import ExampleModel, edited, example, refused, save_first
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from waiting import PATIENCE

from dlrm_tf.serve import ModelServer

Code = grpc.StatusCode
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Base path of an `ExampleModel` as TensorFlow 2 exports it, all methods `predict`; of `bare` the name is ''."""
    module = ExampleModel()
    signatures = {"serving_default": module.regress, "bare": module.regress, "regress": module.regress}
    base = save_first(tmp_path_factory.mktemp("exported"), module, classify=module.scores_only, **signatures)
    with edited(f"{base}/1") as meta_graph:
        meta_graph.signature_def["bare"].method_name = ""
    return base


@pytest.fixture(scope="module", params=[False, True], ids=["default", "checked"])
def server(request, base):
    options = {"enable_signature_method_name_check": True} if request.param else {}
    with ModelServer(model_name="m", model_base_path=base, rest_api_port=0, **options) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def checked(server):
    return server.options.enable_signature_method_name_check


def on_examples(kind, signature):
    request = kind()
    request.model_spec.name, request.model_spec.signature_name = "m", signature
    request.input.example_list.examples.append(example(x=2.0))
    return request


def predict_request(signature, **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


@pytest.mark.parametrize(
    "call, make, kind, values, expected",
    [
        (
            "Classify",
            classification_pb2.ClassificationRequest,
            f"classification signature method_name to be {CLASSIFY}",
            lambda result: [row.classes[0].score for row in result.classifications],
            [pytest.approx(1 / (1 + math.exp(-4)))],
        ),
        (
            "Regress",
            regression_pb2.RegressionRequest,
            f"regression signature method_name to be {REGRESS}",
            lambda result: [row.value for row in result.regressions],
            [4.0],
        ),
    ],
)
def test_on_examples(stub, checked, call, make, kind, values, expected):
    request, method = on_examples(make, call.lower()), getattr(stub, call)
    if checked:
        assert refused(method, request) == (Code.INVALID_ARGUMENT, f"Expected {kind}. Was: tensorflow/serving/predict")
    else:
        assert values(method(request, timeout=PATIENCE).result) == expected


def test_multi_inference_feeds_every_signatures_own_input(stub, checked):
    request = inference_pb2.MultiInferenceRequest()
    for signature, method in (("regress", REGRESS), ("classify", CLASSIFY)):
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = "m", signature
    request.input.example_list.examples.append(example(x=2.0))
    if checked:
        code, message = refused(stub.MultiInference, request)
        assert code == Code.INVALID_ARGUMENT and message.startswith(f"Expected regression signature method_name to be {REGRESS}.")
    else:
        regress, classify = stub.MultiInference(request, timeout=PATIENCE).results
        assert [value.value for value in regress.regression_result.regressions] == [4.0]
        score = classify.classification_result.classifications[0].classes[0].score
        assert score == pytest.approx(float(tf.sigmoid(4.0)))


def test_predict_on_a_signature_without_a_method(stub, checked):
    request = predict_request("bare", inputs=[example(x=2.0).SerializeToString()])
    if checked:
        code, message = refused(stub.Predict, request)
        assert code == Code.INTERNAL and message.startswith("Expected prediction signature method_name to be one of {")
        assert message.endswith("}. Was: ")
    else:
        assert list(stub.Predict(request, timeout=PATIENCE).outputs["outputs"].float_val) == [4.0]


def test_the_initializing_signature_has_nothing_to_give(stub):
    assert refused(stub.Predict, predict_request("__saved_model_init_op"))[1]
    request = predict_request("regress", inputs=[example(x=2.0).SerializeToString()])  # and the server is still there
    assert list(stub.Predict(request, timeout=PATIENCE).outputs["outputs"].float_val) == [4.0]


@pytest.mark.parametrize(
    "call, body, status, answer",
    [
        ("regress", '{"examples": [{"x": 2.0}]}', 400, {"results": [4.0]}),
        ("classify", '{"signature_name": "classify", "examples": [{"x": 0.0}]}', 400, {"results": [[["", 0.5]]]}),
        ("predict", '{"signature_name": "bare", "instances": [""]}', 500, None),
    ],
)
def test_over_rest(server, checked, call, body, status, answer):
    response = urllib3.request("POST", f"{server.rest_target}/v1/models/m:{call}", body=body.encode(), timeout=PATIENCE)
    if checked:
        assert response.status == status and " signature method_name to be " in response.json()["error"]
    elif answer is None:  # the empty example lacks its feature: the graph was asked
        assert response.status == 400 and "Feature: x" in response.json()["error"]
    else:
        assert (response.status, response.json()) == (200, answer)
