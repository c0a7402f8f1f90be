"""REST: routes, JSON both ways, statuses and messages as TensorFlow Serving's own tests have them."""

import functools
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import urllib3
from serving_models import config_text, model

from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer, http_server, rest_examples, rest_predict


class Shapes(tf.Module):
    """Inputs of many types, given back."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half_plus_two(self, x):
        return {"y": 0.5 * x + 2}

    @tf.function(
        input_signature=[
            tf.TensorSpec(None, tf.string, name="text"),
            tf.TensorSpec(None, tf.int32, name="number"),
            tf.TensorSpec(None, tf.bool, name="flag"),
        ]
    )
    def echo(self, text, number, flag):
        return {"text": text, "text_bytes": text, "number": number, "flag": flag}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float64, name="x")])
    def double(self, x):
        return {"double": x, "half": tf.cast(x, tf.float16)}


@pytest.fixture(scope="module", params=["small bodies", "large bodies"])
def server(request, tmp_path_factory, example_model):
    """A server that takes every body for a small one, which it loads whole, or for a large one, which it reads in pieces."""
    base = tmp_path_factory.mktemp("shapes")
    module = Shapes()
    signatures = {"serving_default": module.half_plus_two, "echo": module.echo, "double": module.double}
    tf.saved_model.save(module, str(base / "123"), signatures=signatures)
    config = base / "models.config"
    config.write_text(config_text(model("m", base, [("stable", 123)]), model("examples", example_model)))
    options = {"model_config_file": str(config), "allow_version_labels_for_unavailable_models": True}
    with pytest.MonkeyPatch.context() as patch:
        for room in (http_server, rest_examples, rest_predict):
            patch.setattr(room, "BIG_BODY_BYTES", 0 if request.param == "large bodies" else 1 << 20)
        with ModelServer(rest_api_port=0, rest_api_max_body_bytes=1 << 20, **options) as server:
            yield server


@pytest.fixture(scope="module")
def call(server):
    pool = urllib3.PoolManager(retries=False, timeout=120)

    def call(method, path, body=None):
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        response = pool.request(method, server.rest_target + path, body=data)
        assert response.headers["Content-Type"].startswith("application/json")
        return response.status, json.loads(response.data)

    return call


@pytest.fixture
def predict(call):
    return functools.partial(call, "POST", "/v1/models/m:predict")


@pytest.mark.parametrize("which", ["", "/versions/123", "/labels/stable"])
def test_predict_rows_of_one_input(call, which):
    assert call("POST", f"/v1/models/m{which}:predict", {"instances": [1.0, 2.0, 5]}) == (200, {"predictions": [2.5, 3.0, 4.5]})


def test_predict_columns_of_one_input(predict):
    assert predict({"inputs": [1.0]}) == (200, {"outputs": [2.5]})
    assert predict({"inputs": {"x": [1.0]}}) == (200, {"outputs": [2.5]})


def test_several_inputs_need_objects_and_come_back_as_objects(predict):
    rows = [{"text": "a", "number": 1, "flag": True}, {"text": {"b64": "/w=="}, "number": -2, "flag": False}]
    status, answer = predict({"signature_name": "echo", "instances": rows})
    assert status == 200
    assert answer["predictions"] == [
        {"flag": True, "number": 1, "text": "a", "text_bytes": {"b64": "YQ=="}},
        {"flag": False, "number": -2, "text": "\ufffd", "text_bytes": {"b64": "/w=="}},
    ]
    columns = {"text": [["a", "b"]], "number": 7, "flag": []}
    status, answer = predict({"signature_name": "echo", "inputs": columns})
    expected = {"flag": [], "number": 7, "text": [["a", "b"]], "text_bytes": [[{"b64": "YQ=="}, {"b64": "Yg=="}]]}
    assert (status, answer) == (200, {"outputs": expected})


def test_nan_and_infinities_are_literals_both_ways(predict):
    body = b'{"signature_name": "double", "inputs": [NaN, Infinity, -Infinity, 1e300]}'
    status, answer = predict(body)
    double, half = answer["outputs"]["double"], answer["outputs"]["half"]
    assert status == 200 and math.isnan(double[0]) and double[1:] == [math.inf, -math.inf, 1e300]
    assert math.isnan(half[0]) and half[3] == math.inf


def test_float32_is_written_with_its_own_digits(predict):
    value = float(np.float32(0.1))
    _, answer = predict({"inputs": [value]})
    assert repr(answer["outputs"][0]) == str(np.float32(0.5) * np.float32(value) + np.float32(2))


def test_large_bodies_are_refused(predict):
    limit = "Request body is larger than 1048576 bytes (--rest_api_max_body_bytes)"
    assert predict(b" " * (1 << 21)) == (413, {"error": limit})


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "JSON Parse error: The document is empty"),
        (b'{"instances": [1, 2', "JSON Parse error: Missing a comma or ] after an array element. at offset: 19"),
        (b'{"a": "}", "b": "x" "c"}', "JSON Parse error: Missing a comma or } after an object member. at offset: 20"),
        (b'{"instances": [1.0, ]}', "JSON Parse error: Invalid value. at offset: "),
        (b"{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        (b'{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
        (b'{"a', "JSON Parse error: Missing a closing quotation mark in string. at offset: "),
        (b'{"instances": [1.0]} {}', "The document root must not be followed by other values. at offset: 21"),
        (b"[" * 100_000, "JSON Parse error: nested too deeply"),
        (b"[1]", "JSON Value: [\n    1\n] Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        (
            {"inputs": [], "instances": []},
            'JSON Value: {\n    "inputs": [],\n    "instances": []\n} Not formatted correctly expecting only one of '
            "'inputs' or 'instances' keys to exist ",
        ),
        ({"instances": {}}, "JSON Value: {\n    \"instances\": {}\n} Excepting 'instances' to be an list/array"),
        ({"instances": []}, "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
        ({"instances": [1.0] * 1000 + ["x"]}, "of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"x\" Type: String"),
        ({"inputs": 1, "instances": ["x" * 9999]}, "... Not formatted correctly expecting only one of"),
        ({"instances": ["x", "y"]}, "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "),
        ({"instances": ["x"]}, 'JSON Value: "x" Type: String is not of expected type: float'),
        (
            {"instances": [1.0, [2.0, 3.0]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2",
        ),
        (
            {"instances": [[1.0, 2.0], [3.0]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1",
        ),
        ({"instances": [[1.0], [[2.0]]]}, "Expecting shape [1] but got: [1,1]"),
        (
            {"instances": [[[1.0], 2.0]]},
            "Error: INVALID_ARGUMENT: JSON Value: 2.0 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        ({"instances": [{"x": 1.0}, 2.0]}, "Expecting object but got list at item 1 of input list"),
        ({"instances": [1.0, {"x": 2.0}]}, "Expecting value/list but got object at item 1 of input list"),
        (
            {"instances": [{"x": 1.0}, {"x": 1.0, "z": 2.0}]},
            "Failed to process element: 1 key: z of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have named "
            "input: z",
        ),
        (
            {"signature_name": "echo", "instances": [{"text": "a"}]},
            'Failed to process element: 0 of \'instances\' list. JSON object: {\n    "text": "a"\n} keys must be equal to: '
            "flag,number,text",
        ),
        ({"inputs": {"z": 1.0}}, "Missing named input: x in 'inputs' object."),
        ({"inputs": [16777217]}, "Cannot convert JSON value: 16777217 to float without loss of precision."),
        ({"inputs": [1e39]}, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        (b'{"inputs": [1' + b"0" * 400 + b"]}", "JSON Parse error: Number too big to be stored in double."),
        ({"inputs": [True]}, "Type: True is not of expected type: float"),
        ({"inputs": [None]}, "JSON Value: null Type: Null is not of expected type: float"),
        ({"inputs": [[1.0], 2.0]}, "JSON Value: 2.0 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ({"inputs": [1.0, [2.0]]}, "Encountered list at unexpected level: 1 expected < 1"),
        ({"inputs": [[1.0, 2.0], [3.0]]}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        (b'{"inputs": ' + b"[" * 40 + b"]" * 40 + b"}", "Encountered list at unexpected level: 32 expected < 32"),
        ({"signature_name": 100}, "'signature_name' key must be a string value."),
        ({"signature_name": "none", "inputs": [1]}, 'Serving signature name: "none" not found in signature def'),
        ({"signature_name": "echo", "instances": [1]}, "instances is a plain list, but expecting list of objects"),
        ({"signature_name": "echo", "inputs": [1]}, "inputs is a plain value/list, but expecting an object"),
        (
            {"signature_name": "echo", "inputs": {"text": "a", "number": 1.0, "flag": True}},
            "JSON Value: 1.0 Type: Number is not of expected type: int32",
        ),
        (
            {"signature_name": "echo", "inputs": {"text": "a", "number": 2**31, "flag": True}},
            "JSON Value: 2147483648 Type: Number is not of expected type: int32",
        ),
        ({"signature_name": "echo", "inputs": {"text": {"b64": "?"}, "number": 1, "flag": True}}, "Unable to base64 decode"),
    ],
)
def test_wrong_predict_bodies(predict, body, message):
    code, answer = predict(body)
    assert code == 400 and list(answer) == ["error"] and message in answer["error"]


@pytest.mark.parametrize(
    "method, path, status, message",
    [
        ("POST", "/v1/models/m", 400, "Malformed request: POST /v1/models/m"),
        ("GET", "/v1/models/m:predict", 400, "Malformed request: GET /v1/models/m:predict"),
        ("PUT", "/v1/models/m:predict", 400, "Malformed request: PUT /v1/models/m:predict"),
        ("POST", "/v1/models/m/versions/x:predict", 400, "Malformed request"),
        ("POST", "/v1/models/m/versions/99999999999999999999:predict", 400, "Failed to convert version"),
        ("POST", "/v1/models/m/versions/7:predict", 404, "Servable not found for request: Specific(m, 7)"),
        ("POST", "/v1/models/no:predict", 404, "Servable not found for request: Latest(no)"),
        ("POST", "/v1/models/m/labels/no:predict", 400, "Unrecognized servable version label: no"),
        ("GET", "/v1/models/no", 404, "Could not find any versions of model no"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/models/no/metadata", 404, "Servable not found for request: Latest(no)"),
        ("POST", "/v1/models/m:predict?x=1", 400, "Malformed request: POST /v1/models/m:predict?x=1"),
        ("GET", "/v1/models/m?x=1", 404, "Could not find any versions of model m?x=1"),
        ("POST", "/v1/models/m?x=1:predict", 404, "Servable not found for request: Latest(m?x=1)"),
        ("OPTIONS", "/v1/models/m:predict", 400, "Origin header is missing in CORS preflight"),
        ("GET", "/", 404, "Not found: /"),
        ("GET", "/v2/models/m", 404, "Not found: /v2/models/m"),
    ],
)
def test_wrong_routes(call, method, path, status, message):
    code, answer = call(method, path, {"instances": [1.0]} if method == "POST" else None)
    assert code == status and answer["error"].startswith(message)


def test_names_are_percent_decoded_and_the_route_ignores_case(call):
    assert call("POST", "/V1/Models/%6D:Predict", {"instances": [1.0]})[0] == 200


def test_text_after_a_zero_byte_is_not_read(predict):
    assert predict(b'{"instances": [1.0]} \0 and more') == (200, {"predictions": [2.5]})


def test_integers_of_more_than_64_bits_are_doubles(predict):
    assert predict(b'{"inputs": [100000000000000000000]}') == (200, {"outputs": [5e19]})


def test_a_status_of_any_label_is_that_of_all_versions(call):
    assert call("GET", "/v1/models/m/labels/none") == call("GET", "/v1/models/m")


def test_status_and_metadata_are_protobuf_json(call):
    status = {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert call("GET", "/v1/models/m") == (200, {"model_version_status": [status]})
    assert call("GET", "/v1/models/m/versions/123")[0] == 200
    code, metadata = call("GET", "/v1/models/m/metadata")
    assert code == 200 and metadata["model_spec"]["name"] == "m" and metadata["model_spec"]["version"] == "123"
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT" and signature["method_name"] == "tensorflow/serving/predict"


def test_classify_and_regress_answer_under_results(call):
    examples = [{"x": 1.0}, {"x": -2.0, "bias": 1.0}]
    code, answer = call("POST", "/v1/models/examples:regress", {"signature_name": "regress", "examples": examples})
    assert (code, answer) == (200, {"results": [2.0, -3.0]})
    code, answer = call("POST", "/v1/models/examples:classify", {"signature_name": "classify", "examples": examples})
    assert code == 200 and [[label for label, _ in row] for row in answer["results"]] == [["no", "yes"]] * 2
    np.testing.assert_allclose(answer["results"][0][1][1], 1 / (1 + np.exp(-2)), rtol=1e-6)
    many = {"signature_name": "regress", "examples": [{"x": 0.5 * i, "bias": [1.0]} for i in range(4000)], "more": [{}] * 9000}
    assert call("POST", "/v1/models/examples:regress", many) == (200, {"results": [i + 1.0 for i in range(4000)]})
    with_context = {"signature_name": "regress", "context": {"bias": 5.0}, "examples": examples}
    assert call("POST", "/v1/models/examples:regress", with_context) == (200, {"results": [7.0, -3.0]})


@pytest.mark.parametrize(
    "body, message",
    [
        ({}, "\n} When method is classify, key 'examples' is expected and was not found"),
        ({"examples": {}}, "\n} Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "\n} 'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": 2}]}, "Data types don't match"),
        ({"examples": [{"x": [1.0, 2]}]}, "Unexpected element type in feature: x expecting type: float"),
        ({"examples": [{"x": [None]}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64 element. Only int64 is supported."),
        ({"examples": [{"x": 1e39}]}, "without loss of precision."),
    ],
)
def test_wrong_examples(call, body, message):
    code, answer = call("POST", "/v1/models/examples:regress", {"signature_name": "regress", **body})
    assert code == 400 and message in answer["error"]


def test_client_over_rest_gives_what_grpc_gives(server):
    rows = np.array([0.1, 1 / 3, 1e-20, 123456.7], np.float32)
    with Client(server.target, model_name="m") as over_grpc, Client(server.rest_target, model_name="m") as over_rest:
        expected = over_grpc.predict({"x": rows})
        answer = over_rest.predict({"x": rows})
        assert answer["y"].dtype == np.float32
        np.testing.assert_array_equal(answer["y"], expected["y"])
        assert over_rest.status() == over_grpc.status()
        assert set(over_rest.metadata()) == set(over_grpc.metadata())
        text = {"text": np.array([b"\xff", b"a"], object), "number": np.array([1, 2], np.int32), "flag": np.array([True, False])}
        answer = over_rest.predict(text, signature_name="echo", outputs=("number", "flag"))
        assert answer["number"].tolist() == [1, 2] and answer["flag"].tolist() == [True, False] and len(answer) == 2
