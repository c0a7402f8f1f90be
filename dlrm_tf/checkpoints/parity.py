"""`Parity`: how well a weights file agrees with the checkpoint it was converted from, tensor by tensor and logit by logit."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from dlrm_tf.checkpoints.dlrm_checkpoint import DLRMCheckpoint
from dlrm_tf.checkpoints.names import Weight, weights_of
from dlrm_tf.checkpoints.tensor_info import TensorInfo, row_chunks
from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import StrPath, write_file
from dlrm_tf.probability import sigmoid
from dlrm_tf.progress import Progress
from dlrm_tf.weights.reader import WeightsReader

# Largest relative difference of a logit, float32 against float64 through seven layers. The golden runs stay below a tenth of it.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Parity:
    """How well a weights file agrees with the checkpoint.

    Attributes:
      checkpoint, weights_file: the files compared.
      rows: rows scored.
      max_logit_difference: largest |difference| of a logit.
      max_relative_difference: largest |difference| / max(1, |logit|); must not exceed `TOLERANCE`.
      max_probability_difference: largest |difference| of a probability.
      not_finite_rows: rows whose logit from the checkpoint is NaN or infinite; the same value in Keras counts as no difference.
      tensors: one dict for each weight: `name`, `shape`, `sha256` of its float32 content in our layout on both sides, `equal`,
        and `not_finite`, the number of NaN and infinite values the checkpoint has in it.
    """

    checkpoint: str
    weights_file: str
    rows: int
    max_logit_difference: float
    max_relative_difference: float
    max_probability_difference: float
    not_finite_rows: int
    tensors: tuple[dict[str, Any], ...]

    @property
    def passed(self) -> bool:
        """Whether every tensor is equal bit for bit and every logit within the tolerance."""
        return all(t["equal"] for t in self.tensors) and self.max_relative_difference <= TOLERANCE

    def check(self) -> None:
        """Raises CheckpointError, naming what differs, unless the conversion passed."""
        if not self.passed:
            unequal = [t["name"] for t in self.tensors if not t["equal"]]
            raise CheckpointError(f"{self.weights_file}: {self}" + (f"; unequal: {', '.join(unequal[:8])}" if unequal else ""))

    def write(self, path: StrPath) -> None:
        """Writes the report as JSON."""
        report = {"passed": self.passed, "tolerance": TOLERANCE, **dataclasses.asdict(self)}
        write_file(path, json.dumps(report, indent=1) + "\n")

    def __str__(self) -> str:
        equal = sum(t["equal"] for t in self.tensors)
        text = (
            f"parity: {equal} of {len(self.tensors)} tensors equal bit for bit; {self.rows:,} rows: logits differ by at most "
            f"{self.max_logit_difference:.1e} ({self.max_relative_difference:.1e} relative, {TOLERANCE:.0e} allowed), "
            f"probabilities by {self.max_probability_difference:.1e}"
        )
        not_finite = [f"{t['name']} ({t['not_finite']:,})" for t in self.tensors if t["not_finite"]]
        if not_finite:
            shown = ", ".join(not_finite[:8]) + (f" and {len(not_finite) - 8} more" if len(not_finite) > 8 else "")
            text += f"; the checkpoint itself has NaN or infinity in {shown}"
        if self.not_finite_rows:
            text += f"; {self.not_finite_rows:,} logits of the checkpoint are NaN or infinite: such rows compare little"
        return text


def logit_differences(actual: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far logits are from those wanted.

    Args:
      actual: float64 `[n, 1]`.
      wanted: float64 `[n, 1]`.

    Returns:
      |actual - wanted|; the same divided by max(1, |wanted|); and |difference| of the probabilities; each of the logits' shape.
      Where both logits are NaN, or the same infinity, it is 0; where only one is NaN or infinite it is infinite (NaN would
      compare as neither too large nor small enough).
    """
    same = (actual == wanted) | (np.isnan(actual) & np.isnan(wanted))
    comparable = np.isfinite(actual) & np.isfinite(wanted)
    actual, wanted = np.where(comparable, actual, 0), np.where(comparable, wanted, 0)
    difference = np.abs(actual - wanted)
    relative, probability = difference / np.maximum(1, np.abs(wanted)), np.abs(sigmoid(actual) - sigmoid(wanted))
    logit, relative, probability = (
        np.where(same, 0, np.where(comparable, x, np.inf)) for x in (difference, relative, probability)
    )
    return logit, relative, probability


def compare_tensors(source: DLRMCheckpoint, reader: WeightsReader, *, quiet: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the comparison of every weight, an entry of `Parity.tensors`.

    Args:
      source: the open checkpoint.
      reader: the open weights file, of the same configuration.
      quiet: show no progress.
    """
    config = source.config
    names = source.found.weights
    oov_rows = config.num_categorical * config.embedding_dim
    with Progress("verify", 4 * (config.num_parameters - oov_rows), "B", quiet=quiet) as progress:
        for weight, shape in weights_of(config).items():
            theirs, ours = hashlib.sha256(), hashlib.sha256()
            not_finite = 0
            for values in _values_of_checkpoint(source, weight):
                theirs.update(np.ascontiguousarray(values).data)
                not_finite += int((~np.isfinite(values)).sum())
            for values in _values_of_weights_file(reader, weight, shape):
                ours.update(values.data)
                progress.update(values.nbytes)
            digests = {"checkpoint": theirs.hexdigest(), "weights_file": ours.hexdigest()}
            equal = digests["checkpoint"] == digests["weights_file"]
            yield {"name": names[weight], "shape": list(shape), "sha256": digests, "equal": equal, "not_finite": not_finite}


def _values_of_checkpoint(source: DLRMCheckpoint, weight: Weight) -> Iterator[np.ndarray]:
    if weight.part == "embedding":
        for _, rows in source.chunks(weight.number):
            yield rows
    else:
        yield source.dense(weight.part, weight.number)[weight.kind == "bias"]


def _values_of_weights_file(reader: WeightsReader, weight: Weight, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    if weight.part == "embedding":
        for start, stop in row_chunks(TensorInfo("", "Float32", shape)):
            yield reader.rows(weight.number, start, stop)
    else:
        yield reader.dense(weight.part, weight.number)[weight.kind == "bias"]
