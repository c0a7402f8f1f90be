"""`DLRMCheckpoint`: the weights of a DLRM in any checkpoint we can read, in our layout, checked against a configuration."""

import os
import sys
from collections.abc import Iterator
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.checkpoints.infer_config import infer_config
from dlrm_tf.checkpoints.names import Weight, assign, weights_of
from dlrm_tf.checkpoints.pytorch import MAGICS, TorchCheckpoint
from dlrm_tf.checkpoints.tensor_info import FLOATING
from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.key_file import is_key_file
from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import StrPath


def open_checkpoint(path: StrPath) -> Union[Checkpoint, TorchCheckpoint]:
    """Opens a checkpoint of any kind, told by the file's first bytes.

    Args:
      path: a `.ckpt`, `.safetensors` or PyTorch file.

    Raises:
      CheckpointError: damaged, or no checkpoint.
    """
    path = os.fspath(path)
    refuse_vocabulary(path)
    start = b""
    if os.path.isfile(path):  # otherwise Checkpoint raises
        with open(path, "rb") as f:
            start = f.read(16)
    return TorchCheckpoint(path) if start.startswith(MAGICS) else Checkpoint(path)


def refuse_vocabulary(path: StrPath) -> None:
    """Raises CheckpointError for a vocabulary, which is a zip file and so would be taken for a PyTorch checkpoint."""
    if is_key_file(path):
        raise CheckpointError(f"{path}: wanted a checkpoint. Received a vocabulary (dlrm-tf inspect shows what is in it)")


