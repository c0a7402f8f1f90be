"""PredictionService and ModelService over gRPC; thin: each method parses nothing and decides nothing."""

import logging

import grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from dlrm_tf.serve.predict import get_model_metadata, predict
from dlrm_tf.serve.status import RequestError

log = logging.getLogger("dlrm_tf.serve")


def _answer(context, function, *args):
    """`function(*args)`, with its failure as the call's status."""
    try:
        return function(*args)
    except RequestError as e:
        context.abort(e.code, e.message)
    except Exception as e:
        log.exception("a request failed in a way it never should")
        context.abort(grpc.StatusCode.INTERNAL, f"{type(e).__name__}: {e}"[:1024])


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Inference calls."""

    def __init__(self, manager, options):
        self._manager, self._options = manager, options

    def Predict(self, request, context):
        return _answer(context, predict, self._manager, request, self._options.enable_serialization_as_tensor_content)

    def GetModelMetadata(self, request, context):
        return _answer(context, get_model_metadata, self._manager, request)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """What is loaded."""

    def __init__(self, manager):
        self._manager = manager

    def GetModelStatus(self, request, context):
        return _answer(context, get_model_status, self._manager, request)


def get_model_status(manager, request) -> get_model_status_pb2.GetModelStatusResponse:
    """States of a model's versions, newest first."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in manager.status(request.model_spec):
        status = response.model_version_status.add(version=version.number, state=version.state)
        status.status.error_code = version.error_code
        status.status.error_message = version.error_message
    return response
