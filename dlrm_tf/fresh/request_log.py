"""RequestLogSide: the rows that a server was asked about, from a log of its requests."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from dlrm_tf.data.bag import WEIGHTS
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.features import log_dense
from dlrm_tf.data.inputs import int32_ids
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError
from dlrm_tf.fresh.side import BATCH_ROWS, Rows, Side, joined
from dlrm_tf.fresh.tfrecord import count_records, read_records, record_files
from dlrm_tf.serving_api.errors import RequestError
from dlrm_tf.serving_api.tensors import to_array

_PREDICT, _EXAMPLES = "predict_log", ("classify_log", "regress_log", "multi_inference_log")
_SIGNATURES = ("", "serving_default", "raw")


class RequestLogSide(Side):
    """The rows of a request log: TFRecord files of `tensorflow.serving.PredictionLog`, plain or gzip.

    Requests of the signatures `serving_default` (ids of the reference's vocabulary), `raw` (numbers and keys as in the log), and
    those that carry tf.Examples. A request of another signature, or with other inputs than the columns say, is passed over and
    counted. There are no labels. Which dense numbers are missing is known where they come as in the log, not as logarithms, and
    at least one of the whole log is NaN: a client may send 0 for a missing number, which is the same to the model.

    Args:
      path: a file, or a folder of such files, as `record_files` finds them.
      spec: the reference's columns.
      vocabulary: the reference's.

    Raises:
      DataError: not such a file, or a cut one.
    """

    def __init__(self, path: str, spec: FeatureSpec, vocabulary: Vocabulary):
        self.name, self.spec, self.vocabulary = path, spec, vocabulary
        self._encoder = Encoder(spec, vocabulary, source="request")
        self._some_missing = self._logarithms = False
        self._files = record_files(path)
        for file in self._files:
            count_records(file)

    def batches(self) -> Iterator[Rows]:
        """See `Side`."""
        self.skipped, self._some_missing, self._logarithms = (0, ""), False, False
        waiting: list[Rows] = []
        count = 0
        for file, number, record in self._records():
            try:
                waiting.append(self._rows(PredictionLog.FromString(record)))
                count += len(waiting[-1].label)
            except DecodeError:
                raise DataError(f"{file}: record {number} is no PredictionLog") from None
            except (DataError, RequestError) as e:
                skipped, first = self.skipped
                self.skipped = skipped + 1, first or f"record {number}: {str(e)[:300]}"  # a client may have sent long names
            if count >= BATCH_ROWS:
                yield joined(waiting)
                waiting, count = [], 0
        self.missing_known = self._some_missing and not self._logarithms
        if waiting:
            yield joined(waiting)

    def _records(self) -> Iterator[tuple[str, int, bytes]]:
        """File, number in it from 1 on, and bytes of each record."""
        for file in self._files:
            yield from ((file, number, record) for number, record in enumerate(read_records(file), 1))

    def _rows(self, log: PredictionLog) -> Rows:
        kind = log.WhichOneof("log_type")
        if kind == _PREDICT:
            request = log.predict_log.request
            signature = request.model_spec.signature_name
            if signature not in _SIGNATURES:
                raise DataError(f"wanted the signature serving_default or raw. Received {signature!r}")
            inputs = {name: to_array(proto, name) for name, proto in request.inputs.items()}
            return self._raw(inputs) if signature == "raw" else self._prepared(inputs)
        if kind in _EXAMPLES:
            return self._examples(getattr(log, kind).request.input)
        raise DataError(f"wanted one of the logs {', '.join((_PREDICT, *_EXAMPLES))}. Received {kind}")

    def _prepared(self, inputs: Mapping[str, np.ndarray]) -> Rows:
        """Rows of `serving_default`: logarithms and ids."""
        names = ("categorical", "weights") if self.spec.weighted else ("categorical",)
        dense = self._checked(inputs, dict.fromkeys(names, self.spec.id_columns))
        if not np.isfinite(dense).all():
            raise DataError("wanted finite numbers in dense. Received others")
        ids = int32_ids(inputs["categorical"], "request")
        self._logarithms = True
        return _unlabelled(dense.astype(np.float32), ids, inputs["weights"].astype(np.float32) if self.spec.weighted else None)

    def _raw(self, inputs: Mapping[str, np.ndarray]) -> Rows:
        """Rows of `raw`: numbers and keys as in the log."""
        dense = self._checked(inputs, {"categorical": len(self.spec.categorical_names)})
        return self._encoded(dense, lambda known: self._encoder.arrays(known, inputs["categorical"]))

    def _checked(self, inputs: Mapping[str, np.ndarray], columns: Mapping[str, int]) -> np.ndarray:
        """Checks the shapes of all inputs, of which `columns` are those beside `dense`, and returns `dense`, `[n, d]`.

        A model without dense features has no input `dense`.
        """
        numbers = len(self.spec.dense_names)
        _check_shapes(inputs, {**({"dense": numbers} if numbers else {}), **columns})
        return inputs["dense"] if numbers else np.empty((len(inputs["categorical"]), 0), np.float32)

    def _examples(self, examples: Input) -> Rows:
        """Rows of tf.Examples: `dense` as in the log, and ids, or of a model with bags a list of keys for each feature."""
        rows = _features(examples)
        dense = _matrix(rows, "dense", "float_list")
        _check_shapes({"dense": dense}, {"dense": len(self.spec.dense_names)})
        if any("categorical" in row for row in rows):
            ids, weights = _matrix(rows, "categorical", "int64_list"), None
            _check_shapes({"categorical": ids}, {"categorical": self.spec.id_columns})
            if self.spec.weighted:
                weights = _matrix(rows, "weights", "float_list")
                _check_shapes({"weights": weights}, {"weights": self.spec.id_columns})
            return self._encoded(dense, lambda known: (log_dense(known), int32_ids(ids, "categorical"), weights))
        table: dict[str, list[Any]] = {}
        for name in self.spec.categorical_names:
            keys = [_values(row, name, "bytes_list") for row in rows]
            bag = self.spec.bags.get(name)
            table[name] = keys if bag else [one[0] if one else "" for one in keys]
            if bag and bag.weight_separator is not None:
                given = [_values(row, name + WEIGHTS, "float_list") for row in rows]
                # Where there are fewer weights than keys, the others are 1, as in the model.
                table[name + WEIGHTS] = [(some + [1.0] * len(one))[: len(one)] for some, one in zip(given, keys)]
        return self._encoded(dense, lambda known: self._encoder.columns({**table, **dict(zip(self.spec.dense_names, known.T))}))

    def _encoded(self, dense: np.ndarray, encode: Callable[[np.ndarray], tuple[Any, ...]]) -> Rows:
        """Rows of numbers as in the log, of which those that are not finite are missing."""
        missing = ~np.isfinite(dense)
        encoded, ids, *weights = encode(np.where(missing, np.nan, dense))
        encoded[missing] = np.nan
        self._some_missing |= bool(missing.any())
        return _unlabelled(encoded, ids, *weights)


def _unlabelled(dense: np.ndarray, ids: np.ndarray, weights: Optional[np.ndarray] = None) -> Rows:
    return Rows(dense, ids, np.full(len(ids), np.nan, np.float32), weights)


def _features(examples: Input) -> list[dict[str, Any]]:
    """The features of each tf.Example; a context is merged in, an example's own features win."""
    if examples.WhichOneof("kind") == "example_list_with_context":
        given = examples.example_list_with_context
        return [{**given.context.features.feature, **example.features.feature} for example in given.examples]
    return [dict(example.features.feature) for example in examples.example_list.examples]


def _values(row: Mapping[str, Any], name: str, kind: str) -> list[Any]:
    return list(getattr(row[name], kind).value) if name in row else []


def _matrix(rows: list[dict[str, Any]], name: str, kind: str) -> np.ndarray:
    """One feature of all examples, float32 or int64 `[n, width]`."""
    lists = [_values(row, name, kind) for row in rows]
    widths = sorted({len(values) for values in lists})
    if len(widths) != 1:
        raise DataError(f"wanted as many values of {name} in every example. Received {widths}")
    return np.array(lists, np.int64 if kind == "int64_list" else np.float32).reshape(len(lists), -1)


def _check_shapes(inputs: Mapping[str, np.ndarray], columns: Mapping[str, int]) -> None:
    """Raises DataError where inputs are missing, have other shapes than `[n, columns]`, or are not the floats they should be."""
    received = {name: list(array.shape) for name, array in inputs.items()}
    rows = next((shape[0] for shape in received.values() if shape), 0)
    wanted = {name: [rows, width] for name, width in columns.items()}
    if received != wanted:
        raise DataError(f"wanted inputs of the shapes {wanted}. Received {received}")
    for name in {"dense", "weights"} & set(inputs):
        if inputs[name].dtype.kind != "f":
            raise DataError(f"wanted floats in {name}. Received {inputs[name].dtype}")
