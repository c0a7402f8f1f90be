"""A model for Ascend's offline inference: frozen graph, the exact `atc` command that compiles it, and a check of the graph.

The folder has `frozen_graph.pb`, `atc.sh`, `check.py` with `check.npz` (rows and the probabilities the model gives them),
`ascend.json`; `kept_ids.npz` and a smaller vocabulary where the table had to be cut; `model.om` where atc was there to make it.
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
from typing import Optional

import numpy as np

from dlrm_tf.ascend.plugin import installed
from dlrm_tf.errors import AscendError, UsageError
from dlrm_tf.files import atomic_dir
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.weights import WeightsReader, load

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
      kept: ids kept of all features, and `total` there were; equal when nothing was cut.
      total: see `kept`.
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
    weights,
    folder,
    batches: Sequence[int] = (64,),
    soc_version: str = "Ascend310P3",
    precision: str = "float32",
    data=None,
    vocabulary=None,
    max_table_bytes: int = MAX_TABLE_BYTES,
    quiet: bool = False,
) -> AscendExport:
    """Freezes the scorer: `dense` float32 `[B, dense_dim]` (already log(max(x, 0) + 1)), `categorical` int32 `[B, F]` ->
    `probability` float32 `[B, 1]`.

    Args:
      weights: a `.weights.h5` file.
      folder: folder to make.
      batches: rows of a call; with several the model is compiled for each of them.
      soc_version: the chip, as `npu-smi info` names it with "Ascend" before it.
      precision: `"float32"`, or `"mixed"` (float16 where atc thinks it safe).
      data: prepared data; its training rows tell which ids to keep when the table is too large, its test rows are checked with.
      vocabulary: the weights' vocabulary file; carried along, cut as the table is.
      max_table_bytes: the largest table a graph may hold.
      quiet: show no progress.

    Returns:
      An `AscendExport`.

    Raises:
      AscendError: the table is too large and there is no data to choose by, atc fails, or this process trains on an NPU.
      FileExistsError: the folder is already there.
      UsageError: a batch, chip or precision that is none.
    """
    batches = sorted(set(batches))
    if not batches or batches[0] < 1:
        raise UsageError(f"batches: wanted positive numbers, came {batches}")
    if precision not in PRECISION_MODES:
        raise UsageError(f"precision must be one of {', '.join(PRECISION_MODES)}. Received {precision!r}")
    if not re.fullmatch(r"Ascend[0-9A-Za-z_-]+", soc_version):
        raise UsageError(f"soc_version: wanted a name such as Ascend310P3, came {soc_version!r}")
    if "npu_device" in sys.modules:
        raise AscendError("this process has loaded npu_device, which changes the graphs TensorFlow makes: export in a new one")
    records = _open(data)
    with atomic_dir(os.fspath(folder)) as target, contextlib.ExitStack() as stack:
        kept, (ids, table_bytes) = None, _table_size(weights)
        if table_bytes > max_table_bytes:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="dlrm_tf_ascend_"))
            pruned = os.path.join(scratch, "pruned.weights.h5")
            kept = _prune(weights, records, max_table_bytes, pruned, quiet)
            np.savez_compressed(os.path.join(target, KEPT), **{f"feature_{f}": ids for f, ids in enumerate(kept)})
        model = load(weights if kept is None else pruned)
        inputs, output = _freeze(model, os.path.join(target, GRAPH))
        if vocabulary is not None:
            _carry_vocabulary(vocabulary, weights, kept, os.path.join(target, VOCABULARY))
        _write_check(model, records, kept, target, inputs)
        command = atc_command(model.config, inputs, output, batches, soc_version, PRECISION_MODES[precision])
        _write_command(command, os.path.join(target, COMMAND))
        compiled = _compile(command, target, installed().atc)
        left = sum(model.config.categorical_feature_sizes)
        with open(os.path.join(target, METADATA), "w", encoding="utf-8") as f:
            json.dump(
                {
                    "config": json.loads(model.config.to_json()),
                    "graph": GRAPH,
                    "inputs": {
                        inputs[0]: ["float32", [None, model.config.dense_dim]],
                        inputs[1]: ["int32", [None, model.config.num_categorical]],
                    },
                    "output": output,
                    "dense_preprocessing": "log(max(x, 0) + 1), missing = 0",
                    "batches": batches,
                    "soc_version": soc_version,
                    "atc": command,
                    "source_sha256": model.source_sha256,
                    "vocabulary_fingerprint": model.vocabulary_fingerprint,
                    "ids": {"kept": left, "of": ids},
                },
                f,
                indent=1,
            )
    return AscendExport(os.fspath(folder), shlex.join(command), left, ids, compiled)


def atc_command(config, inputs, output: str, batches: Sequence[int], soc_version: str, precision_mode: str) -> list:
    """The arguments that make `model.om` of `frozen_graph.pb`, to be run in its folder.

    Args:
      config: the model's `DLRMConfig`.
      inputs: names of the two inputs, dense first.
      output: name of the output tensor.
      batches: one batch size makes static shapes, several a model with as many static shapes.
      soc_version: the chip.
      precision_mode: atc's `--precision_mode_v2`.
    """
    rows = batches[0] if len(batches) == 1 else -1
    shape = f"{inputs[0]}:{rows},{config.dense_dim};{inputs[1]}:{rows},{config.num_categorical}"
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


def _open(data):
    if data is None:
        return None
    from dlrm_tf.data.records import Records

    return data if isinstance(data, Records) else Records.open(data)


def _table_size(weights) -> tuple:
    """`(ids, bytes of the table)`."""
    with WeightsReader(weights) as reader:
        config = reader.config
    return sum(config.categorical_feature_sizes), config.table_rows * config.embedding_dim * 4


def _prune(weights, records, max_table_bytes: int, path: str, quiet: bool) -> list:
    """Writes the weights of the most frequent ids; returns the ids kept, ascending, per feature."""
    from dlrm_tf.export.budget import IdRanking, count_ids, prune_weights

    with WeightsReader(weights) as reader:
        config = reader.config
    if records is None:
        table = config.table_rows * config.embedding_dim * 4
        raise AscendError(
            f"{weights}: the table has {table / 1e9:.2f} GB, a frozen graph holds {max_table_bytes / 1e9:.2f} GB: give prepared "
            "data (--data), whose training rows tell which ids to keep"
        )
    if tuple(records.sizes) != config.categorical_feature_sizes:
        raise AscendError(f"{records.folder}: is of another vocabulary than {weights}")
    counts = count_ids(records, quiet)
    ranking = IdRanking([count[:-1] for count in counts])
    # One row a feature is its OOV row.
    room = max_table_bytes // (config.embedding_dim * 4) - config.num_categorical
    if room < ranking.minimum:
        raise UsageError(f"max_table_bytes: {max_table_bytes:,} bytes do not hold one id a feature")
    kept = ranking.keep(room)
    prune_weights(os.fspath(weights), kept, counts, path, quiet)
    return kept


def _freeze(model, path: str) -> tuple:
    """Writes the scorer with its variables as constants; returns `((input names), output tensor)`."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    tf = tensorflow()
    config = model.config

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, config.dense_dim], tf.float32, name="dense"),
            tf.TensorSpec([None, config.num_categorical], tf.int32, name="categorical"),
        ]
    )
    def score(dense, categorical):
        return tf.sigmoid(model({"dense": dense, "categorical": categorical}, training=False))

    frozen = convert_variables_to_constants_v2(score.get_concrete_function())
    graph = frozen.graph.as_graph_def()
    _drop_default_attributes(graph)
    with open(path, "wb") as f:
        f.write(graph.SerializeToString(deterministic=True))
    return tuple(tensor.name.split(":")[0] for tensor in frozen.inputs), frozen.outputs[0].name


