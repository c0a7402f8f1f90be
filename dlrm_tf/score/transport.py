"""What both transports of the client share: their methods, the files for TLS, and the error after which to try again."""

import abc
import dataclasses
from collections.abc import Collection
from typing import Any, Optional

import numpy as np

from dlrm_tf.errors import ServingError

# Arrays by input or output name.
Arrays = dict[str, np.ndarray]


class Unavailable(ServingError):
    """The server can't be reached or answers no requests now; trying again may help."""


@dataclasses.dataclass(frozen=True)
class Tls:
    """PEM files for an encrypted connection.

    Attributes:
      ca_file: certificate of the authority that signed the server's; None trusts the system's authorities.
      cert_file: this client's certificate, where the server asks for one.
      key_file: key of `cert_file`.
      server_name: name in the server's certificate, when it is not the host in the target.

    Raises:
      ValueError: one of `cert_file` and `key_file` without the other.
    """

    ca_file: Optional[str] = None
    cert_file: Optional[str] = None
    key_file: Optional[str] = None
    server_name: Optional[str] = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError(f"cert_file and key_file go together. Received {self.cert_file!r} and {self.key_file!r}")


class Transport(abc.ABC):
    """Calls for one model on one server; `timeout` is a call's deadline in seconds. Failures are ServingErrors."""

    @abc.abstractmethod
    def predict(self, arrays: Arrays, signature_name: str, outputs: Collection[str], timeout: float) -> Arrays:
        """Outputs by name: those named in `outputs`, or all of them when it is empty."""

    @abc.abstractmethod
    def status(self, timeout: float) -> list[dict[str, Any]]:
        """States of the versions, newest first."""

    @abc.abstractmethod
    def metadata(self, timeout: float) -> dict[str, Any]:
        """Signatures by name, in protobuf's JSON form."""

    @abc.abstractmethod
    def reload(self, model_config_file: str, timeout: float) -> None:
        """Makes the server serve the models of a models.config."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the connections."""
