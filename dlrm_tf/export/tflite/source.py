"""What the exports of one model read: its weights, prepared data, a vocabulary, rows to evaluate on."""

import functools
import os
from typing import Optional, Union

import numpy as np

from dlrm_tf.data.features import log_dense
from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError
from dlrm_tf.export.budget import IdRanking, count_ids, id_values, loss_of_dropping
from dlrm_tf.export.tflite.calibration import CALIBRATION_ROWS, LEAST_ROWS, Calibration, calibrate
from dlrm_tf.export.vocabulary import load_vocabulary
from dlrm_tf.files import StrPath
from dlrm_tf.model.subset import float_probabilities
from dlrm_tf.train.evaluate import check_fits
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber

# Rows of the test split an export is compared on, and rows of the train split ids are ranked on.
EVALUATION_ROWS = 200_000
RANKING_ROWS = 1_000_000


class ExportSource:
    """Opens and checks what an export reads; what several exports need is computed once.

    Args:
      weights: a `.weights.h5` file.
      evaluation: `(dense [n, dense_dim], categorical [n, F])` or that and `label [n]`; by default the test split of `data`.
      data: a folder made by `prepare`, or opened `Records`, or None.
      vocabulary: path of the vocabulary, or None.
      quiet: show no progress.

    Attributes:
      weights: path of the weights file.
      config: its `DLRMConfig`.
      attributes: its attributes (`WeightsReader.attributes`).
      records: the prepared data, or None.
      vocabulary: the `Vocabulary`, or None.
      evaluation: `(dense float32 [n, dense_dim], categorical int32 [n, F])`, or None.
      label: float32 `[n]` of these rows, or None.
      quiet: show no progress.

    Raises:
      CheckpointError: not a weights file, or one that belongs to other data.
      DataError: evaluation rows of another shape than the model takes, or a vocabulary of other sizes.
    """

    def __init__(
        self,
        weights: StrPath,
        *,
        evaluation: Optional[tuple] = None,
        data: Union[None, StrPath, Records] = None,
        vocabulary: Optional[StrPath] = None,
        quiet: bool = False,
    ):
        self.weights, self.quiet = os.fspath(weights), quiet
        with WeightsReader(self.weights) as reader:
            self.config, self.attributes = reader.config, reader.attributes
        trained_with = self.attributes["vocabulary_fingerprint"]
        self.records = data if data is None or isinstance(data, Records) else Records.open(data)
        if self.records is not None:
            check_fits(self.config, trained_with, self.records, self.weights)
        self.vocabulary = None
        if vocabulary is not None:
            self.vocabulary = load_vocabulary(vocabulary, self.config, trained_with, weights=self.weights)
        if evaluation is None and self.records is not None and self.records.rows("test"):
            dense, categorical, label = self.records.numpy("test", 0, EVALUATION_ROWS)
            evaluation = log_dense(dense), categorical, label
        self.evaluation, self.label = self._checked(evaluation)

    @functools.cached_property
    def float_probabilities(self) -> np.ndarray:
        """float32 `[n]`: what the float model predicts for the evaluation rows."""
        return float_probabilities(self.weights, *self.evaluation)

    @functools.cached_property
    def counts(self) -> list[np.ndarray]:
        """How often each id occurs in the train split (`count_ids`)."""
        assert self.records is not None  # choose_ids refuses a budget without data
        return count_ids(self.records, quiet=self.quiet)

    @functools.cached_property
    def ranking(self) -> IdRanking:
        """The ids, the most valuable first."""
        measured = loss_of_dropping(self.weights, *self._training_rows(RANKING_ROWS), self.counts, quiet=self.quiet)
        return IdRanking(id_values(*measured, self.counts))

    def calibrate(self, weights: str, kept: Optional[list[np.ndarray]]) -> Optional[Calibration]:
        """Statistics of the dense layers' inputs, on training rows if there are any, else on the evaluation rows.

        Args:
          weights: the weights file that is exported: this source's, or its copy with fewer ids.
          kept: per feature, the ids left in that file; None when all are.

        Returns:
          The statistics, or None when there are too few rows for them.
        """
        if self.records is not None and self.records.rows("train"):
            dense, categorical = self._training_rows(CALIBRATION_ROWS)
        elif self.evaluation is not None:
            dense, categorical = self.evaluation
        else:
            return None
        if len(dense) < LEAST_ROWS:
            return None
        return calibrate(weights, dense, categorical if kept is None else renumber(categorical, kept))

    def _training_rows(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """`(dense, categorical)` of the last rows of the train split: the most recent ones of a log."""
        assert self.records is not None
        total = self.records.rows("train")
        dense, categorical, _ = self.records.numpy("train", max(total - rows, 0), total)
        return log_dense(dense), categorical

    def _checked(self, evaluation) -> tuple:
        """Evaluation rows as `((dense, categorical) or None, label or None)`, of the right types and shapes."""
        if evaluation is None or not len(evaluation[0]):
            return None, None
        dense, categorical = np.asarray(evaluation[0], np.float32), np.asarray(evaluation[1])
        wanted = (len(dense), self.config.dense_dim), (len(dense), self.config.num_categorical)
        if (dense.shape, categorical.shape) != wanted:
            raise DataError(
                f"evaluation rows: wanted shapes {wanted[0]} and {wanted[1]}. Received {dense.shape} and {categorical.shape}"
            )
        label = np.asarray(evaluation[2], np.float32).reshape(-1) if len(evaluation) > 2 else None
        if label is not None and len(label) != len(dense):
            raise DataError(f"evaluation rows: wanted {len(dense)} labels. Received {len(label)}")
        return (dense, categorical.astype(np.int32)), label
