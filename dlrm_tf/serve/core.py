"""`ServerCore`: every request a server answers, counted and timed, whichever way it came in."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any, Optional

import grpc
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResponse
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, GetModelMetadataResponse, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest, ReloadConfigResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse

from dlrm_tf.serve import classify
from dlrm_tf.serve.any_servable import AnyServable
from dlrm_tf.serve.manager import ModelManager
from dlrm_tf.serve.metrics import Metrics
from dlrm_tf.serve.predict import PredictCall, model_spec, predict
from dlrm_tf.serve.request_log import RequestLog
from dlrm_tf.serving_api.errors import RequestError, invalid_argument

log = logging.getLogger("dlrm_tf.serve")


class ServerCore:
    """Answers requests of both transports with the models of `manager`, counted in `metrics`, and logged in `request_log`.

    Every method raises RequestError with TensorFlow Serving's code and message.
    """

    def __init__(self, manager: ModelManager, metrics: Metrics, request_log: Optional[RequestLog] = None):
        self.metrics = metrics
        self._manager, self._request_log = manager, request_log

    def predict(self, call: PredictCall) -> Any:
        """Answers a Predict call; gives what the call encodes."""
        with self._serving("Predict", call.entrypoint, call.model_spec) as (servable, version):
            return predict(servable, version, call, self._request_log)

    def classify(self, request: ClassificationRequest, entrypoint: str = "GRPC") -> ClassificationResponse:
        """Answers a Classify call; `entrypoint` is `GRPC` or `REST`, for the metrics."""
        with self._serving("Classify", entrypoint, model_spec(request)) as (servable, version):
            return self._logged("classify_log", request.model_spec, request, classify.classify(servable, version, request))

    def regress(self, request: RegressionRequest, entrypoint: str = "GRPC") -> RegressionResponse:
        """Answers a Regress call; `entrypoint` is `GRPC` or `REST`, for the metrics."""
        with self._serving("Regress", entrypoint, model_spec(request)) as (servable, version):
            return self._logged("regress_log", request.model_spec, request, classify.regress(servable, version, request))

    def multi_inference(self, request: MultiInferenceRequest) -> MultiInferenceResponse:
        """Answers a MultiInference call; the first task says which model."""
        spec = request.tasks[0].model_spec if request.tasks else ModelSpec()
        with self._serving("MultiInference", "GRPC", spec) as (servable, version):
            return self._logged("multi_inference_log", spec, request, classify.multi_inference(servable, version, request))

    def get_model_metadata(self, request: GetModelMetadataRequest) -> GetModelMetadataResponse:
        """Answers a GetModelMetadata call: the signatures of a loaded version."""
        spec = _required(model_spec(request))
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        with self._manager.servable(spec) as (servable, version):
            signatures = SignatureDefMap(signature_def=servable.signatures)
        response = GetModelMetadataResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = version
        response.metadata["signature_def"].Pack(signatures)
        return response

    def get_model_status(self, request: GetModelStatusRequest) -> GetModelStatusResponse:
        """Answers a GetModelStatus call: the states of a model's versions, newest first."""
        response = GetModelStatusResponse()
        for version in self._manager.status(_required(model_spec(request))):
            status = response.model_version_status.add(version=version.number, state=version.state)
            status.status.error_code = version.error_code
            status.status.error_message = version.error_message
        return response

    def reload_config(self, request: ReloadConfigRequest) -> ReloadConfigResponse:
        """Answers a HandleReloadConfigRequest call, once the models are as it says."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
            )
        self._manager.reload(request.config.model_config_list.config)
        return ReloadConfigResponse()

    def _logged(self, kind: str, spec: ModelSpec, request: Any, response: Any) -> Any:
        """`response`, once the request log has taken it with its request."""
        if self._request_log is not None and self._request_log.sampled():
            self._request_log.add(kind, spec.name, request.ByteSize() + response.ByteSize(), lambda: (request, response))
        return response

    @contextlib.contextmanager
    def _serving(self, api: str, entrypoint: str, spec: Optional[ModelSpec]) -> Iterator[tuple[AnyServable, int]]:
        """Gives the servable `spec` asks for and its version; counts and times what happens inside."""
        start, status = time.perf_counter(), "OK"
        try:
            with self._manager.servable(_required(spec)) as found:
                yield found
        except RequestError as e:
            status = e.code.name
            raise
        except Exception as e:
            status = "INTERNAL"
            raise internal_error(e) from e
        finally:
            name = spec.name if spec is not None and self._manager.knows(spec.name) else ""
            self.metrics.request(name, api, entrypoint, status, time.perf_counter() - start)


def _required(spec: Optional[ModelSpec]) -> ModelSpec:
    if spec is None:
        raise invalid_argument("Missing ModelSpec")
    return spec


def internal_error(error: Exception) -> RequestError:
    """A defect of the server: its traceback goes to the log, its one line to the client as INTERNAL."""
    log.error("a request failed with an unexpected error", exc_info=error)
    return RequestError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
