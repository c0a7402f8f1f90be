"""Conversion: the golden probabilities, the way there and back bit for bit, and every fault named."""

import json
import os
import sys

import h5py
import numpy as np
import pytest
from numpy_logits import numpy_logits
from tensors import read_tensors, table_bytes, write_tensors

from dlrm_tf import DLRMConfig, convert
from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.checkpoints.ckpt_writer import write_checkpoint
from dlrm_tf.checkpoints.dlrm_checkpoint import DLRMCheckpoint
from dlrm_tf.checkpoints.names import MINDSPORE, weights_of
from dlrm_tf.checkpoints.reference import logits
from dlrm_tf.cli.main import main
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import CheckpointError, DLRMError, UsageError
from dlrm_tf.files import sha256_file
from dlrm_tf.probability import sigmoid
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter

RUNS = [(name, stage) for name in ("tiny", "hub_layout") for stage in ("init", "trained")]


@pytest.fixture
def rewritten(golden_ckpt, tmp_path):
    """Function that writes tiny.init.ckpt again with some tensors replaced (None: dropped) and some added."""

    def write(changes):
        tensors = {**read_tensors(golden_ckpt("tiny", "init")), **changes}
        tensors = {n: a for n, a in tensors.items() if a is not None and not n.startswith(("accum.", "stat."))}
        write_tensors(tmp_path / "changed.ckpt", tensors)
        return tmp_path / "changed.ckpt"

    return write


