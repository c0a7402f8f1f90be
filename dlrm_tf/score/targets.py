"""What can score rows: a server, a SavedModel, a TFLite file, a weights file; all behind `score(dense, categorical)`."""

import abc
import dataclasses
import json
import os
from typing import Any, Optional, Union

import numpy as np

import dlrm_tf  # the model through its public name: a server's client needs no Keras
from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.inputs import model_inputs
from dlrm_tf.errors import ServingError, UsageError, reason, require
from dlrm_tf.export.savedmodel.metadata import read_metadata
from dlrm_tf.files import StrPath
from dlrm_tf.keras2 import any_keras_tensorflow, tensorflow
from dlrm_tf.lite.scorer import Scorer
from dlrm_tf.score.client import Client
from dlrm_tf.versions import versions_on_disk

SAVED_MODEL = "saved_model.pb"


class LocalTarget(abc.ABC):
    """A model in this process.

    Attributes:
      config: the model's configuration; None if it is not in the file.
      vocabulary_fingerprint: of the vocabulary the model was trained with; '' where it is not known.
    """

    config: Optional[DLRMConfig] = None
    vocabulary_fingerprint: str = ""

    @abc.abstractmethod
    def score(self, dense: np.ndarray, categorical: np.ndarray, weights: Optional[np.ndarray] = None) -> np.ndarray:
        """Probabilities of prepared rows.

        Args:
          dense: float32 `[rows, dense_dim]`, already log(max(x, 0) + 1); `[rows, 0]` without dense features.
          categorical: integer ids `[rows, id_columns]`; one that does not fit int32 counts as out of vocabulary.
          weights: float32 `[rows, id_columns]`, of a model whose keys have weights.

        Returns:
          float32 `[rows]`.
        """

    def close(self) -> None:  # noqa: B027, for a model that needs nothing of the kind
        """Frees the model."""

    def __enter__(self) -> "LocalTarget":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class SavedModelTarget(LocalTarget):
    """A SavedModel's `serving_default` signature.

    Args:
      path: a SavedModel's folder, or a folder of versions.
      version: which of the versions; None is the latest.

    Raises:
      ServingError: no such version, not a SavedModel, or one without the signature.
    """

    def __init__(self, path: str, version: Optional[int] = None):
        tf = any_keras_tensorflow()
        if not os.path.isfile(os.path.join(path, SAVED_MODEL)):
            versions = versions_on_disk(path)
            if not versions:
                raise ServingError(f"{path}: wanted a SavedModel (saved_model.pb) or numbered version folders. Received neither")
            number = max(versions) if version is None else version
            if number not in versions:
                raise ServingError(f"{path}: wanted version {number}. Received versions {', '.join(map(str, sorted(versions)))}")
            path = versions[number]
        self.path, self._op_error = path, tf.errors.OpError
        try:
            self._model = tf.saved_model.load(path)
        except Exception as e:  # a damaged file makes TensorFlow's loader raise many kinds of errors
            raise ServingError(f"{path}: the SavedModel does not load ({reason(e)})") from e
        self._signature = self._model.signatures.get("serving_default")
        inputs = set() if self._signature is None else set(self._signature.structured_input_signature[1])
        if self._signature is None or inputs - {"dense", "weights"} != {"categorical"}:
            raise ServingError(f"{path}: wanted the signature serving_default with inputs dense, if any, and categorical")
        if "probability" not in self._signature.structured_outputs:
            raise ServingError(f"{path}: the signature serving_default has no output probability")
        metadata = read_metadata(path)
        if "config" in metadata:
            self.config = DLRMConfig.from_json(json.dumps(metadata["config"]), source=path)
            self.vocabulary_fingerprint = str(metadata.get("vocabulary_fingerprint") or "")
        self._constant = tf.constant

    def score(self, dense: np.ndarray, categorical: np.ndarray, weights: Optional[np.ndarray] = None) -> np.ndarray:
        """As `LocalTarget.score`."""
        inputs = model_inputs(self.path, dense, categorical, weights, config=self.config)
        try:
            outputs = self._signature(**{name: self._constant(array) for name, array in inputs.items()})
        except self._op_error as e:
            raise ServingError(f"{self.path}: {reason(e)}") from e
        probability: np.ndarray = outputs["probability"].numpy().reshape(-1)
        return probability

    def close(self) -> None:
        """Frees the model."""
        self._model = self._signature = None


