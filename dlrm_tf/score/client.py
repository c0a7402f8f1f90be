"""`Client`: scores rows with a model server, ours or the real TensorFlow Serving, over gRPC or REST."""

import os
import random
import time
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

import numpy as np

from dlrm_tf.data.inputs import model_inputs
from dlrm_tf.errors import ServingError
from dlrm_tf.keras2 import any_keras_tensorflow
from dlrm_tf.score.transport import Arrays, Tls, Transport, Unavailable

# Seconds before the first retry, and the longest wait. Each wait is twice the one before, times a random factor from 0.5 to 1, so
# that many clients of a restarted server don't retry all at the same moment.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


class Client:
    """Calls one model on one server.

    Args:
      target: `host:port` or `unix:///path/of.sock` (gRPC), or `http(s)://host:port` (REST).
      model_name: the model asked for.
      version: a version number; None asks for the latest the server has.
      label: a version label instead of a number.
      timeout: deadline of one request in seconds, its retries included.
      retries: further attempts while the server is unavailable (gRPC UNAVAILABLE or CANCELLED, HTTP 503, no connection). No other
        error is retried: the request would fail again, or the server is overloaded already.
      batch_size: most rows of one request; `score` sends several requests for more.
      tls: files for an encrypted connection; None is gRPC without encryption, or https with the system's authorities.

    Raises:
      ValueError: both `version` and `label`, or a number out of range.

    Example:
      with Client("127.0.0.1:8500", model_name="dlrm") as client:
          probability = client.score(dense, categorical)
    """

    def __init__(
        self,
        target: str,
        *,
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
        self._transport = _connect(target, model_name, version, label, tls)

    def score(self, dense: np.ndarray, categorical: np.ndarray, weights: Optional[np.ndarray] = None) -> np.ndarray:
        """Probability of a click for each row; more rows than `batch_size` are sent as several requests.

        Args:
          dense: float32 `[rows, dense_dim]`, already log(max(x, 0) + 1); `[rows, 0]`, which is not sent, without dense features.
          categorical: integer ids `[rows, id_columns]`; one beyond int32 counts as out of vocabulary.
          weights: float32 `[rows, id_columns]`, of a model whose keys have weights.

        Returns:
          float32 `[rows]`.

        Raises:
          DataError: ids that are not integers.
          ServingError: the server can't be reached, or refuses the request.
        """
        inputs = model_inputs(self.target, dense, categorical, weights)
        lengths = [len(array) for array in inputs.values()]
        if len(set(lengths)) > 1:
            raise ServingError(f"{' and '.join(inputs)} must have the same rows. Received {' and '.join(map(str, lengths))}")
        parts = [np.zeros(0, np.float32)]
        for start in range(0, lengths[0], self._batch_size):
            batch = {name: array[start : start + self._batch_size] for name, array in inputs.items()}
            outputs = self.predict(batch, outputs=("probability",))
            parts.append(outputs["probability"].reshape(-1))
        return np.concatenate(parts)

    def predict(self, inputs: Arrays, *, signature_name: str = "", outputs: Sequence[str] = ()) -> Arrays:
        """One Predict call.

        Args:
          inputs: arrays by input name, in the dtypes of the signature.
          signature_name: '' is `serving_default`.
          outputs: names of the outputs wanted; empty means all.

        Returns:
          Arrays by output name.

        Raises:
          ServingError: the server can't be reached, or refuses the request.
        """
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        return self._retried(lambda timeout: self._transport.predict(arrays, signature_name, tuple(outputs), timeout))

    def status(self) -> list[dict[str, Any]]:
        """The model's versions, newest first: `{"version", "state", "error_code", "error_message"}`.

        Raises:
          ServingError: the server can't be reached, or has no such model.
        """
        return self._retried(self._transport.status)

    def metadata(self) -> dict[str, Any]:
        """SignatureDefs by signature name, each as a dict in protobuf's JSON form.

        Raises:
          ServingError: the server can't be reached, or has no such model.
        """
        return self._retried(self._transport.metadata)

    def reload(self, model_config_file: Union[str, os.PathLike]) -> None:
        """Makes the server serve the models of a models.config (gRPC only); returns when it does.

        Args:
          model_config_file: a ModelServerConfig in protobuf's text form.

        Raises:
          ServingError: the server refuses it; it keeps serving the models it has.
          UsageError: not such a file.
        """
        self._retried(lambda timeout: self._transport.reload(os.fspath(model_config_file), timeout))

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _retried(self, call: Callable[[float], Any]) -> Any:
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


def _connect(target: str, *arguments: Any) -> Transport:
    # The transports are imported here because they need the extra `serving`, and TensorFlow, which takes seconds to load and
    # writes to stderr: `dlrm-tf score` on a file imports this module without either.
    any_keras_tensorflow()
    if target.startswith(("http://", "https://")):
        from dlrm_tf.score.rest_transport import RestTransport

        return RestTransport(target, *arguments)
    from dlrm_tf.score.grpc_transport import GrpcTransport

    return GrpcTransport(target, *arguments)
