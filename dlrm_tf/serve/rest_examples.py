"""JSON of REST's classify and regress to tf.Examples, and their results to JSON, after TensorFlow Serving's json_tensor.cc."""

from collections.abc import Iterable
from itertools import chain
from typing import Any, Union

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResult
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResult

from dlrm_tf.serve.json_parsers import BIG_BODY_BYTES
from dlrm_tf.serve.json_pieces import Span, parts, read_object, resolved
from dlrm_tf.serve.rest_errors import format_error, kind_name, lossy_error
from dlrm_tf.serve.rest_json import check_size, decode_base64, dump, is_base64, is_integer, parse, signature_name
from dlrm_tf.serving_api.errors import invalid_argument

# The members of a body that are read.
MEMBERS = ("signature_name", "examples", "context")
_FLOAT_MAX = float(np.finfo(np.float32).max)


def fill_request(body: bytearray, request: Union[ClassificationRequest, RegressionRequest]) -> None:
    """Fills in the signature name and the examples from a JSON body.

    Raises:
      RequestError: INVALID_ARGUMENT saying where.
    """
    if len(body) > BIG_BODY_BYTES:
        with read_object(body, MEMBERS) as document:
            _fill_request(document, request)
    else:
        _fill_request(parse(body), request)


def _fill_request(document: dict[str, Any], request: Union[ClassificationRequest, RegressionRequest]) -> None:
    request.model_spec.signature_name = signature_name(document)
    examples = document.get("examples")
    if "examples" not in document:
        raise format_error(document, "When method is classify, key 'examples' is expected and was not found")
    if not isinstance(examples, (list, Span)):
        raise format_error(document, "Expecting 'examples' value to be an list/array")
    if "context" in document:
        target = request.input.example_list_with_context
        target.context.CopyFrom(_example(document["context"]))
    else:
        target = request.input.example_list
    for part in parts(examples):
        target.examples.extend(_example(example) for example in part)
    if not target.examples:
        raise format_error(document, "'examples' value is an empty array")


def _example(document: Any) -> example_pb2.Example:
    if not isinstance(document, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {kind_name(document)}")
    example = example_pb2.Example()
    for name, content in document.items():
        try:
            example.features.feature[name].CopyFrom(_feature(name, _values(content)))
        except UnicodeEncodeError:
            raise invalid_argument(f"Feature name {name!r} is not valid UTF-8") from None
    return example


def _values(content: Any) -> Iterable:
    content = resolved(content)
    return chain.from_iterable(parts(content)) if isinstance(content, (list, Span)) else [content]


def _feature(name: str, values: Iterable) -> feature_pb2.Feature:
    """The literal 2 makes an int64 feature, 2.0 a float one; a list must be of one kind."""
    feature = feature_pb2.Feature()
    for value in values:
        if isinstance(value, bool) or is_integer(value):
            kind = "int64_list"
        elif isinstance(value, (int, float)):
            check_size(value)
            kind = "float_list"
        elif isinstance(value, str) or (isinstance(value, dict) and is_base64(value)):
            kind = "bytes_list"
        else:
            raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {kind_name(value)}")
        if feature.WhichOneof("kind") not in (None, kind):
            expected = feature.WhichOneof("kind").split("_")[0]
            raise invalid_argument(f"Unexpected element type in feature: {name} expecting type: {expected}")
        if kind == "bytes_list":
            value = decode_base64(value) if isinstance(value, dict) else value.encode("utf-8", "surrogatepass")
        elif kind == "int64_list" and value >= 2**63:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
        elif kind == "float_list" and _FLOAT_MAX < abs(value) < float("inf"):
            raise lossy_error(value, "float")
        getattr(feature, kind).value.append(int(value) if kind == "int64_list" else value)
    return feature


def classifications(result: ClassificationResult) -> bytes:
    """A ClassificationResult as `results`: a list of `[label, score]` an example."""
    return dump({"results": [[[entry.label, _short(entry.score)] for entry in one.classes] for one in result.classifications]})


def regressions(result: RegressionResult) -> bytes:
    """A RegressionResult as `results`: a number an example."""
    return dump({"results": [_short(one.value) for one in result.regressions]})


def _short(value: float) -> float:
    """The float32 `value` as the double that prints with the same few digits: 0.1, not 0.10000000149."""
    return float(str(np.float32(value)))