def _drop_default_attributes(graph) -> None:
    """A newer TensorFlow writes attributes that older readers (atc, TF 1.15, TF 2.6) do not know; defaults can be left out."""
    from tensorflow.python.framework import op_def_registry

    graph.ClearField("library")
    for node in graph.node:
        for attribute in op_def_registry.get(node.op).attr:
            name = attribute.name
            if attribute.HasField("default_value") and name in node.attr and node.attr[name] == attribute.default_value:
                del node.attr[name]


def _carry_vocabulary(path, weights, kept: Optional[list], target: str) -> None:
    from dlrm_tf.data.vocabulary import Vocabulary
    from dlrm_tf.export.lite_vocabulary import prune_vocabulary

    vocabulary = Vocabulary.load(path)
    with WeightsReader(weights) as reader:
        trained_with = reader.attributes["vocabulary_fingerprint"]
        sizes = reader.config.categorical_feature_sizes
    if (trained_with and trained_with != vocabulary.fingerprint) or tuple(vocabulary.sizes) != sizes:
        raise AscendError(f"{path}: is not the vocabulary {weights} was trained with")
    if kept is None:
        shutil.copyfile(path, target)
    else:
        prune_vocabulary(vocabulary, kept).save(target)


def _write_check(model, records, kept, folder: str, inputs) -> None:
    """Rows with the probabilities the Keras model gives them, and the script that compares."""
    config = model.config
    if records is not None and records.rows("test"):
        dense, categorical, _ = records.numpy("test", 0, _CHECK_ROWS)
        dense = np.log1p(np.maximum(dense, 0))
        if kept is not None:
            from dlrm_tf.export.subset import renumber

            categorical = renumber(categorical, kept)
    else:
        generator = np.random.default_rng(0)
        dense = generator.exponential(1.0, (_CHECK_ROWS, config.dense_dim)).astype(np.float32)
        sizes = np.array(config.categorical_feature_sizes)
        # Every so often an unknown id, on either side.
        categorical = (generator.random((_CHECK_ROWS, len(sizes))) * (sizes + 2)).astype(np.int32) - 1
    tf = tensorflow()
    probability = tf.sigmoid(model({"dense": dense, "categorical": categorical}, training=False)).numpy()
    rows = {inputs[0]: dense, inputs[1]: categorical, "probability": probability}
    np.savez(os.path.join(folder, "check.npz"), **rows)
    # The script is a file of this package; importing it would import TensorFlow before Keras 2 is seen to.
    shutil.copyfile(os.path.join(os.path.dirname(__file__), "ascend_check.py"), os.path.join(folder, CHECK))


def _write_command(command: list, path: str) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.write(f'#!/bin/sh\n# Source CANN\'s set_env.sh first.\ncd "$(dirname "$0")" && {shlex.join(command)}\n')
    os.chmod(path, 0o755)


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
