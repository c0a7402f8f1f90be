"""`ServerOptions`: TensorFlow Serving's flags, under its own names."""

import dataclasses
import os
from typing import Any, Optional, Union

from tensorflow_serving.config import model_server_config_pb2

from dlrm_tf.errors import UsageError
from dlrm_tf.serving_api.config_files import (
    read_batching_parameters,
    read_model_config,
    read_monitoring_config,
    read_ssl_config,
)
from dlrm_tf.serving_api.config_protos import BatchingParameters
from dlrm_tf.serving_api.limits import MAX_ANSWER_BYTES, MAX_BATCH_SIZE, MAX_REPEATED_VALUES

# Flag -> its least value, when it is given.
_LEAST = {
    "request_log_file_bytes": 1,
    "request_log_file_seconds": 0,
    "grpc_max_threads": 1,
    "rest_api_num_threads": 1,
    "rest_api_timeout_in_ms": 1,
    "rest_api_max_body_bytes": 1,
    "max_repeated_values": 0,
    "max_answer_bytes": 1,
    "num_load_threads": 0,
    "num_tflite_pools": 1,
    "num_request_iterations_for_warmup": 0,
    "tensorflow_session_parallelism": 0,
    "tensorflow_inter_op_parallelism": 0,
    "tensorflow_intra_op_parallelism": 0,
    "per_process_gpu_memory_fraction": 0,
}
# `tensorflow_inter_op_parallelism`, unless a flag or a file says otherwise.
INTER_OP_THREADS = 1


def _flag(default: Any, text: str, metavar: Optional[str] = None, kind: Optional[type] = None) -> Any:
    """A field and its flag; `kind` is the flag's type where the default does not tell it."""
    return dataclasses.field(default=default, metadata={"help": text, "metavar": metavar, "type": kind or type(default)})


