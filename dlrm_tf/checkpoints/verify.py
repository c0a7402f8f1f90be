"""Proof of a conversion: each tensor's checksum on both sides, the Keras model's logits against NumPy on the source's tensors."""

import dataclasses
import hashlib
import json
import os

import numpy as np

from dlrm_tf.checkpoints.names import weights_of
from dlrm_tf.checkpoints.reference import logits
from dlrm_tf.checkpoints.source import Source
from dlrm_tf.checkpoints.tensor import TensorInfo, row_chunks
from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.features import log_dense
from dlrm_tf.errors import CheckpointError, DataError, reason
from dlrm_tf.files import atomic_file
from dlrm_tf.probability import sigmoid
from dlrm_tf.progress import Progress
from dlrm_tf.weights.reader import WeightsReader

# float32 against float64 through seven layers; of the golden runs the largest difference is a tenth of it.
TOLERANCE = 1e-5
BATCH = 1024
ROWS_OF_A_FOLDER = 4096
MOST_GENERATED_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Parity:
    """How well a weights file agrees with the checkpoint.

    Attributes:
      checkpoint, weights_file: the files compared.
      rows: rows scored.
      max_logit_difference: largest |difference| of a logit.
      max_relative_difference: largest |difference| / max(1, |logit|); what is held against `TOLERANCE`.
      max_probability_difference: largest |difference| of a probability.
      not_finite_rows: rows whose logit is NaN or infinite by the checkpoint; the same on the other side counts as no difference.
      tensors: one dict a weight: `name`, `shape`, `sha256` of its float32 content in our layout on both sides, `equal`, and
        `not_finite`, the number of NaN and infinite values the checkpoint has in it.
    """

    checkpoint: str
    weights_file: str
    rows: int
    max_logit_difference: float
    max_relative_difference: float
    max_probability_difference: float
    not_finite_rows: int
    tensors: tuple

    @property
    def passed(self) -> bool:
        """Whether every tensor is equal bit for bit and every logit within the tolerance."""
        return all(t["equal"] for t in self.tensors) and self.max_relative_difference <= TOLERANCE

    def write(self, path) -> None:
        """Writes the report as JSON."""
        with atomic_file(os.fspath(path)) as temporary, open(temporary, "w", encoding="utf-8") as f:
            json.dump({"passed": self.passed, "tolerance": TOLERANCE, **dataclasses.asdict(self)}, f, indent=1)
            f.write("\n")

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
            text += f"; {self.not_finite_rows:,} of the logits are NaN or infinite by the checkpoint, which compares nothing else"
        return text


def verify(checkpoint, weights_file, sample="1000", prefix=None, allow_extra: bool = False, quiet: bool = False) -> Parity:
    """Compares a weights file with the checkpoint it was converted from (or to).

    The Keras model scores with the weights file; NumPy scores with the checkpoint's own tensors, independently of TensorFlow.

    Args:
      checkpoint: MindSpore or PyTorch file.
      weights_file: `.weights.h5`.
      sample: rows to score: a number (that many generated ones), an .npz with `dense` (already log(x + 1)) and `categorical`,
        or a data folder (the first rows of its test split).
      prefix, allow_extra: as for `convert`.
      quiet: show no progress.

    Raises:
      CheckpointError: one of the files is damaged, or they are of different configurations.
      DataError: the sample is not usable.
    """
    with WeightsReader(weights_file) as reader, Source(checkpoint, reader.config, prefix, allow_extra) as source:
        dense, categorical = read_sample(sample, reader.config)
        tensors = tuple(_compare(source, reader, quiet))
        wanted = _numpy_logits(source, dense, categorical)
    came = _keras_logits(weights_file, dense, categorical)
    differences = _differences(came, wanted)
    return Parity(
        os.fspath(checkpoint),
        os.fspath(weights_file),
        len(dense),
        *(float(x.max()) for x in differences),
        int((~np.isfinite(wanted)).sum()),
        tensors,
    )


