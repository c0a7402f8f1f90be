"""Models and their versions: loaded, swapped without a failed request, unloaded when their last request is done."""

import contextlib
import dataclasses
import gc
import logging
import os
import threading
import time
from typing import Callable, Optional

import grpc
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.config import model_server_config_pb2

from dlrm_tf.errors import ServingError
from dlrm_tf.serve.status import RequestError, invalid_argument
from dlrm_tf.serve.versions import aspired_versions, versions_on_disk

State = get_model_status_pb2.ModelVersionStatus.State
ModelConfig = model_server_config_pb2.ModelConfig
# Versions that ended stay listed in the model's status; so many of them, the newest.
MAX_ENDED = 100

log = logging.getLogger("dlrm_tf.serve")


@dataclasses.dataclass
class Version:
    """One version of one model. `servable` is set from AVAILABLE on, until the last request has left."""

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
    """A model's configuration and its versions; guarded by the manager's lock."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.versions: dict[int, Version] = {}

    def available(self) -> list[int]:
        """Numbers of the versions that take requests."""
        return [number for number, version in self.versions.items() if version.state == State.AVAILABLE]


class ModelManager:
    """Keeps the versions on the disk and the versions in memory the same, as each model's policy says.

    A new version is loaded before the old one is let go; one that does not load leaves the old one serving.

    Args:
      load: function `(model name, version, path) -> servable`, raising ServingError; the servable has `close()`.
      poll_seconds: between two looks at the disk.
      max_load_retries: further attempts at a version that does not load.
      retry_seconds: between those.
    """

    def __init__(self, load: Callable, poll_seconds: float = 1.0, max_load_retries: int = 5, retry_seconds: float = 60.0):
        self._load = load
        self._poll_seconds, self._max_load_retries, self._retry_seconds = poll_seconds, max_load_retries, retry_seconds
        self._models: dict[str, Model] = {}
        self._lock = threading.Condition()
        # One change of the set of loaded versions at a time; never held while a request is answered.
        self._changes = threading.RLock()
        self._stop = threading.Event()
        self._poller: Optional[threading.Thread] = None

    def start(self, configs, timeout: Optional[float] = None) -> bool:
        """Loads what `configs` names; returns when every model has a version that serves, then keeps polling.

        A base path without a version yet is waited for.

        Args:
          configs: `ModelConfig`s, already checked.
          timeout: seconds to wait for a first version; None waits for ever.

        Returns:
          False when `stop` was called meanwhile.

        Raises:
          ServingError: a version does not load, or none came in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changes:
            for config in configs:
                self._models[config.name] = Model(config)
        said = set()
        while True:
            self.poll()
            missing = []
            for model in list(self._models.values()):
                if model.available():
                    continue
                failed = [v for v in model.versions.values() if v.error_code]
                if failed:
                    raise ServingError(f"model {model.config.name}: {failed[-1].error_message}")
                missing.append(model.config)
            if not missing:
                break
            for config in missing:
                line = (
                    f"model {config.name}: no version in {config.base_path} "
                    f"(wanted {os.path.join(config.base_path, '1')}/saved_model.pb)"
                )
                if deadline is not None and time.monotonic() >= deadline:
                    raise ServingError(line)
                if config.name not in said:
                    log.warning("%s; waiting for one", line)
                    said.add(config.name)
            if self._stop.wait(min(self._poll_seconds or 1.0, 1.0)):
                return False
        if self._poll_seconds > 0:
            self._poller = threading.Thread(target=self._poll_forever, name="version poll", daemon=True)
            self._poller.start()
        return not self._stop.is_set()

    def stop(self) -> None:
        """Stops polling and unloads everything, waiting for requests under way."""
        self._stop.set()
        if self._poller is not None:
            self._poller.join()
        with self._changes:
            for model in self._models.values():
                for number in list(model.versions):
                    self._unload(model, number, wait=True)

    @contextlib.contextmanager
    def servable(self, spec):
        """The servable a `ModelSpec` asks for, held in memory while the context lasts; yields `(servable, version)`.

        Raises:
          RequestError: NOT_FOUND or INVALID_ARGUMENT, in TensorFlow Serving's words.
        """
        with self._lock:
            version = self._resolve(spec)
            version.requests += 1
        try:
            yield version.servable, version.number
        finally:
            with self._lock:
                version.requests -= 1
                if not version.requests and version.state != State.AVAILABLE:
                    self._lock.notify_all()

    def _resolve(self, spec) -> Version:
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        model = self._models.get(spec.name)
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            number = model.config.version_labels.get(spec.version_label) if model else None
            if number is None:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
            wanted = f"Specific({spec.name}, {number})"
        elif choice == "version":
            number = spec.version.value
            wanted = f"Specific({spec.name}, {number})"
        else:
            number = max(model.available(), default=None) if model else None
            wanted = f"Latest({spec.name})"
        version = model.versions.get(number) if model else None
        if version is None or version.state != State.AVAILABLE:
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
        return version

    def status(self, spec) -> list[Version]:
        """Snapshot of a model's versions, newest first; one version when the spec names it.

        Raises:
          RequestError: NOT_FOUND.
        """
        if not spec.name:
            raise invalid_argument("Missing ModelSpec")
        with self._lock:
            model = self._models.get(spec.name)
            versions = {n: dataclasses.replace(v, servable=None) for n, v in model.versions.items()} if model else {}
            choice = spec.WhichOneof("version_choice")
            if choice == "version_label":
                number = model.config.version_labels.get(spec.version_label) if model else None
                if number is None:
                    raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
            else:
                number = spec.version.value if choice == "version" else None
        if number is not None:
            versions = {n: v for n, v in versions.items() if n == number}
        if not versions:
            which = f"version {number}" if number is not None else "any versions"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find {which} of model {spec.name}")
        return [versions[n] for n in sorted(versions, reverse=True)]

    def model_names(self) -> list[str]:
        """Names of the configured models."""
        with self._lock:
            return list(self._models)

    def _poll_forever(self):
        while not self._stop.wait(self._poll_seconds):
            try:
                self.poll()
            except Exception:  # the disk may be away for a while; what is loaded serves on
                log.exception("looking for new versions failed")

    def poll(self) -> None:
        """One look at the disk: loads and unloads what the policies now ask for."""
        with self._changes:
            for model in list(self._models.values()):
                if not self._stop.is_set():
                    self._reconcile(model)

    def _reconcile(self, model: Model) -> None:
        on_disk = versions_on_disk(model.config.base_path)
        aspired = aspired_versions(model.config.model_version_policy, on_disk)
        for number in sorted(aspired):
            version = model.versions.get(number)
            if version is None or (version.state == State.END and not version.error_code):
                version = Version(number, on_disk[number])
                with self._lock:
                    model.versions[number] = version
            if version.state == State.START and time.monotonic() >= version.retry_at:
                self._load_version(model, version)
        serving = set(model.available())
        if serving & aspired or not aspired:
            for number in serving - aspired:
                self._unload(model, number)
        with self._lock:
            for number in set(model.versions) - set(on_disk):
                # A broken version whose folder is gone is forgotten, so that a repaired one is tried anew.
                if model.versions[number].error_code:
                    del model.versions[number]
            ended = sorted(n for n, v in model.versions.items() if v.state == State.END)
            for number in ended[:-MAX_ENDED]:
                del model.versions[number]

    def _load_version(self, model: Model, version: Version) -> None:
        name = model.config.name
        with self._lock:
            version.state = State.LOADING
        start = time.monotonic()
        try:
            servable = self._load(name, version.number, version.path)
        except ServingError as e:
            with self._lock:
                version.failures += 1
                again = version.failures <= self._max_load_retries
                version.state = State.START if again else State.END
                version.retry_at = time.monotonic() + self._retry_seconds
                version.error_code, version.error_message = grpc.StatusCode.INVALID_ARGUMENT.value[0], str(e)
            log.error("model %s version %d not loaded: %s", name, version.number, e)
            return
        with self._lock:
            version.servable, version.error_code, version.error_message = servable, 0, ""
            version.state = State.AVAILABLE
        log.info("model %s version %d loaded in %.2f s", name, version.number, time.monotonic() - start)

    def _unload(self, model: Model, number: int, wait: bool = False) -> None:
        version = model.versions[number]
        with self._lock:
            if version.state != State.AVAILABLE:
                return
            version.state = State.UNLOADING
        thread = threading.Thread(target=self._drain, args=(model, version), name="version unload", daemon=True)
        thread.start()
        if wait:
            thread.join()

    def _drain(self, model: Model, version: Version) -> None:
        with self._lock:
            self._lock.wait_for(lambda: not version.requests)
            servable, version.servable = version.servable, None
        servable.close()
        del servable
        gc.collect()  # a TensorFlow graph is full of reference cycles
        with self._lock:
            version.state = State.END
            self._lock.notify_all()
        log.info("model %s version %d unloaded", model.config.name, version.number)
