"""`ServerOptions`: TensorFlow Serving's flags, under its own names."""

import dataclasses
import os
from typing import Optional

from tensorflow_serving.config import model_server_config_pb2

from dlrm_tf.errors import UsageError


@dataclasses.dataclass
class ServerOptions:
    """How a server runs; each field is a flag of `dlrm-tf serve`, as `tensorflow_model_server` has it.

    Attributes:
      model_name: name clients ask for.
      model_base_path: absolute folder with one numbered folder a version.
      port: TCP port of gRPC; 0 picks a free one.
      rest_api_port: TCP port of REST; 0 picks a free one, None has no REST.
      host: address to listen on (TF Serving listens on all; here only this machine unless asked).
      file_system_poll_wait_seconds: between two looks for new versions; 0 looks only at the start.
      max_num_load_retries: further attempts at a version that does not load.
      load_retry_interval_micros: between those.
      grpc_max_threads: requests worked on at a time; more wait. None is 4 a core.
      enable_serialization_as_tensor_content: outputs as raw bytes instead of the typed field.
    """

    model_name: str = "default"
    model_base_path: Optional[str] = None
    port: int = 8500
    rest_api_port: Optional[int] = None
    host: str = "127.0.0.1"
    file_system_poll_wait_seconds: float = 1.0
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    grpc_max_threads: Optional[int] = None
    enable_serialization_as_tensor_content: bool = False

    def __post_init__(self):
        for name in ("port", "rest_api_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 65536:
                raise UsageError(f"--{name}: wanted a port from 0 to 65535, came {value}")
        if self.grpc_max_threads is not None and self.grpc_max_threads < 1:
            raise UsageError(f"--grpc_max_threads: wanted at least 1, came {self.grpc_max_threads}")

    def model_configs(self) -> list:
        """The models to serve, as `ModelConfig`s.

        Raises:
          UsageError: no model named, or a path that is not absolute.
        """
        if not self.model_base_path:
            raise UsageError("--model_base_path: wanted the folder that holds the model's version folders, came nothing")
        config = model_server_config_pb2.ModelConfig(
            name=self.model_name, base_path=self.model_base_path, model_platform="tensorflow"
        )
        if not config.name:
            raise UsageError("--model_name: wanted a name, came nothing")
        if not os.path.isabs(config.base_path):
            raise UsageError(
                f"--model_base_path: wanted an absolute path (as TensorFlow Serving does), came {config.base_path!r}; "
                f"did you mean {os.path.abspath(config.base_path)}?"
            )
        return [config]
