"""One loaded SavedModel version: its signatures, and calls into its session."""

import os
import threading

import numpy as np

from dlrm_tf.errors import ServingError
from dlrm_tf.serve.status import graph_errors

SERVE_TAG = "serve"
# A client chooses which outputs it wants; so many different choices are kept compiled.
MAX_CALLABLES = 64


class Servable:
    """A SavedModel in a session of its own, called the way TensorFlow Serving calls it.

    The session's callables check neither rank nor shape against the signature (the graph does), and cost about a fifth of a
    TF2 signature call at batch 1.

    Args:
      path: folder with `saved_model.pb`.
      tags: of the meta graph.

    Raises:
      ServingError: no SavedModel, damaged, or without a meta graph with these tags.
    """

    def __init__(self, path: str, tags=(SERVE_TAG,)):
        import tensorflow as tf

        self.path = path
        if not any(os.path.isfile(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise ServingError(f"{path}: wanted a SavedModel (saved_model.pb), there is none")
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph)
        try:
            with self._graph.as_default(), _quiet():
                self.meta_graph = tf.compat.v1.saved_model.load(self._session, list(tags), path)
        except Exception as e:  # whatever a damaged file makes TensorFlow's loader raise
            self._session.close()
            raise ServingError(f"{path}: the SavedModel does not load ({_first_line(e)})") from e
        # The graph itself is not needed again, and large ones hold hundreds of MB.
        self.meta_graph.ClearField("graph_def")
        self.meta_graph.ClearField("object_graph_def")
        self.signatures = dict(self.meta_graph.signature_def)
        self._callables = {}
        self._lock = threading.Lock()

    def run(self, feeds: tuple[str, ...], arrays, fetches: tuple[str, ...]) -> list[np.ndarray]:
        """Feeds `arrays` to the tensors named `feeds` and returns the tensors named `fetches`.

        Raises:
          RequestError: the graph refused it; code and text are the runtime's.
        """
        key = (feeds, fetches)
        call = self._callables.get(key)
        with graph_errors():
            if call is None:
                call = self._compile(key)
            return [_as_array(value) for value in call(*arrays)]

    def _compile(self, key):
        from tensorflow.core.protobuf import config_pb2

        options = config_pb2.CallableOptions()
        options.feed.extend(key[0])
        options.fetch.extend(key[1])
        with self._lock:
            if key not in self._callables:
                if len(self._callables) >= MAX_CALLABLES:
                    self._callables.pop(next(iter(self._callables)))
                self._callables[key] = self._session._make_callable_from_options(options)
            return self._callables[key]

    def close(self) -> None:
        """Frees the model's memory; no call may be under way."""
        with self._lock:
            self._callables.clear()
            self._session.close()
            self._graph = None


def _as_array(value) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    return np.array(value, object if isinstance(value, bytes) else None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class _quiet:
    """Hides TensorFlow's advice that TF1 session loading is old: it is what TF Serving runs on."""

    def __enter__(self):
        import logging

        self._logger = logging.getLogger("tensorflow")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *exc):
        self._logger.setLevel(self._level)
