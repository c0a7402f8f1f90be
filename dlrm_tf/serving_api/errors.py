"""`RequestError`: the error status of a request. Needs no TensorFlow."""

import grpc

# TensorFlow Serving cuts messages at 1024 characters so that they fit HTTP/2 trailers; here bytes, as other letters take more.
MAX_MESSAGE = 1024
TRUNCATED = "...TRUNCATED"


class RequestError(Exception):
    """A request is answered with an error status.

    Args:
      code: `grpc.StatusCode`.
      message: what the client reads.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = _cut(message)


def _cut(message: str) -> str:
    encoded = message.encode("utf-8", "replace")
    if len(encoded) <= MAX_MESSAGE:
        return encoded.decode()
    return encoded[:MAX_MESSAGE].decode("utf-8", "ignore") + TRUNCATED


def invalid_argument(message: str) -> RequestError:
    """The error of a request that is wrong in itself."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)
