"""`ServerCore`: every request a server answers, counted and timed, whichever way it came in."""

import contextlib
import logging
import time

import grpc
from tensorflow_serving.apis import model_management_pb2, model_pb2

from dlrm_tf.serve import classify, model_info, predict
from dlrm_tf.serving_api.status import RequestError, invalid_argument

log = logging.getLogger("dlrm_tf.serve")


class ServerCore:
    """Answers requests with the models of a manager.

    Args:
      manager: `ModelManager`.
      metrics: `Metrics`.
      as_content: Predict's outputs as raw bytes instead of the typed field.
      max_repeated: values of an input that may be left out, because they repeat the last one.
    """

    def __init__(self, manager, metrics, as_content: bool, max_repeated: int):
        self.manager, self.metrics = manager, metrics
        self._as_content, self._max_repeated = as_content, max_repeated

    def predict(self, request):
        """Answers a `PredictRequest`."""
        with self.measured("Predict", "GRPC", request.model_spec), self.servable(request) as (servable, version):
            return predict.predict(servable, version, request, self._as_content, self._max_repeated)

    def classify(self, request, entrypoint: str = "GRPC"):
        """Answers a `ClassificationRequest`."""
        with self.measured("Classify", entrypoint, request.model_spec), self.servable(request) as (servable, version):
            return classify.classify(servable, version, request)

    def regress(self, request, entrypoint: str = "GRPC"):
        """Answers a `RegressionRequest`."""
        with self.measured("Regress", entrypoint, request.model_spec), self.servable(request) as (servable, version):
            return classify.regress(servable, version, request)

    def multi_inference(self, request):
        """Answers a `MultiInferenceRequest`; the first task says which model."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with self.measured("MultiInference", "GRPC", spec), self.manager.servable(spec) as (servable, version):
            return classify.multi_inference(servable, version, request)

    def get_model_metadata(self, request):
        """Answers a `GetModelMetadataRequest`."""
        return model_info.get_model_metadata(self.manager, request)

    def get_model_status(self, request):
        """Answers a `GetModelStatusRequest`."""
        return model_info.get_model_status(self.manager, request)

    def reload_config(self, request):
        """Answers a `ReloadConfigRequest`, when the models are as it says."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
            )
        self.manager.reload(request.config.model_config_list.config)
        return model_management_pb2.ReloadConfigResponse()

    def servable(self, request):
        """The servable `request.model_spec` asks for, as a context manager."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        return self.manager.servable(request.model_spec)

    @contextlib.contextmanager
    def measured(self, api: str, entrypoint: str, spec):
        """Counts and times what happens inside; a defect becomes INTERNAL."""
        start, status = time.perf_counter(), "OK"
        try:
            yield
        except RequestError as e:
            status = e.code.name
            raise
        except Exception as e:
            log.exception("a request failed in a way it never should")
            status = "INTERNAL"
            raise RequestError(grpc.StatusCode.INTERNAL, f"{type(e).__name__}: {e}") from e
        finally:
            name = spec.name if self.manager.knows(spec.name) else ""
            self.metrics.request(name, api, entrypoint, status, time.perf_counter() - start)
