"""`evaluate`: how good a model's probabilities are on one split of prepared data."""

import os
from typing import Any, Optional, Union

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.records import Records
from dlrm_tf.data.vocabulary_check import difference, spec_difference
from dlrm_tf.errors import CheckpointError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM, load
from dlrm_tf.model.inputs import input_specs
from dlrm_tf.progress import Progress
from dlrm_tf.train.metrics import ClickMetrics

tf = tensorflow()


def evaluate(
    data: Union[str, os.PathLike, Records],
    weights: Union[str, os.PathLike, DLRM],
    *,
    split: str = "test",
    batch_size: int = 8192,
    exact: bool = True,
    quiet: bool = False,
) -> dict:
    """Scores every row of a split, also those of a last batch that is not full, and measures the probabilities.

    Args:
      data: a folder made by `prepare`, or opened `Records`.
      weights: a `.weights.h5`, or a `dlrm_tf.DLRM`.
      split: `"test"`, `"train"`, or `"validation"` of `Records.with_validation`.
      batch_size: rows per step; does not change the result.
      exact: keep every score, for an exact AUC and calibration bins; without it memory stays constant (see `ClickMetrics`).
      quiet: show no progress.

    Returns:
      What `ClickMetrics.result` returns, and with `exact` also `calibration_bins`.

    Raises:
      CheckpointError: the weights file is damaged, or belongs to other data.
      DataError: `data` is not prepared data.
      NonFiniteLogits: a logit is NaN or infinite.
      ValueError: the split has no rows.
    """
    metrics = measure(data, weights, split=split, batch_size=batch_size, exact=exact, quiet=quiet)
    result: dict[str, Any] = {**metrics.result()}
    if exact:
        result["calibration_bins"] = metrics.calibration_bins()
    return result


def measure(
    data: Union[str, os.PathLike, Records],
    weights: Union[str, os.PathLike, DLRM],
    *,
    split: str = "test",
    batch_size: int = 8192,
    exact: bool = True,
    quiet: bool = False,
) -> ClickMetrics:
    """The metrics of a split with the scores they come from; `evaluate` returns the figures alone.

    Args:
      data: a folder made by `prepare`, or opened `Records`.
      weights: a `.weights.h5`, or a `dlrm_tf.DLRM`.
      split: `"test"`, `"train"`, or `"validation"` of `Records.with_validation`.
      batch_size: rows per step; does not change the result.
      exact: keep every score.
      quiet: show no progress.

    Raises:
      CheckpointError: the weights file is damaged, or belongs to other data.
      DataError: `data` is not prepared data.
    """
    records = Records.open(data)
    model, source = (weights, "the model") if isinstance(weights, DLRM) else (load(weights), os.fspath(weights))
    check_fits(model.config, model.vocabulary_fingerprint, records, source)
    # One shape for all batches: an NPU or a TPU compiles the graph again for every other one.
    batch_size = max(1, min(batch_size, records.rows(split)))
    signature = input_specs(model.config, batch_size)
    logits = tf.function(lambda features: model(features, training=False), input_signature=[signature])
    metrics = ClickMetrics(exact=exact)
    with Progress(f"evaluate {split}", total=records.rows(split), unit="rows", quiet=quiet) as progress:
        for features, label in records.dataset(split, batch_size):
            rows = int(label.shape[0])
            if rows < batch_size:
                features = {name: tf.pad(value, [[0, batch_size - rows], [0, 0]]) for name, value in features.items()}
            metrics.update(label.numpy(), logits(features).numpy()[:rows])
            progress.update(rows)
    return metrics


def check_fits(config: DLRMConfig, fingerprint: Optional[str], records: Records, source: str) -> None:
    """Checks that a model belongs to this data: number of features, keys and ids per feature, the vocabulary where it is known.

    Args:
      config: the model's architecture.
      fingerprint: fingerprint of the vocabulary the model was trained with; None or "" when it is not known.
      records: the data.
      source: the model's name in errors.

    Raises:
      CheckpointError: it does not; the message names the first difference.
    """
    found = spec_difference(config, records.spec)
    if found:
        raise CheckpointError(f"{source}: {found}; the data is {records.folder}")
    names = records.spec.categorical_names
    have = records.manifest["vocabulary"]["fingerprint"]
    tables = records.spec.id_spaces.tables
    found = difference(config, fingerprint or "", names=names, sizes=records.sizes, fingerprint=have, tables=tables)
    if found:
        raise CheckpointError(
            f"{source}: {found}; prepare the data of {records.folder} with the vocabulary these weights were trained with "
            "(dlrm-tf prepare --vocabulary)"
        )
