"""Proof of a conversion: each tensor's checksum on both sides, and the Keras model's logits against NumPy's.

The one module of this room that loads TensorFlow: the rest of it (sample, parity, reference) runs without.
"""

import os
from collections.abc import Iterator
from typing import Optional

import numpy as np

from dlrm_tf.checkpoints.dlrm_checkpoint import DLRMCheckpoint
from dlrm_tf.checkpoints.parity import Parity, compare_tensors, logit_differences
from dlrm_tf.checkpoints.reference import logits
from dlrm_tf.checkpoints.sample import Sample, read_sample
from dlrm_tf.files import StrPath
from dlrm_tf.model.dlrm import load
from dlrm_tf.weights.reader import WeightsReader

BATCH = 1024


def verify(
    checkpoint: StrPath,
    weights_file: StrPath,
    *,
    sample: Sample = 1000,
    prefix: Optional[str] = None,
    allow_extra: bool = False,
    quiet: bool = False,
) -> Parity:
    """Compares a weights file with the checkpoint it was converted from (or to).

    The Keras model scores with the weights file; NumPy scores with the checkpoint's own tensors, independently of TensorFlow.

    Args:
      checkpoint: a MindSpore or PyTorch file.
      weights_file: the `.weights.h5`.
      sample: rows to score: a number (that many generated ones), an .npz with the model's inputs (`dense` already log(x + 1)),
        or a data folder (the first rows of its test split).
      prefix: prefix of the weights' names, when the checkpoint holds more than one network.
      allow_extra: ignore tensors of the checkpoint that are no part of a DLRM.
      quiet: show no progress.

    Raises:
      CheckpointError: one of the files is damaged, or they are of different configurations.
      DataError: the sample is not usable.
    """
    with (
        WeightsReader(weights_file) as reader,
        DLRMCheckpoint(checkpoint, config=reader.config, prefix=prefix, allow_extra=allow_extra) as source,
    ):
        rows = dict(zip(reader.config.inputs, read_sample(sample, reader.config)))
        tensors = tuple(compare_tensors(source, reader, quiet=quiet))
        wanted = _numpy_logits(source, rows)
    actual = _keras_logits(weights_file, rows)
    logit, relative, probability = (float(difference.max()) for difference in logit_differences(actual, wanted))
    return Parity(
        checkpoint=os.fspath(checkpoint),
        weights_file=os.fspath(weights_file),
        rows=len(wanted),
        max_logit_difference=logit,
        max_relative_difference=relative,
        max_probability_difference=probability,
        not_finite_rows=int((~np.isfinite(wanted)).sum()),
        tensors=tensors,
    )


def _numpy_logits(source: DLRMCheckpoint, rows: dict[str, np.ndarray]) -> np.ndarray:
    def weight(part: str, number: int, kind: str, ids: Optional[np.ndarray]) -> np.ndarray:
        return source.dense(part, number)[kind == "bias"] if ids is None else source.gather(number, ids)

    with np.errstate(invalid="ignore"):  # a checkpoint's infinities become NaN; the report says so
        return np.concatenate([logits(source.config, weight, *batch.values()) for batch in _batches(rows)])


def _keras_logits(weights_file: StrPath, rows: dict[str, np.ndarray]) -> np.ndarray:
    model = load(weights_file)
    return np.concatenate([model(batch).numpy() for batch in _batches(rows)]).astype(np.float64)


def _batches(rows: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(rows["dense"]), BATCH):
        yield {name: values[start : start + BATCH] for name, values in rows.items()}
