"""The reader against files MindSpore wrote, and against files that are cut off, foreign or hostile."""

import os
import struct

import numpy as np
import pytest
from tensors import read_tensors, write_tensors

from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.checkpoints.ckpt_writer import write_checkpoint
from dlrm_tf.checkpoints.describe import describe_checkpoint
from dlrm_tf.checkpoints.dlrm_checkpoint import open_checkpoint
from dlrm_tf.checkpoints.tensor_info import TensorInfo
from dlrm_tf.errors import CheckpointError, DLRMError
from dlrm_tf.weights import hdf5


def field(number, content):
    """One length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(n):
    out = b""
    while n >= 128:
        out, n = out + bytes([n % 128 | 128]), n // 128
    return out + bytes([n])


def entry(name=b"w", dims=(3,), dtype=b"Float32", content=bytes(12), packed=False):
    """One `Value` written by hand, as protobuf's documentation describes it."""
    coded = field(1, b"".join(map(varint, dims))) if packed else b"".join(b"\x08" + varint(d) for d in dims)
    return field(1, field(1, name) + field(2, coded + field(2, dtype) + field(3, content)))


@pytest.fixture
def opened(tmp_path):
    def make(data: bytes):
        path = tmp_path / "x.ckpt"
        path.write_bytes(data)
        return Checkpoint(path)

    return make


def test_reads_what_mindspore_wrote(golden_ckpt, golden_run):
    settings, _ = golden_run("tiny")
    with Checkpoint(golden_ckpt("tiny", "init")) as checkpoint:
        assert len(checkpoint.names) == 34 * 3 + 3
        assert checkpoint.names[:2] == ("bottom_mlp.0.weight", "bottom_mlp.0.bias")
        assert checkpoint.info("global_step") == TensorInfo("global_step", "Int32", (1,), checkpoint.info("global_step").slices)
        assert checkpoint.info("learning_rate").shape == ()
        assert checkpoint.read("learning_rate") == np.float32(settings["learning_rate"])
        assert checkpoint.read("momentum") == 0
        kernel = checkpoint.read("bottom_mlp.0.weight")
        assert kernel.shape == (13, 8) and kernel.dtype == np.float32
        # The first two numbers of the file, read off a hex dump: bd4e0d3f 62f1093e.
        assert kernel.ravel()[:2].tobytes().hex() == "bd4e0d3f62f1093e"
        assert (checkpoint.read("stat.top_mlp.0.bias") == 1).all() and (checkpoint.read("accum.top_mlp.0.bias") == 0).all()
        for f, size in enumerate(settings["categorical_feature_sizes"]):
            assert checkpoint.info(f"embeddinglookup.embeddings.{f}.embedding_table").shape == (size, 4)


def test_rewriting_a_mindspore_file_gives_the_same_bytes(golden_ckpt, tmp_path):
    for name in ("tiny", "hub_layout"):
        source = golden_ckpt(name, "trained")
        write_tensors(tmp_path / "again.ckpt", read_tensors(source))
        assert (tmp_path / "again.ckpt").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("packed", [False, True])
def test_packed_and_unpacked_dims(opened, packed):
    with opened(entry(dims=(2, 300), content=bytes(2400), packed=packed)) as checkpoint:
        assert checkpoint.info("w").shape == (2, 300)


@pytest.mark.parametrize("dims", [(), (0,)])
def test_scalars(opened, dims):
    with opened(entry(dims=dims, content=struct.pack("<f", 2.5))) as checkpoint:
        assert checkpoint.read("w").shape == () and checkpoint.read("w") == 2.5


def test_unknown_fields_are_skipped(opened):
    value = (
        field(1, b"w")
        + field(9, b"new")
        + b"\x50\x05"
        + field(2, b"\x08\x01" + field(2, b"Float32") + field(3, bytes(4)) + field(7, b"?"))
    )
    with opened(field(1, value)) as checkpoint:
        assert checkpoint.names == ("w",)


@pytest.mark.parametrize("slice_bytes", [4, 12, 20, 400, 1 << 20])
def test_slices_are_joined_wherever_they_are_cut(tmp_path, slice_bytes):
    array = np.arange(105, dtype=np.float32).reshape(21, 5)
    path = tmp_path / "s.ckpt"
    write_tensors(path, {"a": array, "b": np.int32(7)}, slice_bytes=slice_bytes)
    with Checkpoint(path) as checkpoint:
        assert len(checkpoint.info("a").slices) == -(-array.nbytes // slice_bytes)
        np.testing.assert_array_equal(checkpoint.read("a"), array)
        np.testing.assert_array_equal(checkpoint.rows("a", 3, 17), array[3:17])
        parts = list(checkpoint.chunks("a", max_bytes=4 * 5 * 4))
        assert [start for start, _ in parts] == [0, 4, 8, 12, 16, 20]
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), array)
        assert checkpoint.read("b") == 7


def test_bfloat16(tmp_path):
    # Sign, 8 bits of exponent, 7 of mantissa: 0, 1, -1.5, 3.140625, infinity, NaN.
    bits = np.array([0x0000, 0x3F80, 0xBFC0, 0x4049, 0x7F80, 0x7FC0], "<u2")
    write_checkpoint(tmp_path / "b.ckpt", [(TensorInfo("a", "BFloat16", (6,)), [bits])])
    with Checkpoint(tmp_path / "b.ckpt") as checkpoint:
        came = checkpoint.read("a")
    assert came.dtype == np.float32
    np.testing.assert_array_equal(came, np.array([0, 1, -1.5, 3.140625, np.inf, np.nan], np.float32))


