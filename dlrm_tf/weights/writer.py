"""`WeightsWriter`: writes a weights file piece by piece in bounded memory, with h5py.

Keras's own writer is not used: TF 2.6.5's has another layout, and every one copies the whole table.
"""

import errno
import os
from types import TracebackType
from typing import Any, Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import StrPath, atomic_file
from dlrm_tf.weights.layout import FORMAT, MAX_LAYERS, TABLE, dense_path, weight_shapes

# copy_rows moves this much at a time: it is still in the processor's cache when it is written.
_COPY_BYTES, _PAGE_BYTES = 1 << 18, 1 << 12


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

    def __init__(self, path: StrPath, config: DLRMConfig, *, source_sha256: str = "", vocabulary_fingerprint: str = "") -> None:
        self._path = os.fspath(path)
        if not self._path.endswith(".weights.h5"):
            raise CheckpointError(f"{self._path}: the name of a weights file must end in .weights.h5")
        if max(len(config.bottom_mlp), len(config.top_mlp)) > MAX_LAYERS:
            raise CheckpointError(f"{self._path}: a weights file holds at most {MAX_LAYERS} layers per MLP")
        self.config = config
        self._attributes = {
            "format": FORMAT,
            "config": config.to_json(),
            "source_sha256": source_sha256,
            "vocabulary_fingerprint": vocabulary_fingerprint,
        }
        self._missing = {p for p in weight_shapes(config) if p != TABLE}
        self._buffer = memoryview(bytearray(_COPY_BYTES))

    def __enter__(self) -> "WeightsWriter":
        import h5py  # reading needs none

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

    def __exit__(
        self, exc_type: Optional[type[BaseException]], exc: Optional[BaseException], tb: Optional[TracebackType]
    ) -> None:
        try:
            self._place_of_table()  # rows never written are zeros, and readers want them in the file
            self._file.close()
            if exc_type is None and self._missing:
                raise CheckpointError(f"{self._path}: never written: {', '.join(sorted(self._missing))}")
        except BaseException as e:
            if exc_type is None:
                self._atomic.__exit__(type(e), e, e.__traceback__)
                raise
        self._atomic.__exit__(exc_type, exc, tb)

    def write_dense(self, mlp: str, layer: int, kernel: np.ndarray, *bias: np.ndarray) -> None:
        """Writes one dense layer.

        Args:
          mlp: part of the network, as in `DLRMConfig.dense_shapes`.
          layer: number of the layer, from 0.
          kernel: float32 `[in, out]`.
          *bias: float32 `[out]`, if the layer has one.

        Raises:
          CheckpointError: a shape does not fit the configuration.
        """
        for part, array in zip(("kernel", "bias"), (kernel, *bias)):
            path = dense_path(mlp, layer, part)
            dataset = self._file[path]
            if array.shape != dataset.shape:
                raise CheckpointError(f"{path}: wanted shape {dataset.shape}. Received {array.shape}")
            dataset[...] = array
            self._missing.discard(path)

    def write_table(self, start: int, rows: np.ndarray) -> None:
        """Writes rows `[n, D]` float32 of the fused table from row `start` on.

        Raises:
          CheckpointError: they do not fit the table.
        """
        dataset = self._file[TABLE]
        if rows.ndim != 2 or rows.shape[1] != dataset.shape[1] or start < 0 or start + len(rows) > len(dataset):
            raise CheckpointError(f"{TABLE}: rows {start}+{tuple(rows.shape)} do not fit a table of {dataset.shape}")
        dataset[start : start + len(rows)] = rows

    def copy_rows(self, feature: int, begin: int, source: int, offset: int, nbytes: int) -> None:
        """Copies bytes of a categorical feature's rows from an open file that holds the same bytes.

        Args:
          feature: the categorical feature.
          begin: where in the feature's rows (`[size, D]` float32, little-endian) the first byte belongs.
          source: descriptor of the open file.
          offset: where the bytes are in that file.
          nbytes: how many.

        Raises:
          CheckpointError: the file ends too early, or the bytes do not fit the feature's rows.
        """
        row_bytes = 4 * self.config.embedding_dim
        if begin < 0 or begin + nbytes > row_bytes * self.config.categorical_feature_sizes[feature]:
            raise CheckpointError(f"feature {feature}: bytes {begin} to {begin + nbytes} do not fit its ids")
        place = self._place_of_table() + row_bytes * self.config.block_offsets[feature] + begin
        # Written without HDF5, whose overhead for a piece takes longer than the write; HDF5 only says where the table lies.
        with open(self._temporary, "r+b", buffering=0) as out:
            while nbytes:
                # A piece ends where a page of the target ends: a page that is written in two parts costs twice the work.
                count = min(nbytes, len(self._buffer) - place % _PAGE_BYTES)
                done = os.preadv(source, [self._buffer[:count]], offset)
                if not done:
                    raise CheckpointError(f"feature {feature}: the source was cut off while it was read")
                if os.pwrite(out.fileno(), self._buffer[:done], place) != done:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
                offset, place, nbytes = offset + done, place + done, nbytes - done

    def create_group(self, name: str) -> Any:
        """Makes the group `name` beside the weights: an `h5py.Group`, to be filled before the writer is left."""
        return self._file.create_group(name)

    def _place_of_table(self) -> int:
        """Where the table's bytes begin in the file; makes HDF5 decide it if it has not yet."""
        table = self._file[TABLE]
        if table.id.get_offset() is None:
            table[0] = 0
            self._file.flush()
        return int(table.id.get_offset())

    def write_rows(self, feature: int, start_id: int, rows: np.ndarray) -> None:
        """Writes rows `[n, D]` float32 of one categorical feature from id `start_id` on; id `size` is the OOV row.

        Raises:
          CheckpointError: the feature has no such ids.
        """
        size = self.config.categorical_feature_sizes[feature]
        if start_id < 0 or start_id + len(rows) > size + 1:
            raise CheckpointError(
                f"feature {feature}: ids {start_id}..{start_id + len(rows) - 1} do not fit {size} ids and one OOV row"
            )
        self.write_table(self.config.block_offsets[feature] + start_id, rows)
