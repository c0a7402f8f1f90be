"""One loaded SavedModel version: its signatures, and calls into its session."""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Callable

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from dlrm_tf.errors import ServingError, reason
from dlrm_tf.serve.answer_size import AnswerSize
from dlrm_tf.serve.version_files import check_version_files
from dlrm_tf.serving_api.errors import invalid_argument
from dlrm_tf.serving_api.limits import MAX_ANSWER_BYTES
from dlrm_tf.serving_api.status import runtime_error
from dlrm_tf.serving_api.tensors import array_type_name, numpy_dtype, type_name

# Compiled calls kept: a client may ask for any choice of outputs, and each choice is a call of its own.
MAX_CALLS = 64


class Servable:
    """A SavedModel in a session of its own, called the way TensorFlow Serving calls it.

    The session's callables don't compare rank and shape with the signature (the graph does), and take about a fifth of the time
    of a TF2 signature call at batch 1.

    Args:
      path: folder with `saved_model.pb`.
      inter_op_threads: operations of one run worked on at a time; 1 runs them one after the other on the caller's thread, which
        is fastest for small graphs (a fifth less time at batch 1 for a DLRM); 0 leaves it to TensorFlow.
      intra_op_threads: threads of one operation; 0 leaves it to TensorFlow.
      max_answer_bytes: a run whose outputs would be larger, by their shapes in the graph, is refused.

    Attributes:
      path: as given.
      signatures: `SignatureDef` by name.

    Raises:
      ServingError: no SavedModel, damaged, or without a meta graph for serving.
    """

    def __init__(
        self, path: str, *, inter_op_threads: int = 1, intra_op_threads: int = 0, max_answer_bytes: int = MAX_ANSWER_BYTES
    ):
        self.path, self._max_answer_bytes = path, max_answer_bytes
        if not any(os.path.isfile(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise ServingError(f"{path}: wanted a SavedModel (saved_model.pb), there is none")
        check_version_files(path)
        # (feeds, fetches) -> (the session's callable, DataTypes of the feeds, size of the answer)
        self._calls: dict[tuple, tuple[Callable, list[int], AnswerSize]] = {}
        self._lock = threading.Lock()
        try:
            try:
                self._load(inter_op_threads, intra_op_threads)
            except Exception as e:
                if inter_op_threads != 1 or "Single-threaded executor" not in str(e):
                    raise
                # TF1 control flow and reference variables: the single-threaded executor has no such operations.
                self._load(0, intra_op_threads)
        except Exception as e:  # whatever a damaged file makes TensorFlow's loader raise
            raise ServingError(f"{path}: the SavedModel does not load ({reason(e)})") from e

    def _load(self, inter_op_threads: int, intra_op_threads: int) -> None:
        config = tf.compat.v1.ConfigProto(
            inter_op_parallelism_threads=inter_op_threads, intra_op_parallelism_threads=intra_op_threads
        )
        if inter_op_threads == 1:
            config.experimental.executor_type = "SINGLE_THREADED_EXECUTOR"
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with self._session.graph.as_default(), _quiet():
                meta_graph = tf.compat.v1.saved_model.load(self._session, [tf.saved_model.SERVING], self.path)
            self.signatures: dict[str, SignatureDef] = dict(meta_graph.signature_def)
            for signature in self.signatures.values():
                feeds, fetches = _call_of(signature)
                # The initializing signature has neither method nor tensors; a sparse tensor has no name and can't be fed.
                if signature.method_name and all(feeds + fetches):
                    self._compile(feeds, fetches)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: tuple[str, ...], arrays: Sequence[np.ndarray], fetches: tuple[str, ...]) -> list[np.ndarray]:
        """Runs the graph.

        Args:
          feeds: names of the tensors fed.
          arrays: their values, in the dtypes of the graph.
          fetches: names of the tensors to return.

        Raises:
          RequestError: the graph refused the values; code and text are the runtime's. RESOURCE_EXHAUSTED when the answer would
            be too large.
        """
        compiled = self._calls.get((feeds, fetches))
        try:
            if compiled is None:
                compiled = self._compile(feeds, fetches)
            call, dtypes, answer = compiled
            for i, (array, dtype) in enumerate(zip(arrays, dtypes)):
                # TensorFlow's single-threaded executor does not check types; a wrong one would end the process.
                if array.dtype != numpy_dtype(dtype):
                    sent, wanted = array_type_name(array), type_name(dtype)
                    raise invalid_argument(f"Expects arg[{i}] to be {wanted} but {sent} is provided")
            answer.check(arrays)
            return [_as_array(value) for value in call(*arrays)]
        except tf.errors.OpError as e:
            raise runtime_error(e) from None

    def _compile(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> tuple[Callable, list[int], AnswerSize]:
        options = config_pb2.CallableOptions()
        options.feed.extend(feeds)
        options.fetch.extend(fetches)
        with self._lock:
            if (feeds, fetches) not in self._calls:
                if len(self._calls) >= MAX_CALLS:
                    self._calls.pop(next(iter(self._calls)))
                inputs, outputs = ([self._session.graph.get_tensor_by_name(name) for name in names] for names in (feeds, fetches))
                dtypes = [tensor.dtype.as_datatype_enum for tensor in inputs]
                size = AnswerSize(inputs, outputs, self._max_answer_bytes)
                self._calls[feeds, fetches] = self._session._make_callable_from_options(options), dtypes, size
            return self._calls[feeds, fetches]

    def close(self) -> None:
        """Frees the model's memory; no call may be under way."""
        with self._lock:
            self._calls.clear()
            self._session.close()
            self._session = None


def _call_of(signature: SignatureDef) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`(feeds, fetches)` of a Predict call that asks for all outputs."""
    inputs, outputs = signature.inputs, signature.outputs
    return tuple(inputs[alias].name for alias in sorted(inputs)), tuple(outputs[alias].name for alias in sorted(outputs))


def _as_array(value) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    return np.array(value, object if isinstance(value, bytes) else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides TensorFlow's warning that loading in a session is deprecated; TensorFlow Serving itself does so."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