class TFLiteTarget(LocalTarget):
    """A quantized scorer, run by ai_edge_litert.

    Args:
      path: the `.tflite` file.

    Raises:
      DLRMError: not a TFLite file that dlrm_tf exported.
    """

    def __init__(self, path: str):
        self._scorer = Scorer(path)
        metadata = self._scorer.metadata
        config = DLRMConfig.from_json(json.dumps(metadata.get("config")), source=f"{path}: metadata")
        # A file that keeps only a part of the ids still takes ids of the whole vocabulary.
        sizes = metadata.get("original_sizes", config.categorical_feature_sizes)
        self.config = dataclasses.replace(config, categorical_feature_sizes=tuple(sizes))
        self.vocabulary_fingerprint = str(metadata.get("vocabulary_fingerprint") or "")

    def score(self, dense: np.ndarray, categorical: np.ndarray, weights: Optional[np.ndarray] = None) -> np.ndarray:
        """As `LocalTarget.score`."""
        return self._scorer.score(dense, categorical, weights)


class WeightsTarget(LocalTarget):
    """A Keras model rebuilt from its `.weights.h5`.

    Args:
      path: the weights file.

    Raises:
      CheckpointError: not a weights file of dlrm_tf.
    """

    def __init__(self, path: str):
        self._path, self._model = path, dlrm_tf.load(path)
        self.config, self.vocabulary_fingerprint = self._model.config, self._model.vocabulary_fingerprint or ""

    def score(self, dense: np.ndarray, categorical: np.ndarray, weights: Optional[np.ndarray] = None) -> np.ndarray:
        """As `LocalTarget.score`."""
        logits = self._model(model_inputs(self._path, dense, categorical, weights, config=self.config))
        probability: np.ndarray = tensorflow().sigmoid(logits).numpy().reshape(-1)
        return probability


def open_target(
    target: StrPath,
    *,
    model_name: str = "dlrm",
    version: Optional[int] = None,
    label: Optional[str] = None,
    **client: Any,
) -> Union[Client, LocalTarget]:
    """Opens `target` for scoring, by what it looks like.

    Args:
      target: `host:port` or `unix://…` (gRPC), `http(s)://…` (REST), a SavedModel folder or a folder of versions, a `.tflite`
        file, or a `.weights.h5` file.
      model_name: model on a server.
      version: of a server or of a folder of versions; None is the latest.
      label: version label on a server.
      **client: further arguments of `Client` (timeout, retries, batch_size, tls), for a server.

    Returns:
      A context manager with `score(dense float32 [rows, dense_dim], categorical integers [rows, id_columns]) -> float32 [rows]`,
      with `weights float32 [rows, id_columns]` after them where the model's keys have weights.

    Raises:
      UsageError: `target` looks like none of these, or takes no version or label.
    """
    target = os.fspath(target)
    host, colon, port = target.rpartition(":")
    address = bool(host and colon and port.isdigit() and "/" not in target)
    if target.startswith(("http://", "https://", "unix:")) or (address and not os.path.isdir(target)):
        require("urllib3" if target.startswith("http") else "tensorflow_serving", "serving")
        return Client(target, model_name=model_name, version=version, label=label, **client)
    folder = os.path.isdir(target)
    versions = folder and not os.path.isfile(os.path.join(target, SAVED_MODEL))
    if label is not None or (version is not None and not versions and (folder or os.path.exists(target))):
        unused = f"label {label!r}" if label is not None else f"version {version}"
        raise UsageError(
            f"{target}: wanted a server, or for a version a folder of versions. Received {unused} with another target"
        )
    if folder:
        return SavedModelTarget(target, version)
    if target.endswith(".tflite"):
        return TFLiteTarget(target)
    if target.endswith(".weights.h5"):
        return WeightsTarget(target)
    raise UsageError(
        f"target must be host:port, unix://PATH, http(s)://HOST:PORT, an existing SavedModel folder, a .tflite file or a "
        f".weights.h5 file. Received {target!r}"
    )
