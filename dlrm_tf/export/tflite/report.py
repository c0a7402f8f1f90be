"""What a TFLite export wrote, and what it costs in quality against the float model."""

import dataclasses
from typing import Any, Optional

import numpy as np

from dlrm_tf.errors import DLRMError
from dlrm_tf.probability import logit
from dlrm_tf.train.metrics import ClickMetrics

# Metrics of ClickMetrics.result that are compared.
QUALITY = ("auc", "logloss", "normalized_entropy", "calibration")


@dataclasses.dataclass(frozen=True)
class TFLiteReport:
    """What an export wrote, and how far its probabilities are from the float model's.

    Attributes:
      path: the file.
      bytes: its size.
      float_bytes: size of the float32 weights of the whole model.
      table_rows: rows of the device's table; a block is OOV row, ids, OOV row.
      bytes_per_row: bytes of a row of the table.
      table_dtype: `"int8"` or `"int4"`.
      mlp: precision of the dense layers.
      ids: ids kept.
      ids_total: ids of the whole model.
      rows: evaluation rows compared, 0 when there were none; then the following are None.
      max_error: largest |probability - float probability|.
      mean_error: mean of it.
      float_quality: `auc`, `logloss`, `normalized_entropy`, `calibration` of the float model; None without labels.
      quality: the same of the written file.
    """

    path: str
    bytes: int
    float_bytes: int
    table_rows: int
    bytes_per_row: int
    table_dtype: str
    mlp: str
    ids: int
    ids_total: int
    rows: int = 0
    max_error: Optional[float] = None
    mean_error: Optional[float] = None
    float_quality: Any = None
    quality: Any = None

    def __str__(self):
        kept = f"{self.ids:,} of {self.ids_total:,} ids"
        lines = [
            f"{self.path}: {self.bytes:,} bytes ({self.float_bytes / self.bytes:.1f} times smaller than float32)",
            f"{kept}, {self.table_dtype} rows of {self.bytes_per_row} bytes, dense layers {self.mlp}",
        ]
        if self.rows:
            errors = f"max {self.max_error:.5f}, mean {self.mean_error:.5f}"
            lines.append(f"|probability - float probability| on {self.rows:,} rows: {errors}")
        if self.quality:
            lines.append("               " + "".join(f"{name:>20}" for name in QUALITY))
            for label, values in (("float model", self.float_quality), ("this file", self.quality)):
                lines.append(f"{label:<15}" + "".join(f"{values[name]:>20.5f}" for name in QUALITY))
        return "\n".join(lines)


def compare(probabilities: np.ndarray, float_probabilities: np.ndarray, label: Optional[np.ndarray]) -> dict:
    """The fields of `TFLiteReport` from `rows` on.

    Args:
      probabilities: float32 `[n]`, of the written file.
      float_probabilities: float32 `[n]`, of the float model.
      label: `[n]`, 0 or 1, or None.
    """
    error = np.abs(probabilities - float_probabilities)
    fields = {"rows": len(error), "max_error": float(error.max()), "mean_error": float(error.mean())}
    if label is None or not 0 < label.sum() < len(label):  # one class only
        return {**fields, "float_quality": None, "quality": None}
    return {**fields, "float_quality": _quality(float_probabilities, label), "quality": _quality(probabilities, label)}


def check_auc(path: str, errors: dict, limit: Optional[float]) -> None:
    """Refuses a file whose AUC is lower than the float model's by more than `limit` (None: no limit).

    Args:
      path: named in the error.
      errors: what `compare` gave.
      limit: the largest loss of AUC.

    Raises:
      DLRMError: the file is worse, or its AUC has no meaning.
    """
    if limit is None:
        return
    if errors["quality"] is None:
        raise DLRMError(f"{path}: the AUC can't be measured: the evaluation rows have one class only")
    before, after = errors["float_quality"]["auc"], errors["quality"]["auc"]
    if before - after > limit:
        raise DLRMError(
            f"{path}: AUC falls by {before - after:.5f} (from {before:.5f} to {after:.5f}), more than the limit {limit:g}: "
            "nothing was written; allow a larger file (--max-size) or wider numbers (--table-dtype int8, --mlp mixed)"
        )


def _quality(probabilities: np.ndarray, label: np.ndarray) -> dict:
    # float32 probabilities reach 0 and 1, whose logits are infinite.
    p = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    metrics = ClickMetrics()
    metrics.update(label, logit(p))
    result = metrics.result()
    return {name: result[name] for name in QUALITY}
