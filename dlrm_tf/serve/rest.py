"""The REST API: routes, statuses and bodies, after TensorFlow Serving's http_rest_api_handler.cc; knows no HTTP library."""

import json
import re
import urllib.parse
from typing import Any

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    regression_pb2,
)

from dlrm_tf.serve import rest_examples, rest_json
from dlrm_tf.serve.core import ServerCore, internal_error
from dlrm_tf.serve.json_parsers import JsonParsers
from dlrm_tf.serve.rest_predict import JsonPredict
from dlrm_tf.serving_api.errors import RequestError, invalid_argument

_WHICH = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_CALL = re.compile(rf"/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_INFO = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?P<metadata>/metadata)?", re.IGNORECASE | re.ASCII)

# Method on tf.Examples -> class of its request, who answers it, and the answer's JSON.
_EXAMPLES: dict[str, tuple[Any, Any, Any]] = {
    "classify": (classification_pb2.ClassificationRequest, ServerCore.classify, rest_examples.classifications),
    "regress": (regression_pb2.RegressionRequest, ServerCore.regress, rest_examples.regressions),
}
Code = grpc.StatusCode
# http_server.cc: ToHTTPStatusCode.
HTTP_STATUS = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}


# For a page of any origin, with --rest_api_enable_cors_support.
CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


def answer(
    core: ServerCore, parsers: JsonParsers, method: str, path: str, body: bytearray, origin: str = ""
) -> tuple[int, bytes]:
    """Answers one HTTP request by `core`.

    Args:
      parsers: processes for large JSON.
      method: `GET` or `POST`; a browser asks with `OPTIONS` first.
      path: as sent, percent-encoded. A query is a part of it, as in TensorFlow Serving: of a model's name or of a malformed path.
      body: of a POST, decompressed.
      origin: the request's Origin header.

    Returns:
      `(HTTP status, JSON body)`; the body is empty for OPTIONS.
    """
    if not path.lower().startswith("/v1/"):
        return 404, error_body(f"Not found: {path}")
    try:
        if method == "OPTIONS":
            if not re.match("https?://", origin):
                raise RequestError(Code.FAILED_PRECONDITION, "Origin header is missing in CORS preflight")
            return 200, b""
        match = {"POST": _CALL, "GET": _INFO}[method].fullmatch(path) if method in ("POST", "GET") else None
        if match is None:
            raise invalid_argument(f"Malformed request: {method} {path}")
        spec = _model_spec(match)
        if method == "GET":
            return 200, _metadata(core, spec) if match["metadata"] else _status(core, spec)
        return 200, _inference(core, parsers, match["method"].lower(), spec, body)
    except RequestError as e:
        return HTTP_STATUS.get(e.code, 500), error_body(e.message)
    except Exception as e:
        return 500, error_body(internal_error(e).message)


def error_body(message: str) -> bytes:
    """The JSON of an error."""
    return rest_json.dump({"error": message})


def _model_spec(match: re.Match) -> model_pb2.ModelSpec:
    if match["name"] is None:
        raise invalid_argument("Missing model name in request.")
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match["name"]))
    if match["version"] is not None:
        number = int(match["version"]) if len(match["version"]) < 20 else 2**63
        if number >= 2**63:
            raise invalid_argument(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = number
    if match["label"] is not None:
        spec.version_label = urllib.parse.unquote(match["label"])
    return spec


def _inference(core: ServerCore, parsers: JsonParsers, method: str, spec: model_pb2.ModelSpec, body: bytearray) -> bytes:
    if method == "predict":
        return core.predict(JsonPredict(spec, body, parsers))
    make_request, answer_to, to_json = _EXAMPLES[method]
    request = make_request(model_spec=spec)
    rest_examples.fill_request(body, request)
    return to_json(answer_to(core, request, "REST").result)


def _to_dict(message) -> dict:
    return json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _status(core: ServerCore, spec: model_pb2.ModelSpec) -> bytes:
    response = core.get_model_status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec))
    return json.dumps(_to_dict(response), indent=1).encode()


def _metadata(core: ServerCore, spec: model_pb2.ModelSpec) -> bytes:
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
    response = core.get_model_metadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    document = {"model_spec": _to_dict(response.model_spec), "metadata": {"signature_def": _to_dict(signatures)}}
    return json.dumps(document, indent=1).encode()
