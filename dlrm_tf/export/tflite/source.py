"""What the exports of one model read: its weights, prepared data, a vocabulary, rows to evaluate on."""

import functools
import os
from typing import Optional, Union

import numpy as np

from dlrm_tf.data.features import log_dense
from dlrm_tf.data.records import Records
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError
from dlrm_tf.export.budget import IdRanking, count_ids, id_values, loss_of_dropping
from dlrm_tf.export.tflite.calibration import CALIBRATION_ROWS, LEAST_ROWS, Calibration, calibrate
from dlrm_tf.export.vocabulary import columns_of, load_vocabulary
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
      evaluation: `(dense [n, dense_dim], categorical [n, id_columns])`, of a weighted model also `weights [n, id_columns]`, or
        that and `label [n]`; by default the test split of `data`.
      data: a folder made by `prepare`, or opened `Records`, or None.
      vocabulary: path of the vocabulary, or None.
      spec: the columns of the log, or their JSON file; by default those of `data`. Wanted with a vocabulary where features have
        several keys.
      quiet: show no progress.

    Attributes:
      weights: path of the weights file.
      config: its `DLRMConfig`.
      attributes: its attributes (`WeightsReader.attributes`).
      records: the prepared data, or None.
      vocabulary: the `Vocabulary`, or None.
      columns: the `FeatureSpec` that says how texts are read (bags, markers of missing cells); None without a vocabulary.
      evaluation: `(dense float32 [n, dense_dim], categorical int32 [n, id_columns])` and of a weighted model `weights float32
        [n, id_columns]`, or None.
      label: float32 `[n]` of these rows, or None.
      quiet: show no progress.

    Raises:
      CheckpointError: not a weights file, or one that belongs to other data.
      DataError: evaluation rows of another shape than the model takes, a vocabulary of other sizes, or another spec.
      UsageError: no spec where one is wanted.
    """

    def __init__(
        self,
        weights: StrPath,
        *,
        evaluation: Optional[tuple] = None,
        data: Union[None, StrPath, Records] = None,
        vocabulary: Optional[StrPath] = None,
        spec: Union[None, StrPath, FeatureSpec] = None,
        quiet: bool = False,
    ):
        self.weights, self.quiet = os.fspath(weights), quiet
        with WeightsReader(self.weights) as reader:
            self.config, self.attributes = reader.config, reader.attributes
        trained_with = self.attributes["vocabulary_fingerprint"]
        self.records = None if data is None else Records.open(data)
        if self.records is not None:
            check_fits(self.config, trained_with, self.records, self.weights)
        self.vocabulary, self.columns = None, None
        if vocabulary is not None:
            self.vocabulary = load_vocabulary(vocabulary, self.config, trained_with, weights=self.weights)
            spec = self.records.spec if spec is None and self.records is not None else spec
            self.columns = columns_of(spec, self.config, self.vocabulary, weights=self.weights)
        if evaluation is None and self.records is not None and self.records.rows("test"):
            dense, categorical, label, *key_weights = self.records.numpy("test", 0, EVALUATION_ROWS)
            evaluation = log_dense(dense), categorical, *key_weights, label
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
        dense, categorical, *key_weights = self._training_rows(RANKING_ROWS)
        weighted = {"key_weights": key_weights[0]} if key_weights else {}
        measured = loss_of_dropping(self.weights, dense, categorical, self.counts, quiet=self.quiet, **weighted)
        return IdRanking(id_values(*measured, self.counts), self.config.tables)

    def calibrate(self, weights: str, kept: Optional[list[np.ndarray]]) -> Optional[Calibration]:
        """Statistics of the dense layers' inputs, on training rows if there are any, else on the evaluation rows.

        Args:
          weights: the weights file that is exported: this source's, or its copy with fewer ids.
          kept: per feature, the ids left in that file; None when all are.

        Returns:
          The statistics, or None when there are too few rows for them.
        """
        if self.records is not None and self.records.rows("train"):
            dense, categorical, *key_weights = self._training_rows(CALIBRATION_ROWS)
        elif self.evaluation is not None:
            dense, categorical, *key_weights = self.evaluation
        else:
            return None
        if len(dense) < LEAST_ROWS:
            return None
        ids = categorical if kept is None else renumber(categorical, kept, self.config)
        return calibrate(weights, dense, ids, *key_weights)

    def _training_rows(self, rows: int) -> tuple[np.ndarray, ...]:
        """`(dense, categorical)` and any weights of the last rows of the train split: the most recent ones of a log."""
        assert self.records is not None
        total = self.records.rows("train")
        dense, categorical, _, *key_weights = self.records.numpy("train", max(total - rows, 0), total)
        return log_dense(dense), categorical, *key_weights

    def _checked(self, evaluation) -> tuple:
        """Evaluation rows as `((dense, categorical, any weights) or None, label or None)`, of the right types and shapes."""
        if evaluation is None or not len(evaluation[0]):
            return None, None
        types, rows = self.config.arrays, len(evaluation[0])
        arrays, wanted = [np.asarray(values) for values in evaluation[: len(types)]], [(rows, c) for _, c in types.values()]
        shapes = [array.shape for array in arrays]
        if shapes != wanted:
            raise DataError(f"evaluation rows: wanted shapes {_shown(wanted)}. Received {_shown(shapes)}")
        label = np.asarray(evaluation[len(types)], np.float32).reshape(-1) if len(evaluation) > len(types) else None
        if label is not None and len(label) != rows:
            raise DataError(f"evaluation rows: wanted {rows} labels. Received {len(label)}")
        return tuple(array.astype(dtype) for array, (dtype, _) in zip(arrays, types.values())), label


def _shown(shapes: list) -> str:
    return " and ".join(map(str, shapes))
