"""A TFLite file's graph and metadata, and the ids that a budget of bytes leaves room for."""

import json
from typing import Any, Optional

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.features import DENSE_PREPROCESSING
from dlrm_tf.errors import DLRMError, UsageError
from dlrm_tf.export.tflite import flatbuffer, graph
from dlrm_tf.export.tflite.calibration import Calibration, correct
from dlrm_tf.export.tflite.dense_layers import layer_precision, quantize_dense_layers
from dlrm_tf.export.tflite.quantize import RowQuantizer
from dlrm_tf.export.tflite.source import ExportSource
from dlrm_tf.export.vocabulary import vocabulary_bytes
from dlrm_tf.lite.ids import KEPT_IDS, encode_kept_ids
from dlrm_tf.lite.metadata import VOCABULARY
from dlrm_tf.model.subset import STAND_IN_ROWS
from dlrm_tf.weights.reader import WeightsReader

FORMAT = "dlrm_tf.tflite.1"
PREPROCESSING = f"dense: {DENSE_PREPROCESSING}; categorical: ids, any id outside [0, size) is out of vocabulary"
# Bytes set aside for the metadata, which is written last.
_METADATA_BYTES = 8192


def build_graph(
    reader: WeightsReader, mlp: str, quantizer: RowQuantizer, calibration: Optional[Calibration]
) -> tuple[schema.ModelT, int]:
    """The graph with its dense layers, but without its table.

    Args:
      reader: an open weights file.
      mlp: precision of the dense layers, one of `MLP_CHOICES`.
      quantizer: how table rows are decoded.
      calibration: corrects int8 layers; None to leave them as they are.

    Returns:
      `(graph, number of the buffer the table belongs in)`.
    """
    config, factors = reader.config, None
    layers = {(m, i): reader.dense(m, i) for m, i, _, _ in config.dense_shapes()}
    precision = layer_precision(config, mlp)
    if calibration is not None:
        layers, factors = correct(layers, precision, calibration)
    model = flatbuffer.read(graph.convert(config, layers, quantizer))
    flatbuffer.shorten_names(model)
    quantize_dense_layers(model, layers, precision, factors)
    return model, flatbuffer.resize_table(model, STAND_IN_ROWS, graph.table_rows(config))


def metadata_entries(source: ExportSource, kept: Optional[list[np.ndarray]]) -> dict[str, bytes]:
    """Metadata entries beside the JSON, by name: the kept ids and the vocabulary.

    Args:
      source: what is exported.
      kept: per feature, the ids in the file; None when all are.
    """
    entries = {} if kept is None else {KEPT_IDS: encode_kept_ids(kept)}
    if source.vocabulary is not None:
        entries[VOCABULARY] = vocabulary_bytes(source.vocabulary, kept)
    return entries


def describe_file(source: ExportSource, config: DLRMConfig, quantization: dict) -> dict:
    """The JSON in the file's metadata, all but the measured errors.

    Args:
      source: what is exported.
      config: of the file; its sizes are smaller than the source's where ids were left out.
      quantization: the field of that name.
    """
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "config": json.loads(config.to_json()),
        "inputs": _inputs(config),
        "outputs": {"probability": "float32 [batch_size, 1]"},
        "preprocessing": PREPROCESSING + ("; -1 is an unused place of a bag" if config.has_bags else ""),
        "quantization": quantization,
        "source_sha256": source.attributes["source_sha256"],
        "vocabulary_fingerprint": source.attributes["vocabulary_fingerprint"],
    }
    if source.records is not None:
        spec = source.records.spec
        metadata["features"] = {"dense": list(spec.dense_names), "categorical": list(spec.categorical_names)}
    elif source.vocabulary is not None:
        metadata["features"] = {"categorical": list(source.vocabulary.names)}
    if source.columns is not None and source.columns.bags:
        metadata["features"]["bags"] = {name: bag.to_dict() for name, bag in source.columns.bags.items()}
    if source.columns is not None and source.columns.missing:
        metadata["features"]["missing"] = list(source.columns.missing)
    if config != source.config:
        metadata["original_sizes"] = list(source.config.categorical_feature_sizes)
    return metadata


def _inputs(config: DLRMConfig) -> dict[str, str]:
    """The inputs in words; those of a model with bags are told apart from the ones that all files had before."""
    widths = {"dense": "dense_dim", "categorical": "sum(hot_sizes)" if config.has_bags else "F", "weights": "sum(hot_sizes)"}
    return {name: f"{dtype} [batch_size, {widths[name]}]" for name, (dtype, _) in config.inputs.items()}


def choose_ids(source: ExportSource, max_size: int, mlp: str, bits: int) -> Optional[list[np.ndarray]]:
    """The ids that a file of at most `max_size` bytes has room for.

    Args:
      source: what is exported.
      max_size: bytes.
      mlp: precision of the dense layers, one of `MLP_CHOICES`.
      bits: of a number in a table row, 8 or 4.

    Returns:
      Per feature, ascending ids int64; None when the file has room for all.

    Raises:
      UsageError: ids have to be left out, but there is no data to choose them by.
      DLRMError: one id per feature is too much.
    """
    quantizer = RowQuantizer(1.0, 0.0, bits)
    with WeightsReader(source.weights) as reader:
        model, table = build_graph(reader, mlp, quantizer, None)
    width, features = quantizer.width(source.config.embedding_dim), source.config.num_categorical

    def size(ids: int, entries: dict) -> int:
        table_bytes = (ids + 2 * features) * width
        return flatbuffer.packed_size(model, {table: table_bytes}, entries.values()) + _METADATA_BYTES

    if size(sum(source.config.categorical_feature_sizes), metadata_entries(source, None)) <= max_size:
        return None
    if source.records is None:
        raise UsageError("max_size needs data to choose ids by (--data DIR). Received none")
    ids = source.ranking.total
    while True:
        kept = source.ranking.keep(ids)
        needed = size(ids, metadata_entries(source, kept))
        if needed <= max_size:
            return kept
        if ids == source.ranking.minimum:
            raise DLRMError(f"max_size {max_size:,} bytes is too small: one id per feature and {mlp} layers take {needed:,}")
        # Sizes grow nearly in proportion to the ids: a few steps arrive just below the budget.
        smallest = size(0, {})
        share = max(max_size - smallest, 0) / (needed - smallest)
        ids = max(min(int(ids * share), ids - 1), source.ranking.minimum)
