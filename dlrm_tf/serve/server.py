"""`ModelServer`: the embedded server, from options to open ports and back."""

import os
import threading
from typing import Optional

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from dlrm_tf.errors import ServingError, UsageError
from dlrm_tf.serve.batching import Batcher
from dlrm_tf.serve.core import ServerCore
from dlrm_tf.serve.grpc_services import ModelService, PredictionService
from dlrm_tf.serve.http_server import HttpServer
from dlrm_tf.serve.manager import ModelManager, log
from dlrm_tf.serve.metrics import Metrics
from dlrm_tf.serve.options import ServerOptions
from dlrm_tf.serve.ports import allow_many_files, bind, server_credentials
from dlrm_tf.serve.reception import Reception
from dlrm_tf.serve.servable import Servable
from dlrm_tf.serve.warmup import warm_up
from dlrm_tf.serving_api.config_files import read_model_config
from dlrm_tf.serving_api.status import RequestError

_SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((prediction_service_pb2, "PredictionService"), (model_service_pb2, "ModelService"))
)
# No limit on a message's size unless asked for, as in TF Serving; no second server may share the port.
_CHANNEL_ARGUMENTS = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1, "grpc.so_reuseport": 0}
# Beyond the threads, so many calls may wait; the next is refused with RESOURCE_EXHAUSTED.
WAITING_CALLS = 4096


class ModelServer:
    """Serves SavedModels in this process, answering as `tensorflow_model_server` does.

    Args:
      **options: fields of `ServerOptions`; here `port` defaults to 0 (a free one).

    Attributes:
      port: of gRPC, once started.
      rest_api_port: of REST, once started; None without REST.

    Example:
      with ModelServer(model_name="dlrm", model_base_path="/abs/saved_models/dlrm") as server:
          client = Client(server.target, model_name="dlrm")
    """

    def __init__(self, **options):
        options.setdefault("port", 0)
        self.options = ServerOptions(**options)
        self._config = self.options.model_server_config()
        self._channel_arguments = self.options.channel_arguments()
        self._batch_slots = threading.Semaphore(self._num_batch_threads())
        self.metrics = Metrics()
        self._manager = ModelManager(
            load=self._load,
            poll_seconds=self.options.file_system_poll_wait_seconds,
            max_load_retries=self.options.max_num_load_retries,
            retry_seconds=self.options.load_retry_interval_micros / 1e6,
            allow_unavailable_labels=self.options.allow_version_labels_for_unavailable_models,
        )
        self._core = ServerCore(
            self._manager, self.metrics, self.options.enable_serialization_as_tensor_content, self.options.max_repeated_values
        )
        self._grpc = self._reception = self._http = self._health = self._rest_socket = None
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self.port: Optional[int] = None
        self.rest_api_port: Optional[int] = None

    def _num_batch_threads(self) -> int:
        batching = self.options.batching
        return (batching.num_batch_threads.value if batching is not None else 0) or os.cpu_count() or 1

    @property
    def target(self) -> str:
        """`host:port` of the gRPC side, once started."""
        return f"{self.options.host}:{self.port}"

    @property
    def rest_target(self) -> str:
        """`http://host:port` of the REST side, once started."""
        return f"http://{self.options.host}:{self.rest_api_port}"

    def _load(self, name: str, version: int, path: str) -> Servable:
        options = self.options
        servable = Servable(path, options.tensorflow_inter_op_parallelism, options.tensorflow_intra_op_parallelism)
        if options.batching is not None:
            servable.run = Batcher(servable.run, options.batching, self._batch_slots, self.metrics.batch).run
        try:
            if options.enable_model_warmup:
                warm_up(servable, version)
        except BaseException:
            servable.close()
            raise
        return servable

    def start(self, timeout: Optional[float] = None) -> "ModelServer":
        """Loads the models, then opens the ports.

        Args:
          timeout: seconds to wait for a first version to appear; None waits for ever.

        Raises:
          ServingError: a model does not load or does not come, or a port is taken.
        """
        options = self.options
        allow_many_files()
        # Taken, but not listening, while the models load: a port in use is said at once, and an open port means ready.
        reserved = bind(options.host, options.port, "--port")
        try:
            self.port = reserved.getsockname()[1]
            if options.rest_api_port is not None:
                self._rest_socket = bind(options.host, options.rest_api_port, "--rest_api_port")
                self.rest_api_port = self._rest_socket.getsockname()[1]
            if self._manager.start(list(self._config.model_config_list.config), timeout):
                reserved.close()
                self._open()
        except RequestError as e:
            self.stop(grace=0)
            raise ServingError(f"{options.model_config_file or '--model_base_path'}: {e.message}") from e
        except BaseException:
            self.stop(grace=0)
            raise
        finally:
            reserved.close()
        return self

    def _open(self) -> None:
        options = self.options
        threads = options.threads()
        self._reception = Reception(_SERVICES[0], threads)
        self._grpc = grpc.server(
            self._reception.workers,
            interceptors=(self._reception,),
            options=list({**_CHANNEL_ARGUMENTS, **self._channel_arguments}.items()),
            maximum_concurrent_rpcs=threads + WAITING_CALLS,
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(self._core), self._grpc)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self._core), self._grpc)
        services = list(_SERVICES)
        if options.enable_grpc_healthcheck_service:
            self._health = health.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
            for name in ("", *_SERVICES):
                self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
            services.append(health.SERVICE_NAME)
        reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), self._grpc)
        address = f"{options.host}:{self.port}"
        try:
            if options.ssl is None:
                self._grpc.add_insecure_port(address)
            else:
                self._grpc.add_secure_port(address, server_credentials(options.ssl))
            if options.grpc_socket_path:
                address = f"unix:{options.grpc_socket_path}"
                self._grpc.add_insecure_port(address)
        except RuntimeError as e:
            raise ServingError(f"cannot listen on {address} (in use, not allowed, or a bad key or certificate)") from e
        self._reception.start()
        self._grpc.start()
        if self._rest_socket is not None:
            timeout = options.rest_api_timeout_in_ms / 1e3
            self._http = HttpServer(
                self._core, self._rest_socket, threads, timeout, options.rest_api_max_body_bytes, options.metrics_path
            )
            self._http.start()
        if options.model_config_file and options.model_config_file_poll_wait_seconds > 0:
            threading.Thread(target=self._poll_config, name="config poll", daemon=True).start()

    def _poll_config(self) -> None:
        while not self._stopping.wait(self.options.model_config_file_poll_wait_seconds):
            try:
                config = read_model_config(self.options.model_config_file)
                if config != self._config:
                    self._manager.reload(config.model_config_list.config)
                    self._config = config
                    log.info("%s: reloaded", self.options.model_config_file)
            except (UsageError, RequestError, OSError) as e:
                log.error("%s: not reloaded, the models stay as they are: %s", self.options.model_config_file, e)

    def wait(self) -> None:
        """Returns when the server has stopped."""
        self._stopped.wait()

    def stop(self, grace: float = 5.0) -> None:
        """Says NOT_SERVING to health checks, takes no new requests, gives those under way `grace` seconds, unloads the models."""
        self._stopping.set()
        if self._health is not None:
            self._health.enter_graceful_shutdown()
        grpc_done = self._grpc.stop(grace) if self._grpc is not None else None
        if self._http is not None:
            self._http.stop(grace)
        elif self._rest_socket is not None:
            self._rest_socket.close()
        if grpc_done is not None:
            grpc_done.wait()
            self._reception.stop()
        self._manager.stop()
        self._stopped.set()

    def __enter__(self):
        return self if self._grpc is not None else self.start()

    def __exit__(self, *exc):
        self.stop()
