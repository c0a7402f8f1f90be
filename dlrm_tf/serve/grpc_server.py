"""The gRPC side of a server: its services, each call answered by the `ServerCore`; health, reflection and ports."""

import functools
import threading
import types
from collections.abc import Callable
from typing import Any, Optional

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from dlrm_tf.errors import ServingError
from dlrm_tf.serve import health
from dlrm_tf.serve.core import ServerCore, internal_error
from dlrm_tf.serve.options import ServerOptions
from dlrm_tf.serve.ports import authority, server_credentials
from dlrm_tf.serve.predict import ProtoPredict
from dlrm_tf.serve.reception import Reception
from dlrm_tf.serving_api.errors import RequestError

_PREDICTION, _MODEL = (
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((prediction_service_pb2, "PredictionService"), (model_service_pb2, "ModelService"))
)
# No limit on a message's size unless asked for, as in TF Serving; no second server may share the port.
_CHANNEL_ARGUMENTS = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1, "grpc.so_reuseport": 0}
# Calls under way on one connection, at least; its next ones wait at the client. Without a limit, calls that send headers only or
# are taken back at once (resets) make one connection's work so much that all others wait: RFC 9113 wants 100 or more.
CALLS_A_CONNECTION = 100
# Calls that may wait for a thread; the next one is refused with RESOURCE_EXHAUSTED.
WAITING_CALLS = 4096


class GrpcServer:
    """Answers gRPC calls on `port` and, where the options say so, on a unix socket.

    Raises:
      ServingError: the port or the unix socket can't be opened.
    """

    def __init__(self, core: ServerCore, options: ServerOptions, *, port: int):
        threads = options.threads()
        self._reception = Reception(_PREDICTION, threads)
        arguments = {**_CHANNEL_ARGUMENTS, "grpc.max_concurrent_streams": max(CALLS_A_CONNECTION, threads)}
        self._server = grpc.server(
            self._reception.workers,
            interceptors=(self._reception,),
            options=list({**arguments, **options.channel_arguments}.items()),
            maximum_concurrent_rpcs=threads + WAITING_CALLS,
        )
        as_content, max_repeated = options.enable_serialization_as_tensor_content, options.max_repeated_values
        prediction = _servicer(
            Predict=lambda request: core.predict(ProtoPredict(request, as_content=as_content, max_repeated=max_repeated)),
            Classify=core.classify,
            Regress=core.regress,
            MultiInference=core.multi_inference,
            GetModelMetadata=core.get_model_metadata,
        )
        model = _servicer(GetModelStatus=core.get_model_status, HandleReloadConfigRequest=core.reload_config)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(model, self._server)
        services = [_PREDICTION, _MODEL, reflection.SERVICE_NAME]
        self._ended = threading.Event()
        self._health: Optional[health.HealthServicer] = None
        if options.enable_grpc_healthcheck_service:
            self._health = health.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
            # The C++ server knows its services by their short names only; Kubernetes' probes name them in full.
            for name in ("", *(alias for service in (_PREDICTION, _MODEL) for alias in (service, service.split(".")[-1]))):
                self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
            services.append(health.SERVICE_NAME)
        reflection.enable_server_reflection(services, self._server)
        self._listen(options, authority(options.host, port))

    def _listen(self, options: ServerOptions, address: str) -> None:
        try:
            if options.use_alts_credentials:
                self._server.add_secure_port(address, grpc.alts_server_credentials())
            elif options.ssl is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, server_credentials(options.ssl))
            if options.grpc_socket_path:
                address = f"unix:{options.grpc_socket_path}"
                self._server.add_insecure_port(address)
        except RuntimeError as e:
            self.stop(grace=0)
            self.wait()
            why = "in use, not allowed, or a bad key or certificate"
            if options.use_alts_credentials:
                why = "in use, not allowed, or a machine without ALTS, which only Google's cloud has"
            raise ServingError(f"cannot listen on {address} ({why})") from e

    def start(self) -> None:
        """Starts answering."""
        self._reception.start()
        self._server.start()

    def stop(self, grace: float) -> None:
        """Health checks answer NOT_SERVING, new calls are refused, those under way get `grace` seconds; returns at once."""
        if self._health is not None:
            self._health.enter_graceful_shutdown()
        self._ended = self._server.stop(grace)

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Returns when all calls have ended after `stop`, or after `timeout` seconds; gives whether they have."""
        ended = self._ended.wait(timeout)
        self._reception.stop()
        return ended


def _servicer(**methods: Callable) -> Any:
    """A gRPC servicer, from the function of a request that answers each method."""
    return types.SimpleNamespace(**{name: functools.partial(_answer, function) for name, function in methods.items()})


def _answer(function: Callable, request: Any, context: grpc.ServicerContext) -> Any:
    if not context.is_active():  # cancelled or timed out while it waited for a thread: nobody reads the answer
        context.abort(grpc.StatusCode.CANCELLED, "The call ended before its turn came")
    try:
        return function(request)
    except RequestError as e:
        context.abort(e.code, e.message)
    except Exception as e:
        context.abort(grpc.StatusCode.INTERNAL, internal_error(e).message)
