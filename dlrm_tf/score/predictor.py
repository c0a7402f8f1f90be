"""Predictor: raw rows in, click probabilities out, wherever the model is."""

import os
from typing import Any, Union

import numpy as np

from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.vocabulary_check import check_vocabulary, spec_difference
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.files import StrPath
from dlrm_tf.score.targets import LocalTarget, open_target


class Predictor:
    """Scores raw rows, as in a log: numbers and category strings.

    Args:
      model: a `.weights.h5` file, a SavedModel's folder, a `.tflite` file, or a server's address: what `open_target` takes.
      vocabulary: the vocabulary the model was trained with (`vocabulary.npz` of the data folder), or its path.
      spec: the columns, as for `prepare`, or what `FeatureSpec.read` takes.
      batch_size: rows scored at a time; bounds the memory.
      **target: further arguments of `open_target` (model_name, version, label; timeout, retries and tls of a server).

    Raises:
      CheckpointError, ServingError, DLRMError: the model does not load.
      DataError: the vocabulary or the spec is not the model's; not checked for a server, which does not say what its model needs.

    Example:
      predictor = dlrm_tf.Predictor("run/best.weights.h5", "data/vocabulary.npz")
      probability = predictor.predict(frame)      # a DataFrame with the columns I1 ... I13, C1 ... C26
    """

    def __init__(
        self,
        model: StrPath,
        vocabulary: Union[Vocabulary, StrPath],
        *,
        spec: Union[FeatureSpec, StrPath] = CRITEO,
        batch_size: int = 1024,
        **target: Any,
    ):
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1. Received {batch_size}")
        model = os.fspath(model)
        columns = spec if isinstance(spec, FeatureSpec) else FeatureSpec.read(spec)
        source = "the vocabulary" if isinstance(vocabulary, Vocabulary) else os.fspath(vocabulary)
        keys = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary.load(source)
        self._encoder, self._batch_size = Encoder(columns, keys), batch_size
        self._target = open_target(model, batch_size=batch_size, **target)
        if isinstance(self._target, LocalTarget) and self._target.config is not None:
            config = self._target.config
            check_vocabulary(keys, config, self._target.vocabulary_fingerprint, source=source, model=model)
            found = spec_difference(config, columns)
            if found:
                raise DataError(f"spec: wanted the columns of {model}. Received others: {model} {found}")

    def predict(self, rows: Any) -> np.ndarray:
        """Click probabilities.

        Args:
          rows: a pandas or polars DataFrame, a dict of columns, or whatever else gives a column by its name (columns that `spec`
            does not name are not looked at); or a list of lines of a log, str or bytes, with the label or without.
            A missing cell is None, NaN, pandas.NA or ''. Columns of bags: see `Encoder.columns`.

        Returns:
          float32 `[rows]`, in the rows' order.

        Raises:
          DataError: rows in another form, a missing column, or a cell that is not what its column takes; names row (from 0) and
            column.
          ServingError: the server can't be reached, or refuses the request.
        """
        parts = [self._target.score(*batch) for batch in self._encoder.batches(rows, self._batch_size)]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def close(self) -> None:
        """Frees the model, or closes the connection."""
        self._target.close()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