def _differences(came: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of float64 logits `[n, 1]`: |difference|, |difference| / max(1, |wanted|), and |difference| of the probabilities.

    Where both are NaN, or the same infinity, it is 0; where one alone is NaN or infinite it is infinite (NaN would compare as
    neither too large nor small enough).
    """
    same = (came == wanted) | (np.isnan(came) & np.isnan(wanted))
    comparable = np.isfinite(came) & np.isfinite(wanted)
    came, wanted = np.where(comparable, came, 0), np.where(comparable, wanted, 0)
    difference = np.abs(came - wanted)
    all_three = (difference, difference / np.maximum(1, np.abs(wanted)), np.abs(sigmoid(came) - sigmoid(wanted)))
    return tuple(np.where(same, 0, np.where(comparable, x, np.inf)) for x in all_three)


def _compare(source: Source, reader: WeightsReader, quiet: bool):
    """Yields the report of every weight."""
    config = source.config
    names = source.found.weights
    oov_rows = config.num_categorical * config.embedding_dim
    with Progress("verify", 4 * (config.num_parameters - oov_rows), "B", quiet=quiet) as progress:
        for weight, shape in weights_of(config).items():
            theirs, ours = hashlib.sha256(), hashlib.sha256()
            not_finite = 0
            if weight.part == "embedding":
                for _, rows in source.chunks(weight.index):
                    theirs.update(np.ascontiguousarray(rows))
                    not_finite += int((~np.isfinite(rows)).sum())
                for start, stop in row_chunks(TensorInfo("", "Float32", shape)):
                    rows = reader.rows(weight.index, start, stop)
                    ours.update(rows)
                    progress.update(rows.nbytes)
            else:
                part = ("kernel", "bias").index(weight.kind)
                values = source.dense(weight.part, weight.index)[part]
                theirs.update(np.ascontiguousarray(values))
                not_finite = int((~np.isfinite(values)).sum())
                values = reader.dense(weight.part, weight.index)[part]
                ours.update(values)
                progress.update(values.nbytes)
            digests = {"checkpoint": theirs.hexdigest(), "weights_file": ours.hexdigest()}
            equal = digests["checkpoint"] == digests["weights_file"]
            yield {"name": names[weight], "shape": list(shape), "sha256": digests, "equal": equal, "not_finite": not_finite}


def _numpy_logits(source: Source, dense: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    def weight(part, index, kind, ids):
        return source.gather(index, ids) if kind == "table" else source.dense(part, index)[kind == "bias"]

    batches = range(0, len(dense), BATCH)
    with np.errstate(invalid="ignore"):  # a checkpoint's infinities become NaN; the report says so
        return np.concatenate([logits(source.config, weight, dense[i : i + BATCH], categorical[i : i + BATCH]) for i in batches])


def _keras_logits(weights_file, dense: np.ndarray, categorical: np.ndarray) -> np.ndarray:
    from dlrm_tf.model.dlrm import load

    model = load(weights_file)
    batches = range(0, len(dense), BATCH)
    parts = [model({"dense": dense[i : i + BATCH], "categorical": categorical[i : i + BATCH]}).numpy() for i in batches]
    return np.concatenate(parts).astype(np.float64)


def read_sample(sample, config: DLRMConfig) -> tuple[np.ndarray, np.ndarray]:
    """`(dense float32 [n, dense_dim], categorical int32 [n, F])` of what `verify` takes as a sample.

    Raises:
      DataError: not a number, .npz or data folder, or its rows are not of this configuration.
    """
    sample = str(sample)
    if sample.isascii() and sample.isdigit():
        if len(sample) > 9 or not 0 < int(sample) <= MOST_GENERATED_ROWS:
            raise DataError(f"{sample[:30]}: wanted 1 to {MOST_GENERATED_ROWS:,} generated rows")
        return _generated(int(sample), config)
    if os.path.isdir(sample):
        from dlrm_tf.data.records import Records

        dense, categorical, _ = Records.open(sample).numpy("test", 0, ROWS_OF_A_FOLDER)
        dense = log_dense(dense)
    else:
        try:
            with np.load(sample, allow_pickle=False) as arrays:
                dense, categorical = arrays["dense"], arrays["categorical"]
        except Exception as e:  # NumPy's and zipfile's parsers raise whatever they come across
            wanted = "a number of rows, an .npz with dense and categorical, or a data folder"
            raise DataError(f"{sample}: wanted {wanted} ({reason(e)})") from e
    if dense.dtype.kind not in "fiu" or categorical.dtype.kind not in "iu":
        came = f"{dense.dtype} and {categorical.dtype}"
        raise DataError(f"{sample}: wanted dense of numbers and categorical of integers. Received {came}")
    rows = dense.shape[:1] or (0,)
    wanted = ((*rows, config.dense_dim), (*rows, config.num_categorical))
    if not rows[0] or (dense.shape, categorical.shape) != wanted:
        raise DataError(
            f"{sample}: wanted dense and categorical of shapes {wanted}. Received {dense.shape} and {categorical.shape}"
        )
    sizes = np.array(config.categorical_feature_sizes)
    if categorical.min() < 0 or (categorical > sizes).any():
        raise DataError(f"{sample}: has ids outside their feature's 0 to size (size: out of vocabulary)")
    return dense.astype(np.float32), categorical.astype(np.int32)


def _generated(rows: int, config: DLRMConfig) -> tuple[np.ndarray, np.ndarray]:
    """Seeded rows: counts like Criteo's, every id of a feature as likely as the other, its first and last always among them."""
    random = np.random.default_rng(0)
    dense = log_dense(random.geometric(0.1, (rows, config.dense_dim)) - 1.0)
    sizes = np.array(config.categorical_feature_sizes)
    categorical = random.integers(0, sizes, (rows, len(sizes)), np.int64).astype(np.int32)
    categorical[0], categorical[-1] = 0, sizes - 1
    return dense, categorical


def check(parity: Parity) -> None:
    """Raises CheckpointError, naming what differs, if a conversion did not pass."""
    if not parity.passed:
        unequal = [t["name"] for t in parity.tensors if not t["equal"]]
        raise CheckpointError(f"{parity.weights_file}: {parity}" + (f"; unequal: {', '.join(unequal[:8])}" if unequal else ""))
