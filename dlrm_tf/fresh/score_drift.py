"""How a model's probabilities differ between two samples of rows."""

import os
from typing import Optional

import numpy as np

from dlrm_tf.data.vocabulary_check import check_vocabulary, spec_difference
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.files import StrPath
from dlrm_tf.fresh.compare import bins_of, range_names
from dlrm_tf.fresh.counts import quantile_edges
from dlrm_tf.fresh.figures import ScoreDrift
from dlrm_tf.fresh.psi import expected_noise, psi
from dlrm_tf.fresh.side import Rows, Side
from dlrm_tf.score.targets import LocalTarget, open_target

_DECILES = 10
_BATCH = 8192


def open_model(weights: StrPath, reference: Side) -> LocalTarget:
    """Opens a model that scores rows of `reference`.

    Args:
      weights: a `.weights.h5`, a SavedModel's folder or a `.tflite`.
      reference: the rows; the model's vocabulary is theirs.

    Raises:
      UsageError: a server, or nothing that can be opened.
      DataError: a model of another vocabulary or of other columns.
    """
    target, source = open_target(weights), os.fspath(weights)
    if not isinstance(target, LocalTarget) or target.config is None:
        target.close()
        raise UsageError(f"weights must be a .weights.h5, an exported SavedModel or a .tflite file. Received {source!r}")
    found = spec_difference(target.config, reference.spec)
    if found:
        raise DataError(f"{reference.name}: wanted the columns of {source}. Received others: the model {found}")
    check_vocabulary(reference.vocabulary, target.config, target.vocabulary_fingerprint, source=reference.name, model=source)
    return target


def score_drift(model: LocalTarget, reference: Rows, other: Rows) -> ScoreDrift:
    """Scores two samples.

    Args:
      model: scores rows.
      reference: rows of A.
      other: rows of B, with A's ids.

    Raises:
      DataError: a probability is not a number.
    """
    scores = _probabilities(model, reference), _probabilities(model, other)
    edges = quantile_edges(scores[0], _DECILES)
    counts, other_counts = (np.bincount(np.searchsorted(edges, s, side="right"), minlength=len(edges) + 1) for s in scores)
    return ScoreDrift(
        rows=(len(scores[0]), len(scores[1])),
        psi=psi(counts, other_counts),
        noise=expected_noise(counts, other_counts),
        mean=(_mean(scores[0]), _mean(scores[1])),
        calibration=(_calibration(scores[0], reference.label), _calibration(scores[1], other.label)),
        deciles=bins_of(counts, other_counts, range(len(counts)), range_names(edges).__getitem__),
    )


def _probabilities(model: LocalTarget, rows: Rows) -> np.ndarray:
    dense = np.nan_to_num(rows.dense, nan=0.0)  # a missing number is 0 to the model
    parts = []
    for start in range(0, len(dense), _BATCH):
        part = slice(start, start + _BATCH)
        parts.append(model.score(dense[part], rows.ids[part], None if rows.weights is None else rows.weights[part]))
    scores = np.concatenate(parts)
    if not np.isfinite(scores).all():
        raise DataError(f"wanted probabilities of the model. Received {np.count_nonzero(~np.isfinite(scores)):,} that are none")
    return scores


def _mean(numbers: np.ndarray) -> float:
    return float(numbers.mean(dtype=np.float64))


def _calibration(scores: np.ndarray, label: np.ndarray) -> Optional[float]:
    known = ~np.isnan(label)
    return _mean(scores[known]) / _mean(label[known]) if label[known].any() else None