class DLRMCheckpoint:
    """The weights of the DLRM in a checkpoint; use as a context manager.

    They are given in our layout: float32, kernels `[in, out]`, the top MLP's first kernel in the order of the lower triangle.

    Args:
      path: a `.ckpt`, `.safetensors` or PyTorch file.
      config: the model's configuration; inferred from the shapes if None.
      prefix: prefix of the weights' names, when the file holds more than one network.
      allow_extra: ignore tensors that are neither a weight nor optimizer state.

    Attributes:
      checkpoint: the open file.
      found: which of its tensors is what, an `Assignment`.
      config: the configuration.

    Raises:
      CheckpointError: damaged, foreign, or does not fit `config`; every missing, extra or misshaped tensor is named.
    """

    def __init__(
        self, path: StrPath, *, config: Optional[DLRMConfig] = None, prefix: Optional[str] = None, allow_extra: bool = False
    ) -> None:
        self.checkpoint = open_checkpoint(path)
        try:
            self.found = assign(self.checkpoint.names, self.checkpoint.path, prefix=prefix)
            self.config = self._check(config, allow_extra)
        except BaseException:
            self.checkpoint.close()
            raise

    def __enter__(self) -> "DLRMCheckpoint":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.checkpoint.close()

    def _check(self, config: Optional[DLRMConfig], allow_extra: bool) -> DLRMConfig:
        info, found = self.checkpoint.info, self.found
        shapes = {w: found.naming.shape(w, info(name).shape) for w, name in found.weights.items()}
        if config is None:
            config = infer_config(shapes, self.checkpoint.path)
        found.naming.check(config, self.checkpoint.path)
        wanted, names = weights_of(config), found.naming.names(config)
        faults = [f"{found.prefix}{names[w]} is missing" for w in wanted if w not in shapes]
        for weight, name in found.weights.items():
            if weight not in wanted:
                faults.append(f"{name} {list(info(name).shape)} is one too many")
            elif shapes[weight] != wanted[weight]:
                stored = found.naming.shape(weight, wanted[weight])
                faults.append(f"{name} wanted shape {list(stored)}, received {list(info(name).shape)}")
            elif info(name).dtype not in FLOATING:
                faults.append(f"{name} wanted floating point, received {info(name).dtype}")
        # A single number or an integer is a trainer's counter or rate; more floats would be a part of a network we do not know.
        extra = [i for i in map(info, found.other) if i.size > 1 and i.dtype in FLOATING]
        if not allow_extra:
            faults += [f"{i.name} {list(i.shape)} is unknown (--allow-extra leaves it out)" for i in extra]
        if faults:
            shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
            raise CheckpointError(f"{self.checkpoint.path}: does not fit the configuration: {shown}")
        return config

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return sum(self.checkpoint.info(name).nbytes for name in self.found.weights.values())

    def dense(self, mlp: str, layer: int) -> tuple[np.ndarray, ...]:
        """`(kernel [in, out], bias [out])` of a dense layer, float32; `(kernel,)` of one without a bias."""
        weights = (w for w in (Weight(mlp, layer, kind) for kind in ("kernel", "bias")) if w in self.found.weights)
        kernel, *bias = (_float32(self.checkpoint.read(self.found.weights[w])) for w in weights)
        if self.found.naming.transposed:
            kernel = np.ascontiguousarray(kernel.T)
        if self.found.naming.pairs == "upper" and (mlp, layer) == ("top_mlp", 0) and self.config.interaction == "dot":
            kernel = kernel[upper_to_lower(self.config)]
        return (kernel, *bias)

    def chunks(self, feature: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields `(first id, rows float32 [n, D])` over the table of a categorical feature."""
        for start, rows in self.checkpoint.chunks(self.found.weights[Weight("embedding", feature, "table")]):
            yield start, _float32(rows)

    def byte_ranges(self, feature: int) -> Optional[list[tuple[int, int, int]]]:
        """Where a categorical feature's table lies in the file, if its bytes are those that a weights file holds; else None.

        Returns:
          `(byte in the table, offset in the file, bytes)` of each piece.
        """
        info = self.checkpoint.info(self.found.weights[Weight("embedding", feature, "table")])
        if not info.slices or info.dtype != "Float32" or sys.byteorder != "little":
            return None
        ends = np.cumsum([nbytes for _, nbytes in info.slices], dtype=object)
        return [(int(end) - nbytes, offset, nbytes) for end, (offset, nbytes) in zip(ends, info.slices)]

    def gather(self, feature: int, ids: np.ndarray) -> np.ndarray:
        """Rows of some ids of a categorical feature; each distinct id is read once.

        Args:
          feature: the categorical feature.
          ids: int `[n]`, each from 0 to the feature's size, which is the OOV id.

        Returns:
          float32 `[n, D]`, zeros for the OOV id.
        """
        name, size = self.found.weights[Weight("embedding", feature, "table")], self.config.categorical_feature_sizes[feature]
        distinct, place = np.unique(ids, return_inverse=True)
        rows = np.zeros((len(distinct), self.config.embedding_dim), np.float32)
        for row, i in zip(rows, distinct):
            if i < size:
                row[:] = self.checkpoint.rows(name, int(i), int(i) + 1)[0]
        return rows[place.reshape(-1)]

    def notes(self, *, state_left_out: bool = True) -> tuple[str, ...]:
        """What a user should know of the file, one sentence each: a prefix, other dtypes, what is left out.

        Args:
          state_left_out: whether the optimizer's state is left out.
        """
        notes: list[str] = []
        if self.found.prefix:
            notes.append(f"the weights' names start with {self.found.prefix}")
        if self.found.state and state_left_out:
            slots = ", ".join(sorted({slot for slot, _ in self.found.state}))
            notes.append(f"left out optimizer state: {slots} ({len(self.found.state)} tensors)")
        other = [n for n in sorted(self.found.other) if state_left_out or self.checkpoint.info(n).size > 1]
        if other:
            notes.append(f"left out: {', '.join(other)}")
        dtypes = sorted({self.checkpoint.info(name).dtype for name in self.found.weights.values()} - {"Float32"})
        if dtypes:
            notes.append(f"{', '.join(dtypes)} became float32")
        return tuple(notes)


def upper_to_lower(config: DLRMConfig) -> np.ndarray:
    """Row numbers that bring the top MLP's first kernel from the upper triangle's order into the lower triangle's.

    The lower triangle lists the pairs `(1, 0), (2, 0), (2, 1), …`; the upper (torch.triu_indices) lists the same pairs as
    `(0, 1), (0, 2), …, (1, 2), …`.

    Args:
      config: the model's configuration, with dot interaction.

    Returns:
      int64 `[D + pairs]`: `kernel[result]` is in our order.
    """
    vectors, width = config.num_categorical + 1, config.embedding_dim
    place = np.zeros((vectors, vectors), np.int64)
    place[np.triu_indices(vectors, 1)] = np.arange(vectors * (vectors - 1) // 2)
    i, j = np.tril_indices(vectors, -1)
    return np.concatenate([np.arange(width), width + place[j, i]])


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False)
