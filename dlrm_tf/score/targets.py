"""What can score rows: a server, a SavedModel, a TFLite file, a weights file; all behind `score(dense, categorical)`."""

import os
from typing import Optional

import numpy as np

from dlrm_tf.errors import ServingError, UsageError, reason, require
from dlrm_tf.keras2 import any_keras_tensorflow
from dlrm_tf.score.rows import int32_ids
from dlrm_tf.versions import versions_on_disk


def open_target(target: str, model_name: str = "dlrm", version: Optional[int] = None, label: Optional[str] = None, **client):
    """Opens `target` for scoring, by what it looks like.

    Args:
      target: `host:port` or `unix://…` (gRPC), `http(s)://…` (REST), a SavedModel folder or a folder of versions, a `.tflite`
        file, or a `.weights.h5` file.
      model_name: model on a server.
      version: of a server or of a folder of versions; None is the latest.
      label: version label on a server.
      **client: further arguments of `Client` (timeout, TLS), for a server.

    Returns:
      A context manager with `score(dense [rows, 13] float32, categorical [rows, 26] integers) -> float32 [rows]`.

    Raises:
      UsageError: `target` looks like none of these.
    """
    if target.startswith(("http://", "https://", "unix:")):
        return _client(target, model_name, version, label, client)
    if os.path.isdir(target):
        return SavedModelTarget(target, version)
    if target.endswith(".tflite"):
        return TFLiteTarget(target)
    if target.endswith(".weights.h5"):
        return WeightsTarget(target)
    host, colon, port = target.rpartition(":")
    if host and colon and port.isdigit() and "/" not in target:
        return _client(target, model_name, version, label, client)
    raise UsageError(
        f"target {target!r}: wanted host:port, unix://PATH, http(s)://HOST:PORT, an existing SavedModel folder, a .tflite "
        "file or a .weights.h5 file"
    )


def _client(target, model_name, version, label, options):
    require("urllib3" if target.startswith("http") else "tensorflow_serving", "serving")
    from dlrm_tf.score.client import Client

    return Client(target, model_name=model_name, version=version, label=label, **options)


class _Target:
    """A target in this process."""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self) -> None:
        """Frees the model."""


class SavedModelTarget(_Target):
    """A SavedModel's `serving_default` signature, or the named or latest version of a folder of versions."""

    def __init__(self, path: str, version: Optional[int] = None):
        tf = any_keras_tensorflow()
        if not os.path.isfile(os.path.join(path, "saved_model.pb")):
            versions = versions_on_disk(path)
            if not versions:
                raise ServingError(f"{path}: wanted a SavedModel (saved_model.pb) or numbered version folders, there are none")
            number = max(versions) if version is None else version
            if number not in versions:
                raise ServingError(f"{path}: wanted version {number}, there are {', '.join(map(str, sorted(versions)))}")
            path = versions[number]
        self.path, self._op_error = path, tf.errors.OpError
        try:
            self._model = tf.saved_model.load(path)
        except Exception as e:  # whatever a damaged file makes TensorFlow's loader raise
            raise ServingError(f"{path}: the SavedModel does not load ({reason(e)})") from e
        self._signature = self._model.signatures.get("serving_default")
        if self._signature is None or set(self._signature.structured_input_signature[1]) != {"dense", "categorical"}:
            raise ServingError(f"{path}: wanted the signature serving_default with inputs dense and categorical")
        if "probability" not in self._signature.structured_outputs:
            raise ServingError(f"{path}: the signature serving_default has no output probability")
        self._constant = tf.constant

    def score(self, dense, categorical) -> np.ndarray:
        """float32 `[rows]` probabilities."""
        dense, categorical = np.asarray(dense, np.float32), int32_ids(categorical, self.path)
        try:
            outputs = self._signature(dense=self._constant(dense), categorical=self._constant(categorical))
        except self._op_error as e:
            raise ServingError(f"{self.path}: {reason(e)}") from e
        return outputs["probability"].numpy().reshape(-1)

    def close(self) -> None:
        """Frees the model."""
        self._model = self._signature = None


class TFLiteTarget(_Target):
    """A quantized scorer, run by ai_edge_litert."""

    def __init__(self, path: str):
        from dlrm_tf.lite.scorer import Scorer

        self._scorer = Scorer(path)

    def score(self, dense, categorical) -> np.ndarray:
        """float32 `[rows]` probabilities."""
        return self._scorer.score(dense, categorical)


class WeightsTarget(_Target):
    """A Keras model rebuilt from its `.weights.h5`."""

    def __init__(self, path: str):
        import dlrm_tf

        self._path, self._model = path, dlrm_tf.load(path)

    def score(self, dense, categorical) -> np.ndarray:
        """float32 `[rows]` probabilities."""
        import tensorflow as tf

        logits = self._model({"dense": np.asarray(dense, np.float32), "categorical": int32_ids(categorical, self._path)})
        return tf.sigmoid(logits).numpy().reshape(-1)
