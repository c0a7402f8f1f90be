"""What a model is measured against: the training rows' click rate for every row, and a logistic regression of the same rows."""

import hashlib
import json
import os
from typing import Any, Union

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.features import log_dense
from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError
from dlrm_tf.files import atomic_file
from dlrm_tf.probability import logit
from dlrm_tf.train.advice import base_rate
from dlrm_tf.train.logistic_regression import LogisticRegression
from dlrm_tf.train.metrics import ClickMetrics

# The regression sees no more than the newest rows, so that its time is bounded: seconds.
NEWEST_ROWS = 1_000_000
_BATCH, _PASSES, _READ = 128, 3, 65_536
# Changes when the figures of the same data would.
_VERSION = 1


def baselines(data: Union[str, os.PathLike, Records], *, split: str = "test", exact: bool = True) -> dict[str, dict[str, Any]]:
    """Figures of a split for predictions that need no DLRM.

    The regression (`LogisticRegression`) trains on the newest `NEWEST_ROWS` rows of `train`, the last tenth of which chooses
    after which of three passes it is taken. With few rows it is hard to beat. The figures are kept in the data folder's
    `baselines.json`, where the folder can be written, and computed once for the same data.

    Args:
      data: a folder made by `prepare`, or opened `Records`.
      split: the rows to measure.
      exact: as for `ClickMetrics`.

    Returns:
      `{"constant": ..., "logistic_regression": ...}`, each what `ClickMetrics.result` returns.

    Raises:
      DataError: `data` is not prepared data, or a split has no rows.
    """
    records = Records.open(data)
    for needed in ("train", split):
        if not records.rows(needed):
            raise DataError(f"{records.folder}: wanted rows of {needed} for the baselines. Received none")
    text = json.dumps(
        [_VERSION, *(records.manifest[name] for name in ("spec", "vocabulary", "shards")), split, exact], sort_keys=True
    )
    key, path = hashlib.sha256(text.encode()).hexdigest(), os.path.join(records.folder, "baselines.json")
    kept = _kept(path)
    if key not in kept:
        figures = {"constant": _constant(records, split, exact), "logistic_regression": _regression(records, split, exact)}
        kept = {**kept, key: figures}
        try:
            with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                json.dump(kept, file, indent=1)
        except OSError:  # a folder that is only read: computed again next time
            pass
    return kept[key]


def _kept(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _logit_of_rate(records: Records) -> float:
    """Of the training rows' click rate; of one class only, which has no logit, that of half a row of the other."""
    rows = records.rows("train")
    return float(logit(np.clip(base_rate(records), 0.5 / rows, 1 - 0.5 / rows)))


def _constant(records: Records, split: str, exact: bool) -> dict[str, Any]:
    guess = _logit_of_rate(records)
    metrics = ClickMetrics(exact=exact)
    for start in range(0, records.rows(split), _READ):
        label = records.numpy(split, start, start + _READ)[2]
        metrics.update(label, np.full(label.shape, guess))
    return metrics.result()


def _regression(records: Records, split: str, exact: bool) -> dict[str, Any]:
    rows = records.rows("train")
    first = max(0, rows - NEWEST_ROWS)
    cut = rows - (rows - first) // 10
    model = LogisticRegression(DLRMConfig(**records.config_fields()), bias=_logit_of_rate(records))
    generator, best, lowest = np.random.default_rng(0), model.weights.copy(), np.inf
    for _ in range(_PASSES):
        for start in range(first, cut, _READ):
            rows_read = _rows(records, "train", start, min(start + _READ, cut))
            order = generator.permutation(len(rows_read[0]))
            for at in range(0, len(order), _BATCH):
                model.step(*(array[order[at : at + _BATCH]] for array in rows_read))
        loss = _measure(records, "train", cut, rows, model, False)["logloss"] if cut < rows else 0.0
        if loss >= lowest:
            break
        best, lowest = model.weights.copy(), loss
    model.weights = best
    return _measure(records, split, 0, records.rows(split), model, exact)


def _measure(records: Records, split: str, start: int, stop: int, model: LogisticRegression, exact: bool) -> dict[str, Any]:
    metrics = ClickMetrics(exact=exact)
    for at in range(start, stop, _READ):
        dense, categorical, label, *key_weights = _rows(records, split, at, min(at + _READ, stop))
        metrics.update(label, model.logits(dense, categorical, *key_weights))
    return metrics.result()


def _rows(records: Records, split: str, start: int, stop: int) -> tuple[np.ndarray, ...]:
    """Rows as a model takes them, the labels `[n]`, and where keys have weights these."""
    dense, categorical, label, *key_weights = records.numpy(split, start, stop)
    return (log_dense(dense), categorical, label[:, 0], *key_weights)
