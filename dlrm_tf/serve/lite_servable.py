"""One loaded version that is a TFLite model: its signatures, and calls into a pool of interpreters."""

import os
import queue
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo
from tensorflow.python.framework import dtypes

from dlrm_tf.errors import ServingError, reason, require
from dlrm_tf.serve.answer_size import AnswerSize
from dlrm_tf.serve.version_files import check_version_files
from dlrm_tf.serving_api.errors import invalid_argument
from dlrm_tf.serving_api.limits import MAX_ANSWER_BYTES
from dlrm_tf.serving_api.names import DEFAULT_SIGNATURE, PREDICT
from dlrm_tf.serving_api.tensors import check_type

# What TensorFlow Serving looks for in a version folder.
LITE_FILE = "model.tflite"
# TFLite writes a shape of any rank as a scalar's. Its kernels are made for up to four dimensions.
RANK_OF_ANY = 4


class LiteServable:
    """A TFLite model with the members of `Servable`, after TensorFlow Serving's tflite_session.cc.

    The only signature of a file is `serving_default` too; a file without signatures has that one, with the names of its tensors.

    Args:
      path: folder with `model.tflite`.
      pools: interpreters, which is how many calls run at a time.
      threads: threads of one interpreter.
      check_method_names: as of `Servable`.
      max_answer_bytes: as of `Servable`.

    Attributes:
      path: as given.
      signatures: `SignatureDef` by name.
      check_method_names: as given.

    Raises:
      MissingExtraError: ai-edge-litert is not installed.
      ServingError: not a TFLite model, or one with a type that TensorFlow lacks.
    """

    def __init__(
        self,
        path: str,
        *,
        pools: int,
        threads: int = 1,
        check_method_names: bool = False,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ):
        self._litert = require("ai_edge_litert.interpreter", "lite")
        self.path, self.check_method_names, self._threads = path, check_method_names, threads
        self._max_answer_bytes = max_answer_bytes
        check_version_files(path)
        file = os.path.join(path, LITE_FILE)
        self.signatures: dict[str, SignatureDef] = {}
        # Name of a tensor in `signatures` -> signature, name of the input or output.
        self._aliases: dict[str, tuple[str, str]] = {}
        self._free: queue.SimpleQueue[dict[str, Callable[..., dict[str, np.ndarray]]]] = queue.SimpleQueue()
        try:
            with open(file, "rb") as f:
                self._content = f.read()
            for _ in range(pools):
                self._free.put(self._calls())
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as e:
            raise ServingError(f"{file}: the TFLite model does not load ({reason(e)})") from e

    def _calls(self) -> dict[str, Callable[..., dict[str, np.ndarray]]]:
        """The call of every signature of a new interpreter; the first one describes them in `signatures`."""
        # The content is shared; an interpreter adds what the tensors of a call need.
        interpreter = self._litert.Interpreter(model_content=self._content, num_threads=self._threads)
        calls: dict[str, Callable[..., dict[str, np.ndarray]]] = {}
        names = list(interpreter.get_signature_list())
        for name in names:
            runner = interpreter.get_signature_runner(name)
            for served_as in {name, DEFAULT_SIGNATURE} if len(names) == 1 else {name}:
                self._describe(served_as, runner.get_input_details(), runner.get_output_details())
                calls[served_as] = runner
        if not calls:
            inputs, outputs = (
                {details["name"].split(":")[0]: details for details in of}
                for of in (interpreter.get_input_details(), interpreter.get_output_details())
            )
            self._describe(DEFAULT_SIGNATURE, inputs, outputs)
            calls[DEFAULT_SIGNATURE] = _Unsigned(interpreter, inputs, outputs)
        return calls

    def _describe(self, signature: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        if signature in self.signatures:
            return
        definition = SignatureDef(method_name=PREDICT)
        for tensors, infos in ((inputs, definition.inputs), (outputs, definition.outputs)):
            for alias, details in tensors.items():
                name = f"{signature}/{alias}:0"
                info = TensorInfo(name=name, dtype=dtypes.as_dtype(details["dtype"]).as_datatype_enum)
                for size in details["shape_signature"]:
                    info.tensor_shape.dim.add(size=int(size))
                infos[alias].CopyFrom(info)
                self._aliases[name] = signature, alias
        self.signatures[signature] = definition

    def run(self, feeds: tuple[str, ...], arrays: Sequence[np.ndarray], fetches: tuple[str, ...]) -> list[np.ndarray]:
        """As `Servable.run`; all names are of one signature, all of whose inputs are fed.

        Raises:
          RequestError: names of several signatures, or values that the model refuses.
        """
        owners = {self._aliases[name][0] for name in (*feeds, *fetches)}
        if len(owners) != 1:
            raise invalid_argument("A TensorFlow Lite model runs one signature at a time")
        (signature,) = owners
        definition = self.signatures[signature]
        values = {}
        for i, (name, array) in enumerate(zip(feeds, arrays)):
            alias = self._aliases[name][1]
            _check(i, array, definition.inputs[alias])
            values[alias] = array
        inputs = [_spec(definition.inputs[self._aliases[name][1]]) for name in feeds]
        outputs = [_spec(definition.outputs[self._aliases[name][1]]) for name in fetches]
        AnswerSize(inputs, outputs, self._max_answer_bytes).check(arrays)
        calls = self._free.get()
        try:
            results = calls[signature](**values)
        except (ValueError, RuntimeError) as e:
            calls = self._calls()  # the old one keeps the text of every error and gives them all with the next
            raise invalid_argument(reason(e)) from None
        finally:
            self._free.put(calls)
        return [results[self._aliases[name][1]] for name in fetches]

    def close(self) -> None:
        """Frees the model's memory; no call may be under way."""
        while not self._free.empty():
            self._free.get()


def _spec(info: TensorInfo) -> tf.TensorSpec:
    return tf.TensorSpec(tf.TensorShape(info.tensor_shape), info.dtype)


def _check(position: int, array: np.ndarray, info: TensorInfo) -> None:
    """Refuses another type or shape than the input's, with which TFLite may end the process; the first size may be any."""
    check_type(position, array, info.dtype)
    sizes = [dim.size for dim in info.tensor_shape.dim]
    fits = len(sizes) == array.ndim and all(size in (-1, found) for size, found in zip(sizes[1:], array.shape[1:]))
    if not fits and not (not sizes and array.ndim <= RANK_OF_ANY):
        raise invalid_argument(f"Expects arg[{position}] to have shape {sizes} but {list(array.shape)} is provided")


class _Unsigned:
    """A call of a model without signatures: its tensors, sized as the inputs are."""

    def __init__(self, interpreter: Any, inputs: dict[str, Any], outputs: dict[str, Any]):
        self._interpreter = interpreter
        self._inputs = {alias: details["index"] for alias, details in inputs.items()}
        self._outputs = {alias: details["index"] for alias, details in outputs.items()}

    def __call__(self, **values: np.ndarray) -> dict[str, np.ndarray]:
        for alias, value in values.items():
            self._interpreter.resize_tensor_input(self._inputs[alias], value.shape)
        self._interpreter.allocate_tensors()
        for alias, value in values.items():
            self._interpreter.set_tensor(self._inputs[alias], value)
        self._interpreter.invoke()
        return {alias: self._interpreter.get_tensor(index) for alias, index in self._outputs.items()}
