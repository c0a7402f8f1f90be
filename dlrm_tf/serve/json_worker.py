"""The process that reads large JSON bodies and writes large answers for a server: `python -m dlrm_tf.serve.json_worker FD`.

It loads no TensorFlow, takes one job at a time from the socket `FD` and ends when the socket is closed. Its other side is
`json_parsers.py`.
"""

import gc
import mmap
import os
import pickle
import signal
import struct
import sys
from multiprocessing.connection import Connection
from typing import Any, Callable

import numpy as np

from dlrm_tf.serve import rest_columns
from dlrm_tf.serve.json_pieces import read_object
from dlrm_tf.serve.rest_json import ValueType
from dlrm_tf.serving_api.errors import RequestError

# Before a message's bytes: twice the number of the input they belong to, plus 1 where they are a list of byte strings; or one of
# the others.
TAG = struct.Struct("=i")
RESULT, ERROR, TEXT = -1, -2, -3
# Most bytes of a message.
MESSAGE_BYTES = 1 << 20
# Requests are served first, bodies read with what they leave of the cores.
NICENESS = 10


def send(connection: Connection, data: Any) -> None:
    """Sends bytes in messages of `MESSAGE_BYTES`."""
    view = memoryview(data).cast("B")
    for start in range(0, len(view), MESSAGE_BYTES):
        connection.send_bytes(view[start : start + MESSAGE_BYTES])


def receive(connection: Connection, size: int) -> mmap.mmap:
    """The `size` bytes that `send` sent, in memory that is the system's again when the last view of it goes."""
    whole = mmap.mmap(-1, size)
    at = 0
    while at < size:
        at += connection.recv_bytes_into(whole, at)
    return whole


def pack(array: np.ndarray) -> bytes:
    """The values of an array for `unpack`; those of an object array are bytes."""
    return pickle.dumps(array.ravel().tolist()) if array.dtype == object else array.tobytes()


def _decode(connection: Connection, size: int, types: dict[str, dict[str, ValueType]]) -> tuple:
    body = receive(connection, size)
    tags: dict[str, int] = {}

    def write(name: str, kind: ValueType, array: np.ndarray) -> None:
        tag = tags.setdefault(name, 2 * len(tags) + (array.dtype == object))
        connection.send_bytes(TAG.pack(tag) + pack(array))

    with read_object(body, rest_columns.MEMBERS) as document:
        name, in_rows, shapes = rest_columns.decode(document, types.get, write)
    return name, in_rows, {name: (tags.get(name), shape) for name, shape in shapes.items()}  # no tag: no values


def _encode(connection: Connection, outputs: dict[str, tuple], in_rows: bool) -> None:
    arrays = {}
    for name, (dtype, shape, size) in outputs.items():
        data = receive(connection, size) if size else b""
        if dtype.kind == "O":
            arrays[name] = np.empty(shape, object)
            arrays[name].ravel()[:] = pickle.loads(data)
        else:
            arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    for piece in rest_columns.encode(arrays, in_rows):
        connection.send_bytes(TAG.pack(TEXT) + piece)


def main() -> None:
    """Does jobs until the server's side is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, meant for the server
    os.nice(NICENESS)
    gc.disable()  # JSON's values are no cycles, and each collection would walk through all of them
    connection = Connection(int(sys.argv[1]))
    jobs: dict[str, Callable] = {"decode": _decode, "encode": _encode}
    while True:
        try:
            kind, *arguments = connection.recv()
        except EOFError:
            return
        try:
            result = jobs[kind](connection, *arguments)
        except RequestError as e:
            connection.send_bytes(TAG.pack(ERROR) + pickle.dumps((e.code, e.message)))
        else:
            connection.send_bytes(TAG.pack(RESULT) + pickle.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, ConnectionResetError):  # the server has ended
        sys.exit(0)
