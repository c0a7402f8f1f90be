"""Classify, Regress and MultiInference on tf.Examples, after TensorFlow Serving's files of these names.

Each takes a servable, its version number and the request, and raises RequestError with TensorFlow Serving's code and message.
"""

import grpc
import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResponse
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse

from dlrm_tf.serve.any_servable import AnyServable
from dlrm_tf.serve.predict import fill_model_spec
from dlrm_tf.serving_api.errors import RequestError, invalid_argument
from dlrm_tf.serving_api.names import CLASSIFY, DEFAULT_SIGNATURE, REGRESS
from dlrm_tf.serving_api.tensors import array_type_name

INPUTS, CLASSES, SCORES, OUTPUTS = "inputs", "classes", "scores", "outputs"
_NAMES = {CLASSIFY: "classification", REGRESS: "regression"}


def classify(servable: AnyServable, version: int, request: ClassificationRequest) -> ClassificationResponse:
    """Answers one Classify call: a list of (label, score) for each example; '' where the model has no labels."""
    return _one(servable, version, request, CLASSIFY, ClassificationResponse())


def regress(servable: AnyServable, version: int, request: RegressionRequest) -> RegressionResponse:
    """Answers one Regress call: a value for each example."""
    return _one(servable, version, request, REGRESS, RegressionResponse())


def _one(servable: AnyServable, version: int, request, method: str, response):
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise invalid_argument(f"No signature was found with the name: {name}")
    feed, fetches = _tensors(signature, method, servable.check_method_names)
    examples = _serialized_examples(request.input)
    outputs = servable.run((feed,), [examples], fetches)
    _FILL[method](signature, dict(zip(fetches, outputs)), len(examples), response.result)
    fill_model_spec(response.model_spec, request.model_spec.name, name, version)
    return response


def multi_inference(servable: AnyServable, version: int, request: MultiInferenceRequest) -> MultiInferenceResponse:
    """Answers one MultiInference call: several signatures of one model on the same examples, in one run.

    Signatures that TensorFlow 2 exported have an input each; every one is fed the examples.
    """
    tasks: list[tuple[str, SignatureDef, str]] = []
    feeds: set[str] = set()
    wanted: set[str] = set()
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if any(name == other for other, _, _ in tasks):
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        signature = servable.signatures.get(name)
        if signature is None:
            raise invalid_argument(f"Requested signature not found in model graph: {name}")
        if task.method_name not in _FILL:
            raise RequestError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        task_feed, task_fetches = _tensors(signature, task.method_name, servable.check_method_names)
        feeds.add(task_feed)
        wanted.update(task_fetches)
        tasks.append((name, signature, task.method_name))
    examples = _serialized_examples(request.input)
    fetches = tuple(sorted(wanted))
    outputs = dict(zip(fetches, servable.run(tuple(sorted(feeds)), [examples] * len(feeds), fetches)))
    response = MultiInferenceResponse()
    for name, signature, method in tasks:
        result = response.results.add()
        fill_model_spec(result.model_spec, request.tasks[0].model_spec.name, name, version)
        _FILL[method](signature, outputs, len(examples), getattr(result, f"{_NAMES[method]}_result"))
    return response


def _serialized_examples(model_input: Input) -> np.ndarray:
    """Serialized examples, object `[examples]`; a context is merged in, an example's own features win."""
    if model_input.WhichOneof("kind") == "example_list_with_context":
        # Serialized messages one after the other parse as their merge, and a later map entry replaces an earlier one.
        context = model_input.example_list_with_context.context.SerializeToString()
        examples = [context + example.SerializeToString() for example in model_input.example_list_with_context.examples]
    else:
        examples = [example.SerializeToString() for example in model_input.example_list.examples]
    if not examples:
        raise invalid_argument("Input is empty.")
    array = np.empty(len(examples), object)
    array[:] = examples
    return array


def _tensors(signature: SignatureDef, method: str, check_method_name: bool) -> tuple[str, tuple[str, ...]]:
    """Tensor names `(feed, fetches)` of a classify or regress signature."""
    kind = _NAMES[method]
    if check_method_name and signature.method_name != method:
        raise invalid_argument(f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}")
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if method == REGRESS and len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if method == CLASSIFY and len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUTS not in signature.inputs:
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, f"No {kind} inputs found in SignatureDef: {_one_line(signature)}")
    wanted = (OUTPUTS,) if method == REGRESS else (CLASSES, SCORES)
    fetches = tuple(signature.outputs[alias].name for alias in wanted if alias in signature.outputs)
    if not fetches:
        what = (
            f"No regression outputs found in SignatureDef: {_one_line(signature)}"
            if method == REGRESS
            else 'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {_one_line(signature)}"
        )
        raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, what)
    return signature.inputs[INPUTS].name, fetches


def _one_line(signature) -> str:
    return " ".join(str(signature).split())


def _fill_classification(signature, outputs, examples: int, result) -> None:
    columns = {}
    for alias, dtype, enum in ((CLASSES, object, "DT_STRING"), (SCORES, np.float32, "DT_FLOAT")):
        if alias not in signature.outputs:
            continue
        array = outputs[signature.outputs[alias].name]
        if array.ndim != 2:
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {list(array.shape)}")
        if array.dtype != dtype:
            raise invalid_argument(f"Expected {alias} Tensor of {enum}. Got: DT_{array_type_name(array).upper()}")
        if len(array) != examples:
            raise invalid_argument(f"Expected {alias} output batch size of {examples}. Got: {len(array)}")
        columns[alias] = array.tolist()
    widths = {alias: len(rows[0]) for alias, rows in columns.items()}
    if len(set(widths.values())) > 1:
        raise invalid_argument(f"Tensors class and score should match in dim_size(1). Got {widths[CLASSES]} vs. {widths[SCORES]}")
    for row in range(examples):
        classes = result.classifications.add().classes
        for i in range(next(iter(widths.values()))):
            entry = classes.add()
            if CLASSES in columns:
                # proto3 strings must be UTF-8; the C++ server sends any bytes, which clients then can't parse.
                entry.label = columns[CLASSES][row][i].decode("utf-8", "replace")
            if SCORES in columns:
                entry.score = columns[SCORES][row][i]


def _fill_regression(signature, outputs, examples: int, result) -> None:
    array = outputs[signature.outputs[OUTPUTS].name]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise invalid_argument(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {list(array.shape)}"
        )
    if len(array) != examples:
        raise invalid_argument(f"Input batch size did not match output batch size: {examples} vs. {len(array)}")
    if array.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: DT_{array_type_name(array).upper()}")
    for value in array.ravel().tolist():
        result.regressions.add(value=value)


_FILL = {CLASSIFY: _fill_classification, REGRESS: _fill_regression}
