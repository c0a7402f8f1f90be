"""Runs a version's recorded requests before it serves, after TensorFlow Serving's saved_model_warmup_util.cc."""

import os

from google.protobuf import message
from tensorflow_serving.apis import prediction_log_pb2

from dlrm_tf.errors import ServingError
from dlrm_tf.serve.classify import classify, multi_inference, regress
from dlrm_tf.serve.predict import predict
from dlrm_tf.serving_api.status import RequestError
from dlrm_tf.versions import WARMUP_FILE

MAX_RECORDS = 1000

_ANSWER = {
    "predict_log": predict,
    "classify_log": classify,
    "regress_log": regress,
    "multi_inference_log": multi_inference,
}


def warm_up(servable, version: int) -> int:
    """Runs the requests of `<version>/assets.extra/tf_serving_warmup_requests`, a TFRecord file of `PredictionLog`.

    Returns:
      How many were run; 0 when there is no such file.

    Raises:
      ServingError: not a TFRecord file of PredictionLogs, more than `MAX_RECORDS`, or a request the model refuses.
    """
    import tensorflow as tf

    path = os.path.join(servable.path, WARMUP_FILE)
    if not os.path.isfile(path):
        return 0
    records = 0
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            records += 1
            if records > MAX_RECORDS:
                raise ServingError(f"{path}: wanted at most {MAX_RECORDS} warm-up records, there are more")
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind not in _ANSWER:
                raise ServingError(f"{path}: record {records}: unsupported log type {kind}; known are {', '.join(_ANSWER)}")
            _ANSWER[kind](servable, version, getattr(log, kind).request)
    except RequestError as e:
        raise ServingError(f"{path}: record {records}: {e.code.name}: {e.message}") from e
    except message.DecodeError as e:
        raise ServingError(f"{path}: record {records} is not a PredictionLog") from e
    except tf.errors.OpError as e:
        raise ServingError(f"{path}: {e.message}. Please verify your warmup data is in TFRecord format.") from e
    return records
