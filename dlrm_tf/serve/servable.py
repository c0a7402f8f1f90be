"""One loaded SavedModel version: its signatures, and calls into its session."""

import logging
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from dlrm_tf.errors import ServingError, reason
from dlrm_tf.serve.answer_size import AnswerSize
from dlrm_tf.serve.any_servable import NotThereError
from dlrm_tf.serve.version_files import check_version_files
from dlrm_tf.serving_api.errors import invalid_argument
from dlrm_tf.serving_api.limits import MAX_ANSWER_BYTES
from dlrm_tf.serving_api.status import runtime_error
from dlrm_tf.serving_api.tensors import check_type

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
      session_config: what the session is made with; the two numbers of threads above replace its own unless they are None.
      tags: those of the meta graph to load.
      check_method_names: whether a call must be of the kind that the signature's method name says.
      max_answer_bytes: a run whose outputs would be larger, by their shapes in the graph, is refused.

    Attributes:
      path: as given.
      signatures: `SignatureDef` by name.
      check_method_names: as given.

    Raises:
      ServingError: no SavedModel, damaged, or without a meta graph for serving.
    """

    def __init__(
        self,
        path: str,
        *,
        inter_op_threads: Optional[int] = 1,
        intra_op_threads: Optional[int] = 0,
        session_config: Optional[config_pb2.ConfigProto] = None,
        tags: Collection[str] = (tf.saved_model.SERVING,),
        check_method_names: bool = False,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ):
        self.path, self.check_method_names, self._tags = path, check_method_names, list(tags)
        self._max_answer_bytes = max_answer_bytes
        if not any(os.path.isfile(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise NotThereError(f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}")
        check_version_files(path)
        config = config_pb2.ConfigProto()
        if session_config is not None:
            config.CopyFrom(session_config)
        if inter_op_threads is not None:
            config.inter_op_parallelism_threads = inter_op_threads
        if intra_op_threads is not None:
            config.intra_op_parallelism_threads = intra_op_threads
        # (feeds, fetches) -> (the session's callable, DataTypes of the feeds, size of the answer)
        self._calls: dict[tuple, tuple[Callable, list[int], AnswerSize]] = {}
        self._lock = threading.Lock()
        try:
            try:
                self._load(config)
            except Exception as e:
                if config.inter_op_parallelism_threads != 1 or "Single-threaded executor" not in str(e):
                    raise
                # TF1 control flow and reference variables: the single-threaded executor has no such operations.
                config.inter_op_parallelism_threads = 0
                config.experimental.ClearField("executor_type")
                self._load(config)
        except Exception as e:  # whatever a damaged file makes TensorFlow's loader raise
            if "associated with tags" in str(e):
                wanted = " ".join(self._tags)
                raise NotThereError(
                    f"{path}: Could not find meta graph def matching supplied tags: {{ {wanted} }} ({reason(e)})"
                ) from e
            raise ServingError(f"{path}: the SavedModel does not load ({reason(e)})") from e

    def _load(self, config: config_pb2.ConfigProto) -> None:
        if config.inter_op_parallelism_threads == 1:
            config.experimental.executor_type = "SINGLE_THREADED_EXECUTOR"
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with self._session.graph.as_default(), _quiet():
                meta_graph = tf.compat.v1.saved_model.load(self._session, self._tags, self.path)
            self.signatures: dict[str, SignatureDef] = dict(meta_graph.signature_def)
            for signature in self.signatures.values():
                feeds, fetches = _call_of(signature)
                # The initializing signature names an operation, not a tensor; a sparse tensor has no name and can't be fed.
                if fetches and all(":" in name for name in feeds + fetches):
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
                check_type(i, array, dtype)
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
                inputs, outputs = ([self._tensor(name) for name in names] for names in (feeds, fetches))
                dtypes = [tensor.dtype.as_datatype_enum for tensor in inputs]
                size = AnswerSize(inputs, outputs, self._max_answer_bytes)
                self._calls[feeds, fetches] = self._session._make_callable_from_options(options), dtypes, size
            return self._calls[feeds, fetches]

    def _tensor(self, name: str) -> Any:
        try:
            return self._session.graph.get_tensor_by_name(name)
        except (KeyError, ValueError):  # a sparse tensor, or a signature that names what the graph does not have
            raise invalid_argument(
                f"Tensor {name}, specified in either feed_devices or fetch_devices was not found in the Graph"
            ) from None

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

    def errors_only(record: logging.LogRecord) -> bool:  # a filter of its own, as several versions may load at a time
        return record.levelno >= logging.ERROR

    logger.addFilter(errors_only)
    try:
        yield
    finally:
        logger.removeFilter(errors_only)
