"""The weights file: Keras's `.weights.h5` layout, written and read in bounded memory with h5py alone.

tf_keras's and Keras 3's own `load_weights` read it for the model here and for the Keras 3 twin. Root attributes carry the
configuration (JSON), the sha256 of the file it was converted from and the fingerprint of the vocabulary it was trained with.
The layout is written by us, not by Keras, because TF 2.6.5's Keras has another one and Keras's writer copies the whole table.
"""

import errno
import json
import os

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError, DataError
from dlrm_tf.files import atomic_file
from dlrm_tf.model import hdf5
from dlrm_tf.model.keras_file import KerasFile, is_keras_file

FORMAT = "dlrm_tf.weights.1"
TABLE = "embedding/vars/0"
# The group of an MLP's layers has an entry a layer and Keras's empty `vars`.
MAX_LAYERS = hdf5.MAX_ENTRIES - 1
# Rows moved at a time: 64 MiB of a 16-wide float32 table.
CHUNK_ROWS = 1 << 20
# Copied at a time by copy_rows: still in the processor's cache when it is written.
_COPY_BYTES, _PAGE_BYTES = 1 << 18, 1 << 12


def dense_path(mlp: str, layer: int, part: str) -> str:
    """Path of a dense layer's `"kernel"` or `"bias"` in the file; Keras numbers the layers of a list by class name."""
    name = "dense" if layer == 0 else f"dense_{layer}"
    return f"{mlp}/_sublayers/{name}/vars/{('kernel', 'bias').index(part)}"


def weight_shapes(config: DLRMConfig) -> dict:
    """Path -> shape of every weight a file of this configuration holds; all are float32."""
    shapes = {TABLE: (config.table_rows, config.embedding_dim)}
    for mlp, i, fan_in, fan_out in config.dense_shapes():
        shapes[dense_path(mlp, i, "kernel")] = (fan_in, fan_out)
        shapes[dense_path(mlp, i, "bias")] = (fan_out,)
    return shapes


def _check_shape(path: str, wanted: tuple, array) -> None:
    if tuple(array.shape) != tuple(wanted):
        raise CheckpointError(f"{path}: wanted shape {tuple(wanted)}, came {tuple(array.shape)}")


