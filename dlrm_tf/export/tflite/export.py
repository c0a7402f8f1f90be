"""Export a trained model as one quantized TFLite file for a device."""

import dataclasses
import functools
import os
import tempfile
from typing import Optional

import numpy as np

from dlrm_tf.data.records import Records
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError, DLRMError, UsageError, require
from dlrm_tf.export.budget import IdRanking, count_ids, id_values, loss_of_dropping, prune_weights
from dlrm_tf.export.tflite import dense_layers, flatbuffer, graph
from dlrm_tf.export.tflite.calibration import CALIBRATION_ROWS, LEAST_ROWS, calibrate, correct
from dlrm_tf.export.tflite.dense_layers import MLP_CHOICES
from dlrm_tf.export.tflite.quantize import RowQuantizer
from dlrm_tf.export.tflite.report import TFLiteReport, check_auc, compare
from dlrm_tf.export.tflite.table import device_table, fit_quantizer
from dlrm_tf.export.vocabulary import vocabulary_bytes
from dlrm_tf.files import atomic_file
from dlrm_tf.lite.ids import KEPT_IDS, encode_kept_ids
from dlrm_tf.lite.metadata import VOCABULARY
from dlrm_tf.lite.scorer import Scorer
from dlrm_tf.model.subset import float_probabilities
from dlrm_tf.train.evaluate import check_fits
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber

FORMAT = "dlrm_tf.tflite.1"
PREPROCESSING = "dense: log(max(x, 0) + 1), missing 0; categorical: ids, any id outside [0, size) is out of vocabulary"
ROW_BITS = {"int8": 8, "int4": 4}
# What four-bit rows may cost in AUC unless the caller says otherwise.
INT4_AUC_LOSS = 0.001
# Rows of the test split an export is compared on, and rows of the train split ids are ranked on.
EVALUATION_ROWS = 200_000
RANKING_ROWS = 1_000_000
# Bytes set aside for the metadata, which is written last.
_METADATA_BYTES = 8192


def export_tflite(
    weights,
    path,
    mlp: str = "dynamic",
    evaluation=None,
    rows: str = "int8",
    max_size: Optional[int] = None,
    max_auc_loss: Optional[float] = None,
    data=None,
    vocabulary=None,
    quiet: bool = False,
) -> TFLiteReport:
    """Writes a quantized scorer: table rows of integers with a scale each, and dense layers of the precision `mlp`.

    The table is quantized while it is read from the weights file and streamed behind the graph: memory stays at some tens of
    megabytes whatever its size. The file appears whole or not at all. Run it with `dlrm_tf.lite.Scorer`, or with any TFLite
    runtime through its signature `score`.

    Args:
      weights: a `.weights.h5` file.
      path: the `.tflite` file to write.
      mlp: `"float32"`, `"float16"`, `"dynamic"` (int8, activations quantized on the fly) or `"mixed"` (dynamic, but float16 in
        the layer that reads the interactions).
      evaluation: `(dense float32 [n, dense_dim], categorical int32 [n, F])` or that and `label [n]`, rows on which to compare
        with the float model; `dense` already log(max(x, 0) + 1). By default the test split of `data`.
      rows: `"int8"`, or `"int4"`: half the size, some ten times the error; needs labels, and is refused when it costs more than
        `max_auc_loss` (0.001 unless given).
      max_size: bytes the file may have. When the model is larger, the ids whose loss costs least become out of vocabulary; needs
        `data`.
      max_auc_loss: how far AUC may fall below the float model's; a worse file is not written. Needs labels.
      data: a folder made by `prepare`, or opened `Records`. Inputs of its train split (else those of `evaluation`) also calibrate
        int8 layers, which lowers their error.
      vocabulary: path of the vocabulary; its keys (of the ids kept) travel in the file, and `Scorer.score_raw` takes raw rows.
      quiet: show no progress.

    Returns:
      A `TFLiteReport`.

    Raises:
      CheckpointError: not a weights file, one that belongs to other data, or a table row that is not finite.
      DataError: evaluation rows of another shape than the model takes, or a vocabulary of other sizes.
      UsageError: an unknown `mlp` or `rows`, or an option without the data it needs.
      DLRMError: a budget too small for the dense layers, a loss of AUC beyond the limit, or a file beyond the format's 2 GiB.
    """
    exporter = TFLiteExporter(weights, evaluation, data, vocabulary, quiet)
    return exporter.export(path, mlp, rows, max_size, max_auc_loss)


