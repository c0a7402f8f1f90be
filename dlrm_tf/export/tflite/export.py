"""Export a trained model as one quantized TFLite file for a device."""

import contextlib
import os
import tempfile
import warnings
from typing import Optional, Union

import numpy as np

from dlrm_tf.data.records import Records
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import UsageError, require
from dlrm_tf.export.budget import prune_weights
from dlrm_tf.export.tflite import flatbuffer, graph
from dlrm_tf.export.tflite.build import build_graph, choose_ids, describe_file, metadata_entries
from dlrm_tf.export.tflite.dense_layers import MLP_CHOICES
from dlrm_tf.export.tflite.report import TFLiteReport, check_auc, compare
from dlrm_tf.export.tflite.source import ExportSource
from dlrm_tf.export.tflite.table import device_table, fit_quantizer
from dlrm_tf.files import StrPath, atomic_file
from dlrm_tf.lite.scorer import Scorer
from dlrm_tf.weights.reader import WeightsReader

# Bits of a number in a table row.
TABLE_BITS = {"int8": 8, "int4": 4}
# What four-bit rows may cost in AUC unless the caller says otherwise.
INT4_AUC_LOSS = 0.001


def export_tflite(
    weights: StrPath,
    path: StrPath,
    *,
    mlp: str = "dynamic",
    table_dtype: str = "int8",
    evaluation: Optional[tuple] = None,
    max_size: Optional[int] = None,
    max_auc_loss: Optional[float] = None,
    data: Union[None, StrPath, Records] = None,
    vocabulary: Optional[StrPath] = None,
    spec: Union[None, StrPath, FeatureSpec] = None,
    quiet: bool = False,
    rows: Optional[str] = None,
) -> TFLiteReport:
    """Writes a quantized scorer: a table of integers with a scale per row, and dense layers of the precision `mlp`.

    The table is quantized while it is read from the weights file and streamed behind the graph: memory stays at some tens of
    megabytes whatever its size. The file appears whole or not at all. Run it with `dlrm_tf.lite.Scorer`, or with any TFLite
    runtime through its signature `score`.

    Args:
      weights: a `.weights.h5` file.
      path: the `.tflite` file to write.
      mlp: `"float32"`, `"float16"`, `"dynamic"` (int8, activations quantized on the fly) or `"mixed"` (dynamic, but float16 in
        the layer that reads the interactions).
      table_dtype: `"int8"`, or `"int4"`: half the size, some ten times the error; needs labels, and is refused when it costs more
        than `max_auc_loss` (0.001 unless given).
      evaluation: `(dense float32 [n, dense_dim], categorical int32 [n, id_columns])`, of a weighted model also `weights float32
        [n, id_columns]`, or that and `label [n]`: rows on which to compare with the float model; `dense` already
        log(max(x, 0) + 1). By default the test split of `data`.
      max_size: bytes the file may have. When the model is larger, the ids whose loss costs least become out of vocabulary; needs
        `data`.
      max_auc_loss: how far AUC may fall below the float model's; a worse file is not written. Needs labels.
      data: a folder made by `prepare`, or opened `Records`. Inputs of its train split (else those of `evaluation`) also calibrate
        int8 layers, which lowers their error.
      vocabulary: path of the vocabulary; its keys (of the ids kept) go into the file, and `Scorer.score_raw` takes raw rows.
      spec: the columns of the log, or their JSON file; by default those of `data`. Wanted with a vocabulary where features have
        several keys, for their separators.
      quiet: show no progress.
      rows: deprecated name of `table_dtype`.

    Returns:
      A `TFLiteReport`.

    Raises:
      CheckpointError: not a weights file, one that belongs to other data, or a table row that is not finite.
      DataError: evaluation rows of another shape than the model takes, or a vocabulary of other sizes.
      UsageError: an unknown `mlp` or `table_dtype`, or an option without the data it needs.
      DLRMError: a budget too small for the dense layers, a loss of AUC beyond the limit, or a file beyond the format's 2 GiB.
    """
    if rows is not None:
        warnings.warn("export_tflite: rows is now called table_dtype", DeprecationWarning, stacklevel=2)
        table_dtype = rows
    exporter = TFLiteExporter(weights, evaluation=evaluation, data=data, vocabulary=vocabulary, spec=spec, quiet=quiet)
    return exporter.export(path, mlp=mlp, table_dtype=table_dtype, max_size=max_size, max_auc_loss=max_auc_loss)


