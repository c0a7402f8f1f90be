"""REST's Predict: rows (`instances`) or columns (`inputs`) of JSON, after TensorFlow Serving's json_tensor.cc."""

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo
from tensorflow_serving.apis import model_pb2

from dlrm_tf.serve.predict import DEFAULT_SIGNATURE, PredictCall
from dlrm_tf.serve.rest_errors import format_error, row_error, shown, unlike_error
from dlrm_tf.serve.rest_json import dump, is_base64, parse, signature_name, to_array, to_json
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
        name = self.signature_name = signature_name(document) or DEFAULT_SIGNATURE
        signature = signatures.get(name)
        if signature is None:
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        infos = dict(signature.inputs)
        if not infos:
            raise invalid_argument(f"Failed to get input map for signature: {signature_name(document) or 'DEFAULT'}")
        self._in_rows = "instances" in document
        if self._in_rows and "inputs" in document:
            raise format_error(document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
        if self._in_rows:
            instances = document["instances"]
            if not isinstance(instances, list):
                raise format_error(document, "Excepting 'instances' to be an list/array")
            if not instances:
                raise format_error(document, "No values in 'instances' array")
            return signature, _from_instances(instances, infos), ()
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


def _from_instances(instances: list, infos: Mapping[str, TensorInfo]) -> dict[str, np.ndarray]:
    objects = _is_object(instances[0])
    if not objects and len(infos) != 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map"
        )
    try:
        if objects != all(map(_is_object, instances)) or (objects and any(row.keys() != infos.keys() for row in instances)):
            raise invalid_argument("rows unlike each other")
        columns = {name: [row[name] for row in instances] if objects else instances for name in infos}
        return {name: to_array(column, infos[name].dtype) for name, column in columns.items()}
    except RequestError as error:
        raise _first_error(instances, infos, objects) or error from None


def _first_error(instances: list, infos: Mapping[str, TensorInfo], objects: bool) -> Optional[RequestError]:
    """The error of the first row that is wrong by itself or unlike those before; None when each by itself is right."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, row in enumerate(instances):
        if _is_object(row) != objects:
            wanted = "Expecting object but got list" if objects else "Expecting value/list but got object"
            return invalid_argument(f"{wanted} at item {i} of input list")
        for name, value in row.items() if objects else ((next(iter(infos)), row),):
            try:
                if name not in infos:
                    raise invalid_argument(f"JSON object: does not have named input: {name}")
                shape = to_array(value, infos[name].dtype).shape
                error = unlike_error(shape, shapes.setdefault(name, shape))
                if error is not None:
                    raise error
            except RequestError as error:
                return row_error(i, name if objects else None, error)
        if objects and row.keys() != infos.keys():
            return invalid_argument(
                f"Failed to process element: {i} of 'instances' list. JSON object: {shown(row)} keys must be equal to: "
                f"{','.join(sorted(infos))}"
            )
    return None
