"""Makes the seeds in tests/fuzz/corpus and the data folder in tests/fuzz/data; what fuzzing has added to the corpus stays."""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np
from targets import CORPUS

import dlrm_tf
from dlrm_tf import Bag, DLRMConfig, convert
from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.checkpoints.ckpt_writer import array_tensor, write_checkpoint
from dlrm_tf.checkpoints.safetensors import write_safetensors
from dlrm_tf.checkpoints.tensor_info import TensorInfo
from dlrm_tf.data.id_spaces import IdSpaces

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
from initial_checkpoint import write_initial_checkpoint  # noqa: E402

CONFIG = DLRMConfig((3, 2), dense_dim=2, embedding_dim=2, bottom_mlp=(2,), top_mlp=(1,))


def main() -> None:
    """Writes every seed."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for target in ("ckpt", "weights", "vocabulary", "manifest", "records"):
            (CORPUS / target).mkdir(parents=True, exist_ok=True)
        _checkpoints(folder)
        _data(folder)


def _checkpoints(folder: pathlib.Path) -> None:
    plain = folder / "plain.ckpt"
    write_initial_checkpoint(plain, CONFIG)
    with Checkpoint(plain) as checkpoint:
        tensors = [array_tensor(n, checkpoint.read(n)) for n in checkpoint.names]
    write_checkpoint(folder / "crc.ckpt", tensors, crc=True)
    write_checkpoint(folder / "sliced.ckpt", tensors, slice_bytes=8)
    half = [(TensorInfo(i.name, "BFloat16", i.shape), [np.zeros(i.shape, "<u2")]) for i, _ in tensors[:6]]
    write_checkpoint(folder / "bfloat16.ckpt", half)
    write_safetensors(folder / "plain.safetensors", tensors)
    write_safetensors(folder / "crc.safetensors", tensors[:7], crc=True)
    shutil.copy(CORPUS.parents[1] / "golden" / "torchrec_dcn.safetensors", folder / "cross.safetensors")
    for path in folder.glob("*.ckpt"):
        shutil.copy(path, CORPUS / "ckpt")
    for path in folder.glob("*.safetensors"):
        shutil.copy(path, CORPUS / "ckpt")
    convert(plain, folder / "plain.weights.h5", quiet=True)
    convert(plain, folder / "state.weights.h5", optimizer_state=True, quiet=True)
    convert(folder / "cross.safetensors", folder / "cross.weights.h5", quiet=True)
    for path in folder.glob("*.weights.h5"):
        shutil.copy(path, CORPUS / "weights")


def _data(folder: pathlib.Path) -> None:
    dlrm_tf.synth(str(folder / "log.tsv"), 30, seed=0)
    dlrm_tf.prepare(str(folder / "log.tsv"), str(folder / "data"), quiet=True)
    target = CORPUS.parent / "data"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "data", target)
    shutil.copy(target / "manifest.json", CORPUS / "manifest")
    # Bags of one key: the same rows fit.
    bags = json.loads((target / "manifest.json").read_text())
    bags["spec"]["bags"] = {"C1": Bag("|", 1).to_dict(), "C9": Bag("/", 1, pooling="mean").to_dict()}
    (CORPUS / "manifest" / "manifest_bags.json").write_text(json.dumps({**bags, "format": 2}, indent=1))
    (CORPUS / "records" / "shard").write_bytes(b"\0" + (target / "train" / "00000.bin").read_bytes())
    for path in target.glob("vocabulary*"):
        shutil.copy(path, CORPUS / "vocabulary")
    days = dlrm_tf.Vocabulary.from_keys({"C1": ["0000000a", "", "x"], "C2": ["00000001"]})
    days.feature("C1").see(np.array([True, False, True]), 20_000)
    days.save(CORPUS / "vocabulary" / "vocabulary_days.npz")
    spaces = IdSpaces(tuple("abcd"), {"c": 9, "d": 9}, {"t": ("a", "b")}, {"u": ("c", "d")})
    hashed = dlrm_tf.Vocabulary.empty(spaces).keep([np.zeros(0, bool)] * 2 + [np.arange(9) % 2 == 0] * 2)
    hashed.save(CORPUS / "vocabulary" / "vocabulary_hashed.npz")


if __name__ == "__main__":
    main()
