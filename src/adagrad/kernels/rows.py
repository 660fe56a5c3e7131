"""Row kernels: a gradient that is some rows of a table, its repeated ids summed first, in the order they came.

Arrays are flat; ``width`` is the number of elements of a row. `group` sorts the ids by a radix pass: ``rows`` are the ids
that occur, ascending; the positions of ``rows[j]`` in the batch are ``order[starts[j]:starts[j+1]]``, in the order they came.
A position beyond the batch stands for a zero: so rows that only the accumulation buffer knows take part.
"""

import numpy as np

from adagrad.kernels.compiling import inline, kernel, prefetch, widen
from adagrad.kernels.dense import add_gradient, step_values
from adagrad.kernels.elements import scalars_of
from adagrad.kernels.norms import LANES, add_run, sum_lanes

__all__ = ["AHEAD", "accumulate", "gather", "group", "squares", "step"]

# How many rows ahead memory is asked for; a row's update takes about a tenth of a cache miss.
AHEAD = 6
_DIGIT = 11


@kernel
def group(ids, size):
    """Sort ``ids``, all in [0, size), stably; returns ``(rows, starts, order)``. ``size`` and len(ids) below 2**31."""
    n = ids.size
    keys, spare = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        keys[i] = (ids[i] << 32) | i
    bits = 0
    while (size - 1) >> bits > 0:
        bits += 1
    passes = (bits + _DIGIT - 1) // _DIGIT
    counts = np.empty(1 << _DIGIT, np.int64)
    for k in range(passes):
        # Digits of about equal size.
        shift = 32 + bits * k // passes
        mask = (1 << (32 + bits * (k + 1) // passes - shift)) - 1
        counts[: mask + 1] = 0
        for i in range(n):
            counts[(keys[i] >> shift) & mask] += 1
        total = 0
        for digit in range(mask + 1):
            total, counts[digit] = total + counts[digit], total
        for i in range(n):
            digit = (keys[i] >> shift) & mask
            spare[counts[digit]] = keys[i]
            counts[digit] += 1
        keys, spare = spare, keys
    rows, starts, order = np.empty(n, np.int64), np.empty(n + 1, np.int64), np.empty(n, np.int64)
    count = 0
    for i in range(n):
        row = keys[i] >> 32
        order[i] = keys[i] & 0xFFFFFFFF
        if count == 0 or rows[count - 1] != row:
            rows[count] = row
            starts[count] = i
            count += 1
    starts[count] = n
    return rows[:count], starts[: count + 1], order


@inline
def _add(row, source):
    for i in range(row.size):
        row[i] += widen(source[i])


@inline
def gather(values, order, begin, end, row):
    """``row`` = the sum of the gradient's rows at ``order[begin:end]``, from left to right."""
    row[:] = 0
    for k in range(begin, end):
        if k + AHEAD < order.size:
            prefetch(values, order[k + AHEAD] * row.size, row.size)
        start = order[k] * row.size
        if start < values.size:
            _add(row, values[start : start + row.size])


@kernel
def step(p, a, m, b, values, rows, starts, order, width, s, lo, hi, every, staged, overwrite):
    """Stages 3 to 10, in place on p, a, m, b (m, b or None). [lo, hi) counts ``rows``; with ``every``, the table's rows.

    With ``every`` the rows between move too, with a gradient of zero (and what their buffer holds).
    """
    row = np.empty(width, s.dtype)
    s = scalars_of(s)
    begin, end = lo, hi
    done = 0
    if every:
        begin, end = np.searchsorted(rows, lo), np.searchsorted(rows, hi)
        done = lo * width
    for j in range(begin, end):
        if j + AHEAD < end:
            ahead = rows[j + AHEAD] * width
            prefetch(p, ahead, width)
            prefetch(a, ahead, width)
        gather(values, order, starts[j], starts[j + 1], row)
        first = rows[j] * width
        last = first + width
        if every:
            _step(p, a, None, m, b, done, first, s, staged, overwrite)
            done = last
        _step(p, a, row, m, b, first, last, s, staged, overwrite)
    if every:
        _step(p, a, None, m, b, done, hi * width, s, staged, overwrite)


@inline
def _step(p, a, g, m, b, first, last, s, staged, overwrite):
    averages = m[first:last] if m is not None else None
    buffered = b[first:last] if b is not None else None
    step_values(p[first:last], a[first:last], g, averages, buffered, s, staged, overwrite)


@kernel
def accumulate(b, values, rows, starts, order, width, s, lo, hi):
    """Stages 3 and 4 on a call that is no real step: ``b[row] = b[row] + g / scale``, in place on b."""
    row = np.empty(width, s.dtype)
    s = scalars_of(s)
    for j in range(lo, hi):
        gather(values, order, starts[j], starts[j + 1], row)
        first = rows[j] * width
        add_gradient(b[first : first + width], row, s)


@kernel
def squares(b, values, rows, starts, order, width, s, scale, count):
    """The sum of squares of a row gradient after stages 3 and 4, in the blocks of the whole table (`norms`).

    With ``count`` > 0 the buffer of every one of ``count`` rows takes part, else that of ``rows`` (b may be None).
    """
    row = np.zeros(width, s.dtype)
    s = scalars_of(s)
    lanes = np.zeros(LANES)
    total, block = 0.0, -1
    j = 0
    for k in range(count if count > 0 else rows.size):
        r = k if count > 0 else rows[k]
        if count == 0 or (j < rows.size and rows[j] == r):
            gather(values, order, starts[j], starts[j + 1], row)
            j += 1
        else:
            row[:] = 0
        first = r * width
        buffered = b[first : first + width] if b is not None else None
        total, block = add_run(lanes, total, block, first, width, row, buffered, s, scale)
    return total + sum_lanes(lanes)
