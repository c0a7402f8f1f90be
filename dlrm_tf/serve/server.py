"""`ModelServer`: the embedded server, from options to open ports and back."""

import os
from concurrent import futures
from typing import Optional

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from dlrm_tf.errors import ServingError
from dlrm_tf.serve.grpc_services import ModelService, PredictionService
from dlrm_tf.serve.manager import ModelManager
from dlrm_tf.serve.options import ServerOptions
from dlrm_tf.serve.servable import Servable


class ModelServer:
    """Serves SavedModels in this process, answering as `tensorflow_model_server` does.

    Args:
      **options: fields of `ServerOptions`; here `port` defaults to 0 (a free one).

    Example:
      with ModelServer(model_name="dlrm", model_base_path="/abs/saved_models/dlrm") as server:
          client = Client(server.target, model_name="dlrm")
    """

    def __init__(self, **options):
        options.setdefault("port", 0)
        self.options = ServerOptions(**options)
        self._configs = self.options.model_configs()
        self._manager: Optional[ModelManager] = None
        self._grpc = None
        self.port: Optional[int] = None
        self.rest_api_port: Optional[int] = None

    @property
    def target(self) -> str:
        """`host:port` of the gRPC side, once started."""
        return f"{self.options.host}:{self.port}"

    def start(self, timeout: Optional[float] = None) -> "ModelServer":
        """Loads the models, then opens the ports.

        Args:
          timeout: seconds to wait for a first version to appear; None waits for ever.

        Raises:
          ServingError: a model does not load or does not come, or a port is taken.
        """
        options = self.options
        # Taken before the models load: a port in use is said at once, not after minutes.
        self._grpc, self.port = self._bind()
        try:
            self._manager = ModelManager(
                load=lambda name, version, path: Servable(path),
                poll_seconds=options.file_system_poll_wait_seconds,
                max_load_retries=options.max_num_load_retries,
                retry_seconds=options.load_retry_interval_micros / 1e6,
            )
            if not self._manager.start(self._configs, timeout):
                return self
        except BaseException:
            self.stop(grace=0)
            raise
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(self._manager, options), self._grpc)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self._manager), self._grpc)
        self._grpc.start()
        return self

    def _bind(self):
        options = self.options
        threads = options.grpc_max_threads or 4 * (os.cpu_count() or 1)
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="grpc"),
            # No limit on a message's size, as in TF Serving; no second server may share the port.
            options=(
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ),
        )
        try:
            port = server.add_insecure_port(f"{options.host}:{options.port}")
        except RuntimeError as e:
            raise ServingError(
                f"--port: cannot listen on {options.host}:{options.port} (in use, or not allowed); choose another port, or 0 "
                "for any free one"
            ) from e
        return server, port

    def wait(self) -> None:
        """Returns when the server has stopped."""
        self._grpc.wait_for_termination()

    def stop(self, grace: float = 5.0) -> None:
        """Takes no new requests, gives those under way `grace` seconds, unloads the models."""
        if self._grpc is not None:
            self._grpc.stop(grace).wait()
        if self._manager is not None:
            self._manager.stop()

    def __enter__(self):
        return self.start() if self._manager is None else self

    def __exit__(self, *exc):
        self.stop()
