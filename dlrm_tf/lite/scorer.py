"""Scorer: probabilities from an exported .tflite file."""

import functools
import io
import os
from typing import Any, Optional

import numpy as np

from dlrm_tf.data.bag import Bag
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.inputs import int32_ids
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError, DLRMError, require
from dlrm_tf.files import StrPath
from dlrm_tf.lite.ids import KEPT_IDS, KeptIds
from dlrm_tf.lite.metadata import VOCABULARY, read_entry, read_metadata

SIGNATURE = "score"


class Scorer:
    """Runs a `.tflite` file that `export_tflite` wrote; not thread-safe: open one for each thread (they share the file's pages).

    Args:
      path: the file; it is memory-mapped.
      num_threads: threads of the runtime's kernels.

    Attributes:
      metadata: what the export wrote into the file: features, quantization, errors (dict).

    Raises:
      DLRMError: not a TFLite file, or not a scorer of dlrm_tf.

    Example:
      scorer = dlrm_tf.lite.Scorer("dlrm.tflite")
      scorer.score(dense, categorical)    # float32 [batch_size]
    """

    # Rows of one run: larger batches only need more memory for the interactions.
    _BATCH = 1024

    def __init__(self, path: StrPath, *, num_threads: int = 1):
        litert = require("ai_edge_litert.interpreter", "lite")
        self.path = os.fspath(path)
        self.metadata = read_metadata(self.path)
        try:
            self._interpreter = litert.Interpreter(model_path=self.path, num_threads=num_threads)
            signature = self._interpreter.get_signature_list().get(SIGNATURE)
        except (ValueError, RuntimeError) as e:
            raise DLRMError(f"{self.path}: the TFLite runtime refuses the file ({' '.join(str(e).split())})") from e
        if signature is None or set(signature["inputs"]) - {"dense", "weights"} != {"categorical"}:
            raise DLRMError(
                f"{self.path}: wanted a signature {SIGNATURE!r} with inputs dense, if any, and categorical. Received {signature}"
            )
        runner = self._interpreter.get_signature_runner(SIGNATURE)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        # By name: the converter chooses the order of the inputs in the file.
        self._inputs = {name: inputs[name]["index"] for name in ("dense", "categorical", "weights") if name in inputs}
        self._probability = outputs["probability"]["index"]
        self._widths = {"dense": 0, **{name: int(inputs[name]["shape_signature"][1]) for name in self._inputs}}
        self._rows: Optional[int] = None  # rows that the interpreter's tensors are allocated for

    def score(self, dense: Any, categorical: Any, weights: Optional[Any] = None) -> np.ndarray:
        """Click probabilities of prepared rows.

        Args:
          dense: float32 `[batch_size, dense_dim]`, already log(max(x, 0) + 1); `[batch_size, 0]` without dense features.
          categorical: integer ids `[batch_size, id_columns]` of the vocabulary the model was trained with, even if the file keeps
            only a part of it; an id outside its feature's range, or one that was not kept, counts as out of vocabulary. -1 in the
            unused places of a bag.
          weights: float32 `[batch_size, id_columns]`, of a model whose keys have weights.

        Returns:
          float32 `[batch_size]`.

        Raises:
          DataError: an array of another width, numbers of rows that differ, ids that are not integers, or weights for a model
            without them or the other way round.
        """
        if (weights is not None) != ("weights" in self._inputs):
            raise DataError(f"{self.path}: wanted {', '.join(self._widths)}. Received {'no ' if weights is None else ''}weights")
        dense, ids = self._checked("dense", dense), int32_ids(self._checked("categorical", categorical), self.path)
        if self._kept_ids is not None:
            ids = self._kept_ids.translate(ids)
        rest = [] if weights is None else [np.asarray(self._checked("weights", weights), np.float32)]
        return self._score(np.asarray(dense, np.float32), ids, *rest)

    __call__ = score

    def score_raw(self, dense: Any, categorical: Any) -> np.ndarray:
        """Click probabilities of raw rows, as in a log; needs a file that carries its vocabulary.

        Args:
          dense: numbers `[batch_size, dense_dim]`; None, NaN or '' where missing.
          categorical: str, bytes or whole numbers `[batch_size, F]`; None, NaN or '' where missing. An unknown key is out of
            vocabulary. A bag is its text in the log (`a|b`), or without weights a list of keys.

        Returns:
          float32 `[batch_size]`.

        Raises:
          DLRMError: the file carries no vocabulary.
          DataError: an array of another width, numbers of rows that differ, or a value that is not what its column takes (row and
            column are named).
        """
        if self._encoder is None:
            raise DLRMError(f"{self.path}: carries no vocabulary; export it with --vocabulary FILE to score raw rows")
        return self._score(*self._encoder.arrays(dense, categorical))

    @functools.cached_property
    def _kept_ids(self) -> Optional[KeptIds]:
        """Translation of ids where the file keeps a part of the vocabulary, else None; read when first needed."""
        if "original_sizes" not in self.metadata:
            return None
        config, data = self.metadata["config"], read_entry(self.path, KEPT_IDS)
        sizes = config["categorical_feature_sizes"], self.metadata["original_sizes"]
        return KeptIds(data, *sizes, self.path, hot_sizes=config.get("hot_sizes"))

    @functools.cached_property
    def _encoder(self) -> Optional[Encoder]:
        """Encoder with the file's own vocabulary, or None; made when first needed."""
        data = read_entry(self.path, VOCABULARY)
        if not data:
            return None
        try:
            vocabulary = Vocabulary.load(io.BytesIO(data))
        except DataError as e:
            raise DLRMError(f"{self.path}: damaged vocabulary in the file; export it again") from e
        # A file exported without data has no names of dense features.
        features = self.metadata.get("features", {})
        dense = features.get("dense") or [f"column {i}" for i in range(self._widths["dense"])]
        bags = {name: Bag.from_dict(bag) for name, bag in features.get("bags", {}).items()}
        spec = FeatureSpec.of(dense, vocabulary.names, bags=bags, missing=features.get("missing", ()))
        return Encoder(spec, vocabulary, source=self.path)

    def _checked(self, name: str, values: Any) -> np.ndarray:
        array: np.ndarray = np.asarray(values)
        if array.ndim != 2 or array.shape[1] != self._widths[name]:
            raise DataError(f"{self.path}: {name} must be [batch_size, {self._widths[name]}]. Received {list(array.shape)}")
        return array

    def _score(self, *arrays: np.ndarray) -> np.ndarray:
        """Probabilities of the inputs in their order and types, the ids in the file's own numbering."""
        rows = len(arrays[0])
        for name, array in zip(self._widths, arrays):
            if len(array) != rows:
                raise DataError(f"{self.path}: dense has {rows} rows, {name} {len(array)}")
        probabilities, inputs = np.empty(rows, np.float32), [array for array in arrays if array.shape[1]]
        for start in range(0, rows, self._BATCH):
            stop = min(start + self._BATCH, rows)
            probabilities[start:stop] = self._run([np.ascontiguousarray(array[start:stop]) for array in inputs])
        return probabilities

    def _run(self, arrays: list[np.ndarray]) -> np.ndarray:
        interpreter = self._interpreter
        if len(arrays[0]) != self._rows:
            for index, array in zip(self._inputs.values(), arrays):
                interpreter.resize_tensor_input(index, array.shape)
            interpreter.allocate_tensors()
            self._rows = len(arrays[0])
        for index, array in zip(self._inputs.values(), arrays):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        probability: np.ndarray = interpreter.get_tensor(self._probability)[:, 0]
        return probability
