"""What both transports of the client share: the files for TLS, and the error after which another attempt may help."""

import dataclasses
from typing import Optional

from dlrm_tf.errors import ServingError


class Unavailable(ServingError):
    """The server can't be reached or takes no requests now; trying again may help."""


@dataclasses.dataclass(frozen=True)
class Tls:
    """Files for an encrypted connection, PEM.

    Attributes:
      ca_file: authority that signs the server's certificate; None trusts the system's.
      cert_file: this client's certificate, where the server wants one.
      key_file: its key.
      server_name: name in the server's certificate, when it is not the host's.
    """

    ca_file: Optional[str] = None
    cert_file: Optional[str] = None
    key_file: Optional[str] = None
    server_name: Optional[str] = None

    def __post_init__(self):
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError(f"cert_file and key_file go together. Received {self.cert_file!r} and {self.key_file!r}")
