"""Row-wise Adagrad: one accumulator for each row of a table, ``a_row = a_row + mean(g*g)`` over the row.

The mean is taken in double precision, in an order that depends on the width of a row alone, and rounded once, so that
dense gradients, row gradients and any number of threads give the same bits. Otherwise as in `rows` and `dense`.
"""

import numpy as np

from adagrad.kernels.compiling import inline, kernel, narrow, prefetch, square_lanes, widen
from adagrad.kernels.elements import FIRST, average, follow, gradient, prepare, scalars_of
from adagrad.kernels.rows import AHEAD, gather

__all__ = ["step", "step_dense"]


@inline
def _mean_square(row):
    """The mean of the squares, every fourth from left to right, then the four."""
    a, b, c, d = square_lanes(row, row.size // 4)
    for i in range(row.size // 4 * 4, row.size):
        a += np.float64(row[i]) * np.float64(row[i])
    return ((a + b) + (c + d)) / row.size


@inline
def _step_row(p, a, r, g, m, b, row, s, staged, overwrite):
    """Stages 3 to 10 of row ``r``, in place on p, a[r], m, b; ``row`` is scratch, which g may be; g None is zero."""
    zero = s[FIRST] - s[FIRST]  # 0 in the dtype of the arithmetic
    for i in range(p.size):
        x = widen(g[i]) if g is not None else zero
        if b is not None:
            x = gradient(x, b[i], s)
            b[i] = zero
        elif staged is not None:
            x = gradient(x, None, s)
        row[i] = prepare(widen(p[i]), x, s, staged)[1]
    square, before = row.dtype.type(_mean_square(row)), a[r]
    after = before  # a store to a[r] in the loop would keep it from being vectorised
    for i in range(p.size):
        decayed = prepare(widen(p[i]), row[i], s, staged)[0]
        new, after = follow(decayed, before, row[i], square, s)
        stored = narrow(new, p[i])
        if m is not None:
            m[i] = average(m[i], widen(stored), s)
            if overwrite:
                stored = narrow(m[i], stored)
        p[i] = stored
    a[r] = after


@inline
def _of(array, r, width):
    return array[r * width : (r + 1) * width] if array is not None else None


@kernel
def step_dense(p, a, g, m, b, width, s, lo, hi, staged, overwrite):
    """Stages 3 to 10 of the rows [lo, hi) by a dense gradient, in place on p, a, m, b; g, m, b may be None."""
    row = np.empty(width, s.dtype)
    s = scalars_of(s)
    for r in range(lo, hi):
        _step_row(_of(p, r, width), a, r, _of(g, r, width), _of(m, r, width), _of(b, r, width), row, s, staged, overwrite)


@kernel
def step(p, a, m, b, values, rows, starts, order, width, s, lo, hi, every, staged, overwrite):
    """Stages 3 to 10 by a row gradient; see `rows.step`, whose arguments these are."""
    row = np.empty(width, s.dtype)
    s = scalars_of(s)
    begin, end = lo, hi
    done = lo
    if every:
        begin, end = np.searchsorted(rows, lo), np.searchsorted(rows, hi)
    for j in range(begin, end):
        if j + AHEAD < end:
            prefetch(p, rows[j + AHEAD] * width, width)
            prefetch(a, rows[j + AHEAD], 1)
        r = rows[j]
        if every:
            for k in range(done, r):
                _step_row(_of(p, k, width), a, k, None, _of(m, k, width), _of(b, k, width), row, s, staged, overwrite)
            done = r + 1
        gather(values, order, starts[j], starts[j + 1], row)
        _step_row(_of(p, r, width), a, r, row, _of(m, r, width), _of(b, r, width), row, s, staged, overwrite)
    if every:
        for k in range(done, hi):
            _step_row(_of(p, k, width), a, k, None, _of(m, k, width), _of(b, k, width), row, s, staged, overwrite)
