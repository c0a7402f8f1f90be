"""Reads TensorFlow Serving's text configuration files; errors name file and line."""

from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from dlrm_tf.errors import UsageError
from dlrm_tf.serving_api.config_protos import BatchingParameters, MonitoringConfig, SSLConfig

DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"
# A configuration file is small; anything larger is not one.
MAX_BYTES = 16 << 20


def read_text_proto(path: str, message: Any) -> Any:
    """Fills the protobuf `message` from the text file `path`, and gives it.

    Raises:
      UsageError: not such a file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES)
        return text_format.Parse(text, message)
    except UnicodeDecodeError:
        raise UsageError(f"{path}: wanted a text file ({message.DESCRIPTOR.name}), it is not UTF-8 text") from None
    except text_format.ParseError as e:
        # Scripts look for either of these two, of protobuf and of the C++ server.
        raise UsageError(
            f"Invalid protobuf file: '{path}'. Error parsing text-format {message.DESCRIPTOR.full_name}: {path}:{e}"
        ) from None


def read_model_config(path: str) -> model_server_config_pb2.ModelServerConfig:
    """The file `path` of `--model_config_file`: which models to serve, from where, which versions, under which labels.

    Raises:
      UsageError: not such a file, or it lists no model.
    """
    config = read_text_proto(path, model_server_config_pb2.ModelServerConfig())
    if not config.model_config_list.config:
        raise UsageError(f"{path}: wanted model_config_list with at least one config. Received none")
    return config


def read_batching_parameters(path: str) -> BatchingParameters:
    """The file `path` of `--batching_parameters_file`.

    Raises:
      UsageError: not such a file, or values that contradict each other.
    """
    parameters = read_text_proto(path, BatchingParameters())
    for name in ("max_batch_size", "num_batch_threads", "max_enqueued_batches", "max_execution_batch_size"):
        if parameters.HasField(name) and getattr(parameters, name).value < 1:
            raise UsageError(f"{path}: {name} must be at least 1. Received {getattr(parameters, name).value}")
    if parameters.batch_timeout_micros.value < 0:
        raise UsageError(f"{path}: batch_timeout_micros must not be negative. Received {parameters.batch_timeout_micros.value}")
    allowed = list(parameters.allowed_batch_sizes)
    if allowed:
        if allowed != sorted(set(allowed)) or allowed[0] < 1:
            raise UsageError(f"{path}: allowed_batch_sizes must be positive and increasing. Received {allowed}")
        split = parameters.enable_large_batch_splitting.value and parameters.HasField("max_execution_batch_size")
        name = "max_execution_batch_size" if split else "max_batch_size"
        largest = getattr(parameters, name).value
        if allowed[-1] != largest:
            raise UsageError(f"{path}: the last of allowed_batch_sizes must be {name}. Received {allowed[-1]} and {largest}")
    if parameters.max_execution_batch_size.value > parameters.max_batch_size.value > 0:
        raise UsageError(
            f"{path}: max_execution_batch_size must not be over max_batch_size. Received "
            f"{parameters.max_execution_batch_size.value} and {parameters.max_batch_size.value}"
        )
    return parameters


def read_monitoring_config(path: str) -> MonitoringConfig:
    """The file `path` of `--monitoring_config_file`; an enabled Prometheus gets TF Serving's URL path when the file names none.

    Raises:
      UsageError: not such a file.
    """
    config = read_text_proto(path, MonitoringConfig())
    prometheus = config.prometheus_config
    if prometheus.enable:
        prometheus.path = prometheus.path or DEFAULT_METRICS_PATH
        if not prometheus.path.startswith("/"):
            raise UsageError(f"{path}: prometheus_config.path must start with /. Received {prometheus.path!r}")
    return config


def read_ssl_config(path: str) -> SSLConfig:
    """The file `path` of `--ssl_config_file`: PEM texts, not paths, as in TF Serving.

    Raises:
      UsageError: not such a file, or key or certificate missing.
    """
    config = read_text_proto(path, SSLConfig())
    for name in ("server_key", "server_cert"):
        if "-----BEGIN" not in getattr(config, name):
            raise UsageError(f"{path}: {name} must be the PEM text itself (-----BEGIN …), with line ends as \\n")
    if config.client_verify and "-----BEGIN" not in config.custom_ca:
        raise UsageError(f"{path}: client_verify needs custom_ca, the PEM text of the authority that signs clients")
    return config
