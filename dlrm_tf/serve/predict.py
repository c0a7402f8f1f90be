"""PredictionService.Predict and GetModelMetadata, after TensorFlow Serving's predict_util.cc and get_model_metadata_impl.cc."""

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from dlrm_tf.serve.status import RequestError, invalid_argument
from dlrm_tf.serve.tensors import to_array, to_proto

DEFAULT_SIGNATURE = "serving_default"
METHODS = ("tensorflow/serving/predict", "tensorflow/serving/classify", "tensorflow/serving/regress")


def predict(manager, request: predict_pb2.PredictRequest, as_content: bool = False) -> predict_pb2.PredictResponse:
    """Answers one Predict call.

    Args:
      manager: `ModelManager`.
      request: as it came over the wire.
      as_content: outputs as raw bytes in `tensor_content` instead of the typed field.

    Raises:
      RequestError: with TensorFlow Serving's code and message.
    """
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    with manager.servable(request.model_spec) as (servable, version):
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        signature = servable.signatures.get(name)
        if signature is None:
            raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        feeds, arrays = _inputs(signature, request.inputs)
        aliases = _output_aliases(signature, request.output_filter)
        values = servable.run(feeds, arrays, tuple(signature.outputs[alias].name for alias in aliases))
    response = predict_pb2.PredictResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.signature_name = name
    response.model_spec.version.value = version
    for alias, value in zip(aliases, values):
        response.outputs[alias].CopyFrom(to_proto(value, as_content))
    return response


def _inputs(signature, inputs):
    if signature.method_name not in METHODS:
        raise RequestError(
            grpc.StatusCode.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{', '.join(METHODS)}}}. Was: {signature.method_name}",
        )
    sent, wanted = sorted(inputs), sorted(signature.inputs)
    missing = [alias for alias in wanted if alias not in inputs]
    if len(sent) > len(wanted) or (len(sent) < len(wanted) and not signature.defaults):
        extra = [alias for alias in sent if alias not in signature.inputs]
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({{{','.join(sent)}}}) != "
            f"len({{{','.join(wanted)}}}). Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
        )
    for alias in sent:
        if alias not in signature.inputs:
            raise invalid_argument(
                f"input tensor alias not found in signature: {alias}. Inputs expected to be in the set {{{','.join(wanted)}}}."
            )
    arrays = []
    for alias in wanted:
        if alias in inputs:
            arrays.append(to_array(inputs[alias], alias))
        elif alias in signature.defaults:
            arrays.append(to_array(signature.defaults[alias], alias))
        else:
            raise invalid_argument(f"Signature input {alias} is neither in the request nor has it a default value")
    return tuple(signature.inputs[alias].name for alias in wanted), arrays


def _output_aliases(signature, output_filter):
    if not output_filter:
        return sorted(signature.outputs)
    seen = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{','.join(sorted(signature.outputs))}}}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.append(alias)
    return seen


def get_model_metadata(manager, request) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Answers one GetModelMetadata call: the signatures of a loaded version.

    Raises:
      RequestError: with TensorFlow Serving's code and message.
    """
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid_argument(f"Metadata field {field} is not supported")
    with manager.servable(request.model_spec) as (servable, version):
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = version
    response.metadata["signature_def"].Pack(signatures)
    return response
