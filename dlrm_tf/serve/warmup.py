"""Runs a version's recorded requests before it serves, after TensorFlow Serving's saved_model_warmup_util.cc."""

import logging
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from google.protobuf import message
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from dlrm_tf.errors import ServingError
from dlrm_tf.serve.any_servable import AnyServable
from dlrm_tf.serve.batching import TooManyRows
from dlrm_tf.serve.classify import classify, multi_inference, regress
from dlrm_tf.serve.predict import ProtoPredict, predict
from dlrm_tf.serving_api.errors import RequestError
from dlrm_tf.serving_api.limits import MAX_WARMUP_RECORDS
from dlrm_tf.versions import WARMUP_FILE

log = logging.getLogger("dlrm_tf.serve")


def _predict(servable: AnyServable, version: int, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    return predict(servable, version, ProtoPredict(request))


_ANSWER: dict[str, Callable[..., Any]] = {
    "predict_log": _predict,
    "classify_log": classify,
    "regress_log": regress,
    "multi_inference_log": multi_inference,
}


def warm_up(servable: AnyServable, version: int, *, iterations: int = 1) -> int:
    """Runs the requests of a version's warm-up file, a TFRecord file of `PredictionLog`; gives how many there are.

    A request of more rows than a batch may have is left out, with a line in the log: nobody can send such a one to this server,
    so there is nothing to warm up. (The C++ server refuses the version.)

    Args:
      servable: what answers them.
      version: its number.
      iterations: times that each is run.

    Raises:
      ServingError: not a TFRecord file of PredictionLogs, more than `MAX_WARMUP_RECORDS`, or a request the model refuses.
    """
    path = os.path.join(servable.path, WARMUP_FILE)
    if not os.path.isfile(path):
        return 0
    records, left_out = 0, []
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            records += 1
            if records > MAX_WARMUP_RECORDS:
                raise ServingError(f"{path}: wanted at most {MAX_WARMUP_RECORDS} warm-up records, there are more")
            recorded = prediction_log_pb2.PredictionLog.FromString(record)
            kind = recorded.WhichOneof("log_type")
            if kind not in _ANSWER:
                raise ServingError(f"{path}: record {records}: unsupported log type {kind}; known are {', '.join(_ANSWER)}")
            try:
                for _ in range(iterations):
                    _ANSWER[kind](servable, version, getattr(recorded, kind).request)
            except TooManyRows as e:
                left_out.append(e.message)
    except RequestError as e:
        raise ServingError(f"{path}: record {records}: {e.code.name}: {e.message}") from e
    except message.DecodeError as e:
        raise ServingError(f"{path}: record {records} is not a PredictionLog") from e
    except tf.errors.OpError as e:
        raise ServingError(f"{path}: {e.message}. Please verify your warmup data is in TFRecord format.") from e
    if left_out:
        log.warning("%s: %d of %d requests left out: %s", path, len(left_out), records, left_out[0])
    return records
