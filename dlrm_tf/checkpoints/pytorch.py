"""`TorchCheckpoint`: the tensors of a PyTorch checkpoint (`torch.save` of a `state_dict`), with the methods of `Checkpoint`."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from dlrm_tf.checkpoints.tensor_info import CHUNK_BYTES, TensorInfo, row_chunks, widen_bfloat16
from dlrm_tf.errors import CheckpointError, reason, require
from dlrm_tf.files import StrPath

# First bytes of what torch.save writes: a zip file, or (before PyTorch 1.6) a pickle of protocol 2.
MAGICS = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9")
# Keys under which training programs put the state_dict; facebookresearch/dlrm uses the first.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
_DTYPES = {"float16": "Float16", "bfloat16": "BFloat16", "float32": "Float32", "float64": "Float64"}
_DTYPES.update({"bool": "Bool", "uint8": "UInt8", "int8": "Int8", "int16": "Int16", "int32": "Int32", "int64": "Int64"})


class TorchCheckpoint:
    """An open PyTorch checkpoint. Only tensors and plain values are loaded (`weights_only=True`): nothing in it can run.

    Needs PyTorch (the extra `torch`). The file is memory-mapped where its format allows. Use as a context manager.

    Args:
      path: the file.

    Attributes:
      path: the file.
      format: `"pytorch"`.
      names: tensor names in the order of the `state_dict`.

    Raises:
      CheckpointError: not a PyTorch checkpoint, or one with objects in it that are no tensors.
      MissingExtraError: PyTorch is not installed.
    """

    format = "pytorch"

    def __init__(self, path: StrPath) -> None:
        self._torch = torch = require("torch", "torch")
        self.path = os.fspath(path)
        with open(path, "rb") as f:
            zipped = f.read(4) == MAGICS[0]
        try:
            # facebookresearch/dlrm stores its metrics as NumPy numbers; nothing but numbers can be made of these types.
            with torch.serialization.safe_globals(_numpy_number_types()):
                stored = torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as e:  # torch's zip reader and unpickler raise many kinds of errors
            raise CheckpointError(f"{self.path}: not a PyTorch checkpoint of tensors and plain values ({reason(e)})") from e
        tensors = self._state_dict(stored)
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.names = tuple(self._tensors)

    def _state_dict(self, stored: Any) -> dict[str, Any]:
        torch = self._torch
        if isinstance(stored, dict):
            for key in STATE_DICT_KEYS:
                if isinstance(stored.get(key), dict):
                    stored = stored[key]
                    break
            tensors = {str(n): t for n, t in stored.items() if isinstance(t, torch.Tensor)}
            odd = [n for n, t in tensors.items() if t.layout != torch.strided or t.is_meta or t.is_quantized]
            if odd:
                raise CheckpointError(f"{self.path}: tensor {odd[0]}: is sparse, quantized or empty; wanted a plain one")
            if tensors:
                return tensors
        raise CheckpointError(f"{self.path}: holds no state_dict (looked for {', '.join(STATE_DICT_KEYS)}, or tensors by name)")

    def __enter__(self) -> "TorchCheckpoint":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Releases the tensors, and the file with them."""
        self._tensors = {}

    def info(self, name: str) -> TensorInfo:
        """Name, dtype and shape of a tensor.

        Raises:
          CheckpointError: there is no such tensor, or MindSpore has no such dtype.
        """
        if name not in self._tensors:
            raise CheckpointError(f"{self.path}: no tensor {name}")
        tensor = self._tensors[name]
        dtype = str(tensor.dtype).partition(".")[2]
        if dtype not in _DTYPES:
            raise CheckpointError(f"{self.path}: tensor {name}: unknown dtype {dtype}; known are {', '.join(_DTYPES)}")
        return TensorInfo(name, _DTYPES[dtype], tuple(tensor.shape))

    def read(self, name: str) -> np.ndarray:
        """A whole tensor in its own dtype (bfloat16 as float32)."""
        return self._numpy(self._tensors[self.info(name).name])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a tensor, in its own dtype (bfloat16 as float32)."""
        return self._numpy(self._tensors[self.info(name).name][start:stop])

    def chunks(self, name: str, max_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, np.ndarray]]:
        """Yields `(first row, rows)` over a tensor of at least one dimension, `max_bytes` or one row at a time."""
        for start, stop in row_chunks(self.info(name), max_bytes):
            yield start, self.rows(name, start, stop)

    def check_crc(self) -> bool:
        """False: a PyTorch file has no checksum over the whole (its reader checks each part's)."""
        return False

    def _numpy(self, tensor: Any) -> np.ndarray:
        if tensor.dtype == self._torch.bfloat16:
            return widen_bfloat16(tensor.contiguous().view(self._torch.int16).numpy().view(np.uint16))
        return np.asarray(tensor.contiguous().numpy())


def _numpy_number_types() -> list[Any]:
    """The types that stand for NumPy numbers in a pickle, as torch's `safe_globals` takes them."""
    core = getattr(np, "_core", None) or np.core  # renamed in NumPy 2
    scalar = core.multiarray.scalar
    named = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype]
    return named + [type(np.dtype(t)) for t in ("f4", "f8", "i4", "i8", "?")]
