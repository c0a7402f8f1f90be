"""PredictionService and ModelService over gRPC: each call goes to the `ServerCore`, its RequestError becomes gRPC's status."""

from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from dlrm_tf.serve.core import ServerCore, internal_error
from dlrm_tf.serve.predict import ProtoPredict
from dlrm_tf.serving_api.status import RequestError


def _answer(context: grpc.ServicerContext, function: Callable, request: Any) -> Any:
    if not context.is_active():  # cancelled or timed out while it waited for a thread: nobody reads the answer
        context.abort(grpc.StatusCode.CANCELLED, "The call ended before its turn came")
    try:
        return function(request)
    except RequestError as e:
        context.abort(e.code, e.message)
    except Exception as e:
        context.abort(grpc.StatusCode.INTERNAL, internal_error(e).message)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Inference calls; `tensors` are the options of `ProtoPredict`."""

    def __init__(self, core: ServerCore, **tensors: Any):
        self._core, self._tensors = core, tensors

    def Predict(self, request, context):
        return _answer(context, self._core.predict, ProtoPredict(request, **self._tensors))

    def Classify(self, request, context):
        return _answer(context, self._core.classify, request)

    def Regress(self, request, context):
        return _answer(context, self._core.regress, request)

    def MultiInference(self, request, context):
        return _answer(context, self._core.multi_inference, request)

    def GetModelMetadata(self, request, context):
        return _answer(context, self._core.get_model_metadata, request)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """States of the models, and their configuration."""

    def __init__(self, core: ServerCore):
        self._core = core

    def GetModelStatus(self, request, context):
        return _answer(context, self._core.get_model_status, request)

    def HandleReloadConfigRequest(self, request, context):
        return _answer(context, self._core.reload_config, request)
