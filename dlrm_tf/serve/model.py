"""One served model: its configuration, its versions and their states, and which of them a policy or a request asks for."""

import dataclasses
from collections.abc import Collection
from typing import Any, Optional

import grpc
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.config import model_server_config_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from dlrm_tf.serving_api.errors import RequestError, invalid_argument

State = get_model_status_pb2.ModelVersionStatus.State


@dataclasses.dataclass
class Version:
    """One version of a model; a manager's lock guards it.

    Attributes:
      number: of the version.
      path: its folder.
      state: a `ModelVersionStatus.State`.
      error_code: number of the gRPC status of the last failed load; 0 when none failed.
      error_message: why it failed.
      servable: set while the state is AVAILABLE and, after that, until the last request has been answered.
      requests: requests it is answering now.
      failures: loads that failed.
      retry_at: `time.monotonic()` before which it is not loaded again.
    """

    number: int
    path: str
    state: int = State.START
    error_code: int = 0
    error_message: str = ""
    servable: Any = None
    requests: int = 0
    failures: int = 0
    retry_at: float = 0.0


class Model:
    """A model's configuration and versions; a manager's lock guards it.

    Attributes:
      config: what to serve, from where.
      labels: version label -> version number, as last accepted.
      versions: number -> `Version`.
      retired: no longer in the configuration; its versions are unloaded but still listed in its status.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        self.labels = dict(config.version_labels)
        self.versions: dict[int, Version] = {}
        self.retired = False

    def available(self) -> set[int]:
        """Numbers of the versions that answer requests."""
        return {number for number, version in self.versions.items() if version.state == State.AVAILABLE}

    def aspired(self, on_disk: Collection[int]) -> set[int]:
        """The versions of `on_disk` that the policy wants served: the latest one unless it says otherwise."""
        policy = self.config.model_version_policy
        choice = policy.WhichOneof("policy_choice")
        if choice == "all":
            return set(on_disk)
        if choice == "specific":
            return set(policy.specific.versions) & set(on_disk)
        return set(sorted(on_disk)[-(policy.latest.num_versions or 1) :])

    def resolve(self, spec: ModelSpec) -> Version:
        """The available version that a request's `spec` asks for.

        Raises:
          RequestError: NOT_FOUND or INVALID_ARGUMENT, in TensorFlow Serving's words.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        number = self.wanted_version(spec)
        wanted = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
        version = self.versions.get(max(self.available(), default=-1) if number is None else number)
        if version is None or version.state != State.AVAILABLE:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
        return version

    def wanted_version(self, spec: ModelSpec) -> Optional[int]:
        """The version number a request's `spec` names, directly or by label; None when it names none.

        Raises:
          RequestError: an unknown label.
        """
        choice = spec.WhichOneof("version_choice")
        if choice != "version_label":
            return spec.version.value if choice == "version" else None
        if spec.version_label not in self.labels:
            raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        return self.labels[spec.version_label]


def check_configs(configs: Collection[ModelConfig], models: dict[str, Model], *, allow_unavailable_labels: bool) -> None:
    """Refuses a new set of models as a whole, as TensorFlow Serving's server_core.cc does.

    Args:
      configs: the models wanted.
      models: those served now, by name.
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
