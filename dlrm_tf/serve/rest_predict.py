"""REST's Predict: rows (`instances`) or columns (`inputs`) of JSON, after TensorFlow Serving's json_tensor.cc."""

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo
from tensorflow_serving.apis import model_pb2

from dlrm_tf.serve.predict import DEFAULT_SIGNATURE, PredictCall
from dlrm_tf.serve.rest_json import dump, is_base64, parse, shown, signature_name, to_array, to_json
from dlrm_tf.serving_api.status import RequestError, invalid_argument


class JsonPredict(PredictCall):
    """A call over REST: a JSON body, answered by JSON bytes.

    Args:
      spec: which model is asked for, as the URL has it.
      body: of the request, decompressed.
    """

    entrypoint = "REST"

    def __init__(self, spec: model_pb2.ModelSpec, body: bytes):
        self.model_spec = spec
        self._body = body
        self._in_rows = False

    def decode(self, signatures: dict[str, SignatureDef]) -> tuple[SignatureDef, dict[str, np.ndarray], tuple]:
        document = parse(self._body)
        name = signature_name(document) or DEFAULT_SIGNATURE
        signature = signatures.get(name)
        if signature is None:
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        infos = dict(signature.inputs)
        if not infos:
            raise invalid_argument(f"Failed to get input map for signature: {name}")
        self._in_rows = "instances" in document
        if self._in_rows and "inputs" in document:
            raise invalid_argument("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
        if self._in_rows:
            return signature, _from_instances(document["instances"], infos), ()
        if "inputs" in document:
            return signature, _from_inputs(document["inputs"], infos), ()
        raise invalid_argument("Missing 'inputs' or 'instances' key")

    def encode(self, outputs: dict[str, np.ndarray], version: int) -> bytes:
        if not outputs:
            raise invalid_argument("Cannot convert empty tensor map to JSON")
        values = {name: to_json(name, array) for name, array in outputs.items()}
        only = next(iter(values.values())) if len(values) == 1 else None  # a single output goes without its name
        if not self._in_rows:
            return dump({"outputs": values if only is None else only})
        size = None
        for name, array in outputs.items():
            if np.ndim(array) == 0:
                raise invalid_argument(f"Tensor name: {name} has no shape information ")
            if size not in (None, len(array)):
                raise invalid_argument(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}")
            size = len(array)
        rows = [dict(zip(values, row)) for row in zip(*values.values())] if only is None else only
        return dump({"predictions": rows})


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _from_inputs(value: Any, infos: Mapping[str, TensorInfo]) -> dict[str, np.ndarray]:
    if not _is_object(value):
        if len(infos) != 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map"
            )
        (name,) = infos
        return {name: to_array(value, infos[name].dtype)}
    for name in infos:
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_array(value[name], infos[name].dtype) for name in infos}


def _from_instances(instances: Any, infos: Mapping[str, TensorInfo]) -> dict[str, np.ndarray]:
    if not isinstance(instances, list):
        raise invalid_argument("Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid_argument("No values in 'instances' array")
    objects = _is_object(instances[0])
    if not objects and len(infos) != 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map"
        )
    for i, instance in enumerate(instances):
        if _is_object(instance) != objects:
            wanted = "Expecting object but got list" if objects else "Expecting value/list but got object"
            raise invalid_argument(f"{wanted} at item {i} of input list")
        if objects and instance.keys() != infos.keys():
            raise invalid_argument(
                f"Failed to process element: {i} of 'instances' list. JSON object: {shown(instance)} keys must be equal to: "
                f"{','.join(sorted(infos))}"
            )
    columns = {name: [instance[name] for instance in instances] if objects else instances for name in infos}
    arrays = {}
    for name, column in columns.items():
        try:
            arrays[name] = to_array(column, infos[name].dtype)
        except RequestError as error:
            raise _first_bad_instance(name if objects else None, column, infos[name].dtype) or error from None
    return arrays


def _first_bad_instance(name: Optional[str], column: list, dtype: int) -> Optional[RequestError]:
    """The error for the first element that is wrong by itself or unlike the first one; None when each by itself is right."""
    shape = None
    for i, value in enumerate(column):
        key = f" key: {name}" if name else ""
        try:
            array = to_array(value, dtype)
            if shape is not None and array.shape != shape:
                raise invalid_argument(f"Expecting shape {list(shape)} but got: {list(array.shape)}")
            shape = array.shape
        except RequestError as e:
            return invalid_argument(f"Failed to process element: {i}{key} of 'instances' list. Error: {e.code.name}: {e.message}")
    return None
