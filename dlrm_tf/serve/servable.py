"""One loaded SavedModel version: its signatures, and calls into its session."""

import os
import threading

import numpy as np

from dlrm_tf.errors import ServingError
from dlrm_tf.serving_api.status import invalid_argument, runtime_error
from dlrm_tf.serving_api.tensors import array_type_name, numpy_dtype, type_name

SERVE_TAG = "serve"
# A client chooses which outputs it wants; so many different choices are kept compiled.
MAX_CALLS = 64


class Servable:
    """A SavedModel in a session of its own, called the way TensorFlow Serving calls it.

    The session's callables check neither rank nor shape against the signature (the graph does), and cost about a fifth of a
    TF2 signature call at batch 1.

    Args:
      path: folder with `saved_model.pb`.
      inter_op_threads: operations of one run worked on at a time; 1 runs them one after the other on the caller's thread, which
        is the fastest for small graphs (a DLRM: a fifth less at batch 1); 0 leaves it to TensorFlow.
      intra_op_threads: threads of one operation; 0 leaves it to TensorFlow.
      tags: of the meta graph.

    Raises:
      ServingError: no SavedModel, damaged, or without a meta graph with these tags.
    """

    def __init__(self, path: str, inter_op_threads: int = 1, intra_op_threads: int = 0, tags=(SERVE_TAG,)):
        self.path = path
        if not any(os.path.isfile(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise ServingError(f"{path}: wanted a SavedModel (saved_model.pb), there is none")
        # (feeds, fetches) -> (callable of the session, the feeds' DataTypes)
        self._calls = {}
        self._lock = threading.Lock()
        try:
            self._load(tags, inter_op_threads, intra_op_threads)
        except Exception as e:  # whatever a damaged file makes TensorFlow's loader raise
            if inter_op_threads != 1 or "Single-threaded executor" not in str(e):
                raise ServingError(f"{path}: the SavedModel does not load ({_first_line(e)})") from e
            # TF1 control flow and reference variables: the single-threaded executor has no such operations.
            try:
                self._load(tags, 0, intra_op_threads)
            except Exception as e:
                raise ServingError(f"{path}: the SavedModel does not load ({_first_line(e)})") from e

    def _load(self, tags, inter_op_threads: int, intra_op_threads: int) -> None:
        import tensorflow as tf

        config = tf.compat.v1.ConfigProto(
            inter_op_parallelism_threads=inter_op_threads, intra_op_parallelism_threads=intra_op_threads
        )
        if inter_op_threads == 1:
            config.experimental.executor_type = "SINGLE_THREADED_EXECUTOR"
        self._op_error = tf.errors.OpError
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with self._session.graph.as_default(), _quiet():
                meta_graph = tf.compat.v1.saved_model.load(self._session, list(tags), self.path)
            self.signatures = dict(meta_graph.signature_def)
            for signature in self.signatures.values():
                feeds, fetches = _call_of(signature)
                # The one that initializes the model has no method and no tensors; sparse ones have no name and can't be called.
                if signature.method_name and all(feeds + fetches):
                    self._compile(feeds, fetches)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: tuple[str, ...], arrays, fetches: tuple[str, ...]) -> list[np.ndarray]:
        """Feeds `arrays` to the tensors named `feeds` and returns the tensors named `fetches`.

        Raises:
          RequestError: the graph refused it; code and text are the runtime's.
        """
        compiled = self._calls.get((feeds, fetches))
        try:
            if compiled is None:
                compiled = self._compile(feeds, fetches)
            call, dtypes = compiled
            for i, (array, dtype) in enumerate(zip(arrays, dtypes)):
                # TensorFlow's single-threaded executor does not check, and ends the process on a wrong type.
                if array.dtype != numpy_dtype(dtype):
                    sent, wanted = array_type_name(array), type_name(dtype)
                    raise invalid_argument(f"Expects arg[{i}] to be {wanted} but {sent} is provided")
            return [_as_array(value) for value in call(*arrays)]
        except self._op_error as e:
            raise runtime_error(e) from None

    def _compile(self, feeds: tuple[str, ...], fetches: tuple[str, ...]):
        from tensorflow.core.protobuf import config_pb2

        options = config_pb2.CallableOptions()
        options.feed.extend(feeds)
        options.fetch.extend(fetches)
        with self._lock:
            if (feeds, fetches) not in self._calls:
                if len(self._calls) >= MAX_CALLS:
                    self._calls.pop(next(iter(self._calls)))
                dtypes = [self._session.graph.get_tensor_by_name(name).dtype.as_datatype_enum for name in feeds]
                self._calls[feeds, fetches] = self._session._make_callable_from_options(options), dtypes
            return self._calls[feeds, fetches]

    def close(self) -> None:
        """Frees the model's memory; no call may be under way."""
        with self._lock:
            self._calls.clear()
            self._session.close()
            self._session = None


def _call_of(signature):
    """The call Predict makes when it wants all outputs: `(feeds, fetches)`."""
    return tuple(tuple(tensors[alias].name for alias in sorted(tensors)) for tensors in (signature.inputs, signature.outputs))


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
