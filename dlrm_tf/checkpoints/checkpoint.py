"""`Checkpoint`: the tensors of a MindSpore `.ckpt` or of any `.safetensors`, read piece by piece in bounded memory."""

import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dlrm_tf.checkpoints import ckpt_reader, safetensors
from dlrm_tf.checkpoints.tensor_info import CHUNK_BYTES, TensorInfo, row_chunks, widen_bfloat16
from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import StrPath, open_regular, read_into

# First bytes of files often mistaken for checkpoints -> what they are.
FOREIGN = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (a .weights.h5?), not a MindSpore checkpoint"),
    (b"PK\x03\x04", "a zip file, not a MindSpore checkpoint"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first (gunzip)"),
    ((b"\x80\x02", b"\x80\x04", b"\x80\x05"), "a Python pickle, which is never loaded (it can run code)"),
    (b"<", "an HTML or XML page, not a checkpoint: the download went wrong"),
    (b"version https://git-lfs", "a Git LFS pointer, not the checkpoint itself (git lfs pull)"),
)
# MindSpore's magic numbers of encrypted blocks (mindspore/core/utils/crypto.h): AES-GCM, AES-CBC, SM4-CBC.
ENCRYPTED = {(0x7F3A5ED8 + i).to_bytes(4, order) for i in range(3) for order in ("little", "big")}


class Checkpoint:
    """An open checkpoint: which tensors it holds, and their contents on request; use as a context manager.

    Contents are read with plain reads into arrays of the size asked for. (A memory map would count every page touched
    as the process's memory, and a file cut off meanwhile would kill the process with SIGBUS instead of raising an error.)

    Args:
      path: the file.

    Attributes:
      path: the file.
      size: its size in bytes.
      format: `"ckpt"` or `"safetensors"`.
      names: tensor names in file order.

    Raises:
      CheckpointError: not a checkpoint, or one that is cut off, damaged or encrypted.

    Example:
      with Checkpoint("dlrm.ckpt") as checkpoint:
          kernel = checkpoint.read("bottom_mlp.0.weight")
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        self._file = open_regular(self.path, "a checkpoint file")
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self._open_index()
        except BaseException:
            self._file.close()
            raise

    def _open_index(self) -> None:
        if not self.size:
            raise CheckpointError(f"{self.path}: the file is empty")
        start = self._file.read(64)
        if start[:4] in ENCRYPTED:
            raise CheckpointError(
                f"{self.path}: encrypted by MindSpore: load it there with its dec_key and save it again without enc_key"
            )
        self._metadata: dict[str, str] = {}
        # Looked for first: a header's length may begin with the bytes of another format's magic number.
        if start[8:9] == b"{" and start[0:1] != b"{":
            self.format = "safetensors"
            self._tensors, self._metadata = safetensors.read_index(self._file, self.size, self.path)
        else:
            for magic, what in FOREIGN:
                if start.startswith(magic):
                    raise CheckpointError(f"{self.path}: {what}")
            self.format = "ckpt"
            self._tensors = ckpt_reader.read_index(self._file, self.size, self.path)
        self.names = tuple(self._tensors)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def info(self, name: str) -> TensorInfo:
        """Name, dtype, shape and place of a tensor.

        Raises:
          CheckpointError: there is no such tensor.
        """
        if name not in self._tensors:
            raise CheckpointError(
                f"{self.path}: no tensor {name}; the first of {len(self.names)} are {', '.join(self.names[:3])}"
            )
        return self._tensors[name]

    def read(self, name: str) -> np.ndarray:
        """A whole tensor in its own dtype (bfloat16 as float32).

        Raises:
          CheckpointError: there is no such tensor, or the file was cut off meanwhile.
        """
        info = self.info(name)
        return self._elements(info, 0, info.size).reshape(info.shape)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of a tensor of at least one dimension, in its own dtype (bfloat16 as float32).

        Raises:
          CheckpointError: there is no such tensor, or the file was cut off meanwhile.
          IndexError: it has no such rows.
        """
        info = self.info(name)
        if not 0 <= start <= stop <= info.shape[0]:
            raise IndexError(f"tensor {name} has {info.shape[0]} rows; rows {start} to {stop} were asked for")
        width = info.size // info.shape[0] if info.shape[0] else 0
        return self._elements(info, start * width, stop * width).reshape((stop - start, *info.shape[1:]))

    def chunks(self, name: str, max_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, np.ndarray]]:
        """Yields `(first row, rows)` over a tensor of at least one dimension, `max_bytes` or one row at a time."""
        for start, stop in row_chunks(self.info(name), max_bytes):
            yield start, self.rows(name, start, stop)

    def _elements(self, info: TensorInfo, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` of the flattened tensor, whichever slices they lie in."""
        out = np.empty(stop - start, info.stored_dtype)
        view = out.data.cast("B") if len(out) else memoryview(b"")
        begin, done, passed = start * out.itemsize, 0, 0
        for offset, nbytes in info.slices:
            skip = max(0, begin + done - passed)
            take = min(nbytes - skip, len(view) - done)
            if take > 0:
                self._file.seek(offset + skip)
                read_into(self._file, view[done : done + take], f"{self.path}: tensor {info.name}")
                done += take
            passed += nbytes
        return widen_bfloat16(out) if info.dtype == "BFloat16" else out

    def fileno(self) -> int:
        """The open file's descriptor."""
        return self._file.fileno()

    def read_ahead(self, offset: int, nbytes: int) -> None:
        """Lets the system read bytes that are wanted next from the disk while others are worked on."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), offset, nbytes, os.POSIX_FADV_WILLNEED)

    def check_crc(self) -> bool:
        """Reads the whole file and compares it with MindSpore's own checksum in it.

        Returns:
          False when the file carries no checksum.

        Raises:
          CheckpointError: the file is damaged.
        """
        if self.format == "safetensors":
            if "crc_num" not in self._metadata:
                return False
            wanted, received = self._metadata["crc_num"], 0
            for name in sorted(self.names):
                received = zlib.crc32(name.encode(), received)
                for offset, nbytes in self._tensors[name].slices:
                    received = self._crc(offset, offset + nbytes, received)
        else:
            if not ckpt_reader.has_crc(self._file, self.size):
                return False
            received = self._crc(0, self.size - ckpt_reader.CRC_TAIL, 0)
            self._file.seek(self.size - 10)
            wanted = str(int.from_bytes(self._file.read(10), "big"))
        if wanted.lstrip("0") != str(received).lstrip("0"):
            raise CheckpointError(f"{self.path}: its checksum is {wanted[:20]}, its content's is {received}: the file is damaged")
        return True

    def _crc(self, start: int, stop: int, value: int) -> int:
        self._file.seek(start)
        while start < stop:
            block = self._file.read(min(CHUNK_BYTES, stop - start))
            if not block:
                break
            value, start = zlib.crc32(block, value), start + len(block)
        return value