class WeightsWriter:
    """Writes a weights file piece by piece; use as a context manager. The file appears whole at the end, or not at all.

    Args:
      path: the file to write; must end in `.weights.h5`.
      config: the model's configuration.
      source_sha256: sha256 (hex) of the checkpoint the weights come from, or "".
      vocabulary_fingerprint: fingerprint of the vocabulary the ids come from, or "".

    Raises:
      CheckpointError: on leaving, if a dense layer was never written (rows never written are zeros).
    """

    def __init__(self, path, config: DLRMConfig, source_sha256: str = "", vocabulary_fingerprint: str = ""):
        if not os.fspath(path).endswith(".weights.h5"):
            raise CheckpointError(f"{path}: the name of a weights file must end in .weights.h5")
        if max(len(config.bottom_mlp), len(config.top_mlp)) > MAX_LAYERS:
            raise CheckpointError(f"{path}: a weights file holds at most {MAX_LAYERS} layers an MLP")
        self.config = config
        self._path = os.fspath(path)
        self._attributes = {
            "format": FORMAT,
            "config": config.to_json(),
            "source_sha256": source_sha256,
            "vocabulary_fingerprint": vocabulary_fingerprint,
        }
        self._missing = {p for p in weight_shapes(config) if p != TABLE}
        self._buffer = memoryview(bytearray(_COPY_BYTES))

    def __enter__(self):
        import h5py

        self._atomic = atomic_file(self._path)
        self._temporary = temporary = self._atomic.__enter__()
        try:
            self._file = h5py.File(temporary, "w", libver="latest")
            self._file.attrs.update(self._attributes)
            for path, shape in weight_shapes(self.config).items():
                self._file.create_dataset(path, shape, np.float32)
                # Keras's readers want a `vars` group in every object on the way down, even an empty one.
                parts = path.split("/")[:-2]
                for depth in range(len(parts)):
                    self._file.require_group("/".join([*parts[:depth], "vars"]))
        except BaseException as e:
            self._atomic.__exit__(type(e), e, e.__traceback__)
            raise
        return self

    def __exit__(self, exc_type, exc, tb):
        try:
            self._place_of_table()  # the reader wants all of a weight's bytes in the file, also of one never written
            self._file.close()
            if exc_type is None and self._missing:
                raise CheckpointError(f"{self._path}: never written: {', '.join(sorted(self._missing))}")
        except BaseException as e:
            if exc_type is None:
                self._atomic.__exit__(type(e), e, e.__traceback__)
                raise
        self._atomic.__exit__(exc_type, exc, tb)

    def write_dense(self, mlp: str, layer: int, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Writes one dense layer: kernel `[in, out]`, bias `[out]`, both float32."""
        for part, array in (("kernel", kernel), ("bias", bias)):
            path = dense_path(mlp, layer, part)
            dataset = self._file[path]
            _check_shape(path, dataset.shape, array)
            dataset[...] = array
            self._missing.discard(path)

    def write_table(self, start: int, rows: np.ndarray) -> None:
        """Writes rows `[n, D]` float32 of the fused table from row `start` on."""
        dataset = self._file[TABLE]
        if rows.ndim != 2 or rows.shape[1] != dataset.shape[1] or start < 0 or start + len(rows) > len(dataset):
            raise CheckpointError(f"{TABLE}: rows {start}+{tuple(rows.shape)} do not fit a table of {dataset.shape}")
        dataset[start : start + len(rows)] = rows

    def copy_rows(self, feature: int, begin: int, source: int, offset: int, nbytes: int) -> None:
        """Copies bytes of a feature's rows from an open file that has them as float32 rows.

        Args:
          feature: the categorical feature.
          begin: byte of the feature's block (`[size, D]` float32, little-endian) where the first one goes.
          source: file descriptor.
          offset: where the bytes are in the source.
          nbytes: how many.

        Raises:
          CheckpointError: the source ends too early.
        """
        row_bytes = 4 * self.config.embedding_dim
        if begin < 0 or begin + nbytes > row_bytes * self.config.categorical_feature_sizes[feature]:
            raise CheckpointError(f"feature {feature}: bytes {begin} to {begin + nbytes} do not fit its ids")
        place = self._place_of_table() + row_bytes * self.config.block_offsets[feature] + begin
        # HDF5 takes longer over a piece than the disk, so its part is only to say where the table lies.
        with open(self._temporary, "r+b", buffering=0) as out:
            while nbytes:
                # Pieces end where a page of the target ends: a page written in two goes is twice the work.
                count = min(nbytes, len(self._buffer) - place % _PAGE_BYTES)
                done = os.preadv(source, [self._buffer[:count]], offset)
                if not done:
                    raise CheckpointError(f"feature {feature}: the source was cut off while it was read")
                if os.pwrite(out.fileno(), self._buffer[:done], place) != done:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
                offset, place, nbytes = offset + done, place + done, nbytes - done

    def _place_of_table(self) -> int:
        """Where the table's bytes begin in the file; makes HDF5 decide it if it has not yet."""
        table = self._file[TABLE]
        if table.id.get_offset() is None:
            table[0] = 0
            self._file.flush()
        return table.id.get_offset()

    def write_rows(self, feature: int, start_id: int, rows: np.ndarray) -> None:
        """Writes rows `[n, D]` of one feature's block from id `start_id` on; id `size` is the OOV row."""
        size = self.config.categorical_feature_sizes[feature]
        if start_id < 0 or start_id + len(rows) > size + 1:
            raise CheckpointError(
                f"feature {feature}: ids {start_id}..{start_id + len(rows) - 1} do not fit {size} ids and one OOV row"
            )
        self.write_table(self.config.block_offsets[feature] + start_id, rows)


class WeightsReader:
    """Reads a weights file piece by piece; use as a context manager.

    Attributes:
      config: the file's `DLRMConfig`.
      file: the open file, an `hdf5.File`.
      attributes: dict of the root attributes (`format`, `config`, `source_sha256`, `vocabulary_fingerprint`).

    Args:
      path: the file.
      config: what the file is expected to hold; needed for files saved by Keras alone, which carry no configuration.

    Raises:
      CheckpointError: not a weights file of dlrm_tf, or a weight missing, misshaped or not float32; all are named.
    """

    def __init__(self, path, config=None):
        self.path = os.fspath(path)
        if config is not None and is_keras_file(path):
            self.file = KerasFile(path, weight_shapes(config))
        else:
            self.file = hdf5.File(path)
        try:
            self._check(config)
        except BaseException:
            self.file.close()
            raise

    def _check(self, expected) -> None:
        names = ("format", "config", "source_sha256", "vocabulary_fingerprint")
        self.attributes = {name: str(self.file.attributes.get(name, "")) for name in names}
        self.config = expected
        if self.attributes["format"] == FORMAT:
            try:
                self.config = DLRMConfig.from_json(self.attributes["config"], source=f"{self.path}: attribute config")
            except DataError as e:
                raise CheckpointError(str(e)) from e
        elif self.attributes["format"] or expected is None:
            raise CheckpointError(
                f"{self.path}: wanted a weights file of dlrm_tf (root attribute format={FORMAT!r}), "
                f"came format={self.attributes['format'][:40]!r}; files saved by Keras alone carry no configuration"
            )
        faults = []
        for path, shape in weight_shapes(self.config).items():
            found = self.file.datasets.get(path)
            if found is None:
                faults.append(f"{path} is missing")
            elif found.shape != shape:
                faults.append(f"{path} wanted float32 {shape}, came float32 {found.shape}")
            elif found.offset is None:
                faults.append(f"{path} was never written")
        if faults:
            raise CheckpointError(f"{self.path}: {'; '.join(faults[:8])}")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()

    def dense(self, mlp: str, layer: int) -> tuple:
        """`(kernel [in, out], bias [out])` of one dense layer, float32."""
        paths = (dense_path(mlp, layer, part) for part in ("kernel", "bias"))
        return tuple(self.file.read(path, 0, self.file.datasets[path].shape[0]) for path in paths)

    def table(self, start: int, stop: int) -> np.ndarray:
        """Rows `[stop - start, D]` of the fused table, float32."""
        return self.file.read(TABLE, start, stop)

    def rows(self, feature: int, start: int, stop: int) -> np.ndarray:
        """Rows of one feature's ids `start` to `stop`; id `size` is the OOV row."""
        offset = self.config.block_offsets[feature]
        stop = min(stop, self.config.categorical_feature_sizes[feature] + 1)
        return self.table(offset + start, offset + stop)


def table_chunks(config: DLRMConfig):
    """Yields `(start, stop)` over the fused table's rows, `CHUNK_ROWS` at a time."""
    for start in range(0, config.table_rows, CHUNK_ROWS):
        yield start, min(start + CHUNK_ROWS, config.table_rows)


def save_weights(model, path, source_sha256: str = "", vocabulary_fingerprint: str = "") -> None:
    """Writes a `DLRM`'s weights; the table goes chunk by chunk, never as a second whole copy.

    Raises:
      CheckpointError: `path` does not end in `.weights.h5`.
    """
    with WeightsWriter(path, model.config, source_sha256, vocabulary_fingerprint) as writer:
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
    with WeightsReader(path, model.config) as reader:
        mine, other = (json.loads(c.to_json()) for c in (model.config, reader.config))
        differ = [f"{k} wanted {mine[k]}, came {other[k]}" for k in mine if mine[k] != other[k]]
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


def load(path):
    """Rebuilds a `DLRM` from one weights file: its configuration and its weights.

    Args:
      path: a `.weights.h5` written by `convert`, `train` or `DLRM.save_weights`.

    Returns:
      The `dlrm_tf.DLRM`; `model.vocabulary_fingerprint` and `model.source_sha256` come from the file.

    Raises:
      CheckpointError: not such a file.
    """
    with WeightsReader(path) as reader:
        config = reader.config
    from dlrm_tf.model.dlrm import DLRM

    model = DLRM(config, initializer="zeros")
    model.load_weights(path)
    return model
