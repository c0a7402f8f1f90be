"""PredictionService and ModelService over gRPC: each call handed to the `ServerCore`, its failure told as gRPC's status."""

import logging

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from dlrm_tf.serving_api.status import MAX_MESSAGE, RequestError

log = logging.getLogger("dlrm_tf.serve")


def _answer(context, function, request):
    if not context.is_active():  # the caller gave up while the call waited for a thread: don't work for nobody
        context.abort(grpc.StatusCode.CANCELLED, "The call ended before its turn came")
    try:
        return function(request)
    except RequestError as e:
        context.abort(e.code, e.message)
    except Exception as e:
        log.exception("a request failed in a way it never should")
        context.abort(grpc.StatusCode.INTERNAL, f"{type(e).__name__}: {e}"[:MAX_MESSAGE])


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Inference calls."""

    def __init__(self, core):
        self._core = core

    def Predict(self, request, context):
        return _answer(context, self._core.predict, request)

    def Classify(self, request, context):
        return _answer(context, self._core.classify, request)

    def Regress(self, request, context):
        return _answer(context, self._core.regress, request)

    def MultiInference(self, request, context):
        return _answer(context, self._core.multi_inference, request)

    def GetModelMetadata(self, request, context):
        return _answer(context, self._core.get_model_metadata, request)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """What is loaded, and what shall be."""

    def __init__(self, core):
        self._core = core

    def GetModelStatus(self, request, context):
        return _answer(context, self._core.get_model_status, request)

    def HandleReloadConfigRequest(self, request, context):
        return _answer(context, self._core.reload_config, request)
