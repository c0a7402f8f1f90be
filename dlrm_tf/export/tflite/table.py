"""The embedding table of the device: its range measured, then its rows quantized, chunk by chunk."""

from collections.abc import Iterator

from dlrm_tf.export.tflite.quantize import RowQuantizer, table_range
from dlrm_tf.progress import Progress
from dlrm_tf.weights.layout import row_chunks
from dlrm_tf.weights.reader import WeightsReader

# Rows at a time: 16 MiB of a 16-wide float32 table.
_CHUNK_ROWS = 1 << 18


def fit_quantizer(reader: WeightsReader, bits: int, *, source: str, quiet: bool = False) -> RowQuantizer:
    """The quantizer of a weights file's table, which is read once.

    Args:
      reader: an open weights file.
      bits: 8 or 4.
      source: named in errors.
      quiet: show no progress.

    Raises:
      CheckpointError: a row is not finite.
    """
    total = reader.config.table_rows

    def chunks(progress):
        for start, stop in row_chunks(0, total, _CHUNK_ROWS):
            rows = reader.table(start, stop)
            yield start, rows
            progress.update(len(rows))

    with Progress("measure", total, "rows", quiet=quiet) as progress:
        return RowQuantizer.fit(*table_range(chunks(progress), source), bits=bits)


def device_table(reader: WeightsReader, quantizer: RowQuantizer, *, quiet: bool = False) -> Iterator[bytes]:
    """The bytes of the device's table, in which a block is OOV row, ids, OOV row.

    Args:
      reader: an open weights file.
      quantizer: what `fit_quantizer` gave.
      quiet: show no progress.

    Yields:
      The bytes, piece by piece in the order of the file.
    """
    with Progress("quantize", reader.config.table_rows, "rows", quiet=quiet) as progress:
        for feature in reader.config.table_features:
            size = reader.config.categorical_feature_sizes[feature]
            yield quantizer.quantize(reader.rows(feature, size, size + 1)).tobytes()
            for start in range(0, size + 1, _CHUNK_ROWS):
                rows = reader.rows(feature, start, start + _CHUNK_ROWS)
                yield quantizer.quantize(rows).tobytes()
                progress.update(len(rows))
