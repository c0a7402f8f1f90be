"""`convert`: a MindSpore or PyTorch checkpoint of a DLRM to a weights file, and a weights file to a MindSpore checkpoint."""

import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterator
from typing import Callable, Optional, Union

import numpy as np

from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.checkpoints.ckpt_writer import array_tensor, write_checkpoint
from dlrm_tf.checkpoints.dlrm_checkpoint import DLRMCheckpoint, refuse_vocabulary
from dlrm_tf.checkpoints.file_sha256 import KNOWN, known_sha256
from dlrm_tf.checkpoints.names import MINDSPORE, Weight, weights_of
from dlrm_tf.checkpoints.optimizer_state import carry_to_keras, carry_to_mindspore
from dlrm_tf.checkpoints.safetensors import write_safetensors
from dlrm_tf.checkpoints.tensor_info import TensorInfo, TensorToWrite, row_chunks
from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError, DLRMError, UsageError
from dlrm_tf.files import StrPath, sha256_file
from dlrm_tf.progress import Progress
from dlrm_tf.weights.optimizer_state import OptimizerStateReader
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.writer import WeightsWriter

KERAS_SUFFIX = ".weights.h5"
MINDSPORE_SUFFIXES = (".ckpt", ".safetensors")
# A float32 table is copied in pieces of this size, while the next one is read from the disk.
PIECE_BYTES = 16 << 20
_BeforeWriting = Callable[[DLRMConfig], object]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
      source: the file read.
      target: the file written.
      config: the model's configuration.
      tensors: number of weights written.
      nbytes: their size in bytes.
      notes: what a user should know, one sentence each.
    """

    source: str
    target: str
    config: DLRMConfig
    tensors: int
    nbytes: int
    notes: tuple[str, ...] = ()


def convert(
    source: StrPath,
    target: StrPath,
    *,
    config: Union[DLRMConfig, str, None] = None,
    to: Optional[str] = None,
    prefix: Optional[str] = None,
    allow_extra: bool = False,
    optimizer_state: bool = False,
    crc: bool = False,
    check: bool = False,
    quiet: bool = False,
    before_writing: Optional[_BeforeWriting] = None,
) -> Conversion:
    """Converts a checkpoint to Keras's `.weights.h5`, or such a file to a MindSpore checkpoint; in bounded memory at any size.

    Reads MindSpore's `.ckpt` and `.safetensors`, and PyTorch's `state_dict` of facebookresearch/dlrm or torchrec's DLRM and
    DLRM_DCN (`.pt`, `.pth` or `.safetensors`). Rows for ids out of vocabulary (OOV), which a checkpoint has none of, become
    zeros; on the way back they are left out.

    Args:
      source: file to read.
      target: file to write; replaced only when the new one is complete.
      config: the model's configuration, a preset's name or a JSON file; inferred from the tensors' shapes if None.
      to: `"keras"` or `"mindspore"`; None: by the target's suffix.
      prefix: prefix of the weights' names, when the source holds more than one network.
      allow_extra: leave out tensors that are neither a weight nor optimizer state, instead of raising an error.
      optimizer_state: carry the optimizer's state too (MindSpore's SGD, Momentum, Adagrad).
      crc: add MindSpore's checksum to the file written (only to MindSpore).
      check: hash the whole source, so that its sha256 is noted in the target and a known file is named. Without it that is
        done for a small file, or one with the note that `fetch` leaves.
      quiet: show no progress.
      before_writing: called with the model's configuration before anything is hashed or written; what it raises ends the
        conversion. So what can be checked early need not wait for minutes of work.

    Returns:
      A `Conversion`.

    Raises:
      CheckpointError: the source is damaged or foreign, or does not fit `config`; every missing, extra or misshaped
        tensor is named.
      DLRMError: there is no room for the target.
      UsageError: the target's suffix does not fit `to`, or `crc` for a weights file.
    """
    source, target = os.fspath(source), os.fspath(target)
    before = before_writing or (lambda config: None)
    if isinstance(config, str):
        config = DLRMConfig.read(config)
    if _direction(target, to) == "mindspore":
        return _to_mindspore(source, target, config, optimizer_state, crc, quiet, before)
    if crc:
        raise UsageError(f"crc must be false for a weights file; only MindSpore's checkpoints have one. Received {target}")
    with DLRMCheckpoint(source, config=config, prefix=prefix, allow_extra=allow_extra) as weights:
        return _to_keras(weights, target, optimizer_state, check, quiet, before)


def _direction(target: str, to: Optional[str]) -> str:
    suffixes: dict[str, tuple[str, ...]] = {"keras": (KERAS_SUFFIX,), "mindspore": MINDSPORE_SUFFIXES}
    if to not in (None, *suffixes):
        raise UsageError(f"to must be keras or mindspore. Received {to!r}")
    wanted = {direction: endings for direction, endings in suffixes.items() if to in (None, direction)}
    for direction, endings in wanted.items():
        if target.endswith(endings):
            return direction
    raise UsageError(f"{target}: the name of the file to write must end in {' or '.join(sum(wanted.values(), ()))}")


def _to_keras(
    weights: DLRMCheckpoint, target: str, optimizer_state: bool, check: bool, quiet: bool, before: _BeforeWriting
) -> Conversion:
    config, source = weights.config, weights.checkpoint.path
    before(config)
    weights.checkpoint.check_crc()
    nbytes = 4 * config.num_parameters
    _need_space(target, nbytes)
    sha256 = sha256_file(source, quiet=quiet) if check else known_sha256(source)
    notes = [f"the source is {KNOWN[sha256]}"] if sha256 in KNOWN else []
    notes += weights.notes(state_left_out=not optimizer_state)
    progress = Progress("convert", weights.nbytes, "B", quiet=quiet)
    with WeightsWriter(target, config, source_sha256=sha256) as writer, progress:
        for mlp, i, _, _ in config.dense_shapes():
            layer = weights.dense(mlp, i)
            writer.write_dense(mlp, i, *layer)
            progress.update(sum(array.nbytes for array in layer))
        for f in range(config.num_categorical):
            _carry_table(weights, writer, f, progress)
        if optimizer_state:
            notes.append(f"carried the state of MindSpore's optimizer {carry_to_keras(weights, writer)}")
    return Conversion(source, target, config, len(weights_of(config)), nbytes, tuple(notes))


def _carry_table(weights: DLRMCheckpoint, writer: WeightsWriter, feature: int, progress: Progress) -> None:
    checkpoint, ranges = weights.checkpoint, weights.byte_ranges(feature)
    if ranges is None or not isinstance(checkpoint, Checkpoint):
        for start, rows in weights.chunks(feature):
            writer.write_rows(feature, start, rows)
            progress.update(rows.nbytes)
        return
    for begin, offset, nbytes in ranges:
        for done in range(0, nbytes, PIECE_BYTES):
            count = min(PIECE_BYTES, nbytes - done)
            checkpoint.read_ahead(offset + done + count, PIECE_BYTES)
            writer.copy_rows(feature, begin + done, checkpoint.fileno(), offset + done, count)
            progress.update(count)


def _to_mindspore(
    source: str, target: str, config: Optional[DLRMConfig], optimizer_state: bool, crc: bool, quiet: bool, before: _BeforeWriting
) -> Conversion:
    refuse_vocabulary(source)
    if source.endswith(MINDSPORE_SUFFIXES):
        raise UsageError(f"{source}: to write {target}, wanted a {KERAS_SUFFIX} file: convert the checkpoint to one first")
    with WeightsReader(source) as reader:
        if config is not None and config != reader.config:
            raise CheckpointError(f"{source}: wanted the configuration {config.to_json()}. Received {reader.config.to_json()}")
        config = reader.config
        MINDSPORE.check(config, target, to_write=True)
        before(config)
        shapes = weights_of(config)
        state = OptimizerStateReader(reader)
        if optimizer_state and not state.slots:
            raise CheckpointError(f"{source}: holds no optimizer state; convert to it with --optimizer-state first")
        nbytes = sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
        _need_space(target, nbytes * (1 + len(state.slots) * optimizer_state))
        with Progress("convert", nbytes, "B", quiet=quiet) as progress:
            write = write_checkpoint if target.endswith(".ckpt") else write_safetensors
            slots = carry_to_mindspore(state, config) if optimizer_state else ()
            write(target, itertools.chain(_mindspore_tensors(reader, progress), slots), crc=crc)
        trained = _trained_oov_rows(reader)
    notes = [f"left out {trained} OOV rows with values: MindSpore's model has none"] if trained else []
    return Conversion(source, target, config, len(shapes), nbytes, tuple(notes))


def _mindspore_tensors(reader: WeightsReader, progress: Progress) -> Iterator[TensorToWrite]:
    """Yields every weight as the checkpoint writers take it, in MindSpore's order."""
    for mlp, i, _, _ in reader.config.dense_shapes():
        for kind, array in zip(("kernel", "bias"), reader.dense(mlp, i)):
            yield array_tensor(MINDSPORE.name(Weight(mlp, i, kind)), array)
            progress.update(array.nbytes)
    for weight, shape in weights_of(reader.config).items():
        if weight.part == "embedding":
            info = TensorInfo(MINDSPORE.name(weight), "Float32", shape)
            yield info, _row_chunks(reader, weight.number, info, progress)


def _row_chunks(reader: WeightsReader, feature: int, info: TensorInfo, progress: Progress) -> Iterator[np.ndarray]:
    for start, stop in row_chunks(info):
        rows = reader.rows(feature, start, stop)
        yield rows
        progress.update(rows.nbytes)


def _trained_oov_rows(reader: WeightsReader) -> int:
    sizes = reader.config.categorical_feature_sizes
    return sum(bool(reader.rows(f, sizes[f], sizes[f] + 1).any()) for f in reader.config.table_features)


def _need_space(target: str, nbytes: int) -> None:
    """Raises DLRMError when there is no room for `target` on its disk: better before the work than in the middle of it."""
    folder = os.path.dirname(os.path.abspath(target))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise DLRMError(f"{target}: needs {nbytes / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free")