@dataclasses.dataclass
class ServerOptions:
    """How a server runs; each field is a flag of `dlrm-tf serve`, as `tensorflow_model_server` has it.

    A field's metadata holds its help text and its unit. The files that fields name are read here.

    Attributes:
      batching: `BatchingParameters`; None without batching.
      metrics_path: URL path of the Prometheus page; None without one.
      channel_arguments: gRPC's channel arguments by name.
      ssl: `SSLConfig`; None without TLS.
      tags: those of the meta graph to load.

    Raises:
      UsageError: values out of range or that exclude each other, or a file that can't be read as its flag wants.
    """

    model_name: str = _flag("default", "name clients ask for", "NAME")
    model_base_path: Optional[str] = _flag(
        None, "absolute path of the model's folder, which has one numbered SavedModel folder for each version", "DIR", str
    )
    model_config_file: Optional[str] = _flag(
        None, "models, version policies and labels, instead of model_name and model_base_path", "FILE", str
    )
    model_config_file_poll_wait_seconds: float = _flag(
        0.0, "seconds between two reads of model_config_file; 0 reads it once", "S"
    )
    port: int = _flag(8500, "TCP port of gRPC; 0 picks a free one", "PORT")
    rest_api_port: Optional[int] = _flag(None, "TCP port of REST; 0 picks a free one (default: no REST)", "PORT", int)
    host: str = _flag("127.0.0.1", "address to listen on; the default is reached from this machine only", "ADDRESS")
    grpc_socket_path: Optional[str] = _flag(None, "also listen for gRPC on this unix socket", "PATH", str)
    ssl_config_file: Optional[str] = _flag(None, "SSLConfig: TLS for gRPC, with client_verify for clients too", "FILE", str)
    use_alts_credentials: bool = _flag(False, "Google's ALTS for gRPC, on its cloud only")
    grpc_channel_arguments: str = _flag(
        "", "comma-separated name=value, such as grpc.max_receive_message_length=67108864 (default: messages of any size)", "ARGS"
    )
    grpc_max_threads: Optional[int] = _flag(
        None, "requests worked on at a time (default: 2 a core; with batching twice max_batch_size, but 8 to 64)", "N", int
    )
    rest_api_num_threads: Optional[int] = _flag(None, "the same for REST (default: as for gRPC)", "N", int)
    rest_api_enable_cors_support: bool = _flag(False, "CORS headers in REST replies, for pages of other origins")
    rest_api_timeout_in_ms: int = _flag(30_000, "a REST request that takes longer ends with 504", "MS")
    rest_api_max_body_bytes: int = _flag(256 << 20, "a larger REST body is refused with 413", "BYTES")
    enable_batching: bool = _flag(False, "run the graph once for requests that wait together")
    batching_parameters_file: Optional[str] = _flag(None, "BatchingParameters; needs --enable_batching", "FILE", str)
    enable_per_model_batching_parameters: bool = _flag(
        False,
        "with enable_batching: a version's batching_params.pbtxt says how it is batched, and one without it is not batched; "
        "batching_parameters_file gives the threads only",
    )
    tensorflow_inter_op_parallelism: Optional[int] = _flag(
        None,
        f"operations of one run worked on at a time; 0 leaves it to TensorFlow (default: {INTER_OP_THREADS}, the fastest for "
        "small graphs)",
        "N",
        int,
    )
    tensorflow_intra_op_parallelism: int = _flag(0, "threads of one operation; 0 leaves it to TensorFlow", "N")
    tensorflow_session_parallelism: int = _flag(0, "both of them, where neither is given; 0 does nothing", "N")
    tensorflow_session_config_file: Optional[str] = _flag(
        None, "ConfigProto that sessions are made with; the flags of parallelism replace its own", "FILE", str
    )
    per_process_gpu_memory_fraction: float = _flag(0.0, "part of a GPU's memory to take; 0 takes what is needed", "PART")
    saved_model_tags: str = _flag("serve", "comma-separated tags of the meta graph to load", "TAGS")
    enable_signature_method_name_check: bool = _flag(
        False, "refuse calls of another kind than the signature's method name says; TensorFlow 2 exports say predict for all"
    )
    prefer_tflite_model: bool = _flag(False, "serve a version's model.tflite where there is one")
    num_tflite_pools: Optional[int] = _flag(None, "calls of a TFLite model run at a time (default: one a core)", "N", int)
    enable_model_warmup: bool = _flag(True, "run assets.extra/tf_serving_warmup_requests before a version serves")
    num_request_iterations_for_warmup: int = _flag(0, "times that each of these requests is run; 0 is once", "N")
    monitoring_config_file: Optional[str] = _flag(None, "MonitoringConfig: Prometheus metrics on the REST port", "FILE", str)
    request_log_dir: Optional[str] = _flag(
        None, "log answered requests as TFRecord files of PredictionLog, in a folder a model of this one", "DIR", str
    )
    request_log_sampling_rate: float = _flag(1.0, "part of the requests that is logged", "PART")
    request_log_file_bytes: int = _flag(64 << 20, "of a file of the request log, at most; it has 1000 records at most", "BYTES")
    request_log_file_seconds: float = _flag(600.0, "a file of the request log is finished at this age", "S")
    request_log_max_bytes: int = _flag(1 << 30, "of the request log's files together, at most; the oldest leave", "BYTES")
    enable_grpc_healthcheck_service: bool = _flag(True, "answer grpc.health.v1")
    file_system_poll_wait_seconds: float = _flag(1.0, "seconds between two looks for new versions; 0 looks once", "S")
    num_load_threads: int = _flag(0, "models loaded at a time; 0 loads one after the other", "N")
    max_num_load_retries: int = _flag(5, "further attempts at a version that does not load", "N")
    load_retry_interval_micros: int = _flag(60_000_000, "microseconds between two attempts", "US")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "a label may name a version that is not loaded yet, which at the start is every version"
    )
    max_repeated_values: int = _flag(
        MAX_REPEATED_VALUES, "values of an input that a request may leave out, because they repeat the last one sent", "N"
    )
    max_answer_bytes: int = _flag(MAX_ANSWER_BYTES, "a request whose outputs would be larger is refused before it runs", "BYTES")
    enable_serialization_as_tensor_content: bool = _flag(False, "outputs as raw bytes, not in the typed field")

    def __post_init__(self) -> None:
        for name in ("port", "rest_api_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 65536:
                raise UsageError(f"--{name}: wanted a port from 0 to 65535. Received {value}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name}: wanted at least {least}. Received {value}")
        if self.rest_api_port and self.rest_api_port == self.port:
            raise UsageError(f"--rest_api_port: wanted another port than gRPC's --port. Received {self.port} for both")
        for name in ("batching_parameters_file", "enable_per_model_batching_parameters"):
            if getattr(self, name) and not self.enable_batching:
                raise UsageError(f"--{name} needs --enable_batching")
        if self.ssl_config_file and self.use_alts_credentials:
            raise UsageError("--ssl_config_file and --use_alts_credentials exclude each other")
        inter, intra = self.tensorflow_inter_op_parallelism, self.tensorflow_intra_op_parallelism
        if self.tensorflow_session_parallelism and inter and intra:
            raise UsageError(
                "Either configure --tensorflow_session_parallelism or (--tensorflow_intra_op_parallelism, "
                "--tensorflow_inter_op_parallelism) separately. You cannot configure all."
            )
        if self.monitoring_config_file and self.rest_api_port is None:
            raise UsageError("--monitoring_config_file needs --rest_api_port: metrics are answered there")
        if not 0 <= self.request_log_sampling_rate <= 1:
            raise UsageError(f"--request_log_sampling_rate: wanted 0 to 1. Received {self.request_log_sampling_rate}")
        if self.request_log_max_bytes < self.request_log_file_bytes:
            raise UsageError(
                f"--request_log_max_bytes: wanted at least --request_log_file_bytes, {self.request_log_file_bytes}. "
                f"Received {self.request_log_max_bytes}"
            )
        self.batching: Optional[BatchingParameters] = None
        if self.enable_batching:
            file = self.batching_parameters_file
            self.batching = read_batching_parameters(file) if file else BatchingParameters()
        self.metrics_path: Optional[str] = None
        if self.monitoring_config_file:
            prometheus = read_monitoring_config(self.monitoring_config_file).prometheus_config
            self.metrics_path = prometheus.path if prometheus.enable else None
        self.channel_arguments = _channel_arguments(self.grpc_channel_arguments)
        self.ssl = read_ssl_config(self.ssl_config_file) if self.ssl_config_file else None
        self.tags = [tag for tag in self.saved_model_tags.split(",") if tag] or ["serve"]

    def model_server_config(self) -> model_server_config_pb2.ModelServerConfig:
        """The models to serve: `model_config_file`'s, or the one of `model_name` and `model_base_path`.

        Raises:
          UsageError: no model named, both ways used, or a path that is not absolute.
        """
        if self.model_config_file:
            if self.model_base_path:
                raise UsageError("--model_config_file and --model_base_path exclude each other")
            return read_model_config(self.model_config_file)
        if not self.model_base_path:
            raise UsageError(
                "--model_base_path: wanted the folder that holds the version folders (or --model_config_file). Received nothing"
            )
        if not self.model_name:
            raise UsageError("--model_name: wanted a name. Received nothing")
        if not os.path.isabs(self.model_base_path):
            raise UsageError(
                f"--model_base_path: Expected model {self.model_name} to have an absolute path or URI; got "
                f"base_path()={self.model_base_path}; did you mean {os.path.abspath(self.model_base_path)}?"
            )
        config = model_server_config_pb2.ModelServerConfig()
        config.model_config_list.config.add(name=self.model_name, base_path=self.model_base_path, model_platform="tensorflow")
        return config

    def threads(self) -> int:
        """Requests worked on at a time, on each of gRPC and REST."""
        if self.grpc_max_threads is not None:
            return self.grpc_max_threads
        if self.batching is None:
            # TF Serving's 4 a core cost Python 20 to 60 % of its requests a second: they wait for one interpreter.
            return 2 * (os.cpu_count() or 1)
        # A request waiting for its batch occupies a thread, so a batch can't have more requests than there are threads.
        return min(max(2 * (self.batching.max_batch_size.value or MAX_BATCH_SIZE), 8), 64)

    def rest_threads(self) -> int:
        """REST requests worked on at a time."""
        return self.threads() if self.rest_api_num_threads is None else self.rest_api_num_threads

    def lite_pools(self) -> int:
        """Calls of a TFLite model run at a time."""
        return self.num_tflite_pools or os.cpu_count() or 1

    def parallelism(self) -> tuple[Optional[int], Optional[int]]:
        """`(inter, intra)`: operations of one run worked on at a time, threads of one operation; None is the session file's."""
        inter, intra = self.tensorflow_inter_op_parallelism, self.tensorflow_intra_op_parallelism
        if inter is None and not intra:
            if self.tensorflow_session_parallelism:
                return self.tensorflow_session_parallelism, self.tensorflow_session_parallelism
            if self.tensorflow_session_config_file:
                return None, None
        return INTER_OP_THREADS if inter is None else inter, intra

    def batch_threads(self) -> int:
        """Batches run at a time, those of all models together; with batching only."""
        return (self.batching.num_batch_threads.value if self.batching is not None else 0) or os.cpu_count() or 1


def _channel_arguments(text: str) -> dict[str, Union[int, str]]:
    arguments: dict[str, Union[int, str]] = {}
    for argument in filter(None, text.split(",")):
        name, equals, value = argument.partition("=")
        if not equals:
            raise UsageError(f"--grpc_channel_arguments: wanted name=value. Received {argument!r}")
        arguments[name.strip()] = int(value) if value.strip().lstrip("-").isdigit() else value.strip()
    return arguments
