"""A model's weights to a weights file and back, chunk by chunk: never a second whole copy of the table."""

import json

from dlrm_tf.errors import CheckpointError
from dlrm_tf.weights.layout import table_chunks
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter


def save_weights(model, path, source_sha256: str = "", vocabulary_fingerprint: str = "") -> None:
    """Writes a `DLRM`'s weights; the table goes chunk by chunk, never as a second whole copy.

    Raises:
      CheckpointError: `path` does not end in `.weights.h5`.
    """
    with WeightsWriter(path, model.config, source_sha256=source_sha256, vocabulary_fingerprint=vocabulary_fingerprint) as writer:
        write_model(model, writer)


def write_model(model, writer: WeightsWriter) -> None:
    """Writes all of a `DLRM`'s weights into a weights file that is open."""
    for mlp, i, _, _ in model.config.dense_shapes():
        layer = model.dense_layer(mlp, i)
        writer.write_dense(mlp, i, layer.kernel.numpy(), layer.bias.numpy())
    for start, stop in table_chunks(model.config):
        writer.write_table(start, model.embedding.read_rows(start, stop))


def load_weights(model, path) -> dict:
    """Reads a weights file into a `DLRM`, checking that its configuration is the model's; returns the file's attributes.

    Raises:
      CheckpointError: not a weights file, or of another configuration; the fields that differ are named.
    """
    with WeightsReader(path) as reader:
        mine, other = (json.loads(c.to_json()) for c in (model.config, reader.config))
        differ = [f"{k} wanted {mine[k]}, received {other[k]}" for k in mine if mine[k] != other[k]]
        if differ:
            raise CheckpointError(f"{path}: the file does not fit the model: {'; '.join(differ)}")
        for mlp, i, _, _ in model.config.dense_shapes():
            layer = model.dense_layer(mlp, i)
            kernel, bias = reader.dense(mlp, i)
            layer.kernel.assign(kernel)
            layer.bias.assign(bias)
        for start, stop in table_chunks(model.config):
            model.embedding.write_rows(start, reader.table(start, stop))
        return reader.attributes
