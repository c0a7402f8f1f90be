"""Predict, after TensorFlow Serving's predict_util.cc: a call's inputs decoded, the signature run, its outputs encoded."""

import abc
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Optional

import grpc
import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis import model_pb2, predict_pb2

from dlrm_tf.serve.any_servable import AnyServable
from dlrm_tf.serve.request_log import RequestLog
from dlrm_tf.serving_api.errors import RequestError, invalid_argument
from dlrm_tf.serving_api.limits import MAX_REPEATED_VALUES
from dlrm_tf.serving_api.names import CLASSIFY, DEFAULT_SIGNATURE, PREDICT, REGRESS
from dlrm_tf.serving_api.tensors import to_array, to_proto


class PredictCall(abc.ABC):
    """One Predict call in its transport's form.

    Attributes:
      entrypoint: `GRPC` or `REST`, for the metrics.
      model_spec: which model is asked for; None when the request does not say.
      signature_name: of the signature that `decode` chose.
    """

    entrypoint: str
    model_spec: Optional[model_pb2.ModelSpec]
    signature_name: str

    @property
    def model_name(self) -> str:
        """Of the model asked for; '' when the request does not say."""
        return "" if self.model_spec is None else self.model_spec.name

    @abc.abstractmethod
    def decode(self, signatures: dict[str, SignatureDef]) -> tuple[SignatureDef, dict[str, np.ndarray], Sequence[str]]:
        """Chooses one of the model's `signatures`; gives it, arrays by input name, and names of outputs wanted (none: all)."""

    @abc.abstractmethod
    def encode(self, outputs: dict[str, np.ndarray], version: int) -> Any:
        """The response, from arrays by output name and the version number of the model."""

    def messages(
        self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], version: int
    ) -> tuple[predict_pb2.PredictRequest, predict_pb2.PredictResponse]:
        """The call and its answer as gRPC has them, for the request log."""
        request = predict_pb2.PredictRequest(model_spec=self.model_spec)
        request.model_spec.signature_name = self.signature_name
        for alias, value in inputs.items():
            request.inputs[alias].CopyFrom(to_proto(value, as_content=True))
        return request, self._response(outputs, version, as_content=True)

    def _response(self, outputs: dict[str, np.ndarray], version: int, *, as_content: bool) -> predict_pb2.PredictResponse:
        response = predict_pb2.PredictResponse()
        fill_model_spec(response.model_spec, self.model_name, self.signature_name, version)
        for alias, value in outputs.items():
            response.outputs[alias].CopyFrom(to_proto(value, as_content))
        return response


class ProtoPredict(PredictCall):
    """A call over gRPC: a `PredictRequest`, answered by a `PredictResponse`.

    Args:
      request: as it came over the wire.
      as_content: outputs as raw bytes in `tensor_content` instead of the typed field.
      max_repeated: values of an input that may be left out, because they repeat the last one.
    """

    entrypoint = "GRPC"

    def __init__(self, request: predict_pb2.PredictRequest, *, as_content: bool = False, max_repeated: int = MAX_REPEATED_VALUES):
        self.model_spec = model_spec(request)
        self._request, self._as_content, self._max_repeated = request, as_content, max_repeated
        self.signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE

    def decode(self, signatures: dict[str, SignatureDef]) -> tuple[SignatureDef, dict[str, np.ndarray], Sequence[str]]:
        signature = signatures.get(self.signature_name)
        if signature is None:
            raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{self.signature_name}" not found.')
        sent = self._request.inputs
        _check_inputs(signature, sent)
        inputs = {alias: to_array(proto, alias, self._max_repeated) for alias, proto in sent.items()}
        return signature, inputs, self._request.output_filter

    def encode(self, outputs: dict[str, np.ndarray], version: int) -> predict_pb2.PredictResponse:
        return self._response(outputs, version, as_content=self._as_content)

    def messages(
        self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], version: int
    ) -> tuple[predict_pb2.PredictRequest, predict_pb2.PredictResponse]:
        return self._request, self.encode(outputs, version)


def predict(servable: AnyServable, version: int, call: PredictCall, request_log: Optional[RequestLog] = None) -> Any:
    """Answers `call` with a servable and its version number, and logs it.

    Raises:
      RequestError: with TensorFlow Serving's code and message.
    """
    signature, inputs, aliases = call.decode(servable.signatures)
    if servable.check_method_names and signature.method_name not in (PREDICT, CLASSIFY, REGRESS):
        raise RequestError(
            grpc.StatusCode.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. "
            f"Was: {signature.method_name}",
        )
    outputs = _run(servable, signature, inputs, aliases)
    answer = call.encode(outputs, version)
    if request_log is not None and request_log.sampled():
        size = _bytes(inputs.values()) + _bytes(outputs.values())
        request_log.add("predict_log", call.model_name, size, lambda: call.messages(inputs, outputs, version))
    return answer


def _bytes(arrays: Iterable[np.ndarray]) -> int:
    """Of arrays; strings count with their lengths."""
    return sum(sum(map(len, array.flat)) if array.dtype == object else array.nbytes for array in arrays)


def model_spec(request: Any) -> Optional[model_pb2.ModelSpec]:
    """The ModelSpec of any request message; None when it has none."""
    return request.model_spec if request.HasField("model_spec") else None


def fill_model_spec(spec: model_pb2.ModelSpec, name: str, signature_name: str, version: int) -> None:
    """Writes model name, signature name and version number into a response's `spec`."""
    spec.name = name
    spec.signature_name = signature_name
    spec.version.value = version


def _check_inputs(signature: SignatureDef, inputs: Collection[str]) -> None:
    """Refuses a set of input names that is not the signature's; inputs with a default value may be left out."""
    sent, wanted = sorted(inputs), sorted(signature.inputs)
    extra = [alias for alias in sent if alias not in signature.inputs]
    missing = [alias for alias in wanted if alias not in inputs and alias not in signature.defaults]
    if extra or missing:
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({{{','.join(sent)}}}) != "
            f"len({{{','.join(wanted)}}}). Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
        )


def _run(servable: AnyServable, signature: SignatureDef, inputs: dict[str, np.ndarray], output_filter: Sequence[str]) -> dict:
    aliases = list(output_filter) or sorted(signature.outputs)
    for alias in aliases:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{','.join(sorted(signature.outputs))}}}."
            )
    if len(set(aliases)) != len(aliases):
        twice = next(alias for i, alias in enumerate(aliases) if alias in aliases[:i])
        raise invalid_argument(f"duplicate output tensor alias: {twice}")
    names = sorted(signature.inputs)
    arrays = [inputs[alias] if alias in inputs else to_array(signature.defaults[alias], alias) for alias in names]
    feeds = tuple(signature.inputs[alias].name for alias in names)
    return dict(zip(aliases, servable.run(feeds, arrays, tuple(signature.outputs[alias].name for alias in aliases))))
