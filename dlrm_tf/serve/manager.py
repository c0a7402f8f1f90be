"""Models and their versions: loaded, replaced without a failed request, unloaded once their last request is answered."""

import contextlib
import dataclasses
import gc
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Optional

import grpc

from dlrm_tf.errors import ServingError
from dlrm_tf.serve.any_servable import AnyServable, NotThereError
from dlrm_tf.serve.model import Model, ModelConfig, ModelSpec, State, Version, check_configs
from dlrm_tf.serving_api.errors import RequestError
from dlrm_tf.serving_api.status import status_code
from dlrm_tf.versions import versions_on_disk

# Versions with state END are listed in the model's status; this many of them, the newest.
MAX_ENDED = 100

log = logging.getLogger("dlrm_tf.serve")


class ModelManager:
    """Loads the versions on the disk that each model's policy wants, and unloads the others.

    A new version is loaded before the old one is unloaded. If it does not load, the old one goes on serving.

    Args:
      load: function `(model name, version, path) -> servable`, raising ServingError.
      poll_seconds: seconds between two looks at the disk; 0 looks only when `poll` is called.
      max_load_retries: further attempts at a version that does not load.
      retry_seconds: seconds between two attempts.
      allow_unavailable_labels: a new label may name a version that is not available yet.
      load_threads: models loaded at a time; 0 and 1 load one after the other.
    """

    def __init__(
        self,
        load: Callable[[str, int, str], AnyServable],
        *,
        poll_seconds: float = 1.0,
        max_load_retries: int = 5,
        retry_seconds: float = 60.0,
        allow_unavailable_labels: bool = False,
        load_threads: int = 0,
    ):
        self._load, self._allow_unavailable_labels = load, allow_unavailable_labels
        self._poll_seconds, self._max_load_retries, self._retry_seconds = poll_seconds, max_load_retries, retry_seconds
        self._load_threads = max(load_threads, 1)
        self._models: dict[str, Model] = {}
        # Guards models and versions; never held while loading.
        self._lock = threading.Condition()
        # Held while versions are loaded and unloaded, one change at a time; requests don't take it.
        self._changes = threading.RLock()
        self._stop = threading.Event()
        self._poller: Optional[threading.Thread] = None

    def start(self, configs: Collection[ModelConfig], *, timeout: Optional[float] = None) -> bool:
        """Loads models; returns when each has an available version. Polls the disk from then on.

        Waits for a model whose base path has no version yet.

        Args:
          configs: the models.
          timeout: seconds to wait for a first version; None waits without limit.

        Returns:
          False when `stop` was called meanwhile.

        Raises:
          RequestError: configurations that don't fit each other.
          ServingError: a version does not load, or none came in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        check_configs(configs, {}, allow_unavailable_labels=self._allow_unavailable_labels)
        self._models = {config.name: Model(config) for config in configs}
        logged = set()
        while not self._stop.is_set():
            self.poll()
            waiting = [model for model in self._models.values() if not model.available()]
            if not waiting:
                break
            for model in waiting:
                line = self._why_unavailable(model)
                if any(version.error_code for version in model.versions.values()):
                    raise ServingError(self._unavailable([model]))
                if deadline is not None and time.monotonic() >= deadline:
                    raise ServingError(line)
                if model.config.name not in logged:
                    log.warning("%s; waiting for one", line)
                    logged.add(model.config.name)
            self._stop.wait(min(self._poll_seconds or 1.0, 1.0))
        if self._poll_seconds > 0 and not self._stop.is_set():
            self._poller = threading.Thread(target=self._poll_forever, name="version poll", daemon=True)
            self._poller.start()
        return not self._stop.is_set()

    @staticmethod
    def _why_unavailable(model: Model) -> str:
        for version in model.versions.values():
            if version.error_code:
                which = f"{{name: {model.config.name} version: {version.number}}}"
                return f"{which} due to error: {status_code(version.error_code).name}: {version.error_message}"
        path = model.config.base_path
        return f"model {model.config.name}: no version in {path} (wanted {os.path.join(path, '1')}/saved_model.pb)"

    def _unavailable(self, models: list[Model]) -> str:
        """The C++ server's words for models that did not load."""
        reasons = "".join(f"{{{self._why_unavailable(model)}}}, " for model in models)
        return f"{len(models)} servable(s) did not become available: {{{reasons}}}"

    def cancel(self) -> None:
        """Nothing is loaded from now on; what is loading is let go when it has loaded."""
        self._stop.set()

    def stop(self, timeout: Optional[float] = None) -> bool:
        """Stops polling and unloads everything, waiting for requests under way.

        Args:
          timeout: seconds after which it stops waiting; None waits without limit.

        Returns:
          Whether everything is unloaded; what is not is unloaded when its last request, or its load, ends.
        """
        self._stop.set()
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._changes.acquire(timeout=-1 if timeout is None else timeout):
            return False
        try:
            drains = [self._unload(version) for model in self._models.values() for version in list(model.versions.values())]
        finally:
            self._changes.release()
        threads = [thread for thread in (*drains, self._poller) if thread is not None]
        for thread in threads:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in threads)

    @contextlib.contextmanager
    def servable(self, spec: ModelSpec) -> Iterator[tuple[AnyServable, int]]:
        """A context that gives the servable that `spec` asks for and its version number; it stays loaded until the context ends.

        Raises:
          RequestError: NOT_FOUND or INVALID_ARGUMENT, in TensorFlow Serving's words.
        """
        with self._lock:
            version = self._model(spec).resolve(spec)
            version.requests += 1
        try:
            yield version.servable, version.number
        finally:
            with self._lock:
                version.requests -= 1
                if not version.requests and version.state != State.AVAILABLE:
                    self._lock.notify_all()

    def _model(self, spec: ModelSpec) -> Model:
        return self._models.get(spec.name) or Model(ModelConfig())  # an unknown model is one without versions and labels

    def knows(self, name: str) -> bool:
        """Whether a model of that name was ever configured."""
        return name in self._models

    def status(self, spec: ModelSpec) -> list[Version]:
        """Copies of a model's versions, newest first, without their servables; only the one `spec` names when it names one.

        A label is not looked at, as in TensorFlow Serving: a probe of any label sees all versions.

        Raises:
          RequestError: NOT_FOUND.
        """
        number = spec.version.value if spec.HasField("version") else None
        with self._lock:
            model = self._model(spec)
            found = [version for n, version in model.versions.items() if number in (None, n)]
            versions = [dataclasses.replace(version, servable=None) for version in found]
        if not versions:
            which = f"version {number}" if number is not None else "any versions"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find {which} of model {spec.name}")
        return sorted(versions, key=lambda version: -version.number)

    def reload(self, configs: Collection[ModelConfig]) -> None:
        """Adds and removes models, moves labels, changes policies; returns when that is done.

        Args:
          configs: the models to serve from now on.

        Raises:
          RequestError: refused, or a new model did not become available; the models are then as they were.
        """
        with self._changes:
            check_configs(configs, self._models, allow_unavailable_labels=self._allow_unavailable_labels)
            wanted = {config.name: config for config in configs}
            served = {name for name, model in self._models.items() if not model.retired}
            added = {name: Model(config) for name, config in wanted.items() if name not in served}
            self._reconcile_all(list(added.values()))
            missing = [model for model in added.values() if not model.available()]
            if missing:
                for model in added.values():
                    self._retire(model)
                raise RequestError(grpc.StatusCode.UNKNOWN, self._unavailable(missing))
            with self._lock:
                self._models.update(added)
                for name in served & set(wanted):
                    self._models[name].config = wanted[name]
                    self._models[name].labels = dict(wanted[name].version_labels)
            for name in served:
                if name in wanted:
                    self._reconcile(self._models[name])
                else:
                    self._retire(self._models[name])

    def _retire(self, model: Model) -> None:
        model.retired = True
        for version in list(model.versions.values()):
            self._unload(version)

    def _poll_forever(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.poll()
            except Exception:  # the disk may be unreachable for a while; loaded versions go on serving
                log.exception("looking for new versions failed")

    def poll(self) -> None:
        """Looks at the disk once; loads and unloads what the policies now ask for."""
        with self._changes:
            self._reconcile_all([model for model in self._models.values() if not model.retired])

    def _reconcile_all(self, models: list[Model]) -> None:
        def one(model: Model) -> None:
            if not self._stop.is_set():
                self._reconcile(model)

        if self._load_threads == 1 or len(models) < 2:
            for model in models:
                one(model)
            return
        with ThreadPoolExecutor(self._load_threads, thread_name_prefix="load") as pool:
            list(pool.map(one, models))

    def _reconcile(self, model: Model) -> None:
        if not os.path.isdir(model.config.base_path):
            return  # as TF Serving: an empty folder unloads, a missing one (an unmounted disk) does not
        on_disk = versions_on_disk(model.config.base_path)
        aspired = model.aspired(on_disk)
        for number in sorted(aspired):
            version, path = model.versions.get(number), on_disk[number]
            if version is None or (version.state == State.END and not version.error_code):
                self._load_version(model, Version(number, path))
            elif time.monotonic() >= version.retry_at:
                if version.path != path and version.state != State.UNLOADING:
                    self._load_version(model, Version(number, path))
                elif version.state == State.START:
                    self._load_version(model, version)
        serving = model.available()
        if serving & aspired or not aspired:
            for number in serving - aspired:
                self._unload(model.versions[number])
        with self._lock:
            for number in set(model.versions) - set(on_disk):
                # A broken version whose folder was deleted is forgotten, so that a repaired one with its number is loaded.
                if model.versions[number].error_code:
                    del model.versions[number]
            ended = sorted(n for n, v in model.versions.items() if v.state == State.END)
            for number in ended[:-MAX_ENDED]:
                del model.versions[number]

    def _load_version(self, model: Model, version: Version) -> None:
        """Loads `version`; where a version of the same number is served from another path, it is replaced without a gap."""
        name, replaced = model.config.name, model.versions.get(version.number)
        if replaced is version or (replaced is not None and replaced.state != State.AVAILABLE):
            replaced = None
        with self._lock:
            version.state = State.LOADING
            if replaced is None:
                model.versions[version.number] = version
        start = time.monotonic()
        try:
            servable = self._load(name, version.number, version.path)
        except ServingError as e:
            with self._lock:
                version.failures += 1
                again = version.failures <= self._max_load_retries
                version.state = State.START if again else State.END
                version.retry_at = time.monotonic() + self._retry_seconds
                code = e.code if isinstance(e, NotThereError) else grpc.StatusCode.INVALID_ARGUMENT
                version.error_code, version.error_message = code.value[0], str(e)
                if replaced is not None:
                    replaced.retry_at = version.retry_at
            log.error("model %s version %d not loaded: %s", name, version.number, e)
            return
        with self._lock:
            version.servable, version.error_code, version.error_message = servable, 0, ""
            version.state = State.AVAILABLE
            model.versions[version.number] = version
        if replaced is not None:
            self._unload(replaced)
        if self._stop.is_set():  # meanwhile; `stop` may have given up waiting for it
            self._unload(version)
        log.info("model %s version %d loaded in %.2f s", name, version.number, time.monotonic() - start)

    def _unload(self, version: Version) -> Optional[threading.Thread]:
        """Takes a version from new requests; gives the thread that frees it after its last one, None where it is not served."""
        with self._lock:
            if version.state != State.AVAILABLE:
                return None
            version.state = State.UNLOADING
        thread = threading.Thread(target=self._drain, args=(version,), name="version unload", daemon=True)
        thread.start()
        return thread

    def _drain(self, version: Version) -> None:
        with self._lock:
            self._lock.wait_for(lambda: not version.requests)
            servable, version.servable = version.servable, None
        servable.close()
        del servable
        gc.collect()  # a TensorFlow graph has reference cycles, which only the collector frees
        with self._lock:
            version.state = State.END
            self._lock.notify_all()
        log.info("version %d in %s unloaded", version.number, version.path)
