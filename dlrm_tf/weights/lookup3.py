"""Bob Jenkins' lookup3 hash (hashlittle, public domain, 2006), with which HDF5 checks its metadata."""

import struct

_MASK = 0xFFFFFFFF
# Of the state's three numbers a, b, c = 0, 1, 2: which one changes by which, and the bits of the rotation.
_MIX = ((0, 2, 1, 4), (1, 0, 2, 6), (2, 1, 0, 8), (0, 2, 1, 16), (1, 0, 2, 19), (2, 1, 0, 4))
_FINAL = ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24))


def _rotate(x: int, k: int) -> int:
    return (x << k | x >> (32 - k)) & _MASK


def lookup3(data: bytes) -> int:
    """The 32-bit hash of `data`, with initial value 0."""
    state = [(0xDEADBEEF + len(data)) & _MASK] * 3
    if not data:
        return state[2]
    padded = data + bytes(-len(data) % 12)
    last = len(padded) - 12
    for at in range(0, len(padded), 12):
        state = [(x + word) & _MASK for x, word in zip(state, struct.unpack_from("<3I", padded, at))]
        if at < last:
            for i, j, k, bits in _MIX:
                state[i] = ((state[i] - state[j]) & _MASK) ^ _rotate(state[j], bits)
                state[j] = (state[j] + state[k]) & _MASK
    for i, j, bits in _FINAL:
        state[i] = ((state[i] ^ state[j]) - _rotate(state[j], bits)) & _MASK
    return state[2]
