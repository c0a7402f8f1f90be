"""FarmHash's Fingerprint64 of many texts at once, in NumPy: what `tf.strings.to_hash_bucket_fast` takes modulo its buckets.

A fingerprint is stable by contract: the same on every machine, in every version of FarmHash (G. Pike,
https://github.com/google/farmhash, `farmhashna::Hash64`) and of TensorFlow. The lengths fall into classes with a formula each;
a class is computed for all of its texts together. Arithmetic is modulo 2**64, as NumPy's on uint64 arrays is.
"""

from typing import Any

import numpy as np

from dlrm_tf.data.key_column import PAD, hex_words, words_at

_K0, _K1, _K2 = (np.uint64(k) for k in (0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F))
_1, _2, _3, _8, _9, _47, _113 = (np.uint64(n) for n in (1, 2, 3, 8, 9, 47, 113))
_SEED = 81
_BLOCK = 64


def fingerprints(text: bytes, lengths: np.ndarray) -> np.ndarray:
    """Fingerprints of texts that stand one after another.

    Args:
      text: the texts, without anything between them.
      lengths: int64 `[n]`, bytes of each.

    Returns:
      uint64 `[n]`.
    """
    words = words_at(np.frombuffer(text + bytes(PAD), np.uint8))
    starts = np.cumsum(lengths) - lengths
    result = np.full(len(lengths), _K2)  # of an empty text
    for least, most, formula in _CLASSES:
        rows = np.flatnonzero((lengths >= least) & (lengths <= most))
        if rows.size:
            result[rows] = formula(words, starts[rows], lengths[rows])
    return result


