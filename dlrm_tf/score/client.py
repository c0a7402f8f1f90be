"""`Client`: scores rows with a model server, ours or the real TensorFlow Serving, over gRPC or REST."""

import os
import random
import time
from typing import Optional

import numpy as np

from dlrm_tf.errors import ServingError
from dlrm_tf.keras2 import any_keras_tensorflow
from dlrm_tf.score.rows import int32_ids
from dlrm_tf.score.transport import Tls, Unavailable

# Seconds before the first retry; doubled for each further one, and shortened by chance so that clients don't come in step.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


class Client:
    """Talks to one model on one server.

    Args:
      target: `host:port` or `unix:///path/of.sock` (gRPC), or `http(s)://host:port` (REST).
      model_name: the model asked for.
      version: a version number; None takes the latest the server has.
      label: a version label instead of a number.
      timeout: deadline of one request in seconds, its retries included.
      retries: further attempts while the server is unavailable (gRPC UNAVAILABLE, HTTP 503, no connection). Nothing else is
        tried again: it would fail again, or the server is already overloaded.
      batch_size: rows a request; `score` splits more.
      tls: for an encrypted gRPC connection, or the files for an https one.

    Example:
      with Client("127.0.0.1:8500", model_name="dlrm") as client:
          probability = client.score(dense, categorical)
    """

    def __init__(
        self,
        target: str,
        model_name: str = "dlrm",
        version: Optional[int] = None,
        label: Optional[str] = None,
        timeout: float = 10.0,
        retries: int = 3,
        batch_size: int = 1024,
        tls: Optional[Tls] = None,
    ):
        if version is not None and label is not None:
            raise ValueError(f"version and label exclude each other. Received version={version}, label={label!r}")
        if timeout <= 0 or retries < 0 or batch_size < 1:
            raise ValueError(
                f"timeout must be over 0, retries at least 0, batch_size at least 1. Received {timeout}, {retries}, {batch_size}"
            )
        self.target, self.model_name, self.timeout = target, model_name, timeout
        self._retries, self._batch_size = retries, batch_size
        any_keras_tensorflow()  # the stubs import it too, with its chatter
        if target.startswith(("http://", "https://")):
            from dlrm_tf.score.rest_transport import RestTransport as Transport
        else:
            from dlrm_tf.score.grpc_transport import GrpcTransport as Transport
        self._transport = Transport(target, model_name, version, label, tls)

    def score(self, dense, categorical) -> np.ndarray:
        """Probability of a click for each row; more rows than `batch_size` go as several requests.

        Args:
          dense: float32 `[rows, 13]`, already log(max(x, 0) + 1).
          categorical: integer ids `[rows, 26]`; one that does not fit int32 counts as out of vocabulary.

        Returns:
          float32 `[rows]`.

        Raises:
          DataError: ids that are not integers.
          ServingError: the server can't be reached, or refuses the request.
        """
        dense, categorical = np.asarray(dense, np.float32), int32_ids(categorical, self.target)
        if len(dense) != len(categorical):
            raise ServingError(f"dense and categorical must have the same rows. Received {len(dense)} and {len(categorical)}")
        parts = [np.zeros(0, np.float32)]
        for start in range(0, len(dense), self._batch_size):
            rows = slice(start, start + self._batch_size)
            outputs = self.predict({"dense": dense[rows], "categorical": categorical[rows]}, outputs=("probability",))
            parts.append(outputs["probability"].reshape(-1))
        return np.concatenate(parts)

    def predict(self, inputs: dict, signature_name: str = "", outputs=()) -> dict:
        """One Predict call: arrays in, arrays out, by the signature's names.

        Args:
          inputs: arrays by name, in the dtypes of the signature.
          signature_name: '' is `serving_default`.
          outputs: names of those wanted; none named means all.

        Raises:
          ServingError: the server can't be reached, or refuses the request.
        """
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        return self._retried(lambda timeout: self._transport.predict(arrays, signature_name, tuple(outputs), timeout))

    def status(self) -> list[dict]:
        """The model's versions, newest first: `{"version", "state", "error_code", "error_message"}`.

        Raises:
          ServingError: the server can't be reached, or has no such model.
        """
        return self._retried(self._transport.status)

    def metadata(self) -> dict:
        """Signature name -> SignatureDef as a dict (protobuf's JSON form).

        Raises:
          ServingError: the server can't be reached, or has no such model.
        """
        return self._retried(self._transport.metadata)

    def reload(self, model_config_file: str) -> None:
        """Has the server serve what a models.config says (gRPC only); returns when it does.

        Raises:
          ServingError: the server refuses it; what it served it still serves.
          UsageError: not a models.config.
        """
        from dlrm_tf.serving_api.config_files import read_model_config

        config = read_model_config(os.fspath(model_config_file))
        self._retried(lambda timeout: self._transport.reload(config, timeout))

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _retried(self, call):
        deadline, pause = time.monotonic() + self.timeout, FIRST_PAUSE
        for attempt in range(self._retries + 1):
            try:
                return call(max(deadline - time.monotonic(), 1e-3))
            except Unavailable:
                wait = pause * random.uniform(0.5, 1.0)
                if attempt == self._retries or time.monotonic() + wait >= deadline:
                    raise
                time.sleep(wait)
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")
