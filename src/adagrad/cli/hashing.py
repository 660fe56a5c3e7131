"""The hash that gives a category its slot: XXH64 of the value's bytes, seeded with the XXH64 of the column's name.

The numbers are those of the published XXH64 (Yann Collet, https://xxhash.com), little-endian, on every platform and in
every version of this package; a model file would be worthless if they moved. The kernels read Arrow's buffers as they
lie in memory, so that no row becomes a Python object.

A category's hash ``h`` (64 bits) serves twice: its upper half chooses the slot, ``first + (h >> 32) * size >> 32``; its
lower bits are the fingerprint by which `adagrad.cli.features` notices that two features share a slot.
"""

import numpy as np

from adagrad.cli.kernels.hashing import combine_rows, hash_rows

__all__ = ["combine", "hash_bytes", "hash_texts"]


def hash_bytes(data: bytes, seed: int = 0) -> int:
    """XXH64 of ``data``."""
    buffer, offsets = np.frombuffer(data, np.uint8), np.array([0, len(data)])
    offsets.setflags(write=False)  # as they come from Arrow, so that the kernel is compiled only once
    return int(hash_texts(buffer, offsets, buffer[:0], 0, seed)[0])


def hash_texts(data: np.ndarray, offsets: np.ndarray, validity: np.ndarray, first: int, seed: int) -> np.ndarray:
    """The hash of each value of a text column, uint64 (n,); a null counts as the empty text.

    Parameters
    ----------
    data : uint8 array
        The bytes of all values, end to end.
    offsets : int64 array (n + 1,)
        Where each value starts in ``data``.
    validity : uint8 array
        A bit a row, 0 for null, row ``i`` at bit ``first + i`` (Arrow's bitmap); empty: no nulls.
    first : int
        The bit of row 0.
    seed : int
        The hash of the column's name.
    """
    out = np.empty(len(offsets) - 1, np.uint64)
    with np.errstate(over="ignore"):  # unsigned arithmetic wraps; NumPy only says so under NUMBA_DISABLE_JIT
        hash_rows(data, offsets, validity, first, np.uint64(seed), out)
    return out


def combine(left: np.ndarray, right: np.ndarray, seed: int) -> np.ndarray:
    """The hash of a cross, uint64 (n,): XXH64 of the 16 bytes of both hashes, seeded with the hash of the cross's name."""
    out = np.empty(len(left), np.uint64)
    with np.errstate(over="ignore"):
        combine_rows(left, right, np.uint64(seed), out)
    return out
