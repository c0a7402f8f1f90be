"""`WeightsReader`: reads a weights file piece by piece.

Root attributes carry the configuration (JSON), the sha256 of the file it was converted from and the fingerprint of the
vocabulary it was trained with.
"""

import os
from typing import Any

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError, DataError
from dlrm_tf.files import StrPath
from dlrm_tf.weights import hdf5
from dlrm_tf.weights.layout import FORMAT, TABLE, dense_path, weight_shapes


class WeightsReader:
    """Reads a weights file piece by piece; use as a context manager.

    Args:
      path: the file.

    Attributes:
      path: the file's path.
      config: the file's `DLRMConfig`.
      file: the open file, an `hdf5.File`.
      attributes: the root attributes, all str: `format`, `config`, `source_sha256`, `vocabulary_fingerprint`.

    Raises:
      CheckpointError: not a weights file of dlrm_tf, or a weight missing, misshaped or not float32; all are named.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        self.file = hdf5.File(path)
        try:
            self._check()
        except BaseException:
            self.file.close()
            raise

    def _check(self) -> None:
        names = ("format", "config", "source_sha256", "vocabulary_fingerprint")
        self.attributes = {name: str(self.file.attributes.get(name, "")) for name in names}
        if self.attributes["format"] != FORMAT:
            raise CheckpointError(
                f"{self.path}: wanted a weights file of dlrm_tf (root attribute format={FORMAT!r}). "
                f"Received format={self.attributes['format'][:40]!r}; files saved by Keras alone "
                f"carry no configuration: {hdf5.KERAS_ADVICE}"
            )
        try:
            self.config = DLRMConfig.from_json(self.attributes["config"], source=f"{self.path}: attribute config")
        except DataError as e:
            raise CheckpointError(str(e)) from e
        shapes = weight_shapes(self.config)
        faults = self.file.faults(shapes) or [f"{p} was never written" for p in shapes if self.file.datasets[p].offset is None]
        if faults:
            raise CheckpointError(f"{self.path}: {'; '.join(faults[:8])}")

    def __enter__(self) -> "WeightsReader":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.file.close()

    def dense(self, mlp: str, layer: int) -> tuple[np.ndarray, ...]:
        """`(kernel [in, out], bias [out])` of one dense layer, float32; `(kernel,)` of one without a bias.

        Args:
          mlp: part of the network, as in `DLRMConfig.dense_shapes`.
          layer: number of the layer, from 0.
        """
        paths = [dense_path(mlp, layer, kind) for part, i, kind, _ in self.config.dense_weights() if (part, i) == (mlp, layer)]
        return tuple(self.file.read(path, 0, self.file.datasets[path].shape[0]) for path in paths)

    def table(self, start: int, stop: int) -> np.ndarray:
        """Rows `[stop - start, D]` of the fused table, float32."""
        return self.file.read(TABLE, start, stop)

    def rows(self, feature: int, start: int, stop: int) -> np.ndarray:
        """Rows `[stop - start, D]`, float32, of one categorical feature's ids `start` to `stop`; id `size` is the OOV row."""
        offset = self.config.block_offsets[feature]
        stop = min(stop, self.config.categorical_feature_sizes[feature] + 1)
        return self.table(offset + start, offset + stop)
