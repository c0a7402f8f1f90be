"""A MindSpore or PyTorch DLRM checkpoint to a Keras weights file, and back to MindSpore."""

import dataclasses
import itertools
import os
import shutil
from typing import Callable, Optional, Union

import numpy as np

from dlrm_tf.checkpoints.ckpt_writer import array_tensor, write_checkpoint
from dlrm_tf.checkpoints.dlrm_checkpoint import DLRMCheckpoint, refuse_vocabulary
from dlrm_tf.checkpoints.file_sha256 import KNOWN, known_sha256, sha256_file
from dlrm_tf.checkpoints.names import MINDSPORE, Weight, weights_of
from dlrm_tf.checkpoints.optimizer_state import carry_to_keras, carry_to_mindspore
from dlrm_tf.checkpoints.safetensors import write_safetensors
from dlrm_tf.checkpoints.tensor_info import TensorInfo, row_chunks
from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError, DLRMError, UsageError
from dlrm_tf.progress import Progress
from dlrm_tf.weights.optimizer_state import OptimizerStateReader
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter

KERAS_SUFFIX = ".weights.h5"
MINDSPORE_SUFFIXES = (".ckpt", ".safetensors")
# A plain table is copied in such pieces; meanwhile the next one is fetched from the disk.
PIECE_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
      source, target: the files.
      config: the model's configuration.
      tensors: number of weights written.
      nbytes: their bytes.
      notes: what a user should know, one sentence each.
    """

    source: str
    target: str
    config: DLRMConfig
    tensors: int
    nbytes: int
    notes: tuple[str, ...] = ()


def convert(
    source,
    target,
    config: Union[DLRMConfig, str, None] = None,
    to: Optional[str] = None,
    prefix: Optional[str] = None,
    allow_extra: bool = False,
    optimizer_state: bool = False,
    crc: bool = False,
    check: bool = False,
    quiet: bool = False,
    before_writing: Optional[Callable] = None,
) -> Conversion:
    """Converts MindSpore's `.ckpt` or `.safetensors` to Keras's `.weights.h5`, or back; streams, whatever the size.

    Also from PyTorch (.pt, .pth or .safetensors): the `state_dict` of facebookresearch/dlrm or of torchrec's DLRM.

    OOV rows, which MindSpore has none of, become zeros; on the way back they are left out.

    Args:
      source: file to read.
      target: file to write; replaced only when the new one is complete.
      config: the model's configuration, a preset's name or a JSON file; inferred from the tensors' shapes if None.
      to: `"keras"` or `"mindspore"`; None: by the target's suffix.
      prefix: prefix of the weights' names, when the source holds more than one network.
      allow_extra: leave out tensors that are neither a weight nor optimizer state, instead of refusing the file.
      optimizer_state: carry the optimizer's state too (MindSpore's SGD, Momentum, Adagrad); see `train.optimizer_state`.
      crc: to MindSpore only: append its checksum.
      check: to Keras only: hash the whole source first, whatever its size; its sha256 is noted in the weights file, and a known
        one is named. Without it that is done for small files and for those `fetch` has brought.
      quiet: show no progress.
      before_writing: called with the model's configuration before anything is written or hashed; what it raises ends the
        conversion. `verify`'s sample is checked so, rather than after minutes of work.

    Returns:
      A `Conversion`.

    Raises:
      CheckpointError: the source is damaged or foreign, or does not fit `config`; every missing, extra or misshaped
        tensor is named.
      UsageError: the target's suffix does not fit `to`.
    """
    source, target = os.fspath(source), os.fspath(target)
    direction = _direction(target, to)
    before = before_writing or (lambda config: None)
    if isinstance(config, str):
        config = DLRMConfig.read(config)
    if direction == "keras":
        return _to_keras(source, target, config, prefix, allow_extra, optimizer_state, check, quiet, before)
    return _to_mindspore(source, target, config, optimizer_state, crc, quiet, before)


def _direction(target: str, to: Optional[str]) -> str:
    suffixes = {"keras": (KERAS_SUFFIX,), "mindspore": MINDSPORE_SUFFIXES}
    if to not in (None, *suffixes):
        raise UsageError(f"to must be keras or mindspore. Received {to!r}")
    for direction, endings in suffixes.items():
        if to in (None, direction) and target.endswith(endings):
            return direction
    wanted = suffixes[to] if to else sum(suffixes.values(), ())
    raise UsageError(f"{target}: the name of the file to write must end in {' or '.join(wanted)}")


def _to_keras(
    source, target, config, prefix, allow_extra: bool, optimizer_state: bool, check: bool, quiet: bool, before
) -> Conversion:
    with DLRMCheckpoint(source, config, prefix, allow_extra) as weights:
        config = weights.config
        before(config)
        weights.checkpoint.check_crc()
        _need_space(target, config.num_parameters * 4)
        sha256 = sha256_file(source, quiet) if check else known_sha256(source)
        with WeightsWriter(target, config, sha256) as writer, Progress("convert", weights.nbytes, "B", quiet=quiet) as progress:
            for mlp, i, _, _ in config.dense_shapes():
                kernel, bias = weights.dense(mlp, i)
                writer.write_dense(mlp, i, kernel, bias)
                progress.update(kernel.nbytes + bias.nbytes)
            for f in range(config.num_categorical):
                _carry_table(weights, writer, f, progress)
            if optimizer_state:
                carried = carry_to_keras(weights, writer)
        notes = list(weights.notes(state_left_out=not optimizer_state))
        if optimizer_state:
            notes.append(f"carried the state of MindSpore's optimizer {carried}")
    if sha256 in KNOWN:
        notes.insert(0, f"the source is {KNOWN[sha256]}")
    return Conversion(source, target, config, len(weights_of(config)), 4 * config.num_parameters, tuple(notes))


def _carry_table(weights: DLRMCheckpoint, writer: WeightsWriter, feature: int, progress: Progress) -> None:
    ranges = weights.byte_ranges(feature)
    if ranges is None:
        for start, rows in weights.chunks(feature):
            writer.write_rows(feature, start, rows)
            progress.update(rows.nbytes)
        return
    for begin, offset, nbytes in ranges:
        for done in range(0, nbytes, PIECE_BYTES):
            count = min(PIECE_BYTES, nbytes - done)
            weights.checkpoint.read_ahead(offset + done + count, PIECE_BYTES)
            writer.copy_rows(feature, begin + done, weights.checkpoint.fileno(), offset + done, count)
            progress.update(count)


def _to_mindspore(source, target, config, optimizer_state: bool, crc: bool, quiet: bool, before) -> Conversion:
    refuse_vocabulary(source)
    if source.endswith(MINDSPORE_SUFFIXES):
        raise UsageError(f"{source}: to write {target}, wanted a {KERAS_SUFFIX} file: convert the checkpoint to one first")
    with WeightsReader(source) as reader:
        if config is not None and config != reader.config:
            raise CheckpointError(f"{source}: wanted the configuration {config.to_json()}. Received {reader.config.to_json()}")
        config = reader.config
        before(config)
        shapes = weights_of(config)
        state = OptimizerStateReader(reader)
        if optimizer_state and not state.slots:
            raise CheckpointError(f"{source}: holds no optimizer state; convert to it with --optimizer-state first")
        nbytes = sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
        _need_space(target, nbytes * (1 + len(state.slots) * optimizer_state))
        with Progress("convert", nbytes, "B", quiet=quiet) as progress:
            write = write_checkpoint if target.endswith(".ckpt") else write_safetensors
            tensors = _mindspore_tensors(reader, shapes, progress)
            write(target, itertools.chain(tensors, carry_to_mindspore(state, config) if optimizer_state else ()), crc=crc)
        trained = _trained_oov_rows(reader)
    notes = [f"left out {trained} OOV rows with values: MindSpore's model has none"] if trained else []
    return Conversion(source, target, config, len(shapes), nbytes, tuple(notes))


def _mindspore_tensors(reader: WeightsReader, shapes: dict, progress: Progress):
    """Every weight as the pair the writers take, in MindSpore's order."""
    for mlp, i, _, _ in reader.config.dense_shapes():
        for kind, array in zip(("kernel", "bias"), reader.dense(mlp, i)):
            yield array_tensor(MINDSPORE.name(Weight(mlp, i, kind)), array)
            progress.update(array.nbytes)
    for weight, shape in shapes.items():
        if weight.part == "embedding":
            info = TensorInfo(MINDSPORE.name(weight), "Float32", shape)
            yield info, _row_chunks(reader, weight.index, info, progress)


def _row_chunks(reader: WeightsReader, feature: int, info: TensorInfo, progress: Progress):
    for start, stop in row_chunks(info):
        rows = reader.rows(feature, start, stop)
        yield rows
        progress.update(rows.nbytes)


def _trained_oov_rows(reader: WeightsReader) -> int:
    sizes = reader.config.categorical_feature_sizes
    return sum(bool(reader.rows(f, size, size + 1).any()) for f, size in enumerate(sizes))


def _need_space(target: str, nbytes: int) -> None:
    """Raises DLRMError when `target`'s disk has not the room: better before the work than in the middle of it."""
    folder = os.path.dirname(os.path.abspath(target))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise DLRMError(f"{target}: needs {nbytes / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free")
