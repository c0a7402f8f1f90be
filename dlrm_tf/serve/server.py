"""`ModelServer`: the embedded server, from options to open ports and back."""

import logging
import threading
import time
from typing import Any, Optional

from dlrm_tf.errors import ServingError, UsageError
from dlrm_tf.serve.core import ServerCore
from dlrm_tf.serve.grpc_server import GrpcServer
from dlrm_tf.serve.http_server import HttpServer
from dlrm_tf.serve.loading import Loader
from dlrm_tf.serve.manager import ModelManager
from dlrm_tf.serve.metrics import Metrics
from dlrm_tf.serve.options import ServerOptions
from dlrm_tf.serve.ports import allow_many_files, authority, bind
from dlrm_tf.serve.request_log import RequestLog
from dlrm_tf.serving_api.config_files import read_model_config
from dlrm_tf.serving_api.errors import RequestError

# Seconds that `stop` takes after its grace, at most, for what ends then.
STOP_SECONDS = 3.0

log = logging.getLogger("dlrm_tf.serve")


class ModelServer:
    """Serves SavedModels in this process, answering as `tensorflow_model_server` does.

    Args:
      **options: fields of `ServerOptions`; `port` defaults to 0 here (any free port).

    Attributes:
      options: the `ServerOptions`.
      metrics: counts of requests and batches.
      port: of gRPC, once started.
      rest_api_port: of REST, once started; None without REST.

    Raises:
      UsageError: options that `ServerOptions` refuses, or no model named.

    Example:
      with ModelServer(model_name="dlrm", model_base_path="/abs/saved_models/dlrm") as server:
          client = Client(server.target, model_name="dlrm")
    """

    def __init__(self, **options: Any):
        self.options = ServerOptions(**{"port": 0, **options})
        self.metrics = Metrics()
        self.port: Optional[int] = None
        self.rest_api_port: Optional[int] = None
        self._config = self.options.model_server_config()
        load = Loader(self.options, self.metrics)
        self._manager = ModelManager(
            load=lambda name, version, path: load(path, version),
            poll_seconds=self.options.file_system_poll_wait_seconds,
            max_load_retries=self.options.max_num_load_retries,
            retry_seconds=self.options.load_retry_interval_micros / 1e6,
            allow_unavailable_labels=self.options.allow_version_labels_for_unavailable_models,
            load_threads=self.options.num_load_threads,
        )
        folder = self.options.request_log_dir
        self._request_log = RequestLog(folder, self.options, self.metrics) if folder else None
        self._core = ServerCore(self._manager, self.metrics, self._request_log)
        self._grpc: Optional[GrpcServer] = None
        self._http: Optional[HttpServer] = None
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._stop_lock = threading.Lock()
        self._stop_begun = self._ended = False

    @property
    def target(self) -> str:
        """`host:port` of gRPC, once started."""
        return authority(self.options.host, self.port)

    @property
    def rest_target(self) -> str:
        """`http://host:port` of REST, once started."""
        return f"http://{authority(self.options.host, self.rest_api_port)}"

    def start(self, timeout: Optional[float] = None) -> "ModelServer":
        """Loads the models, then opens the ports.

        Args:
          timeout: seconds to wait for a first version to appear; None waits without limit.

        Returns:
          This server.

        Raises:
          ServingError: a model does not load or does not appear in time, a port is taken, or the request log's folder is refused.
        """
        options, rest_socket = self.options, None
        allow_many_files()
        # Bound but not listening while the models load: a port in use is reported at once, and an open port means ready.
        reserved = bind(options.host, options.port, "--port")
        try:
            self.port = reserved.getsockname()[1]
            if options.rest_api_port is not None:
                rest_socket = bind(options.host, options.rest_api_port, "--rest_api_port")
                self.rest_api_port = rest_socket.getsockname()[1]
            if self._request_log is not None:
                self._request_log.start()
            if self._manager.start(self._config.model_config_list.config, timeout=timeout):
                reserved.close()
                self._grpc = GrpcServer(self._core, options, port=self.port)
                self._grpc.start()
                if rest_socket is not None:
                    self._http = HttpServer(self._core, options, rest_socket)
                    self._http.start()
                if options.model_config_file and options.model_config_file_poll_wait_seconds > 0:
                    threading.Thread(target=self._poll_config, args=(options.model_config_file,), daemon=True).start()
        except BaseException as e:
            self.stop(grace=0)
            if isinstance(e, RequestError):
                raise ServingError(f"{options.model_config_file or '--model_base_path'}: {e.message}") from e
            raise
        finally:
            reserved.close()
            if rest_socket is not None and self._http is None:
                rest_socket.close()
        return self

    def _poll_config(self, file: str) -> None:
        while not self._stopping.wait(self.options.model_config_file_poll_wait_seconds):
            try:
                config = read_model_config(file)
                if config != self._config:
                    self._manager.reload(config.model_config_list.config)
                    self._config = config
                    log.info("%s: reloaded", file)
            except (UsageError, RequestError, OSError) as e:
                log.error("%s: not reloaded, the models stay as they are: %s", file, e)

    def wait(self) -> None:
        """Returns when the server has stopped."""
        self._stopped.wait()

    def stop(self, grace: float = 5.0) -> bool:
        """Answers NOT_SERVING to health checks, refuses new requests, waits for those under way, unloads the models.

        A second call waits for the first one.

        Args:
          grace: seconds that requests under way may still take.

        Returns:
          False when, `grace` and `STOP_SECONDS` later, a model still runs or a version still loads: TensorFlow can't be
          interrupted. Its thread and its memory then stay until it has ended.
        """
        deadline = time.monotonic() + grace + STOP_SECONDS
        with self._stop_lock:
            first, self._stop_begun = not self._stop_begun, True
        if not first:
            return self._stopped.wait(max(deadline - time.monotonic(), 0)) and self._ended
        self._stopping.set()
        self._manager.cancel()
        if self._grpc is not None:
            self._grpc.stop(grace)
        if self._http is not None:
            self._http.stop(grace)
        ended = self._grpc is None or self._grpc.wait(max(deadline - time.monotonic(), 0))
        if self._request_log is not None:
            self._request_log.close()
        self._ended = self._manager.stop(max(deadline - time.monotonic(), 0)) and ended
        self._stopped.set()
        return self._ended

    def __enter__(self) -> "ModelServer":
        return self if self._grpc is not None else self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
