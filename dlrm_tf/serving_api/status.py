"""Statuses in TensorFlow's and TensorFlow Serving's own messages: of versions, and of the runtime's errors."""

from typing import Any

import grpc
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse, ModelVersionStatus

from dlrm_tf.serving_api.errors import RequestError

_CODES = {code.value[0]: code for code in grpc.StatusCode}


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


def runtime_error(error: Any) -> RequestError:
    """An error of TensorFlow's runtime (`tf.errors.OpError`), with the same code and text."""
    return RequestError(status_code(error.error_code), error.message)


def status_code(number: int) -> grpc.StatusCode:
    """The gRPC status code of a number; UNKNOWN where there is none."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)
