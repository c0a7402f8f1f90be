"""Weights files saved by Keras alone (`model.save_weights`): read with the HDF5 library, so only for files one trusts."""

import os

import numpy as np

from dlrm_tf.errors import CheckpointError, reason
from dlrm_tf.model.hdf5 import SIGNATURE, Dataset


def is_keras_file(path) -> bool:
    """Whether a file has the old superblock that Keras's way of opening HDF5 files gives them; ours has version 3."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as f:
        start = f.read(len(SIGNATURE) + 1)
    return start in (SIGNATURE + b"\0", SIGNATURE + b"\1")


class KerasFile:
    """The same face as `hdf5.File`, for a file whose datasets are known beforehand.

    Args:
      path: the file.
      shapes: path -> shape of what is looked for in it.

    Raises:
      CheckpointError: the library can't read it.
    """

    attributes: dict = {}
    group_attributes: dict = {}

    def __init__(self, path, shapes: dict):
        import h5py

        self.path = os.fspath(path)
        self.datasets = {}
        try:
            self._file = h5py.File(self.path, "r")
            for name in shapes:
                dataset = _find(self._file, name)
                if isinstance(dataset, h5py.Dataset) and dataset.dtype == np.float32:
                    if dataset.external or dataset.is_virtual:
                        raise CheckpointError(f"{self.path}: {name} keeps its data in another file")
                    self.datasets[name] = Dataset(dataset.shape, dataset.id.get_offset(), 0.0)
        except (KeyError, OSError, RuntimeError, ValueError) as e:
            if isinstance(e, CheckpointError):
                raise
            raise CheckpointError(f"{self.path}: not a readable HDF5 file ({reason(e)})") from e

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a dataset, float32."""
        try:
            return self._file[path][start:stop]
        except (OSError, RuntimeError) as e:
            raise CheckpointError(f"{self.path}: {path}: cannot be read ({reason(e)})") from e


def _find(group, path: str):
    """The object at a path, or None; links that lead elsewhere (soft, external) are not followed."""
    import h5py

    for name in path.split("/"):
        # get(getlink=True) looks at the link itself and opens nothing.
        if not isinstance(group, h5py.Group) or not isinstance(group.get(name, getlink=True), h5py.HardLink):
            return None
        group = group[name]
    return group
