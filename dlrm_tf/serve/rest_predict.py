"""REST's Predict: rows (`instances`) or columns (`inputs`) of JSON, after TensorFlow Serving's json_tensor.cc."""

from collections.abc import Mapping

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo
from tensorflow_serving.apis import model_pb2

from dlrm_tf.serve import rest_columns
from dlrm_tf.serve.json_parsers import BIG_ANSWER_VALUES, BIG_BODY_BYTES, JsonParsers
from dlrm_tf.serve.predict import PredictCall
from dlrm_tf.serve.rest_json import ValueType, parse
from dlrm_tf.serving_api.tensors import numpy_dtype, type_name


class JsonPredict(PredictCall):
    """A call over REST: a JSON body, answered by JSON bytes.

    Args:
      spec: which model is asked for, as the URL has it.
      body: of the request, decompressed.
      parsers: processes that read a large body and write a large answer.
    """

    entrypoint = "REST"

    def __init__(self, spec: model_pb2.ModelSpec, body: bytearray, parsers: JsonParsers):
        self.model_spec = spec
        self._body, self._parsers = body, parsers
        self._in_rows = False

    def decode(self, signatures: dict[str, SignatureDef]) -> tuple[SignatureDef, dict[str, np.ndarray], tuple]:
        if len(self._body) > BIG_BODY_BYTES:
            types = {name: _types(signature.inputs) for name, signature in signatures.items()}
            self.signature_name, self._in_rows, arrays = self._parsers.decode(self._body, types)
        else:
            arrays = {}
            self.signature_name, self._in_rows, _ = rest_columns.decode(
                parse(self._body),
                lambda name: _types(signatures[name].inputs) if name in signatures else None,
                lambda name, _, array: arrays.__setitem__(name, array),
            )
        return signatures[self.signature_name], arrays, ()

    def encode(self, outputs: dict[str, np.ndarray], version: int) -> bytes:
        if sum(array.size for array in outputs.values()) > BIG_ANSWER_VALUES:
            return self._parsers.encode(outputs, self._in_rows)
        return b"".join(rest_columns.encode(outputs, self._in_rows))


def _types(inputs: Mapping[str, TensorInfo]) -> dict[str, ValueType]:
    return {name: _value_type(info.dtype) for name, info in inputs.items()}


def _value_type(enum: int) -> ValueType:
    dtype = numpy_dtype(enum)
    if dtype is not None and (dtype.kind in "cV" or (dtype.itemsize == 2 and dtype.kind == "f")):
        dtype = None
    return ValueType(type_name(enum), dtype)
