"""Classify, Regress and MultiInference on tf.Examples, over gRPC."""

import functools

import grpc
import numpy as np
import pytest
import tensorflow as tf
from serving_models import example, refused
from tensorflow_serving.apis import classification_pb2, inference_pb2, prediction_service_pb2_grpc, regression_pb2

from dlrm_tf.serve import ModelServer

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def stub(example_model):
    with (
        ModelServer(model_name="m", model_base_path=example_model) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(kind, signature, xs=(1.0, -2.0), context=None):
    result = kind()
    result.model_spec.name, result.model_spec.signature_name = "m", signature
    examples = result.input.example_list
    if context is not None:
        examples = result.input.example_list_with_context
        examples.context.CopyFrom(context)
    examples.examples.extend(example(x=x) for x in xs)
    return result


classification = functools.partial(request, classification_pb2.ClassificationRequest)
regression = functools.partial(request, regression_pb2.RegressionRequest)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_classify_gives_labels_and_scores(stub):
    response = stub.Classify(classification("classify"), timeout=120)
    assert (response.model_spec.version.value, response.model_spec.signature_name) == (3, "classify")
    rows = [[(entry.label, entry.score) for entry in row.classes] for row in response.result.classifications]
    for row, x in zip(rows, (1.0, -2.0)):
        assert [label for label, _ in row] == ["no", "yes"]
        np.testing.assert_allclose([score for _, score in row], [1 - sigmoid(2 * x), sigmoid(2 * x)], rtol=1e-5)


def test_a_missing_label_is_empty(stub):
    (first, _) = stub.Classify(classification("scores_only"), timeout=120).result.classifications
    assert [entry.label for entry in first.classes] == [""]
    np.testing.assert_allclose(first.classes[0].score, sigmoid(2.0), rtol=1e-6)


def test_regress_gives_a_value_an_example(stub):
    response = stub.Regress(regression("regress"), timeout=120)
    assert [value.value for value in response.result.regressions] == [2.0, -4.0]


def test_context_is_merged_and_the_example_wins(stub):
    message = regression("regress", context=example(bias=10.0, x=99.0))
    assert [value.value for value in stub.Regress(message, timeout=120).result.regressions] == [12.0, 6.0]


@pytest.mark.parametrize(
    "call, message, expected",
    [
        ("Classify", classification("nothing"), "No signature was found with the name: nothing"),
        ("Regress", regression("classify"), "Expected one output Tensor."),
        ("Classify", classification("classify", xs=()), "Input is empty."),
        ("Regress", regression("regress", xs=()), "Input is empty."),
        ("Classify", classification_pb2.ClassificationRequest(), "Missing ModelSpec"),
        ("Regress", regression_pb2.RegressionRequest(), "Missing ModelSpec"),
    ],
)
def test_wrong_requests(stub, call, message, expected):
    assert refused(getattr(stub, call), message) == (Code.INVALID_ARGUMENT, expected)


def test_an_example_without_its_feature_is_the_graphs_error(stub):
    message = regression("regress", xs=())
    message.input.example_list.examples.add()
    code, details = refused(stub.Regress, message)
    assert code == Code.INVALID_ARGUMENT and "Feature: x" in details


def multi(*tasks, xs=(1.0, -2.0)):
    result = inference_pb2.MultiInferenceRequest()
    for name, signature, method in tasks:
        task = result.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = name, signature
    result.input.example_list.examples.extend(example(x=x) for x in xs)
    return result


def test_multi_inference_runs_several_signatures_on_one_input(stub):
    # One graph, one input tensor: only signatures that share it may go together, so the same tensors under two methods.
    response = stub.MultiInference(multi(("m", "regress", "regress")), timeout=120)
    (result,) = response.results
    assert result.model_spec.signature_name == "regress" and result.model_spec.version.value == 3
    assert [value.value for value in result.regression_result.regressions] == [2.0, -4.0]


@pytest.mark.parametrize(
    "message, code, expected",
    [
        (
            multi(("m", "regress", "regress"), ("m", "regress", "regress")),
            Code.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: regress",
        ),
        (multi(("m", "regress", "predict")), Code.UNIMPLEMENTED, "Unsupported signature method_name: tensorflow/serving/predict"),
        (
            multi(("m", "regress", "regress"), ("other", "classify", "classify")),
            Code.INVALID_ARGUMENT,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (multi(("m", "none", "regress")), Code.INVALID_ARGUMENT, "Requested signature not found in model graph: none"),
        (
            multi(("m", "regress", "regress"), ("", "classify", "classify")),
            Code.INVALID_ARGUMENT,
            "Found ModelSpec with an empty model name.",
        ),
        (multi(), Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (multi(("m", "regress", "regress"), xs=()), Code.INVALID_ARGUMENT, "Input is empty."),
    ],
)
def test_wrong_multi_inference(stub, message, code, expected):
    assert refused(stub.MultiInference, message) == (code, expected)


def test_signatures_sharing_an_input_go_together(tmp_path):
    """A TF1-style graph, as estimators export them: one placeholder, a classify and a regress signature."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = v1.placeholder(tf.string, [None])
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]
        info, signature = v1.saved_model.build_tensor_info, v1.saved_model.build_signature_def
        builder = v1.saved_model.Builder(str(tmp_path / "1"))
        signatures = {
            "c": signature({"inputs": info(inputs)}, {"scores": info(x[:, None])}, "tensorflow/serving/classify"),
            "r": signature({"inputs": info(inputs)}, {"outputs": info(-x)}, "tensorflow/serving/regress"),
        }
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    with ModelServer(model_name="m", model_base_path=str(tmp_path)) as server, grpc.insecure_channel(server.target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        first, second = stub.MultiInference(multi(("m", "c", "classify"), ("m", "r", "regress")), timeout=120).results
    assert [row.classes[0].score for row in first.classification_result.classifications] == [1.0, -2.0]
    assert [value.value for value in second.regression_result.regressions] == [-1.0, 2.0]
