"""What the fuzzers call: every reader of files from outside, on arbitrary bytes. Only a `DLRMError` of one line may come out."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from unittest import mock

import numpy as np

from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.checkpoints.dlrm_checkpoint import DLRMCheckpoint
from dlrm_tf.data.records import Records
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DLRMError
from dlrm_tf.weights import hdf5
from dlrm_tf.weights.optimizer_state import OptimizerStateReader
from dlrm_tf.weights.reader import WeightsReader

CORPUS = pathlib.Path(__file__).parent / "corpus"


_FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def as_file(data: bytes) -> str:
    """Path of a file (in memory where the system has such a folder) with these bytes."""
    path = os.path.join(_FOLDER.name, "input")
    with open(path, "wb") as f:
        f.write(data)
    return path


def ckpt(data: bytes) -> None:
    """`.ckpt` or `.safetensors`: index, contents, checksum, and the DLRM in it."""
    path = as_file(data)
    with Checkpoint(path) as checkpoint:
        infos = [checkpoint.info(name) for name in checkpoint.names]
        assert sum(info.nbytes for info in infos) <= len(data), "more content than file"
        for info in infos:
            assert checkpoint.read(info.name).shape == info.shape
            if info.shape:
                rows = sum(len(part) for _, part in checkpoint.chunks(info.name, 64))
                assert rows == (info.shape[0] if info.size else 0)
        with contextlib.suppress(DLRMError):
            checkpoint.check_crc()
    with DLRMCheckpoint(path) as source:
        for mlp, layer, _, _ in source.config.dense_shapes():
            source.dense(mlp, layer)
        for f in range(source.config.num_categorical):
            source.gather(f, np.zeros(1, np.int64))


def weights(data: bytes) -> None:
    """`.weights.h5`, with optimizer state."""
    with mock.patch.object(hdf5, "lookup3", _no_checksums), WeightsReader(as_file(data)) as reader:
        assert 4 * reader.config.num_parameters <= len(data), "more weights than file"
        for mlp, layer, _, _ in reader.config.dense_shapes():
            reader.dense(mlp, layer)
        for f in range(reader.config.num_categorical):
            reader.rows(f, 0, 2)
        state = OptimizerStateReader(reader)
        for slot in state.slots:
            for weight in state.paths:
                state.read(slot, weight, 0, 2)


def vocabulary(data: bytes) -> None:
    """A vocabulary file."""
    with mock.patch.object(zipfile.ZipExtFile, "_update_crc", lambda self, data: None):
        read = Vocabulary.load(as_file(data))
    for name, size in zip(read.names, read.sizes):
        assert (read.lookup(name, ["", "nowhere"]) <= size).all()
        keys = 0 if name in read.spaces.hashed else size
        assert read.last_seen(name).shape == (keys,) and read.last_seen(name).min(initial=0) >= -1


def manifest(data: bytes) -> None:
    """manifest.json of a data folder whose other files are good."""
    folder = data_folder()
    with open(os.path.join(folder, "manifest.json"), "wb") as f:
        f.write(data)
    opened = Records.open(folder)
    for split in ("train", "test"):
        opened.numpy(split, 0, min(4, opened.rows(split)))


def records(data: bytes) -> None:
    """The shards of a data folder: the first byte says how many rows too many the manifest claims, the rest are the rows."""
    folder = data_folder()
    good = json.loads((CORPUS.parent / "data" / "manifest.json").read_bytes())
    shard = good["shards"]["train"][0]
    width, content = 160, data[1:]
    shard["rows"] = max(0, len(content) // width + int.from_bytes(data[:1], "little", signed=True))
    good["shards"]["train"] = [shard]
    with open(os.path.join(folder, "manifest.json"), "w") as f:
        json.dump(good, f)
    with open(os.path.join(folder, shard["path"]), "wb") as f:
        f.write(content)
    opened = Records.open(folder)
    assert opened.rows("train") * width == len(content)
    dense, categorical, label = opened.numpy("train")
    assert len(dense) == len(categorical) == len(label) == opened.rows("train")
    try:
        opened.verify()
    except DLRMError:
        return
    assert hashlib.sha256(content).hexdigest() == shard["sha256"]


def data_folder() -> str:
    """A copy of tests/fuzz/data, whose files a target overwrites."""
    folder = os.path.join(_FOLDER.name, "data")
    if not os.path.isdir(folder):
        shutil.copytree(CORPUS.parent / "data", folder)
    return folder


TARGETS = {"ckpt": ckpt, "weights": weights, "vocabulary": vocabulary, "manifest": manifest, "records": records}


def _no_checksums(data: bytes):
    """Stands in for a checksum that is always right: else nearly every mutation would be refused for its checksum alone."""
    return _AnyNumber()


class _AnyNumber:
    def __ne__(self, other):
        return False


def run(target: str, data: bytes) -> bool:
    """Calls a target; True if the bytes were read, False if they were refused as they should be."""
    try:
        TARGETS[target](data)
    except DLRMError as e:
        message = str(e)
        assert message and len(message) < 4000 and message.isprintable(), f"not one clear line: {message[:300]!r}"
        return False
    return True
