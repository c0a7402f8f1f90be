"""PredictionService.Predict, after TensorFlow Serving's predict_util.cc."""

import grpc
from tensorflow_serving.apis import predict_pb2

from dlrm_tf.serving_api.limits import MAX_REPEATED_VALUES
from dlrm_tf.serving_api.status import RequestError, invalid_argument
from dlrm_tf.serving_api.tensors import to_array, to_proto

DEFAULT_SIGNATURE = "serving_default"
PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))


def predict(
    servable,
    version: int,
    request: predict_pb2.PredictRequest,
    as_content: bool = False,
    max_repeated: int = MAX_REPEATED_VALUES,
) -> predict_pb2.PredictResponse:
    """Answers one Predict call.

    Args:
      servable: the version asked for.
      version: its number.
      request: as it came over the wire.
      as_content: outputs as raw bytes in `tensor_content` instead of the typed field.
      max_repeated: values of an input that may be left out, because they repeat the last one.

    Raises:
      RequestError: with TensorFlow Serving's code and message.
    """
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = predict_signature(servable, name)
    check_inputs(signature, request.inputs)
    inputs = {alias: to_array(proto, alias, max_repeated) for alias, proto in request.inputs.items()}
    outputs = run_signature(servable, signature, inputs, request.output_filter)
    response = predict_pb2.PredictResponse()
    fill_model_spec(response.model_spec, request.model_spec.name, name, version)
    for alias, value in outputs.items():
        response.outputs[alias].CopyFrom(to_proto(value, as_content))
    return response


def fill_model_spec(spec, name: str, signature_name: str, version: int) -> None:
    """The resolved `ModelSpec` of a response."""
    spec.name = name
    spec.signature_name = signature_name
    spec.version.value = version


def predict_signature(servable, name: str):
    """The signature `name`, which Predict may call whatever its method.

    Raises:
      RequestError: FAILED_PRECONDITION or INTERNAL.
    """
    signature = servable.signatures.get(name)
    if signature is None:
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    if signature.method_name not in (PREDICT, CLASSIFY, REGRESS):
        raise RequestError(
            grpc.StatusCode.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. "
            f"Was: {signature.method_name}",
        )
    return signature


def check_inputs(signature, inputs) -> None:
    """Refuses a set of input names that is not the signature's; inputs with a default value may be left out."""
    sent, wanted = sorted(inputs), sorted(signature.inputs)
    extra = [alias for alias in sent if alias not in signature.inputs]
    missing = [alias for alias in wanted if alias not in inputs and alias not in signature.defaults]
    if extra or missing:
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({{{','.join(sent)}}}) != "
            f"len({{{','.join(wanted)}}}). Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
        )


def run_signature(servable, signature, inputs: dict, output_filter=()) -> dict:
    """Runs `signature` on arrays by name; gives the outputs asked for (all when none is named), as arrays by name.

    Raises:
      RequestError: an unknown or repeated output, or what the graph says.
    """
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