def test_crc_as_mindspore_writes_it(tmp_path, golden_ckpt):
    import zlib

    source = golden_ckpt("tiny", "init")
    body = source.read_bytes()
    path = tmp_path / "c.ckpt"
    with Checkpoint(source) as checkpoint:
        assert not checkpoint.check_crc()
    write_tensors(path, read_tensors(source), crc=True)
    assert path.read_bytes() == body + b"crc_num" + zlib.crc32(body).to_bytes(10, "big")
    with Checkpoint(path) as checkpoint:
        assert checkpoint.check_crc()
        assert checkpoint.names[-1] == "stat.embeddinglookup.embeddings.25.embedding_table"
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    with Checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="damaged"):
        checkpoint.check_crc()


def test_every_cut_is_noticed(opened, golden_ckpt):
    """Cut anywhere: an error, or (between two tensors, where nothing shows) the tensors before the cut."""
    whole = golden_ckpt("tiny", "init").read_bytes()
    with opened(whole) as checkpoint:
        names = checkpoint.names
    clean = 0
    for cut in range(1000):
        try:
            with opened(whole[:cut]) as checkpoint:
                assert checkpoint.names == names[: len(checkpoint.names)]
                clean += 1
        except CheckpointError as e:
            assert "\n" not in str(e)
    assert clean == 4  # the bottom MLP's four tensors end before byte 1000; the next one is longer


FOREIGN = {
    "empty": (b"", "empty"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "zip": (b"PK\x03\x04" + bytes(100), "zip"),
    "gzip": (b"\x1f\x8b" + bytes(100), "gunzip"),
    "pickle": (b"\x80\x02}q\x00.", "pickle"),
    "html": (b"<!DOCTYPE html><html>404", "download"),
    "encrypted": (struct.pack("<I", 0x7F3A5ED8) + bytes(200), "encrypted"),
    "random": (np.random.default_rng(0).bytes(1000), "encrypted|damaged|foreign|not a MindSpore"),
    "text": (b"hello world, this is no checkpoint", "damaged|foreign|not a MindSpore"),
    "twice": (entry() + entry(name=b"v") + entry(), "w: occurs twice"),
    "slice of another shape": (entry(dims=(6,)) + entry(dims=(5,)), "w: occurs twice"),
    "missing slice": (entry(dims=(6,)), r"\[6\] of Float32 wants 24 bytes. Received 12"),
    "too much content": (entry(dims=(2,)), "wants 8 bytes. Received 12"),
    "huge dims": (entry(dims=(1 << 40, 1 << 40)), "impossible dimensions"),
    "huge dims hidden by a zero": (entry(dims=(0, 1 << 62, 1 << 62), content=b""), "impossible dimensions"),
    "negative dim": (entry(dims=((1 << 64) - 1,)), "impossible dimensions"),
    "many dims": (entry(dims=(1,) * 40, content=bytes(4)), "impossible dimensions"),
    "unknown type": (entry(dtype=b"Float7"), "unknown type 'Float7'"),
    "no name": (field(1, field(2, b"")), "without name"),
    "binary name": (entry(name=b"\xff\xfe\x00"), "not text"),
    "long name": (entry(name=b"a" * 5000), "5000 bytes"),
    "empty name": (entry(name=b""), "0 bytes"),
    "hash table": (field(1, field(1, b"w") + field(3, b"")), "MapParameter"),
    "length past the end": (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut off"),
    "endless varint": (b"\x0a" + b"\xff" * 20, "ten bytes"),
    "inner length past its message": (field(1, b"\x0a\x7fw"), "damaged"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_and_hostile_files(opened, case):
    data, wanted = FOREIGN[case]
    with pytest.raises(CheckpointError, match=wanted) as e:
        opened(data)
    assert "x.ckpt" in str(e.value) and "\n" not in str(e.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        Checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="folder"):
        Checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for read in (Checkpoint, open_checkpoint, hdf5.File, describe_checkpoint):
        with pytest.raises(CheckpointError, match="device"):
            read(tmp_path / "pipe")


def test_file_cut_off_while_it_is_read(tmp_path):
    path = tmp_path / "shrinks.ckpt"
    write_tensors(path, {"a": np.zeros(1 << 16, np.float32)})
    with Checkpoint(path) as checkpoint:
        with open(path, "r+b") as f:
            f.truncate(1 << 12)
        with pytest.raises(CheckpointError, match="cut off while it was read"):
            checkpoint.read("a")


def test_unknown_tensor(opened):
    with opened(entry()) as checkpoint, pytest.raises(CheckpointError, match="no tensor v"):
        checkpoint.read("v")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "old.ckpt"
    path.write_bytes(b"old")

    def chunks():
        yield np.zeros(4, np.float32)
        raise OSError(28, "No space left on device")

    with pytest.raises(DLRMError, match="no space"):
        write_checkpoint(path, [(TensorInfo("a", "Float32", (8,)), chunks())])
    for short_or_long in (7, 9):
        with pytest.raises(ValueError, match="wanted 32 bytes"):
            write_checkpoint(path, [(TensorInfo("a", "Float32", (8,)), [np.zeros(short_or_long, np.float32)])])
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["old.ckpt"]
