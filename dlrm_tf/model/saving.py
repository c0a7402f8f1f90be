"""A model's weights to a weights file and back, chunk by chunk: never a second whole copy of the table."""

import json
from typing import Any, Callable

import numpy as np

from dlrm_tf.config import BAG_DEFAULTS
from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import StrPath
from dlrm_tf.weights.layout import table_chunks
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter


def save_weights(model: Any, path: StrPath, *, source_sha256: str = "", vocabulary_fingerprint: str = "") -> None:
    """Writes a `DLRM`'s weights; the table goes chunk by chunk, never as a second whole copy.

    Args:
      model: a built `dlrm_tf.DLRM`, or its Keras 3 twin.
      path: the `.weights.h5` file to write.
      source_sha256: checksum of the file the weights were converted from, "" when there is none.
      vocabulary_fingerprint: of the vocabulary the ids come from, "" when it is not known.

    Raises:
      CheckpointError: `path` does not end in `.weights.h5`.
    """
    with WeightsWriter(path, model.config, source_sha256=source_sha256, vocabulary_fingerprint=vocabulary_fingerprint) as writer:
        write_model(model, writer)


def write_model(model: Any, writer: WeightsWriter) -> None:
    """Writes all weights of a `DLRM` into an open weights file.

    Args:
      model: a built `dlrm_tf.DLRM`, or its Keras 3 twin.
      writer: the open file, of the model's configuration.
    """
    for mlp, i, _, _ in model.config.dense_shapes():
        layer = model.dense_layer(mlp, i)
        writer.write_dense(mlp, i, layer.kernel.numpy(), layer.bias.numpy())
    for start, stop in table_chunks(model.config):
        writer.write_table(start, model.embedding.read_rows(start, stop))


def load_weights(model: Any, path: StrPath) -> dict:
    """Reads a weights file into a model, after checking that its configuration is the model's.

    Args:
      model: a built `dlrm_tf.DLRM`.
      path: a `.weights.h5` file.

    Returns:
      The file's attributes (`WeightsReader.attributes`).

    Raises:
      CheckpointError: not a weights file, or of another configuration; the fields that differ are named.
    """
    with WeightsReader(path) as reader:
        mine, other = ({**BAG_DEFAULTS, **json.loads(c.to_json())} for c in (model.config, reader.config))
        differ = [f"{k} wanted {mine[k]}, received {other[k]}" for k in mine if mine[k] != other[k]]
        if differ:
            raise CheckpointError(f"{path}: the file does not fit the model: {'; '.join(differ)}")
        assign_dense(model, reader.dense)
        for start, stop in table_chunks(model.config):
            model.embedding.write_rows(start, reader.table(start, stop))
        return reader.attributes


def assign_dense(model: Any, weights: Callable[[str, int], tuple[np.ndarray, np.ndarray]]) -> None:
    """Sets the weights of all dense layers of a `DLRM`.

    Args:
      model: a built `dlrm_tf.DLRM`, or its Keras 3 twin.
      weights: function `(mlp, layer) -> (kernel [in, out], bias [out])`, such as `WeightsReader.dense`.
    """
    for mlp, i, _, _ in model.config.dense_shapes():
        layer = model.dense_layer(mlp, i)
        for variable, values in zip((layer.kernel, layer.bias), weights(mlp, i)):
            variable.assign(values)
