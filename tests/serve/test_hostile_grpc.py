"""Hostile gRPC input: that request gets the right error, and the scores of others don't change."""

import os
import random
import socket

import grpc
import numpy as np
import pytest
from hostile import FUZZ, assert_no_defect
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto
from tensorflow_serving.apis import classification_pb2, predict_pb2

from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer
from dlrm_tf.serving_api.limits import MAX_RANK
from dlrm_tf.serving_api.tensors import to_proto

DENSE, CATEGORICAL = np.full((3, 13), 0.25, np.float32), np.ones((3, 26), np.int32)
PREDICTION = "/tensorflow.serving.PredictionService/"
METHODS = [PREDICTION + name for name in ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata")]
METHODS += ["/tensorflow.serving.ModelService/GetModelStatus", "/tensorflow.serving.ModelService/HandleReloadConfigRequest"]
# INTERNAL is gRPC's own status for bytes that are no message.
EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "INTERNAL"}


@pytest.fixture(scope="module")
def server(linear_model):
    with ModelServer(model_name="dlrm", model_base_path=linear_model, file_system_poll_wait_seconds=0) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def client(server):
    with Client(server.target) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_unexpected_is_logged(caplog, client):
    expected = client.score(DENSE, CATEGORICAL)
    yield
    np.testing.assert_array_equal(client.score(DENSE, CATEGORICAL), expected)
    assert_no_defect(caplog)


def send(channel, method, data: bytes):
    """Status and details of raw bytes sent to a method."""
    try:
        channel.unary_unary(method)(data, timeout=120)
    except grpc.RpcError as e:
        return e.code().name, e.details()
    return "OK", ""


def good_request():
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "dlrm"
    request.inputs["dense"].CopyFrom(to_proto(DENSE, as_content=True))
    request.inputs["categorical"].CopyFrom(to_proto(CATEGORICAL, as_content=True))
    return request


@FUZZ
@given(st.sampled_from(METHODS), st.binary(max_size=200))
def test_bytes_that_are_no_message(channel, method, data):
    assert send(channel, method, data)[0] in EXPECTED


@FUZZ
@given(st.data())
def test_a_good_request_with_bytes_changed(channel, data):
    raw = bytearray(good_request().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert send(channel, METHODS[0], bytes(raw))[0] in EXPECTED


def shape(sizes):
    """Fields of a TensorShapeProto."""
    return {"dim": [{"size": size} for size in sizes]}


SIZES = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 13, 26, 2**31, 2**40, 2**62, 2**63 - 1]) | st.integers(0, 5)
TENSORS = st.builds(
    tensor_pb2.TensorProto,
    dtype=st.integers(0, 30) | st.sampled_from([1, 3, 101, 103, 2**31 - 1]),
    tensor_shape=st.lists(SIZES, max_size=5).map(shape),
    tensor_content=st.binary(max_size=64),
    float_val=st.lists(st.floats(width=32), max_size=5),
    int_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
    string_val=st.lists(st.binary(max_size=5), max_size=3),
    half_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    scomplex_val=st.lists(st.floats(width=32), max_size=5),
    int64_val=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    bool_val=st.lists(st.booleans(), max_size=3),
)


@FUZZ
@given(TENSORS, TENSORS, st.sampled_from([(), ("probability",), ("x",), ("logit", "logit")]))
def test_any_tensors(channel, dense, categorical, outputs):
    request = good_request()
    request.inputs["dense"].CopyFrom(dense)
    request.inputs["categorical"].CopyFrom(categorical)
    request.output_filter.extend(outputs)
    code, details = send(channel, METHODS[0], request.SerializeToString())
    assert code in EXPECTED - {"INTERNAL"}, details


def test_many_dimensions(channel):
    for more in (1, 30, 31, 62, 254, 5000):
        request = good_request()
        request.inputs["dense"].tensor_content = b""
        request.inputs["dense"].tensor_shape.MergeFrom(TensorShapeProto(**shape([1] * more)))
        code, details = send(channel, METHODS[0], request.SerializeToString())
        if 2 + more > MAX_RANK:
            assert (code, details) == ("INVALID_ARGUMENT", "tensor parsing error: dense")
        else:  # up to the graph
            assert code in ("OK", "INVALID_ARGUMENT")


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_huge_shapes_with_little_content_take_no_memory(channel):
    before = resident_bytes()
    for sizes in ([2**62], [2**31, 2**31], [2**40, 0], [2**33], [1 << 28], [2**63 - 1, 2]):
        for name in ("dense", "categorical"):
            request = good_request()
            request.inputs[name].CopyFrom(tensor_pb2.TensorProto(dtype=request.inputs[name].dtype, tensor_shape=shape(sizes)))
            code, details = send(channel, METHODS[0], request.SerializeToString())
            assert code == "INVALID_ARGUMENT" and details
    assert resident_bytes() - before < 100 << 20


def test_a_small_request_can_not_have_millions_of_repeated_values(channel):
    before = resident_bytes()
    for rows, expected in ((2000, "OK"), (20_000, "INVALID_ARGUMENT"), (640_000, "INVALID_ARGUMENT")):
        request = predict_pb2.PredictRequest(output_filter=["probability"])
        request.model_spec.name = "dlrm"
        for name, like in (("dense", DENSE), ("categorical", CATEGORICAL)):
            request.inputs[name].CopyFrom(to_proto(like[0, :1]))
            request.inputs[name].tensor_shape.CopyFrom(TensorShapeProto(**shape([rows, like.shape[1]])))
        assert request.ByteSize() < 100
        code, details = send(channel, METHODS[0], request.SerializeToString())
        assert code == expected and (code == "OK" or "with 1 values; this server repeats the last value 65536 times" in details)
    assert resident_bytes() - before < 100 << 20


def test_ids_and_numbers_at_their_limits_get_an_answer(client):
    for value in (np.nan, np.inf, -np.inf, 3e38):
        assert client.score(np.full((1, 13), value, np.float32), CATEGORICAL[:1]).shape == (1,)
    for value in (-(2**31), 2**31 - 1):
        assert client.score(DENSE[:1], np.full((1, 26), value, np.int32)).shape == (1,)


def test_names_of_any_length_and_kind(channel):
    for name in ("x" * 1_000_000, "\0", "../..", "dlrm/../dlrm", "\U0001f600" * 1000, "%s%n"):
        request = good_request()
        request.model_spec.name = name
        code, details = send(channel, METHODS[0], request.SerializeToString())
        assert code == "NOT_FOUND" and len(details) <= 1100


def test_examples_of_a_model_without_them(channel):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "dlrm"
    request.input.example_list.examples.add().features.feature["x"].bytes_list.value.append(b"\xff" * 100)
    assert send(channel, METHODS[1], request.SerializeToString())[0] == "INVALID_ARGUMENT"


def test_bytes_that_are_no_http2(server, client):
    generator, sockets = random.Random(1), []
    for data in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        generator.randbytes(10_000),
    ):
        for _ in range(20):
            connection = socket.create_connection((server.options.host, server.port))
            connection.sendall(data)
            sockets.append(connection)
    assert client.score(DENSE, CATEGORICAL).shape == (3,)
    for connection in sockets:
        connection.close()


def test_an_unknown_method_is_unimplemented(channel):
    assert send(channel, PREDICTION + "Nothing", b"")[0] == "UNIMPLEMENTED"
