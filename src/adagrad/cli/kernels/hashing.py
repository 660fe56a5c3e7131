"""XXH64 (Yann Collet, https://xxhash.com) over the bytes of Arrow's buffers."""

# mypy: allow-untyped-defs, no-check-untyped-defs, allow-untyped-decorators

import numpy as np

from adagrad.kernels.compiling import inline, kernel

__all__ = ["combine_rows", "hash_rows", "xxh64"]

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_1, _2, _3, _4, _8, _16, _24, _32, _64 = (np.uint64(n) for n in (1, 2, 3, 4, 8, 16, 24, 32, 64))
_R1, _R7, _R11, _R12, _R18, _R23, _R27, _R31 = (np.uint64(n) for n in (1, 7, 11, 12, 18, 23, 27, 31))


@inline
def _rotate(x, bits):
    return (x << bits) | (x >> (_64 - bits))


@inline
def _round(accumulator, word):
    return _rotate(accumulator + word * _P2, _R31) * _P1


@inline
def _merge(accumulator, word):
    return (accumulator ^ _round(np.uint64(0), word)) * _P1 + _P4


@inline
def _half(data, i):
    """Four bytes from ``i`` as a little-endian integer.

    Written out, with unsigned indices (a signed one is tested for being negative), so that LLVM makes one load of it.
    """
    return (
        np.uint64(data[i])
        | (np.uint64(data[i + _1]) << np.uint64(8))
        | (np.uint64(data[i + _2]) << np.uint64(16))
        | (np.uint64(data[i + _3]) << np.uint64(24))
    )


@inline
def _word(data, i):
    """Eight bytes from ``i`` as a little-endian integer."""
    return _half(data, i) | (_half(data, i + _4) << np.uint64(32))


@inline
def _step(x, word):
    return _rotate(x ^ _round(np.uint64(0), word), _R27) * _P1 + _P4


@inline
def _finish(x):
    x = (x ^ (x >> np.uint64(33))) * _P2
    x = (x ^ (x >> np.uint64(29))) * _P3
    return x ^ (x >> np.uint64(32))


@inline
def _blocks(data, at, stop, seed):
    """What the whole 32-byte blocks of ``data[at:stop]`` make of the seed."""
    a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
    while at + _32 <= stop:
        a = _round(a, _word(data, at))
        b = _round(b, _word(data, at + _8))
        c = _round(c, _word(data, at + _16))
        d = _round(d, _word(data, at + _24))
        at += _32
    x = _rotate(a, _R1) + _rotate(b, _R7) + _rotate(c, _R12) + _rotate(d, _R18)
    return _merge(_merge(_merge(_merge(x, a), b), c), d)


@inline
def xxh64(data, start, stop, seed):
    """The XXH64 of ``data[start:stop]``; all three numbers are uint64."""
    size = stop - start
    x = seed + _P5
    if size >= _32:
        x = _blocks(data, start, stop, seed)
    at = stop - (size & np.uint64(31))
    x += size
    while at + _8 <= stop:
        x = _step(x, _word(data, at))
        at += _8
    if at + _4 <= stop:
        x = _rotate(x ^ (_half(data, at) * _P1), _R23) * _P2 + _P3
        at += _4
    while at < stop:
        x = _rotate(x ^ (np.uint64(data[at]) * _P5), _R11) * _P1
        at += _1
    return _finish(x)


@kernel
def hash_rows(data, offsets, validity, first, seed, out):
    """The XXH64 of each text into ``out``; a null counts as empty."""
    for i in range(out.size):
        start, stop = np.uint64(offsets[i]), np.uint64(offsets[i + 1])
        bit = first + i
        if validity.size > 0 and not (validity[bit >> 3] >> (bit & 7)) & 1:
            stop = start  # null: hashed as the empty text that it is in a CSV file
        out[i] = xxh64(data, start, stop, seed)


@kernel
def combine_rows(left, right, seed, out):
    """The XXH64 of the 16 bytes of each pair of hashes into ``out``."""
    for i in range(out.size):
        out[i] = _finish(_step(_step(seed + _P5 + _16, left[i]), right[i]))