class TFLiteExporter:
    """Exports one model, several times at will: what exports share (reference scores, ranking of ids) is computed once.

    See `export_tflite` for the arguments.
    """

    def __init__(self, weights, evaluation=None, data=None, vocabulary=None, quiet: bool = False):
        require("ai_edge_litert", "lite")
        self.weights, self._quiet = os.fspath(weights), quiet
        with WeightsReader(self.weights) as reader:
            self.config = reader.config
            self._attributes = reader.attributes
        self._records = self._open(data)
        self._vocabulary = self._load(vocabulary)
        if evaluation is None and self._records is not None and self._records.rows("test"):
            dense, categorical, label = self._records.numpy("test", 0, EVALUATION_ROWS)
            evaluation = np.log1p(dense), categorical, label
        self._evaluation, self._label = _checked(evaluation, self.config)

    def export(self, path, mlp="dynamic", rows="int8", max_size=None, max_auc_loss=None) -> TFLiteReport:
        """Writes one file; see `export_tflite`."""
        path = os.fspath(path)
        if mlp not in MLP_CHOICES:
            raise UsageError(f"mlp must be one of {', '.join(MLP_CHOICES)}. Received {mlp!r}")
        if rows not in ROW_BITS:
            raise UsageError(f"rows must be one of {', '.join(ROW_BITS)}. Received {rows!r}")
        if rows == "int4" and self.config.embedding_dim % 2:
            raise UsageError(f"int4 rows need an even embedding_dim. Received {self.config.embedding_dim}")
        if rows == "int4" and max_auc_loss is None:
            max_auc_loss = INT4_AUC_LOSS
        if max_auc_loss is not None and self._label is None:
            what = "int4 rows" if rows == "int4" else "a limit on the loss of AUC (--max-auc-loss)"
            raise UsageError(f"{what}: needs labelled rows to measure it on (--data DIR)")
        kept = self._choose(max_size, mlp, rows) if max_size is not None else None
        if kept is None:
            return self._write(path, self.weights, None, mlp, rows, max_auc_loss)
        with tempfile.TemporaryDirectory(prefix="dlrm_tf_prune_") as folder:
            pruned = os.path.join(folder, "pruned.weights.h5")
            prune_weights(self.weights, pruned, kept=kept, counts=self._counts, quiet=self._quiet)
            return self._write(path, pruned, kept, mlp, rows, max_auc_loss)

    def _open(self, data):
        if data is None:
            return None
        records = data if isinstance(data, Records) else Records.open(data)
        check_fits(self.config, self._attributes["vocabulary_fingerprint"], records, self.weights)
        return records

    def _load(self, path):
        if path is None:
            return None
        vocabulary = Vocabulary.load(path)
        if vocabulary.sizes != self.config.categorical_feature_sizes:
            raise DataError(f"{path}: sizes {vocabulary.sizes} are not the model's, {self.config.categorical_feature_sizes}")
        trained = self._attributes["vocabulary_fingerprint"]
        if trained and trained != vocabulary.fingerprint:
            raise DataError(
                f"{path}: is vocabulary {vocabulary.fingerprint[:12]}…, {self.weights} was trained with {trained[:12]}…"
            )
        return vocabulary

    def _training_rows(self, rows: int) -> tuple:
        """`(dense, categorical)` of the last rows of the train split: the most recent ones of a log."""
        total = self._records.rows("train")
        dense, categorical, _ = self._records.numpy("train", max(total - rows, 0), total)
        return np.log1p(dense), categorical

    @functools.cached_property
    def _float_probabilities(self):
        return float_probabilities(self.weights, *self._evaluation)

    @functools.cached_property
    def _counts(self):
        return count_ids(self._records, quiet=self._quiet)

    @functools.cached_property
    def _ranking(self):
        measured = loss_of_dropping(self.weights, *self._training_rows(RANKING_ROWS), self._counts, quiet=self._quiet)
        return IdRanking(id_values(*measured, self._counts))

    def _choose(self, max_size: int, mlp: str, rows: str) -> Optional[list]:
        """The ids a file of at most `max_size` bytes can keep, or None when it holds them all."""
        quantizer = RowQuantizer(1.0, 0.0, ROW_BITS[rows])
        model, _, table = self._graph(self.weights, mlp, quantizer, None)
        width, features = quantizer.width(self.config.embedding_dim), self.config.num_categorical

        def size(ids: int, extras: dict) -> int:
            table_bytes = (ids + 2 * features) * width
            return flatbuffer.packed_size(model, {table: table_bytes}, extras.values()) + _METADATA_BYTES

        if size(sum(self.config.categorical_feature_sizes), self._extras(None)) <= max_size:
            return None
        if self._records is None:
            raise UsageError("a size budget (--max-size) needs data to choose ids by (--data DIR)")
        ids = self._ranking.total
        while True:
            kept = self._ranking.keep(ids)
            needed = size(ids, self._extras(kept))
            if needed <= max_size:
                return kept
            if ids == self._ranking.minimum:
                raise DLRMError(f"max_size {max_size:,} bytes is too small: one id a feature and {mlp} layers take {needed:,}")
            # Sizes grow nearly in proportion to the ids: a few steps arrive just below the budget.
            smallest = size(0, {})
            share = max(max_size - smallest, 0) / (needed - smallest)
            ids = max(min(int(ids * share), ids - 1), self._ranking.minimum)

    def _extras(self, kept: Optional[list]) -> dict:
        """Metadata entries beside the JSON: name -> bytes."""
        extras = {} if kept is None else {KEPT_IDS: encode_kept_ids(kept)}
        if self._vocabulary is not None:
            extras[VOCABULARY] = vocabulary_bytes(self._vocabulary, kept)
        return extras

    def _graph(self, weights: str, mlp: str, quantizer: RowQuantizer, calibration) -> tuple:
        """`(model, configuration, buffer of the table)` of the graph without its table."""
        with WeightsReader(weights) as reader:
            config = reader.config
            layers, factors = {(m, i): reader.dense(m, i) for m, i, _, _ in config.dense_shapes()}, None
        precision = dense_layers.layer_precision(config, mlp)
        if calibration is not None:
            layers, factors = correct(layers, precision, calibration)
        model = flatbuffer.read(graph.convert(config, layers, quantizer))
        flatbuffer.shorten_names(model)
        dense_layers.quantize_dense_layers(model, layers, precision, factors)
        return model, config, flatbuffer.resize_table(model, graph.STAND_IN_ROWS, graph.table_rows(config))

    def _calibrate(self, weights: str, kept):
        """`Calibration` on training rows, else on the evaluation rows (labels play no part); None when they are too few."""
        if self._records is not None and self._records.rows("train"):
            dense, categorical = self._training_rows(CALIBRATION_ROWS)
        elif self._evaluation is not None:
            dense, categorical = self._evaluation
        else:
            return None
        if len(dense) < LEAST_ROWS:
            return None
        return calibrate(weights, dense, categorical if kept is None else renumber(categorical, kept))

    def _write(self, path: str, weights: str, kept, mlp: str, rows: str, max_auc_loss) -> TFLiteReport:
        with WeightsReader(weights) as reader:
            quantizer = fit_quantizer(reader, ROW_BITS[rows], self.weights, self._quiet)
            calibration = self._calibrate(weights, kept)
            model, config, table = self._graph(weights, mlp, quantizer, calibration)
            for name, data in self._extras(kept).items():
                flatbuffer.add_metadata(model, name, data)
            flatbuffer.add_metadata(model, flatbuffer.METADATA, b"{}")
            table_rows, width = graph.table_rows(config), quantizer.width(config.embedding_dim)
            metadata = self._metadata(config, quantizer, mlp, rows, kept)
            metadata["quantization"]["calibration_rows"] = 0 if calibration is None else calibration.rows
            with atomic_file(path) as temporary:
                pieces = device_table(reader, quantizer, self._quiet)
                flatbuffer.write(temporary, model, {table: (table_rows * width, pieces)})
                flatbuffer.set_metadata(temporary, metadata)
                flatbuffer.check_operators(temporary)
                errors = self._compare(temporary)
                check_auc(path, errors, max_auc_loss)
                flatbuffer.set_metadata(temporary, {**metadata, "errors": errors})
        ids, total = sum(config.categorical_feature_sizes), sum(self.config.categorical_feature_sizes)
        float_bytes = 4 * self.config.num_parameters
        return TFLiteReport(path, os.path.getsize(path), float_bytes, table_rows, width, rows, mlp, ids, total, **errors)

    def _metadata(self, config, quantizer: RowQuantizer, mlp: str, rows: str, kept) -> dict:
        metadata = {
            "format": FORMAT,
            "config": dataclasses.asdict(config),
            "inputs": {"dense": "float32 [batch_size, dense_dim]", "categorical": "int32 [batch_size, F]"},
            "outputs": {"probability": "float32 [batch_size, 1]"},
            "preprocessing": PREPROCESSING,
            "quantization": {"rows": rows, "scale_step": quantizer.step, "scale_mid": quantizer.mid, "mlp": mlp},
            "source_sha256": self._attributes["source_sha256"],
            "vocabulary_fingerprint": self._attributes["vocabulary_fingerprint"],
        }
        if self._records is not None:
            spec = self._records.spec
            metadata["features"] = {"dense": list(spec.dense_names), "categorical": list(spec.categorical_names)}
        elif self._vocabulary is not None:
            metadata["features"] = {"categorical": list(self._vocabulary.names)}
        if kept is not None:
            metadata["original_sizes"] = list(self.config.categorical_feature_sizes)
        return metadata

    def _compare(self, path: str) -> dict:
        """The last fields of the report: the written file against the float model of all ids."""
        if self._evaluation is None:
            return {"rows": 0}
        return compare(Scorer(path).score(*self._evaluation), self._float_probabilities, self._label)


def _checked(evaluation, config) -> tuple:
    """Evaluation rows as `((dense, categorical) or None, label or None)`, of the right types and shapes."""
    if evaluation is None or not len(evaluation[0]):
        return None, None
    dense, categorical = np.asarray(evaluation[0], np.float32), np.asarray(evaluation[1])
    wanted = (len(dense), config.dense_dim), (len(dense), config.num_categorical)
    if (dense.shape, categorical.shape) != wanted:
        raise DataError(
            f"evaluation rows: wanted shapes {wanted[0]} and {wanted[1]}. Received {dense.shape} and {categorical.shape}"
        )
    label = np.asarray(evaluation[2], np.float32).reshape(-1) if len(evaluation) > 2 else None
    if label is not None and len(label) != len(dense):
        raise DataError(f"evaluation rows: wanted {len(dense)} labels. Received {len(label)}")
    return (dense, categorical.astype(np.int32)), label
