"""One served model: its configuration, its versions and their states, and what a request's `ModelSpec` means for it."""

import dataclasses

import grpc
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.config import model_server_config_pb2

from dlrm_tf.serving_api.status import RequestError, invalid_argument

State = get_model_status_pb2.ModelVersionStatus.State
ModelConfig = model_server_config_pb2.ModelConfig


@dataclasses.dataclass
class Version:
    """One version. `servable` is set from AVAILABLE on, until the last request has left."""

    number: int
    path: str
    state: int = State.START
    error_code: int = 0
    error_message: str = ""
    servable: object = None
    requests: int = 0
    failures: int = 0
    retry_at: float = 0.0


class Model:
    """A model's configuration and versions; its owner's lock guards it.

    Attributes:
      config: `ModelConfig`.
      labels: version label -> version number, as last accepted.
      versions: number -> `Version`.
      retired: no longer in the configuration; only its ended versions are still listed.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        self.labels = dict(config.version_labels)
        self.versions: dict[int, Version] = {}
        self.retired = False

    def available(self) -> set[int]:
        """Numbers of the versions that take requests."""
        return {number for number, version in self.versions.items() if version.state == State.AVAILABLE}


def resolve(model, spec) -> Version:
    """The available version that `spec` asks for.

    Args:
      model: `Model`, or None when the name is unknown.
      spec: `ModelSpec` with a name.

    Raises:
      RequestError: NOT_FOUND or INVALID_ARGUMENT, in TensorFlow Serving's words.
    """
    if not spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    number = wanted_version(model, spec)
    wanted = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
    if number is None and model is not None:
        number = max(model.available(), default=None)
    version = model.versions.get(number) if model is not None else None
    if version is None or version.state != State.AVAILABLE:
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
    return version


def wanted_version(model, spec):
    """The version number `spec` names, directly or by label; None when it names none.

    Raises:
      RequestError: an unknown label.
    """
    choice = spec.WhichOneof("version_choice")
    if choice == "version":
        return spec.version.value
    if choice == "version_label":
        number = model.labels.get(spec.version_label) if model is not None else None
        if number is None:
            raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        return number
    return None


def check_configs(configs, models: dict, allow_unavailable_labels: bool) -> None:
    """Refuses a new set of models as a whole, as TensorFlow Serving's server_core.cc does.

    Args:
      configs: `ModelConfig`s wanted.
      models: name -> `Model`, those served now.
      allow_unavailable_labels: a new label may name a version that is not available.

    Raises:
      RequestError: INVALID_ARGUMENT or FAILED_PRECONDITION.
    """
    names = set()
    for config in configs:
        if config.name in names:
            raise invalid_argument(f"Illegal to list model {config.name} multiple times in config list")
        names.add(config.name)
        if not config.base_path.startswith("/"):
            raise invalid_argument(
                f"Expected model {config.name} to have an absolute path or URI; got base_path()={config.base_path}"
            )
    for config in configs:
        platform = _platform(config)
        model = models.get(config.name)
        if model is not None and not model.retired and _platform(model.config) != platform:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {config.name} platform was {_platform(model.config)} "
                f"and new platform requested is {platform}"
            )
        if platform != "tensorflow":
            raise invalid_argument(f"Model {config.name} requests unsupported platform {platform}")
    for config in configs:
        model = models.get(config.name)
        available = model.available() if model is not None else set()
        for label, number in config.version_labels.items():
            moved = model is not None and model.labels.get(label, number) != number
            if number not in available and (moved or not allow_unavailable_labels):
                raise RequestError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {number} of model {config.name}, which is not currently available "
                    "for inference",
                )


def _platform(config: ModelConfig) -> str:
    if config.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED:
        if config.model_platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."
            )
        if config.model_type != model_server_config_pb2.TENSORFLOW:
            raise invalid_argument(f"ModelServerConfig::model_type choice {config.model_type} not supported.")
        return "tensorflow"
    if not config.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    return config.model_platform