class TFLiteExporter:
    """Exports one model, as often as wanted: what exports share (reference scores, ranking of ids) is computed once.

    Args:
      weights: a `.weights.h5` file.
      evaluation: rows to compare on, as for `export_tflite`.
      data: a folder made by `prepare`, or opened `Records`.
      vocabulary: path of the vocabulary, or None.
      spec: the columns of the log, as for `export_tflite`.
      quiet: show no progress.

    Attributes:
      source: what exports read, an `ExportSource`.

    Raises:
      CheckpointError: not a weights file, or one that belongs to other data.
      DataError: evaluation rows of another shape than the model takes, or a vocabulary of other sizes.
    """

    def __init__(
        self,
        weights: StrPath,
        *,
        evaluation: Optional[tuple] = None,
        data: Union[None, StrPath, Records] = None,
        vocabulary: Optional[StrPath] = None,
        spec: Union[None, StrPath, FeatureSpec] = None,
        quiet: bool = False,
    ):
        require("ai_edge_litert", "lite")
        self.source = ExportSource(weights, evaluation=evaluation, data=data, vocabulary=vocabulary, spec=spec, quiet=quiet)

    def export(
        self,
        path: StrPath,
        *,
        mlp: str = "dynamic",
        table_dtype: str = "int8",
        max_size: Optional[int] = None,
        max_auc_loss: Optional[float] = None,
    ) -> TFLiteReport:
        """Writes one file.

        Args:
          path: the `.tflite` file to write.
          mlp: precision of the dense layers: `"float32"`, `"float16"`, `"dynamic"` or `"mixed"`.
          table_dtype: `"int8"` or `"int4"`.
          max_size: bytes the file may have, or None.
          max_auc_loss: how far AUC may fall below the float model's, or None.

        Returns:
          A `TFLiteReport`.

        Raises:
          CheckpointError: a table row is not finite.
          UsageError: an unknown `mlp` or `table_dtype`, or an option without the data it needs.
          DLRMError: a budget too small, a loss of AUC beyond the limit, or a file beyond the format's 2 GiB.
        """
        path, source = os.fspath(path), self.source
        self._check(mlp, table_dtype, max_auc_loss)
        if table_dtype == "int4" and max_auc_loss is None:
            max_auc_loss = INT4_AUC_LOSS
        kept = None if max_size is None else choose_ids(source, max_size, mlp, TABLE_BITS[table_dtype])
        with self._weights_of(kept) as weights, WeightsReader(weights) as reader, atomic_file(path) as temporary:
            config = reader.config
            quantizer = fit_quantizer(reader, TABLE_BITS[table_dtype], source=source.weights, quiet=source.quiet)
            calibration = source.calibrate(weights, kept)
            model, table = build_graph(reader, mlp, quantizer, calibration)
            for name, data in metadata_entries(source, kept).items():
                flatbuffer.add_metadata(model, name, data)
            flatbuffer.add_metadata(model, flatbuffer.METADATA, b"{}")
            quantization = {
                "rows": table_dtype,
                "scale_step": quantizer.step,
                "scale_mid": quantizer.mid,
                "mlp": mlp,
                "calibration_rows": 0 if calibration is None else calibration.rows,
            }
            metadata = describe_file(source, config, quantization)
            table_rows, width = graph.table_rows(config), quantizer.width(config.embedding_dim)
            pieces = device_table(reader, quantizer, quiet=source.quiet)
            flatbuffer.write(temporary, model, {table: (table_rows * width, pieces)})
            flatbuffer.set_metadata(temporary, metadata)
            flatbuffer.check_operators(temporary)
            errors = self._measure(temporary)
            check_auc(path, errors, max_auc_loss)
            flatbuffer.set_metadata(temporary, {**metadata, "errors": errors})
        return TFLiteReport(
            path=path,
            bytes=os.path.getsize(path),
            float_bytes=4 * source.config.num_parameters,
            table_rows=table_rows,
            bytes_per_row=width,
            table_dtype=table_dtype,
            mlp=mlp,
            ids=config.num_ids,
            ids_total=source.config.num_ids,
            **errors,
        )

    def _check(self, mlp: str, table_dtype: str, max_auc_loss: Optional[float]) -> None:
        if mlp not in MLP_CHOICES:
            raise UsageError(f"mlp must be one of {', '.join(MLP_CHOICES)}. Received {mlp!r}")
        if table_dtype not in TABLE_BITS:
            raise UsageError(f"table_dtype must be one of {', '.join(TABLE_BITS)}. Received {table_dtype!r}")
        if table_dtype == "int4" and self.source.config.embedding_dim % 2:
            raise UsageError(f"embedding_dim must be even for int4 rows. Received {self.source.config.embedding_dim}")
        if self.source.label is None and (table_dtype == "int4" or max_auc_loss is not None):
            what = "int4 rows" if table_dtype == "int4" else "a limit on the loss of AUC (--max-auc-loss)"
            raise UsageError(f"{what}: needs labelled rows to measure it on (--data DIR)")

    @contextlib.contextmanager
    def _weights_of(self, kept: Optional[list[np.ndarray]]):
        """Path of the weights file to export: the source's, or a temporary one with only the ids `kept`."""
        if kept is None:
            yield self.source.weights
            return
        with tempfile.TemporaryDirectory(prefix="dlrm_tf_prune_") as folder:
            pruned = os.path.join(folder, "pruned.weights.h5")
            prune_weights(self.source.weights, pruned, kept=kept, counts=self.source.counts, quiet=self.source.quiet)
            yield pruned

    def _measure(self, path: str) -> dict:
        """The last fields of the report: the written file against the float model of all ids."""
        if self.source.evaluation is None:
            return {"rows": 0}
        return compare(Scorer(path).score(*self.source.evaluation), self.source.float_probabilities, self.source.label)