def hex_fingerprints(values: np.ndarray, prefix: bytes = b"") -> np.ndarray:
    """Fingerprints of numbers written as eight lower-case hex digits.

    Args:
      values: uint32 `[n]`.
      prefix: stands before the digits of each.

    Returns:
      uint64 `[n]`.
    """
    words = hex_words(values)
    if len(prefix) < 8:  # the last eight bytes are the digits, the first eight the prefix and the first digits
        first = np.uint64(int.from_bytes(prefix, "little")) | (words << np.uint64(8 * len(prefix)))
        return _mix_8_to_16(first, words, _multiplier(np.array([len(prefix) + 8])))
    text = np.empty((len(values), len(prefix) + 8), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    text[:, len(prefix) :] = words.astype("<u8").view(np.uint8).reshape(-1, 8)
    return fingerprints(text.tobytes(), np.full(len(values), text.shape[1]))


def _rotate(x: np.ndarray, bits: int) -> np.ndarray:
    return (x >> np.uint64(bits)) | (x << np.uint64(64 - bits))


def _shift_mix(x: np.ndarray) -> np.ndarray:
    return x ^ (x >> _47)


def _mix(u: np.ndarray, v: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    """FarmHash's HashLen16: two words to one."""
    return _shift_mix((v ^ _shift_mix((u ^ v) * multiplier)) * multiplier) * multiplier


def _multiplier(lengths: np.ndarray) -> np.ndarray:
    return _K2 + lengths.astype(np.uint64) * _2


def _of_1_to_3(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    first, middle, last = (words[starts + at] & np.uint64(255) for at in (0, lengths // 2, lengths - 1))
    return _shift_mix((first + (middle << _8)) * _K2 ^ (lengths.astype(np.uint64) + (last << _2)) * _K0) * _K2


def _of_4_to_7(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    first, last = (words[starts + at] & np.uint64(0xFFFFFFFF) for at in (0, lengths - 4))
    return _mix(lengths.astype(np.uint64) + (first << _3), last, _multiplier(lengths))


def _of_8_to_16(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return _mix_8_to_16(words[starts], words[starts + lengths - 8], _multiplier(lengths))


def _mix_8_to_16(first: np.ndarray, last: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    """The fingerprint of the first and the last eight bytes."""
    first = first + _K2
    return _mix(_rotate(last, 37) * multiplier + first, (_rotate(first, 25) + last) * multiplier, multiplier)


def _of_17_to_32(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    multiplier, stops = _multiplier(lengths), starts + lengths
    a, b = words[starts] * _K1, words[starts + 8]
    c, d = words[stops - 8] * multiplier, words[stops - 16] * _K2
    return _mix(_rotate(a + b, 43) + _rotate(c, 30) + d, a + _rotate(b + _K2, 18) + c, multiplier)


def _of_33_to_64(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    multiplier, stops = _multiplier(lengths), starts + lengths
    a, b = words[starts] * _K2, words[starts + 8]
    c, d = words[stops - 8] * multiplier, words[stops - 16] * _K2
    y = _rotate(a + b, 43) + _rotate(c, 30) + d
    z = _mix(y, a + _rotate(b + _K2, 18) + c, multiplier)
    e, f = words[starts + 16] * multiplier, words[starts + 24]
    g, h = (y + words[stops - 32]) * multiplier, (z + words[stops - 24]) * multiplier
    return _mix(_rotate(e + f, 43) + _rotate(g, 30) + h, e + _rotate(f + a, 18) + g, multiplier)


def _of_65_on(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """64 bytes a round; the last round reads the last 64 bytes. A text leaves the rounds when its blocks are used up."""
    n, rounds, rest = len(starts), (lengths - 1) // _BLOCK, ((lengths - 1) % _BLOCK).astype(np.uint64)
    x = np.full(n, np.uint64(_SEED)) * _K2 + words[starts]
    y = np.full(n, np.uint64(_SEED)) * _K1 + _113
    state = np.array([x, y, _shift_mix(y * _K2 + _113) * _K2, *np.zeros((4, n), np.uint64)])
    for number in range(int(rounds.max())):
        busy = np.flatnonzero(rounds > number)
        state[:, busy] = _round(words, starts[busy] + _BLOCK * number, state[:, busy], _K1, _1)
    x, y, z, v0, v1, w0, w1 = state
    multiplier = _K1 + ((z & np.uint64(255)) << _1)
    w0 = w0 + rest
    v0 = v0 + w0
    w0 = w0 + v0
    x, y, z, v0, v1, w0, w1 = _round(words, starts + lengths - _BLOCK, (x, y, z, v0, v1, w0, w1), multiplier, _9)
    return _mix(_mix(v0, w0, multiplier) + _shift_mix(y) * _K0 + z, _mix(v1, w1, multiplier) + x, multiplier)


def _round(words: np.ndarray, at: np.ndarray, state: Any, multiplier: Any, factor: np.uint64) -> tuple[Any, ...]:
    """Takes in the 64 bytes from each position on; `factor` is 9 in the last round."""
    x, y, z, v0, v1, w0, w1 = state
    x = _rotate(x + y + v0 + words[at + 8], 37) * multiplier ^ w1 * factor
    y = _rotate(y + v1 + words[at + 48], 42) * multiplier + v0 * factor + words[at + 40]
    z = _rotate(z + w0, 33) * multiplier
    v0, v1 = _weak(words, at, v1 * multiplier, x + w0)
    w0, w1 = _weak(words, at + 32, z + w1, y + words[at + 16])
    return z, y, x, v0, v1, w0, w1


def _weak(words: np.ndarray, at: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FarmHash's WeakHashLen32WithSeeds: 32 bytes and two words to two words."""
    last = words[at + 24]
    a = a + words[at]
    both = a + words[at + 8] + words[at + 16]
    return both + last, _rotate(b + a + last, 21) + _rotate(both, 44) + a


# Least and most bytes of a class, and its formula.
_CLASSES = (
    (1, 3, _of_1_to_3),
    (4, 7, _of_4_to_7),
    (8, 16, _of_8_to_16),
    (17, 32, _of_17_to_32),
    (33, 64, _of_33_to_64),
    (65, np.iinfo(np.int64).max, _of_65_on),
)