@pytest.mark.parametrize("name,stage", RUNS)
def test_source_and_converted_file_give_mindspores_probabilities(golden_ckpt, golden_run, tmp_path, name, stage):
    _, run = golden_run(name)
    rows, target = (run["dense"][-1], run["categorical"][-1]), tmp_path / "m.weights.h5"
    with DLRMCheckpoint(golden_ckpt(name, stage)) as source:

        def weight(part, index, kind, ids):
            return source.dense(part, index)[kind == "bias"] if ids is None else source.gather(index, ids)

        of_source = logits(source.config, weight, *rows)
    done = convert(golden_ckpt(name, stage), target, quiet=True)
    assert done.config.categorical_feature_sizes == DLRMConfig.preset("tiny").categorical_feature_sizes
    with WeightsReader(target) as reader:
        assert reader.attributes["source_sha256"] == sha256_file(golden_ckpt(name, stage))
        for f, size in enumerate(reader.config.categorical_feature_sizes):
            assert not reader.rows(f, size, size + 1).any()
    for came in (of_source, numpy_logits(target, *rows)):
        np.testing.assert_allclose(sigmoid(came), run[f"prob_{stage}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("crc", [False, True])
def test_there_and_back_is_bit_exact(golden_ckpt, tmp_path, suffix, crc):
    source = golden_ckpt("hub_layout", "trained")
    there, back, again = tmp_path / "m.weights.h5", tmp_path / f"b{suffix}", tmp_path / "n.weights.h5"
    convert(source, there, quiet=True)
    convert(there, back, crc=crc, quiet=True)
    convert(back, again, quiet=True)
    with Checkpoint(source) as a, Checkpoint(back) as b:
        assert b.format == suffix[1:] and b.check_crc() is crc
        names = [MINDSPORE.name(w) for w in weights_of(WeightsReader(there).config)]
        assert sorted(b.names) == sorted(names)
        for n in names:
            assert a.read(n).tobytes() == b.read(n).tobytes(), n
    assert table_bytes(there) == table_bytes(again)


@pytest.mark.parametrize("slice_bytes", [100, 4096, 10_000])
def test_slices_that_end_within_a_row(golden_ckpt, tmp_path, slice_bytes):
    source = golden_ckpt("hub_layout", "trained")
    write_tensors(tmp_path / "s.ckpt", dict(list(read_tensors(source).items())[:40]), slice_bytes=slice_bytes)
    convert(source, tmp_path / "a.weights.h5", quiet=True)
    convert(tmp_path / "s.ckpt", tmp_path / "b.weights.h5", quiet=True)
    assert table_bytes(tmp_path / "a.weights.h5") == table_bytes(tmp_path / "b.weights.h5")


def test_copied_rows_stay_in_their_block(tmp_path):
    (tmp_path / "source").write_bytes(bytes(range(100)))

    def attempt(begin, nbytes):
        config = DLRMConfig.preset("tiny")
        with open(tmp_path / "source", "rb") as source, WeightsWriter(tmp_path / "m.weights.h5", config) as writer:
            writer.copy_rows(0, begin, source.fileno(), 0, nbytes)

    for begin, nbytes in ((-4, 8), (0, 116), (112, 4)):  # feature 0 has 7 rows of 16 bytes
        with pytest.raises(CheckpointError, match="do not fit its ids"):
            attempt(begin, nbytes)
    with pytest.raises(CheckpointError, match="cut off"):
        attempt(0, 112)
    assert not (tmp_path / "m.weights.h5").exists()


def test_wrapped_names(golden_ckpt, tmp_path):
    def wrapped(name):
        head, dot, tail = name.partition(".")
        return f"{head}.network.{tail}" if head in ("accum", "stat") else f"network.{name}" if dot else name

    tensors = read_tensors(golden_ckpt("tiny", "trained"))
    write_tensors(tmp_path / "w.ckpt", {wrapped(name): array for name, array in tensors.items()})
    done = convert(tmp_path / "w.ckpt", tmp_path / "w.weights.h5", quiet=True)
    convert(golden_ckpt("tiny", "trained"), tmp_path / "p.weights.h5", quiet=True)
    assert any("network." in note for note in done.notes)
    assert table_bytes(tmp_path / "w.weights.h5") == table_bytes(tmp_path / "p.weights.h5")


@pytest.mark.parametrize("dtype", ["Float16", "BFloat16", "Float64"])
def test_other_floating_dtypes_become_float32(golden_ckpt, tmp_path, dtype):
    from dlrm_tf.checkpoints.tensor_info import TensorInfo, widen_bfloat16

    with Checkpoint(golden_ckpt("tiny", "init")) as checkpoint:
        tensors, wanted = [], {}
        for n in checkpoint.names[:34]:
            a = checkpoint.read(n)
            stored = (a.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BFloat16" else a.astype(dtype.lower())
            wanted[n] = widen_bfloat16(stored) if dtype == "BFloat16" else stored.astype(np.float32)
            tensors.append((TensorInfo(n, dtype, a.shape), [stored]))
        write_checkpoint(tmp_path / "h.ckpt", tensors)
    done = convert(tmp_path / "h.ckpt", tmp_path / "h.weights.h5", quiet=True)
    assert f"{dtype} became float32" in done.notes
    with WeightsReader(tmp_path / "h.weights.h5") as reader:
        np.testing.assert_array_equal(reader.dense("top_mlp", 0)[0], wanted["top_mlp.0.weight"])
        np.testing.assert_array_equal(reader.rows(2, 0, 101), wanted["embeddinglookup.embeddings.2.embedding_table"])


def test_faults_are_all_named(rewritten, tmp_path):
    path = rewritten(
        {
            "bottom_mlp.0.bias": None,
            "top_mlp.1.bias": np.zeros(3, np.float32),
            "embeddinglookup.embeddings.7.embedding_table": np.zeros((6, 4), np.int32),
            "attention.weight": np.zeros((2, 2), np.float32),
        }
    )
    with pytest.raises(CheckpointError) as e:
        convert(path, tmp_path / "x.weights.h5", quiet=True)
    for wanted in (
        "bottom_mlp.0.bias is missing",
        "top_mlp.1.bias wanted shape [1], received [3]",
        "embeddinglookup.embeddings.7.embedding_table wanted floating point, received Int32",
        "attention.weight [2, 2] is unknown",
    ):
        assert wanted in str(e.value)
    assert not (tmp_path / "x.weights.h5").exists()


def test_extra_tensors_are_left_out_on_request(rewritten, tmp_path):
    path = rewritten({"attention.weight": np.zeros((2, 2), np.float32), "steps": np.zeros(5, np.int64)})
    with pytest.raises(CheckpointError, match=r"attention.weight \[2, 2\] is unknown \(--allow-extra leaves it out\)$"):
        convert(path, tmp_path / "x.weights.h5", quiet=True)
    done = convert(path, tmp_path / "x.weights.h5", allow_extra=True, quiet=True)
    assert done.notes == ("left out: attention.weight, global_step, learning_rate, momentum, steps",)


def test_config_that_does_not_fit(golden_ckpt, tmp_path):
    with pytest.raises(CheckpointError, match=r"embedding_table wanted shape \[1460, 16\], received \[7, 16\].*and 1[0-9] more"):
        convert(golden_ckpt("hub_layout", "init"), tmp_path / "x.weights.h5", config="criteo_kaggle", quiet=True)
    smaller = DLRMConfig(
        DLRMConfig.preset("tiny").categorical_feature_sizes[:-1], embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1)
    )
    with pytest.raises(CheckpointError, match=r"embeddings.25.embedding_table \[15, 4\] is one too many"):
        convert(golden_ckpt("tiny", "init"), tmp_path / "x.weights.h5", config=smaller, quiet=True)


def test_damaged_by_its_checksum(rewritten, golden_ckpt, tmp_path):
    convert(golden_ckpt("tiny", "init"), tmp_path / "a.weights.h5", quiet=True)
    convert(tmp_path / "a.weights.h5", tmp_path / "a.ckpt", crc=True, quiet=True)
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    data[100] ^= 4
    (tmp_path / "a.ckpt").write_bytes(data)
    before = (tmp_path / "a.weights.h5").read_bytes()
    with pytest.raises(CheckpointError, match="checksum"):
        convert(tmp_path / "a.ckpt", tmp_path / "a.weights.h5", quiet=True)
    assert (tmp_path / "a.weights.h5").read_bytes() == before


def test_no_room_is_said_before_the_work(golden_ckpt, tmp_path, no_room):
    with pytest.raises(DLRMError, match="GB free"):
        convert(golden_ckpt("tiny", "init"), tmp_path / "x.weights.h5", quiet=True)


def test_oov_rows_are_left_out_and_said(golden_ckpt, tmp_path):
    path = tmp_path / "m.weights.h5"
    convert(golden_ckpt("tiny", "init"), path, quiet=True)
    with h5py.File(path, "r+") as f:
        f["embedding/vars/0"][7] = 1  # the OOV row of feature 0
    assert convert(path, tmp_path / "m.ckpt", quiet=True).notes == (
        "left out 1 OOV rows with values: MindSpore's model has none",
    )


@pytest.mark.parametrize(
    "target,to", [("x.h5", None), ("x.ckpt", "keras"), ("x.weights.h5", "mindspore"), ("x.weights.h5", "onnx")]
)
def test_wrong_target(golden_ckpt, tmp_path, target, to):
    with pytest.raises(UsageError):
        convert(golden_ckpt("tiny", "init"), tmp_path / target, to=to)


def test_a_known_source_is_named(golden_ckpt, tmp_path, monkeypatch):
    from dlrm_tf.checkpoints import file_sha256

    source = golden_ckpt("hub_layout", "init")
    monkeypatch.setitem(file_sha256.KNOWN, sha256_file(source), "the golden one")
    monkeypatch.setattr(file_sha256, "CHEAP_BYTES", 1000)
    assert not any("golden" in note for note in convert(source, tmp_path / "a.weights.h5", quiet=True).notes)
    assert convert(source, tmp_path / "a.weights.h5", check=True, quiet=True).notes[0] == "the source is the golden one"
    with WeightsReader(tmp_path / "a.weights.h5") as reader:
        assert reader.attributes["source_sha256"] == sha256_file(source)


def test_command_line(golden_ckpt, tmp_path, capsys):
    target = tmp_path / "m.weights.h5"
    assert main(["convert", str(golden_ckpt("tiny", "init")), "-o", str(target)]) == 0
    assert "34 weights" in capsys.readouterr().out
    assert main(["inspect", str(target)]) == 0
    assert "embedding/vars/0" in capsys.readouterr().out
    assert main(["inspect", str(golden_ckpt("tiny", "init")), "--check"]) == 0
    out = capsys.readouterr().out
    assert "optimizer state (accum): 34 tensors" in out and sha256_file(golden_ckpt("tiny", "init")) in out
    assert main(["convert", str(tmp_path / "none.ckpt"), "-o", str(target)]) == 1
    assert capsys.readouterr().err == f"dlrm-tf: {tmp_path}/none.ckpt: no such file\n"
    assert main(["convert", str(target), "-o", str(target), "--crc"]) == 2
    assert "crc must be false for a weights file" in capsys.readouterr().err


def test_needs_neither_tensorflow_nor_mindspore_nor_torch(golden_ckpt, tmp_path):
    import subprocess

    code = (
        "import sys, dlrm_tf; dlrm_tf.convert(sys.argv[1], sys.argv[2], quiet=True); "
        "print([m for m in ('tensorflow', 'keras', 'torch', 'mindspore.train') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(golden_ckpt("tiny", "init")), str(tmp_path / "m.weights.h5")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def vocabulary(tmp_path):
    """A vocabulary's file with features of 3 and 1 keys."""
    vocabulary = Vocabulary.from_keys({"C1": ["00000001", "", "x"], "C2": ["68fd1e64"]})
    vocabulary.save(tmp_path / "vocabulary.npz")
    return tmp_path / "vocabulary.npz"


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_inspect_describes_a_vocabulary(vocabulary, without_torch, capsys):
    fingerprint = Vocabulary.load(vocabulary).fingerprint
    assert main(["inspect", str(vocabulary)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{vocabulary}: dlrm_tf vocabulary, {vocabulary.stat().st_size:,} bytes"
    assert [line.split() for line in lines[1:3]] == [["C1", "3"], ["C2", "1"]]
    assert lines[3:] == ["2 features, 4 categories", f"fingerprint: {fingerprint}", f"sha256: {sha256_file(vocabulary)}"]
    assert main(["inspect", str(vocabulary), "--json", "--check"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["features"] == [{"name": "C1", "size": 3}, {"name": "C2", "size": 1}] and report["fingerprint"] == fingerprint


@pytest.mark.parametrize("target", ["m.weights.h5", "m.ckpt"])
def test_a_vocabulary_is_not_converted(vocabulary, without_torch, capsys, target):
    assert main(["convert", str(vocabulary), "-o", str(vocabulary.parent / target)]) == 1
    err = capsys.readouterr().err
    assert err == f"dlrm-tf: {vocabulary}: wanted a checkpoint. Received a vocabulary (dlrm-tf inspect shows what is in it)\n"
    assert os.listdir(vocabulary.parent) == ["vocabulary.npz"]


def test_a_damaged_vocabulary_is_one_line(vocabulary, capsys):
    content = bytearray(vocabulary.read_bytes())
    at = content.index(b"\x64\x1e\xfd\x68")  # the key 68fd1e64
    content[at] ^= 1
    vocabulary.write_bytes(content)
    assert main(["inspect", str(vocabulary)]) == 1
    err = capsys.readouterr().err
    assert "not a vocabulary file, or damaged" in err and err.count("\n") == 1
