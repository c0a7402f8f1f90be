"""The plain reader of weights files, against the HDF5 library, and against what the library can make that is not for us."""

import h5py
import numpy as np
import pytest

from dlrm_tf import DLRMConfig
from dlrm_tf.errors import CheckpointError
from dlrm_tf.weights import hdf5
from dlrm_tf.weights.lookup3 import lookup3
from dlrm_tf.weights.writer import WeightsWriter


def test_lookup3():
    # The two results that its author gives in the source of hashlittle (driver5), and a block of a real file.
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551


@pytest.fixture
def weights_file(tmp_path):
    """A weights file with random weights, and its arrays by path."""
    config = DLRMConfig((50, 3, 7), dense_dim=5, embedding_dim=4, bottom_mlp=(6, 5, 6, 5, 6, 5, 4), top_mlp=(8, 1))
    random = np.random.default_rng(0)
    path = tmp_path / "m.weights.h5"
    with WeightsWriter(path, config, source_sha256="ab" * 32, vocabulary_fingerprint="fingerprint é") as writer:
        for mlp, i, fan_in, fan_out in config.dense_shapes():
            writer.write_dense(mlp, i, random.random((fan_in, fan_out), np.float32), random.random(fan_out, np.float32))
        writer.write_table(0, random.random((config.table_rows, 4), np.float32))
    return path


def test_reads_what_the_library_reads(weights_file):
    wanted = {}
    with h5py.File(weights_file) as f:
        f.visititems(lambda name, item: wanted.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
        attributes = dict(f.attrs)
    file = hdf5.File(weights_file)
    assert set(file.datasets) == set(wanted) and len(wanted) == 19
    for name, array in wanted.items():
        np.testing.assert_array_equal(file.read(name, 0, len(array)), array)
        np.testing.assert_array_equal(file.read(name, 1, len(array) - 1), array[1:-1])
    assert file.attributes == attributes and attributes["vocabulary_fingerprint"] == "fingerprint é"
    file.close()


def test_attributes_and_fill_values(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as f:
        group = f.create_group("g")
        group.attrs.update({"i": np.array([7], np.int32), "f": np.float32(0.5), "u": np.uint8(3), "s": np.bytes_(b"fixed")})
        group.attrs["complex"] = 1j
        f.create_dataset("constant", (5, 2), np.float32, fillvalue=2.5)
        f["scalar"] = np.float32(3)
    file = hdf5.File(tmp_path / "a.h5")
    found = file.group_attributes["g"]
    assert found["i"].dtype == np.int32 and found["i"].tolist() == [7]
    assert found["f"] == np.float32(0.5) and found["f"].shape == () and found["u"] == 3 and found["s"] == "fixed"
    assert "complex" not in found
    assert file.datasets["constant"].offset is None and (file.read("constant", 1, 3) == np.full((2, 2), 2.5)).all()
    assert file.datasets["scalar"].shape == ()


REFUSED = {
    "compressed": lambda f: f.create_dataset("d", (1000, 1000), np.float32, compression="gzip"),
    "not stored as one contiguous block": lambda f: f.create_dataset("d", (100, 100), np.float32, chunks=(10, 100)),
    "not float32": lambda f: f.create_dataset("d", (3,), np.float64),
    "keeps its data in another file": lambda f: f.create_dataset("d", (3,), np.float32, external=[("/etc/passwd", 0, 12)]),
    "more than 8 entries": lambda f: [f.create_dataset(f"d{i}", (3,), np.float32) for i in range(9)],
    "is there twice": lambda f: f.create_group("g").__setitem__("again", f["/"]),
    "has a shared message": lambda f: (f.__setitem__("t", np.dtype("f4")), f.create_dataset("d", (3,), f["t"])),
    "too many objects": lambda f: f.create_group("/".join("abcdefghijk")),
}


@pytest.mark.parametrize("wanted", REFUSED)
def test_what_weights_files_have_no_use_for_is_refused(tmp_path, wanted):
    with h5py.File(tmp_path / "r.h5", "w", libver="latest") as f:
        REFUSED[wanted](f)
    with pytest.raises(CheckpointError, match=wanted):
        hdf5.File(tmp_path / "r.h5")


def test_links_that_lead_elsewhere_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "l.h5", "w", libver="latest") as f:
        f["d"] = np.zeros(3, np.float32)
        f["soft"] = h5py.SoftLink("/d")
        f["external"] = h5py.ExternalLink("/etc/passwd", "/d")
    assert set(hdf5.File(tmp_path / "l.h5").datasets) == {"d"}


@pytest.mark.slow
def test_every_cut_and_every_changed_byte_of_the_metadata(weights_file, tmp_path):
    data = weights_file.read_bytes()
    for cut in (7, *range(0, len(data), 97), len(data) - 1):
        (tmp_path / "x").write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="/x: "):
            hdf5.File(tmp_path / "x")
    with h5py.File(weights_file) as f:
        offset = f["embedding/vars/0"].id.get_offset()
    for at in range(min(offset, 600)):
        (tmp_path / "x").write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
        with pytest.raises(CheckpointError):
            hdf5.File(tmp_path / "x")


def test_more_layers_than_a_group_holds(tmp_path):
    with pytest.raises(CheckpointError, match="at most 7 layers"):
        WeightsWriter(tmp_path / "m.weights.h5", DLRMConfig((3,), embedding_dim=4, bottom_mlp=(4,) * 8, top_mlp=(1,)))
