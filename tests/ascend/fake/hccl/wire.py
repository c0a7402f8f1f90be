"""Sum and broadcast between processes: everyone sends to rank 0, which answers everyone.

Every message tells which collective it is for, so that ranks that are not in step fail instead of mixing up their tensors.
"""

import os
import socket
import struct
import time

import numpy as np

_TIMEOUT = 300


class Wire:
    def __init__(self, rank: int, size: int):
        self.rank, self.size, self.count = rank, size, 0
        path = os.path.join(os.environ["FAKE_HCCL_FOLDER"], "port")
        if rank == 0:
            with socket.create_server(("127.0.0.1", 0)) as server:
                with open(path + ".part", "w") as f:
                    f.write(str(server.getsockname()[1]))
                os.rename(path + ".part", path)
                server.settimeout(_TIMEOUT)
                peers = [server.accept()[0] for _ in range(size - 1)]
            self.peers = dict(sorted((struct.unpack("<q", self._take(peer, 8))[0], peer) for peer in peers))
        else:
            end = time.monotonic() + _TIMEOUT
            while not os.path.exists(path) and time.monotonic() < end:
                time.sleep(0.01)
            with open(path) as f:
                self.chief = socket.create_connection(("127.0.0.1", int(f.read())), _TIMEOUT)
            self.chief.sendall(struct.pack("<q", rank))

    def exchange(self, kind: str, array: np.ndarray) -> np.ndarray:
        """`kind`: "sum", or "root" (rank 0's values)."""
        self.count += 1
        what = f"{self.count} {kind} {array.dtype} {array.shape}".encode()
        head = struct.pack("<qq", len(what), array.nbytes) + what
        if self.rank:
            self.chief.sendall(head + array.tobytes())
            return np.frombuffer(self._take(self.chief, array.nbytes), array.dtype).reshape(array.shape)
        for peer in self.peers.values():
            came = self._take(peer, len(head))
            if came != head:
                raise RuntimeError(f"ranks are not in step: rank 0 is at {what}, another at {came[16:]}")
            other = np.frombuffer(self._take(peer, array.nbytes), array.dtype).reshape(array.shape)
            array = array + other if kind == "sum" else array
        for peer in self.peers.values():
            peer.sendall(array.tobytes())
        return np.asarray(array)

    @staticmethod
    def _take(peer, count: int) -> bytes:
        peer.settimeout(_TIMEOUT)
        parts = []
        while count:
            parts.append(peer.recv(min(count, 1 << 20)))
            if not parts[-1]:
                raise RuntimeError("another rank is gone")
            count -= len(parts[-1])
        return b"".join(parts)
