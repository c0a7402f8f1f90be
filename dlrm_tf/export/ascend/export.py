"""A model for Ascend's offline inference: frozen graph, the exact `atc` command that compiles it, and a check of the graph.

The folder has `frozen_graph.pb`, `atc.sh`, `check.py` with `check.npz` (rows and the probabilities the model gives them),
`ascend.json`; `kept_ids.npz` and a smaller vocabulary where ids had to be left out; `model.om` where atc is installed.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Optional, Union

import numpy as np

from dlrm_tf.ascend.plugin import installed
from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.features import DENSE_PREPROCESSING, log_dense
from dlrm_tf.data.inputs import model_inputs
from dlrm_tf.data.records import Records
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import AscendError, UsageError
from dlrm_tf.export.ascend.frozen_graph import write_frozen_graph
from dlrm_tf.export.budget import IdRanking, count_ids, prune_weights
from dlrm_tf.export.vocabulary import load_vocabulary, prune_vocabulary
from dlrm_tf.files import StrPath, atomic_dir
from dlrm_tf.model.subset import float_probabilities
from dlrm_tf.train.evaluate import check_fits
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber

GRAPH, COMMAND, CHECK, METADATA, KEPT, VOCABULARY = (
    "frozen_graph.pb",
    "atc.sh",
    "check.py",
    "ascend.json",
    "kept_ids.npz",
    "vocabulary.npz",
)
# A frozen graph is one protobuf message, which can't reach 2 GiB; the layers and the names take a little.
MAX_TABLE_BYTES = (1 << 31) - (64 << 20)
# atc's `--precision_mode_v2`.
PRECISION_MODES = {"float32": "origin", "mixed": "mixed_float16"}
_CHECK_ROWS = 256


@dataclasses.dataclass(frozen=True)
class AscendExport:
    """What `export_ascend` wrote.

    Attributes:
      folder: where.
      command: the `atc` command, to be run in that folder.
      kept: number of ids kept, of all features.
      total: number of ids of the model; equal to `kept` when all were kept.
      compiled: whether atc was on PATH and made `model.om`.
    """

    folder: str
    command: str
    kept: int
    total: int
    compiled: bool

    def __str__(self):
        cut = "" if self.kept == self.total else f", {self.kept:,} of {self.total:,} ids kept ({KEPT})"
        state = "model.om made" if self.compiled else f"atc is not on PATH: run {COMMAND} where CANN is"
        return f"{self.folder}: {GRAPH}{cut}; {state}\n{self.command}"


def export_ascend(
    weights: StrPath,
    folder: StrPath,
    *,
    batches: Sequence[int] = (64,),
    soc_version: str = "Ascend310P3",
    precision: str = "float32",
    data: Union[None, StrPath, Records] = None,
    vocabulary: Optional[StrPath] = None,
    max_table_bytes: int = MAX_TABLE_BYTES,
    quiet: bool = False,
) -> AscendExport:
    """Writes the scorer as a frozen graph, with the `atc` command that compiles it; runs the command where atc is installed.

    The graph maps `dense` float32 `[B, dense_dim]` (already log(max(x, 0) + 1)) and `categorical` int32 `[B, F]`, or of a model
    with bags or without dense features the inputs of `DLRMConfig.inputs`, to `probability` float32 `[B, 1]`.

    Args:
      weights: a `.weights.h5` file.
      folder: folder to make.
      batches: rows of a call; with several the model is compiled for each of them.
      soc_version: the chip, as `npu-smi info` names it with "Ascend" before it.
      precision: `"float32"`, or `"mixed"` (float16 where atc thinks it safe).
      data: prepared data; its training rows tell which ids to keep when the table is too large, its test rows are checked with.
      vocabulary: the weights' vocabulary file; copied into the folder, reduced to the ids that are kept.
      max_table_bytes: the largest table a graph may hold.
      quiet: show no progress.

    Returns:
      An `AscendExport`.

    Raises:
      AscendError: the table is too large and there is no data to choose by, atc fails, or this process trains on an NPU.
      CheckpointError: `weights` is not a weights file, or belongs to other data.
      DataError: `vocabulary` is not the one the weights were trained with.
      FileExistsError: the folder is already there.
      UsageError: a batch that is not positive, an unknown precision, or a chip's name that atc would not take.
    """
    batches = sorted(set(batches))
    _check_arguments(batches, soc_version, precision)
    records = None if data is None else Records.open(data)
    with atomic_dir(os.fspath(folder)) as target, contextlib.ExitStack() as stack:
        config, attributes = _describe(weights)
        if records is not None:
            check_fits(config, attributes["vocabulary_fingerprint"], records, os.fspath(weights))
        kept, source = None, os.fspath(weights)
        if config.table_bytes > max_table_bytes:
            source = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="dlrm_tf_ascend_")), "m.weights.h5")
            kept = _prune(weights, config, records, max_table_bytes, source, quiet)
            np.savez_compressed(os.path.join(target, KEPT), **{f"feature_{f}": ids for f, ids in enumerate(kept)})
        inputs, output = write_frozen_graph(source, os.path.join(target, GRAPH))
        if vocabulary is not None:
            keys = load_vocabulary(vocabulary, config, attributes["vocabulary_fingerprint"], weights=weights)
            _write_vocabulary(keys, os.fspath(vocabulary), kept, os.path.join(target, VOCABULARY))
        total = config.num_ids
        config, _ = _describe(source)
        _write_check(source, config, records, kept, target, inputs)
        chip = {"soc_version": soc_version, "precision_mode": PRECISION_MODES[precision]}
        command = atc_command(config, inputs=inputs, output=output, batches=batches, **chip)
        _write_command(command, os.path.join(target, COMMAND))
        compiled = _compile(command, target, installed().atc)
        described = _metadata(config, attributes, inputs, output, batches, soc_version, command, total)
        with open(os.path.join(target, METADATA), "w", encoding="utf-8") as f:
            json.dump(described, f, indent=1)
    return AscendExport(os.fspath(folder), shlex.join(command), config.num_ids, total, compiled)


def _check_arguments(batches: list[int], soc_version: str, precision: str) -> None:
    if not batches or batches[0] < 1:
        raise UsageError(f"batches: wanted positive numbers. Received {batches}")
    if precision not in PRECISION_MODES:
        raise UsageError(f"precision must be one of {', '.join(PRECISION_MODES)}. Received {precision!r}")
    if not re.fullmatch(r"Ascend[0-9A-Za-z_-]+", soc_version):
        raise UsageError(f"soc_version: wanted a name such as Ascend310P3. Received {soc_version!r}")
    if "npu_device" in sys.modules:
        raise AscendError("this process has loaded npu_device, which changes the graphs TensorFlow makes: export in a new one")


def atc_command(
    config: DLRMConfig, *, inputs: Sequence[str], output: str, batches: Sequence[int], soc_version: str, precision_mode: str
) -> list[str]:
    """The arguments that make `model.om` of `frozen_graph.pb`, to be run in its folder.

    Args:
      config: the model's `DLRMConfig`.
      inputs: names of the inputs in the graph, in the order of `DLRMConfig.inputs`.
      output: name of the output tensor.
      batches: one batch size makes static shapes, several a model with as many static shapes.
      soc_version: the chip.
      precision_mode: atc's `--precision_mode_v2`.
    """
    rows = batches[0] if len(batches) == 1 else -1
    shape = ";".join(f"{name}:{rows},{columns}" for name, (_, columns) in zip(inputs, config.inputs.values()))
    command = [
        "atc",
        f"--model={GRAPH}",
        "--framework=3",
        "--output=model",
        f"--soc_version={soc_version}",
        "--input_format=ND",
        f"--input_shape={shape}",
        f"--out_nodes={output}",
        f"--precision_mode_v2={precision_mode}",
    ]
    if len(batches) > 1:
        command.append(f"--dynamic_batch_size={','.join(map(str, batches))}")
    return command


def _describe(weights) -> tuple:
    """`(DLRMConfig, attributes)` of a weights file."""
    with WeightsReader(weights) as reader:
        return reader.config, reader.attributes


def _prune(weights, config, records, max_table_bytes: int, path: str, quiet: bool) -> list:
    """Writes the weights of the most frequent ids; returns the ids kept, ascending, per feature."""
    if records is None:
        raise AscendError(
            f"{weights}: the table has {config.table_bytes / 1e9:.2f} GB, a frozen graph holds {max_table_bytes / 1e9:.2f} GB: "
            "give prepared data (--data), whose training rows tell which ids to keep"
        )
    counts = count_ids(records, quiet=quiet)
    ranking = IdRanking([count[:-1] for count in counts], config.tables)
    # One row per table is its OOV row.
    room = max_table_bytes // (config.embedding_dim * 4) - len(config.table_features)
    if room < ranking.minimum:
        raise UsageError(f"max_table_bytes: {max_table_bytes:,} bytes do not hold one id per feature")
    kept = ranking.keep(room)
    prune_weights(os.fspath(weights), path, kept=kept, counts=counts, quiet=quiet)
    return kept


def _write_vocabulary(vocabulary: Vocabulary, source: str, kept: Optional[list[np.ndarray]], path: str) -> None:
    """Copies the file `source` of a vocabulary, or writes the part of it that is kept."""
    if kept is None:
        shutil.copyfile(source, path)
    else:
        prune_vocabulary(vocabulary, kept).save(path)


def _write_check(weights: str, config, records, kept, folder: str, inputs) -> None:
    """Rows with the probabilities the Keras model gives them, and the script that compares."""
    if records is not None and records.rows("test"):
        dense, categorical, _, *key_weights = records.numpy("test", 0, _CHECK_ROWS)
        dense = log_dense(dense)
        if kept is not None:
            categorical = renumber(categorical, kept, config)
    else:
        generator = np.random.default_rng(0)
        dense = generator.exponential(1.0, (_CHECK_ROWS, config.dense_dim)).astype(np.float32)
        sizes = np.array(config.categorical_feature_sizes)[np.array(config.column_features)]
        # From -1 to size_f, so that some ids are out of vocabulary, or places of a bag unused.
        categorical = (generator.random((_CHECK_ROWS, len(sizes))) * (sizes + 2)).astype(np.int32) - 1
        key_weights = [generator.exponential(1.0, categorical.shape).astype(np.float32)] if config.weighted else []
    arrays = dense, categorical, *key_weights
    fed = dict(zip(inputs, model_inputs(weights, *arrays).values()))
    rows = {**fed, "probability": float_probabilities(weights, *arrays)[:, np.newaxis]}
    np.savez(os.path.join(folder, "check.npz"), **rows)
    # The script's path is not taken from an import of it: that would import TensorFlow before `keras2` has chosen Keras 2.
    target = os.path.join(folder, CHECK)
    shutil.copyfile(os.path.join(os.path.dirname(__file__), "check.py"), target)
    os.chmod(target, 0o755)


def _write_command(command: list, path: str) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.write(f'#!/bin/sh\n# Source CANN\'s set_env.sh first.\ncd "$(dirname "$0")" && {shlex.join(command)}\n')
    os.chmod(path, 0o755)


def _metadata(
    config: DLRMConfig,
    attributes: dict,
    inputs: Sequence[str],
    output: str,
    batches: Sequence[int],
    soc_version: str,
    command: list[str],
    total: int,
) -> dict:
    """What the folder says of the graph; `total` is the number of ids before any were left out."""
    return {
        "config": json.loads(config.to_json()),
        "graph": GRAPH,
        "inputs": {name: [dtype, [None, columns]] for name, (dtype, columns) in zip(inputs, config.inputs.values())},
        "output": output,
        "dense_preprocessing": DENSE_PREPROCESSING,
        "batches": batches,
        "soc_version": soc_version,
        "atc": command,
        "source_sha256": attributes["source_sha256"],
        "vocabulary_fingerprint": attributes["vocabulary_fingerprint"],
        "ids": {"kept": config.num_ids, "of": total},
    }


def _compile(command: list, folder: str, atc: Optional[str]) -> bool:
    if atc is None:
        return False
    done = subprocess.run(
        [atc, *command[1:]], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode or not os.path.exists(os.path.join(folder, "model.om")):
        last = " | ".join(done.stdout.split("\n")[-6:])
        raise AscendError(f"atc failed (exit code {done.returncode}): {last[-500:]}; the command: {shlex.join(command)}")
    return True
