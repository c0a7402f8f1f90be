"""Any tensors, written and read back, in both formats: the same names, dtypes, shapes and bits."""

import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.checkpoints.ckpt_writer import array_tensor, write_checkpoint
from dlrm_tf.checkpoints.safetensors import write_safetensors

DTYPES = ("?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8")
names = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_categories=["C", "Z"]), min_size=1, max_size=40)


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    count = int(np.prod(shape, dtype=int))
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype.kind == "b":
        data = bytes(b & 1 for b in data)
    return np.frombuffer(data, dtype).reshape(shape)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    tensors=st.dictionaries(names, arrays(), min_size=1, max_size=6),
    slice_bytes=st.integers(1, 4).map(lambda n: 16 * n),
    crc=st.booleans(),
    chunk_bytes=st.integers(1, 100),
)
def test_there_and_back(suffix, tensors, slice_bytes, crc, chunk_bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/t{suffix}"
        pairs = [array_tensor(name, array) for name, array in tensors.items()]
        if suffix == ".ckpt":
            write_checkpoint(path, pairs, slice_bytes=slice_bytes, crc=crc)
        else:
            write_safetensors(path, pairs, crc=crc)
        with Checkpoint(path) as checkpoint:
            assert checkpoint.format == suffix[1:] and checkpoint.check_crc() is crc
            assert sorted(checkpoint.names) == sorted(tensors)
            for name, array in tensors.items():
                came = checkpoint.read(name)
                assert came.dtype == array.dtype and came.shape == array.shape and came.tobytes() == array.tobytes()
                if array.ndim:
                    parts = [rows for _, rows in checkpoint.chunks(name, chunk_bytes)]
                    assert b"".join(part.tobytes() for part in parts) == array.tobytes()


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
    """640 is 80 02 in the first bytes of a safetensors file, as in a pickle of protocol 2."""
    path = tmp_path / "t.safetensors"
    lengths = set()
    for n in range(440, 640):
        write_safetensors(path, [array_tensor("n" * n, np.ones(3, np.float32))])
        lengths.add(int.from_bytes(path.read_bytes()[:8], "little"))
        with Checkpoint(path) as checkpoint:
            assert checkpoint.names == ("n" * n,)
    assert 0x280 in lengths
