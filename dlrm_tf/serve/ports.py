"""What a server needs of the operating system: ports, file descriptors, and keys in gRPC's form."""

import resource
import socket

import grpc

from dlrm_tf.errors import ServingError


def bind(host: str, port: int, flag: str) -> socket.socket:
    """A bound TCP socket that does not listen yet; port 0 takes any free one.

    Raises:
      ServingError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as e:
        raise ServingError(f"{flag}: {host} is no address of this machine ({e.strerror})") from e
    # Past connections don't hold the port; a listener still makes the bind fail.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as e:
        sock.close()
        raise ServingError(
            f"{flag}: cannot listen on {host}:{port} ({e.strerror}); choose another port, or 0 for any free one"
        ) from e
    return sock


def allow_many_files() -> None:
    """Raises this process's soft limit of open files to the hard one: each connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def server_credentials(ssl) -> grpc.ServerCredentials:
    """gRPC's form of an `SSLConfig`."""
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )
