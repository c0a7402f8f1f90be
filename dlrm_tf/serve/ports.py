"""Addresses, ports, file descriptors and TLS credentials of a server."""

import resource
import socket
from typing import Optional

import grpc

from dlrm_tf.errors import ServingError
from dlrm_tf.serving_api.config_protos import SSLConfig


def bind(host: str, port: int, flag: str) -> socket.socket:
    """A TCP socket bound to host and port (0: any free one), not listening yet; `flag` names the option in the error.

    Raises:
      ServingError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as e:
        raise ServingError(f"{flag}: {host} is no address of this machine ({e.strerror})") from e
    # Connections closed a moment ago don't keep the port; a listener still makes the bind fail.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as e:
        sock.close()
        raise ServingError(
            f"{flag}: cannot listen on {authority(host, port)} ({e.strerror}); choose another port, or 0 for any free one"
        ) from e
    return sock


def authority(host: str, port: Optional[int]) -> str:
    """`host:port` as gRPC and URLs have it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def allow_many_files() -> None:
    """Raises this process's soft limit of open files to the hard limit: each connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def server_credentials(ssl: SSLConfig) -> grpc.ServerCredentials:
    """gRPC's credentials from an `SSLConfig`."""
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )
