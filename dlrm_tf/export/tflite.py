"""Export a trained model as one quantized TFLite file for a device."""

import dataclasses
import os
from typing import Optional

import numpy as np

from dlrm_tf.errors import DataError, UsageError, require
from dlrm_tf.export.quantize import RowQuantizer, table_range
from dlrm_tf.files import atomic_file
from dlrm_tf.model.weights import WeightsReader
from dlrm_tf.progress import Progress

# Rows quantized at a time: 16 MiB of a 16-wide float32 table.
_CHUNK_ROWS = 1 << 18
FORMAT = "dlrm_tf.tflite.1"
PREPROCESSING = "dense: log(max(x, 0) + 1), missing 0; categorical: ids of the vocabulary, any other id is out of vocabulary"


@dataclasses.dataclass(frozen=True)
class TFLiteReport:
    """What an export wrote, and how far its probabilities are from the float model's.

    Attributes:
      path: the file.
      bytes: its size.
      table_rows: rows of the device's table; a block is OOV row, ids, OOV row.
      bytes_per_row: bytes a table row takes.
      mlp: precision of the dense layers.
      float_bytes: size of the float32 weights.
      rows: rows compared, 0 when no evaluation rows were given; then the errors are None.
      max_error: largest |probability - float probability|.
      mean_error: mean of it.
    """

    path: str
    bytes: int
    table_rows: int
    bytes_per_row: int
    mlp: str
    float_bytes: int
    rows: int = 0
    max_error: Optional[float] = None
    mean_error: Optional[float] = None

    def __str__(self):
        lines = [
            f"{self.path}: {self.bytes:,} bytes ({self.float_bytes / self.bytes:.1f} times smaller than float32)",
            f"table {self.table_rows:,} rows of {self.bytes_per_row} bytes, dense layers {self.mlp}",
        ]
        if self.rows:
            lines.append(
                f"|probability - float probability| on {self.rows:,} rows: max {self.max_error:.5f}, mean {self.mean_error:.5f}"
            )
        return "\n".join(lines)


def export_tflite(weights, path, mlp: str = "mixed", evaluation=None, quiet: bool = False) -> TFLiteReport:
    """Writes a quantized scorer: int8 table rows with a scale each, and dense layers of the precision `mlp`.

    The table is quantized while it is read from the weights file and streamed behind the graph: memory stays at some tens of
    megabytes whatever its size. The file appears whole or not at all. Run it with `dlrm_tf.lite.Scorer`, or with any TFLite
    runtime through its signature `score`.

    Args:
      weights: a `.weights.h5` file.
      path: the `.tflite` file to write.
      mlp: `"float32"`, `"float16"`, `"dynamic"` (int8, activations quantized on the fly) or `"mixed"` (dynamic, but float16 in
        the layer that reads the interactions).
      evaluation: `(dense float32 [n, dense_dim], categorical int32 [n, F])`, rows on which to compare with the float model;
        `dense` already log(max(x, 0) + 1).
      quiet: show no progress.

    Returns:
      A `TFLiteReport`.

    Raises:
      CheckpointError: not a weights file, or a table row that is not finite.
      DataError: evaluation rows of another shape than the model takes.
      UsageError: an unknown `mlp`.
      DLRMError: the file would exceed the format's 2 GiB.
    """
    weights, path = os.fspath(weights), os.fspath(path)
    require("ai_edge_litert", "lite")
    from dlrm_tf.export import flatbuffer, lite_dense, lite_graph

    if mlp not in lite_dense.MLP_CHOICES:
        raise UsageError(f"mlp must be one of {', '.join(lite_dense.MLP_CHOICES)}. Received {mlp!r}")
    with WeightsReader(weights) as reader:
        config = reader.config
        evaluation = _checked(evaluation, config)
        dense_layers = {(m, i): reader.dense(m, i) for m, i, _, _ in config.dense_shapes()}
        quantizer = RowQuantizer.fit(*table_range(_chunks(reader, "measure", quiet), weights))
        model = flatbuffer.read(lite_graph.convert(config, dense_layers, quantizer))
        lite_dense.quantize_dense_layers(model, dense_layers, lite_dense.layer_precision(config, mlp))
        table = flatbuffer.resize_table(model, lite_graph.STAND_IN_ROWS, lite_graph.table_rows(config))
        flatbuffer.add_metadata(model)
        rows, width = lite_graph.table_rows(config), 1 + config.embedding_dim
        with atomic_file(path) as temporary:
            pieces = (part.tobytes() for part in _device_rows(reader, quantizer, quiet))
            flatbuffer.write(temporary, model, {table: (rows * width, pieces)})
            metadata = {
                "format": FORMAT,
                "config": dataclasses.asdict(config),
                "inputs": {"dense": "float32 [batch_size, dense_dim]", "categorical": "int32 [batch_size, F]"},
                "outputs": {"probability": "float32 [batch_size, 1]"},
                "preprocessing": PREPROCESSING,
                "quantization": {"rows": "int8", "scale_step": quantizer.step, "scale_mid": quantizer.mid, "mlp": mlp},
                "source_sha256": reader.attributes["source_sha256"],
                "vocabulary_fingerprint": reader.attributes["vocabulary_fingerprint"],
            }
            flatbuffer.set_metadata(temporary, metadata)
            flatbuffer.check_operators(temporary)
            errors = _compare(weights, temporary, evaluation)
            flatbuffer.set_metadata(temporary, {**metadata, "errors": errors})
    return TFLiteReport(path, os.path.getsize(path), rows, width, mlp, 4 * config.num_parameters, **errors)


def _checked(evaluation, config):
    """The evaluation rows as arrays of the right type, or None."""
    if evaluation is None:
        return None
    dense, categorical = np.asarray(evaluation[0], np.float32), np.asarray(evaluation[1])
    wanted = (len(dense), config.dense_dim), (len(dense), config.num_categorical)
    if (dense.shape, categorical.shape) != wanted:
        raise DataError(f"evaluation rows: wanted shapes {wanted[0]} and {wanted[1]}, came {dense.shape} and {categorical.shape}")
    return dense, categorical.astype(np.int32)


def _chunks(reader, label: str, quiet: bool):
    """Yields `(first row, rows)` over the float table."""
    total = reader.config.table_rows
    with Progress(label, total, "rows", quiet=quiet) as progress:
        for start in range(0, total, _CHUNK_ROWS):
            rows = reader.table(start, min(start + _CHUNK_ROWS, total))
            yield start, rows
            progress.update(len(rows))


def _device_rows(reader, quantizer: RowQuantizer, quiet: bool):
    """Yields the device's quantized table piece by piece: every block is OOV row, ids, OOV row."""
    with Progress("quantize", reader.config.table_rows, "rows", quiet=quiet) as progress:
        for feature, size in enumerate(reader.config.categorical_feature_sizes):
            yield quantizer.quantize(reader.rows(feature, size, size + 1))
            for start in range(0, size + 1, _CHUNK_ROWS):
                rows = reader.rows(feature, start, start + _CHUNK_ROWS)
                yield quantizer.quantize(rows)
                progress.update(len(rows))


def _compare(weights: str, path: str, evaluation) -> dict:
    """`rows`, `max_error`, `mean_error` of the written file against the float model."""
    if evaluation is None or not len(evaluation[0]):
        return {"rows": 0, "max_error": None, "mean_error": None}
    from dlrm_tf.export.subset import float_probabilities
    from dlrm_tf.lite.scorer import Scorer

    error = np.abs(Scorer(path).score(*evaluation) - float_probabilities(weights, *evaluation))
    return {"rows": len(error), "max_error": float(error.max()), "mean_error": float(error.mean())}
