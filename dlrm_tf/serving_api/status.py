"""The error status of a request: a gRPC status code and TensorFlow Serving's message for it."""

from typing import Any

import grpc
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse, ModelVersionStatus

# TensorFlow Serving cuts messages at 1024 characters so that they fit HTTP/2 trailers; here bytes, as other letters take more.
MAX_MESSAGE = 1024
TRUNCATED = "...TRUNCATED"

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """A request is answered with an error status.

    Args:
      code: `grpc.StatusCode`.
      message: what the client reads.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = _cut(message)


def _cut(message: str) -> str:
    encoded = message.encode("utf-8", "replace")
    if len(encoded) <= MAX_MESSAGE:
        return encoded.decode()
    return encoded[:MAX_MESSAGE].decode("utf-8", "ignore") + TRUNCATED


def states(response: GetModelStatusResponse) -> list[dict[str, Any]]:
    """A model's versions as dicts `{"version", "state", "error_code", "error_message"}`, in the response's order."""
    return [
        {
            "version": entry.version,
            "state": ModelVersionStatus.State.Name(entry.state),
            "error_code": entry.status.error_code,
            "error_message": entry.status.error_message,
        }
        for entry in response.model_version_status
    ]


def invalid_argument(message: str) -> RequestError:
    """The error of a request that is wrong in itself."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def runtime_error(error: Any) -> RequestError:
    """An error of TensorFlow's runtime (`tf.errors.OpError`), with the same code and text."""
    return RequestError(status_code(error.error_code), error.message)


def status_code(number: int) -> grpc.StatusCode:
    """The gRPC status code of a number; UNKNOWN where there is none."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)
