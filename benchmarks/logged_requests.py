"""The requests of a server's request log (`--request_log_dir`), to send them again."""

from typing import NamedTuple, Optional

from dlrm_tf.errors import DataError
from dlrm_tf.fresh.tfrecord import count_records, read_records, record_files

PREDICTION_SERVICE = "/tensorflow.serving.PredictionService/"
# Field of a PredictionLog -> method of PredictionService.
METHODS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}


class LoggedRequest(NamedTuple):
    """A request: its method's path on the wire, the serialized message, and its rows."""

    method: str
    message: bytes
    rows: int


def read_requests(path: str, model_name: Optional[str] = None) -> list[LoggedRequest]:
    """The requests of a log, oldest first. Versions and labels that clients asked for are left out: another server has others.

    Args:
      path: a TFRecord file of PredictionLog, or a folder of them.
      model_name: the model to ask for; None leaves the log's.

    Raises:
      DataError: not such a file, or no requests.
    """
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    found = []
    for file in record_files(path):
        count_records(file)
        for record in read_records(file):
            log = PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind not in METHODS:
                continue
            request = getattr(log, kind).request
            for spec in [task.model_spec for task in request.tasks] if kind == "multi_inference_log" else [request.model_spec]:
                spec.ClearField("version_choice")
                spec.name = model_name or spec.name
            found.append(LoggedRequest(PREDICTION_SERVICE + METHODS[kind], request.SerializeToString(), _rows(request)))
    if not found:
        raise DataError(f"{path}: wanted TFRecord files of PredictionLog, or one. Received none with a request")
    return found


def _rows(request) -> int:
    if hasattr(request, "input"):
        return len(getattr(request.input, request.input.WhichOneof("kind")).examples)
    first = next(iter(request.inputs.values()), None)
    return first.tensor_shape.dim[0].size if first is not None and first.tensor_shape.dim else 1
