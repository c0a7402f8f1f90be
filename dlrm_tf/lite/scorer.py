"""Scorer: probabilities from an exported .tflite file."""

import os

import numpy as np

from dlrm_tf.errors import DataError, DLRMError, require
from dlrm_tf.lite.metadata import read_metadata

SIGNATURE = "score"


class Scorer:
    """Runs a `.tflite` file that `export_tflite` wrote; one thread at a time (open one a thread: the file's pages are shared).

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

    def __init__(self, path, num_threads: int = 1):
        litert = require("ai_edge_litert.interpreter", "lite")
        self.path = os.fspath(path)
        self.metadata = read_metadata(self.path)
        try:
            self._interpreter = litert.Interpreter(model_path=self.path, num_threads=num_threads)
            signature = self._interpreter.get_signature_list().get(SIGNATURE)
        except (ValueError, RuntimeError) as e:
            raise DLRMError(f"{self.path}: the TFLite runtime refuses the file ({' '.join(str(e).split())})") from e
        if signature is None or set(signature["inputs"]) != {"dense", "categorical"}:
            raise DLRMError(f"{self.path}: wanted a signature {SIGNATURE!r} with inputs dense and categorical, came {signature}")
        runner = self._interpreter.get_signature_runner(SIGNATURE)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        # By name: the order of inputs in the file is the converter's.
        self._dense, self._categorical = inputs["dense"]["index"], inputs["categorical"]["index"]
        self._probability = outputs["probability"]["index"]
        self._widths = {name: int(inputs[name]["shape_signature"][1]) for name in inputs}
        self._rows = None

    def score(self, dense, categorical) -> np.ndarray:
        """Click probabilities.

        Args:
          dense: float32 `[batch_size, dense_dim]`, already log(max(x, 0) + 1).
          categorical: integer ids `[batch_size, F]`; an id outside its feature's range counts as out of vocabulary.

        Returns:
          float32 `[batch_size]`.

        Raises:
          DataError: an array of another width, numbers of rows that differ, or ids that are not integers.
        """
        dense = np.ascontiguousarray(self._checked("dense", dense), np.float32)
        categorical = self._checked("categorical", categorical)
        if not np.issubdtype(categorical.dtype, np.integer):
            raise DataError(f"{self.path}: categorical must be integer ids, came {categorical.dtype}")
        if categorical.dtype != np.int32:
            # 2**32 + 3 is out of vocabulary, not id 3.
            limits = np.iinfo(np.int32)
            categorical = np.clip(categorical, limits.min, limits.max).astype(np.int32)
        if len(dense) != len(categorical):
            raise DataError(f"{self.path}: dense has {len(dense)} rows, categorical {len(categorical)}")
        probabilities = np.empty(len(dense), np.float32)
        for start in range(0, len(dense), self._BATCH):
            stop = min(start + self._BATCH, len(dense))
            probabilities[start:stop] = self._run(dense[start:stop], categorical[start:stop])
        return probabilities

    __call__ = score

    def _checked(self, name: str, array) -> np.ndarray:
        array = np.asarray(array)
        if array.ndim != 2 or array.shape[1] != self._widths[name]:
            raise DataError(f"{self.path}: {name} must be [batch_size, {self._widths[name]}], came {list(array.shape)}")
        return array

    def _run(self, dense, categorical) -> np.ndarray:
        interpreter = self._interpreter
        if len(dense) != self._rows:
            interpreter.resize_tensor_input(self._dense, dense.shape)
            interpreter.resize_tensor_input(self._categorical, categorical.shape)
            interpreter.allocate_tensors()
            self._rows = len(dense)
        interpreter.set_tensor(self._dense, dense)
        interpreter.set_tensor(self._categorical, np.ascontiguousarray(categorical))
        interpreter.invoke()
        return interpreter.get_tensor(self._probability)[:, 0]
