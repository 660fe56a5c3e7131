"""Rows of a sparse matrix from numbers and hashes, and what is counted of both; `adagrad.cli.features` says what and why."""

# mypy: allow-untyped-defs, no-check-untyped-defs, allow-untyped-decorators

import numpy as np

from adagrad.kernels.compiling import inline, kernel, prefetch

__all__ = ["SHARED", "count_hashes", "count_numbers", "encode", "encode_entries", "encode_list", "moments"]

SHARED = np.uint64(0x8000)
_ONE = np.uint64(1 << 16)  # a row, in the words of `seen`
_16, _32 = np.uint64(16), np.uint64(32)
_AHEAD = 12  # entries ahead, whose place in memory is asked for
_LINEAR, _MOST = 4.0, 10.0


@kernel
def moments(values, low, high):
    """Count, mean and sum of squared deviations of the finite values, cut to [low, high]."""
    count, total = 0, 0.0
    for x in values:
        if np.isfinite(x):
            count += 1
            total += min(max(x, low), high)
    mean = total / count if count else 0.0
    squares = 0.0
    for x in values:
        if np.isfinite(x):
            deviation = min(max(x, low), high) - mean
            squares += deviation * deviation
    return count, mean, squares


@inline
def _scaled(x, mean, scale):
    if scale == 0.0:
        return 0.0  # constant so far
    z = (x - mean) * scale
    size = abs(z)
    if size > _LINEAR:
        z = np.copysign(min(_LINEAR + np.log1p(size - _LINEAR), _MOST), z)
    return z


@inline
def _slot(h, first, size):
    return first + (((h >> _32) * size) >> _32)


@kernel
def encode(numbers, mean, scale, hashed, first, size, starts, indices, data):
    """The entries of all rows, but those of lists."""
    for i in range(numbers.shape[1]):
        at = starts[i]
        for d in range(numbers.shape[0]):
            x = numbers[d, i]
            missing = np.isnan(x)
            indices[at] = 2 * d + missing
            data[at] = np.float32(1.0) if missing else np.float32(_scaled(x, mean[d], scale[d]))
            at += 1
        for k in range(hashed.shape[0]):
            indices[at] = _slot(hashed[k, i], first, size)
            data[at] = np.float32(1.0)
            at += 1


@kernel
def encode_list(flat, lengths, first, size, cursor, indices, data):
    """The entries of one list field, written at ``cursor`` (n,), which moves on behind them."""
    taken = 0
    for i in range(lengths.size):
        for _ in range(lengths[i]):
            indices[cursor[i]] = _slot(flat[taken], first, size)
            data[cursor[i]] = np.float32(1.0)
            taken += 1
            cursor[i] += 1


@kernel
def encode_entries(keys, given, lengths, first, size, cursor, indices, data):
    """The entries of one sparse field, with their own values, written as by `encode_list`."""
    taken = 0
    for i in range(lengths.size):
        for _ in range(lengths[i]):
            indices[cursor[i]] = _slot(keys[taken], first, size)
            data[cursor[i]] = given[taken]
            taken += 1
            cursor[i] += 1


@kernel
def count_numbers(values, slot, seen):
    """Add a number's rows to ``seen``: those that have a value at ``slot``, the others behind it."""
    missing = 0
    for x in values:
        missing += np.isnan(x)
    seen[slot] += np.uint64(values.size - missing) << _16
    seen[slot + 1] += np.uint64(missing) << _16


@kernel
def count_hashes(hashes, first, size, seen):
    """Add the hashes to ``seen``: a count in the upper 48 bits of a slot, in the lower ones SHARED and a fingerprint."""
    for i in range(hashes.size):
        if i + _AHEAD < hashes.size:
            prefetch(seen, _slot(hashes[i + _AHEAD], first, size), 1)
        slot = _slot(hashes[i], first, size)
        print_ = hashes[i] % np.uint64(32767) + np.uint64(1)
        word = seen[slot] + _ONE
        tag = word & np.uint64(0x7FFF)
        if tag == 0:
            word |= print_
        elif tag != print_:
            word |= SHARED
        seen[slot] = word
