"""The row kernels as C functions over buffers that XLA hands over: `adagrad.jax.ffi` makes custom calls of them.

``args`` and ``rets`` are the addresses of lists of operands and of results, each entry the address of a struct that describes
a buffer; ``data``, ``dims`` and ``rank`` are the offsets of its fields there. Arrays are dense, the last axis runs fastest. Ids
are int32 in [0, count]; count is padding, which touches nothing.
"""

import contextlib
from pathlib import Path

import numpy as np
from numba import int64, void
from numba.core import config
from numba.core.ccallback import CFunc

from adagrad.kernels.compiling import _Cache, _cache_directory, at, inline
from adagrad.kernels.elements import NEUTRAL, SCALE
from adagrad.kernels.rows import group, squares
from adagrad.kernels.rows import step as step_elements
from adagrad.kernels.rowwise import step as step_row_wise

__all__ = ["half_word", "norm_function", "step_function", "word"]

_WORD = np.empty(0, np.int64)
_IDS = np.empty(0, np.int32)
_SCALARS = NEUTRAL.size
_STORED = {"float16": np.uint16, "bfloat16": np.int16, "float32": np.float32, "float64": np.float64}


@inline
def word(address):
    """The 64 bits at an address."""
    return at(address, 1, _WORD)[0]


@inline
def half_word(address):
    """The 32 bits at an address, as an array of one that can be written."""
    return at(address, 1, _IDS)


@inline
def _memory(buffers, k, data):
    return word(word(buffers + 8 * k) + data)


@inline
def _size(buffers, k, first, dims, rank):
    """How many elements buffer k has for each index into the axes before ``first``."""
    buffer = word(buffers + 8 * k)
    count = 1
    for axis in range(first, word(buffer + rank)):
        count *= word(word(buffer + dims) + 8 * axis)
    return count


@inline
def _grouped(ids, count):
    """`rows.group` without the padding, which comes last."""
    wide = np.empty(ids.size, np.int64)
    for i in range(ids.size):
        wide[i] = ids[i]
    found, starts, order = group(wide, count + 1)
    used = found.size
    if used > 0 and found[used - 1] == count:
        used -= 1
    return found[:used], starts[: used + 1], order


def _c_function(function):
    """Compiled to a C function, with the cache of the other kernels."""
    compiled = CFunc(function, sig=((int64,) * 5, void), locals={}, options={"nopython": True, "error_model": "numpy"})
    with contextlib.suppress(RuntimeError, OSError), _cache_directory(Path(__file__)):  # no source or nowhere to write
        cache = _Cache(function)
        if cache.cache_path.startswith(config.CACHE_DIR):
            compiled._cache = cache
    compiled.compile()
    return compiled


def step_function(param, state, row_wise, averaged):
    """Stages 3 to 10 by a row gradient, for a parameter of dtype ``param`` and state of dtype ``state``.

    Operands: p, a, (m,) values, ids, scalars (`elements`), flags (every row moves; overwrite). Results: p, a, (m), in the
    memory of the operands.
    """
    like_p, like_a = np.empty(0, _STORED[param]), np.empty(0, _STORED[state])
    like_m = like_a if averaged else None
    after = 3 if averaged else 2  # the operands behind the parameter and its state

    def step(args, rets, data, dims, rank):
        width = _size(rets, 0, 1, dims, rank)
        count = _size(rets, 0, 0, dims, rank) // max(width, 1)
        p = at(_memory(rets, 0, data), count * width, like_p)
        a = at(_memory(rets, 1, data), count * width, like_a)
        m = at(_memory(rets, after - 1, data), count * width, like_m)
        ids = at(_memory(args, after + 1, data), _size(args, after + 1, 0, dims, rank), _IDS)
        values = at(_memory(args, after, data), ids.size * width, like_a)
        s = at(_memory(args, after + 2, data), _SCALARS, like_a)
        flags = at(_memory(args, after + 3, data), 2, _IDS)
        rows, starts, order = _grouped(ids, count)
        every = flags[0] != 0
        last = count if every else rows.size
        step_elements(p, a, m, None, values, rows, starts, order, width, s, 0, last, every, 1, flags[1] != 0)

    def row_wise_step(args, rets, data, dims, rank):
        width = _size(rets, 0, 1, dims, rank)
        count = _size(rets, 1, 0, dims, rank)
        p = at(_memory(rets, 0, data), count * width, like_p)
        a = at(_memory(rets, 1, data), count, like_a)
        m = at(_memory(rets, after - 1, data), count * width, like_m)
        ids = at(_memory(args, after + 1, data), _size(args, after + 1, 0, dims, rank), _IDS)
        values = at(_memory(args, after, data), ids.size * width, like_a)
        s = at(_memory(args, after + 2, data), _SCALARS, like_a)
        flags = at(_memory(args, after + 3, data), 2, _IDS)
        rows, starts, order = _grouped(ids, count)
        every = flags[0] != 0
        last = count if every else rows.size
        step_row_wise(p, a, m, None, values, rows, starts, order, width, s, 0, last, every, 1, flags[1] != 0)

    return _c_function(row_wise_step if row_wise else step)


def norm_function(values, result):
    """The norm of a row gradient of dtype ``values``, its repeated ids summed and unscaled, as a ``result``.

    Operands: values, ids, loss scale (1,), the count of rows (1,).
    """
    like, like_result = np.empty(0, _STORED[values]), np.empty(0, _STORED[result])
    neutral = NEUTRAL.astype(like.dtype)

    def norm(args, rets, data, dims, rank):
        ids = at(_memory(args, 1, data), _size(args, 1, 0, dims, rank), _IDS)
        width = _size(args, 0, 1, dims, rank)
        g = at(_memory(args, 0, data), ids.size * width, like)
        s = neutral.copy()
        s[SCALE] = at(_memory(args, 2, data), 1, like)[0]
        rows, starts, order = _grouped(ids, at(_memory(args, 3, data), 1, _IDS)[0])
        scale = 1.0
        total = 0.0
        for k in range(2):  # anew where the squares of float64 overflow, or vanish in part
            total = squares(None, g, rows, starts, order, width, s, scale, 0)
            if k == 0 and not np.isfinite(total):
                scale = 2.0**-600
            elif k == 0 and total < 2.0**-900:
                scale = 2.0**600
            else:
                break
        at(_memory(rets, 0, data), 1, like_result)[0] = np.sqrt(total) / scale

    return _c_function(norm)
