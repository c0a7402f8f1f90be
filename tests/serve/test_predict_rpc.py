"""Predict, GetModelMetadata and GetModelStatus over gRPC, with TensorFlow Serving's stubs, codes and messages."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from serving_models import refused
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from dlrm_tf.serve import ModelServer

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def server(echo_model):
    with ModelServer(model_name="echo", model_base_path=echo_model) as server:
        yield server


@pytest.fixture(scope="module")
def stubs(server):
    with grpc.insecure_channel(server.target) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel), model_service_pb2_grpc.ModelServiceStub(channel)


def echo_request(text=(b"a", b"b"), number=(1, 2)):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "echo"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(list(text), tf.string, [len(text)]))
    request.inputs["number"].CopyFrom(tf.make_tensor_proto(list(number), tf.int64, [len(number)]))
    return request


def test_predict_answers_in_typed_fields_with_the_resolved_spec(stubs):
    response = stubs[0].Predict(echo_request(), timeout=120)
    assert (response.model_spec.name, response.model_spec.version.value) == ("echo", 1)
    assert response.model_spec.signature_name == "serving_default"
    assert list(response.outputs["text"].string_val) == [b"a", b"b"]
    assert list(response.outputs["number"].int64_val) == [1, 2]
    assert not response.outputs["number"].tensor_content


def test_output_filter_gives_only_those_outputs(stubs):
    request = echo_request()
    request.output_filter.append("number")
    assert list(stubs[0].Predict(request, timeout=120).outputs) == ["number"]


def test_short_value_list_repeats_its_last_value(stubs):
    request = echo_request(number=())
    request.inputs["number"].ClearField("tensor_content")
    request.inputs["number"].int64_val.extend([3, 4])
    request.inputs["number"].tensor_shape.dim[0].size = 5
    assert list(stubs[0].Predict(request, timeout=120).outputs["number"].int64_val) == [3, 4, 4, 4, 4]


def spec(**fields):
    return lambda request: request.model_spec.MergeFrom(model_pb2.ModelSpec(**fields))


@pytest.mark.parametrize(
    "change, code, message",
    [
        (lambda r: r.ClearField("model_spec"), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (lambda r: r.model_spec.ClearField("name"), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (spec(name="x"), "NOT_FOUND", "Servable not found for request: Latest(x)"),
        (spec(version={"value": 9}), "NOT_FOUND", "Servable not found for request: Specific(echo, 9)"),
        (spec(version_label="L"), "INVALID_ARGUMENT", "Unrecognized servable version label: L"),
        (spec(signature_name="s"), "FAILED_PRECONDITION", 'Serving signature key "s" not found.'),
        (
            lambda r: r.output_filter.append("z"),
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: z Outputs expected to be in the set {number,text}.",
        ),
        (lambda r: r.output_filter.extend(["text", "text"]), "INVALID_ARGUMENT", "duplicate output tensor alias: text"),
        (
            lambda r: r.inputs.pop("text"),
            "INVALID_ARGUMENT",
            "input size does not match signature: 1!=2 len({number}) != len({number,text}). Sent extra: {}. "
            "Missing but required: {text}.",
        ),
        (
            lambda r: r.inputs["number"].CopyFrom(tf.make_tensor_proto([1.0, 2.0])),
            "INVALID_ARGUMENT",
            "Expects arg[0] to be int64 but float is provided",
        ),
        (
            lambda r: setattr(r.inputs["number"].tensor_shape.dim[0], "size", -1),
            "INVALID_ARGUMENT",
            "tensor parsing error: number",
        ),
        (lambda r: setattr(r.inputs["number"], "tensor_content", b"123"), "INVALID_ARGUMENT", "tensor parsing error: number"),
    ],
)
def test_wrong_requests_get_tensorflow_servings_code_and_message(stubs, change, code, message):
    request = echo_request()
    change(request)
    assert refused(stubs[0].Predict, request) == (Code[code], message)


def test_an_error_in_the_graph_is_invalid_argument(stubs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "echo", "root"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([4.0]))
    assert list(stubs[0].Predict(request, timeout=120).outputs["y"].float_val) == [2.0]
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([-4.0]))
    code, message = refused(stubs[0].Predict, request)
    assert code == Code.INVALID_ARGUMENT and "negative" in message


def test_error_texts_are_cut_at_1024_characters(stubs):
    request = echo_request()
    request.model_spec.name = "n" * 3000
    code, message = refused(stubs[0].Predict, request)
    assert code == Code.NOT_FOUND and len(message) == 1024 + len("...TRUNCATED") and message.endswith("...TRUNCATED")


def test_messages_over_4_mb_pass_both_ways(server):
    number = np.arange(1_000_000)
    request = echo_request(number=())
    request.inputs["number"].CopyFrom(tf.make_tensor_proto(number, tf.int64))
    with grpc.insecure_channel(server.target, options=[("grpc.max_receive_message_length", -1)]) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=120)
    assert np.array_equal(response.outputs["number"].int64_val, number)


def test_metadata_gives_the_signatures(stubs):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "echo"
    response = stubs[0].GetModelMetadata(request, timeout=120)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {"serving_default", "root", "__saved_model_init_op"}
    assert signatures.signature_def["serving_default"].inputs["number"].dtype == tf.int64.as_datatype_enum
    assert response.model_spec.version.value == 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ([], "GetModelMetadataRequest must specify at least one metadata_field"),
        (["graph"], "Metadata field graph is not supported"),
    ],
)
def test_metadata_knows_only_signature_def(stubs, fields, message):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = "echo"
    assert refused(stubs[0].GetModelMetadata, request) == (Code.INVALID_ARGUMENT, message)


def test_status_of_a_model_and_of_an_unknown_one(stubs):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "echo"
    (status,) = stubs[1].GetModelStatus(request, timeout=120).model_version_status
    assert (status.version, status.state, status.status.error_code) == (1, 30, 0)
    request.model_spec.name = "nobody"
    assert refused(stubs[1].GetModelStatus, request) == (Code.NOT_FOUND, "Could not find any versions of model nobody")
