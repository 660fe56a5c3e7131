"""Looking over a list of NumPy arrays in one call: a thousand gradients are checked in the time of a few in Python.

The kernels read the array objects (``PyArrayObject_fields`` of NumPy's C interface, stable since 1.7 but for the length of
Python's own header) where they lie. `HEADER_WORDS` is that length, found by reading an array whose answers are known; if
anything is not as expected (another Python, no compiler) it is 0, and the caller asks the objects in Python.
"""

import ctypes

import numpy as np
from numba.core import config

from adagrad.kernels.compiling import at, kernel

__all__ = ["BUFFERED", "HEADER_WORDS", "NONE", "OTHER", "STATE", "STORED", "look", "read_only"]

# How a gradient comes: not at all; a plain array of the parameter's dtype, or of the state's; anything else; in the
# gradient buffer alone.
NONE, STORED, STATE, OTHER, BUFFERED = range(5)


@kernel
def look(objects, slots, dims, dims_end, descriptions, own, sizes, lows, highs, header, array_type, codes, addresses):
    """For each gradient of variable ``slots[j]`` its code and address; see `Layout.look`, which prepares the tables."""
    word = np.empty(0, np.int64)
    contiguous_and_aligned = 0x0001 | 0x0100
    for j in range(objects.size):
        v = slots[j]
        if at(objects[j], header, word)[header - 1] != array_type:
            continue
        fields = at(objects[j], header + 7, word)[header:]
        ndim = dims_end[v] - (dims_end[v - 1] if v > 0 else 0)
        flags = fields[6] & 0xFFFFFFFF
        if (fields[1] & 0xFFFFFFFF) != ndim or (flags & contiguous_and_aligned) != contiguous_and_aligned:
            continue
        shape = at(fields[2], ndim, word)
        same = True
        for d in range(ndim):
            same = same and shape[d] == dims[dims_end[v] - ndim + d]
        low, size = fields[0], sizes[v]
        code = OTHER
        if fields[5] == descriptions[v, 1]:
            code = STATE
            size = 4 * (size // 2) if fields[5] != descriptions[v, 0] else size
        if fields[5] == descriptions[v, 0]:
            code = STORED
        if code == OTHER or not same:
            continue
        k = np.searchsorted(lows, low + size)
        if (low == own[v] and code == STORED) or k == 0 or highs[k - 1] <= low:
            codes[j] = code
            addresses[j] = low


@kernel
def read_only(objects, header):
    """The numbers of the arrays among ``objects`` (their ids) that can't be written."""
    word = np.empty(0, np.int64)
    writeable = 0x0400
    found = np.zeros(objects.size, np.bool_)
    for j in range(objects.size):
        found[j] = at(objects[j], header + 7, word)[header + 6] & writeable == 0
    return np.flatnonzero(found)


def _header_words() -> int:
    """The length of an object's header in words, if array objects lie as `look` expects here, else 0."""
    if config.DISABLE_JIT or object.__basicsize__ % 8 or np.intp(0).nbytes != 8:
        return 0
    words = object.__basicsize__ // 8
    array = np.zeros((2, 3, 5), np.float32)[:, ::1]
    seen = (ctypes.c_int64 * (words + 7)).from_address(id(array))
    shape = (ctypes.c_int64 * 3).from_address(seen[words + 2]) if seen[words] == array.ctypes.data else ()
    expected = (
        seen[words - 1] == id(np.ndarray)
        and seen[words + 1] & 0xFFFFFFFF == 3
        and tuple(shape) == array.shape
        and seen[words + 5] == id(array.dtype)
        and seen[words + 6] & 0x0101 == 0x0101
        and seen[words + 6] & 0xFFFFFFFF == array.flags.num
    )
    return words if expected else 0


HEADER_WORDS = _header_words()
