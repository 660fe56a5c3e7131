"""CUDA kernels over the rows of one table: gradients that are some of its rows, and row-wise accumulators.

A row gradient comes as ``ids``, sorted stably, and ``order``, where in the batch each of them stood. The first position of
a run of equal ids stands for the row: `gather` leaves its summed gradient there, all other positions do nothing. So the
number of different rows, which only the device knows, is asked by nobody. An id outside of the table is left out.
``slots``, ``scalars``, ``flags`` and ``active`` are those of `cuda`, ``v`` is the slot.
"""

import triton
import triton.language as tl

from adagrad.kernels.cuda import (
    ACCUMULATOR,
    AVERAGE,
    BUFFER,
    OVERWRITE,
    PARAMETER,
    REAL,
    SKIP,
    SLOT_COLUMNS,
    pointer,
)
from adagrad.kernels.cuda_elements import average, follow, gradient, mean_gradient, narrow, prepare, scalars_of, widen

__all__ = ["TILE", "UNROLL", "accumulate", "gather", "is_first", "step"]

TILE = 512  # elements of a program's tile, rows times columns
UNROLL = 16  # repetitions of an id that are fetched together


@triton.jit
def is_first(ids, j, n, count):
    """The row at position ``j``, and whether j is its first position."""
    r = tl.load(ids + j, j < n, other=-1).to(tl.int64)
    before = tl.load(ids + j - 1, (j > 0) & (j < n), other=-1).to(tl.int64)
    return r, (r != before) & (r >= 0) & (r < count)


@triton.jit(do_not_specialize=["n"])
def gather(
    values,
    ids,
    order,
    sums,
    ends,
    positions,
    n,
    count,
    width,
    STATE: tl.constexpr,
    MAPPED: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """``sums[j]`` = the sum of the gradient's rows with the id at j, in the order they came; a program for each position.

    ``ends[j]`` is the position after the last of them; with MAPPED ``positions[row] = j + 1``.
    """
    j = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r, first = is_first(ids, j, n, count)
    if first:
        total = tl.zeros([COLUMNS], STATE)
        k = j
        found = j
        more = first
        while more:
            # Without a store in between, the loads of all these are under way at once.
            for ahead in tl.static_range(UNROLL):
                same = tl.load(ids + k + ahead, k + ahead < n, other=-1).to(tl.int64) == r
                source = tl.load(order + k + ahead, same, other=0) * width
                total += widen(tl.load(values + source + c, c < tl.where(same, width, 0), other=0)).to(STATE)
                found += same.to(tl.int64)
            k += UNROLL
            more = tl.load(ids + k, k < n, other=-1).to(tl.int64) == r
        tl.store(sums + j * width + c, total, c < width)
        tl.store(ends + j, found)
        if MAPPED:
            tl.store(positions + r, (j + 1).to(tl.int32))


@triton.jit
def _gradient(g, b, source, r, given, c, inside, width, s, GRAD: tl.constexpr, STATE: tl.constexpr, STAGED: tl.constexpr):
    """Stages 3 and 4 of a tile: rows ``r``, columns ``c``; the gradient's rows are ``source`` where it is ``given``."""
    if GRAD is None:
        x = mean_gradient(tl.load(b + r * width + c, inside, other=0.0), s)
    else:
        x = widen(tl.load(g + source * width + c, inside & given, other=0)).to(STATE)
        if STAGED:
            x = gradient(x, s)
    return x


@triton.jit
def _mean_square(p, g, b, source, r, live, given, width, s, STORED, GRAD, STATE, STAGED, ROWS: tl.constexpr):
    """The mean of the squares of each row after stages 3 to 6: in double, every fourth from left to right, then the four."""
    four = tl.arange(0, 4)[None, :]
    sums = tl.zeros([ROWS, 4], tl.float64)
    whole = width // 4 * 4
    for i in range(0, width, 4):
        # Beyond the last four all columns count to the first sum, one after the other.
        turns = tl.where(i < whole, 1, width - i)
        for turn in range(turns):
            c = i + turn + four
            inside = live & (four < tl.where(i < whole, 4, 1))
            x = _gradient(g, b, source, r, given, c, inside, width, s, GRAD, STATE, STAGED)
            if STAGED:
                x = prepare(widen(tl.load(p + r * width + c, inside, other=0)), x, s)[1]
            x = tl.where(inside, x, 0.0).to(tl.float64)
            sums += x * x
    # Each of the four alone: a sum with zeros is exact in any order.
    x0 = tl.sum(tl.where(four == 0, sums, 0.0), axis=1)
    x1 = tl.sum(tl.where(four == 1, sums, 0.0), axis=1)
    x2 = tl.sum(tl.where(four == 2, sums, 0.0), axis=1)
    x3 = tl.sum(tl.where(four == 3, sums, 0.0), axis=1)
    return (((x0 + x1) + (x2 + x3)) / width.to(tl.float64)).to(STATE)[:, None]


@triton.jit(do_not_specialize=["v", "n"])
def step(
    slots,
    grads,
    scalars,
    active,
    flags,
    ids,
    sums,
    positions,
    v,
    n,
    count,
    width,
    STORED: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    LISTED: tl.constexpr,
    MAPPED: tl.constexpr,
    ROW_WISE: tl.constexpr,
    AVERAGED: tl.constexpr,
    STAGED: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Stages 3 to 10 in place, of the rows that ``ids`` lists (LISTED) or of all ``count`` rows, ROWS of them a program.

    The gradient is ``sums`` where ids are LISTED, or MAPPED to ``positions`` (a row that has none there has a gradient of
    zero); else a dense one, of dtype GRAD. With GRAD None it is in the buffer, which is zero afterwards.
    """
    v = tl.cast(v, tl.int64)
    width = tl.cast(width, tl.int64)
    if tl.load(flags + REAL) != 0:
        row = slots + v * SLOT_COLUMNS
        s = scalars_of(scalars, v, STATE)
        p = pointer(tl.load(row + PARAMETER), STORED, ALIGNED)
        a = pointer(tl.load(row + ACCUMULATOR), STATE, ALIGNED)
        m = pointer(tl.load(row + AVERAGE), STATE, ALIGNED)
        b = pointer(tl.load(row + BUFFER), STATE, ALIGNED)
        g = sums
        if GRAD is not None and not (LISTED or MAPPED):
            g = pointer(tl.load(grads + v), GRAD, ALIGNED)
        overwrite = tl.load(flags + OVERWRITE) != 0
        moves = tl.load(active + v) != 0

        j = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        r, live = j, j < count
        if LISTED:
            r, live = is_first(ids, j, n, count)
        source, given = j, live
        if MAPPED:
            source = tl.load(positions + r, live, other=0).to(tl.int64) - 1
            given = source >= 0
        r, live, source, given = r[:, None], live[:, None], source[:, None], given[:, None]
        before = tl.zeros([ROWS, 1], STATE)
        square = before
        if ROW_WISE and moves:
            before = tl.load(a + r, live, other=0.0)
            square = _mean_square(p, g, b, source, r, live, given, width, s, STORED, GRAD, STATE, STAGED, ROWS)
            tl.store(a + r, before + square, live)
        for begin in range(0, width, COLUMNS):
            c = (begin + tl.arange(0, COLUMNS))[None, :]
            inside = live & (c < width)
            i = r * width + c
            stored = tl.load(p + i, inside)
            if moves:
                x = _gradient(g, b, source, r, given, c, inside, width, s, GRAD, STATE, STAGED)
                if GRAD is None:
                    tl.store(b + i, tl.zeros_like(x), inside)
                wide = widen(stored)
                if STAGED:
                    wide, x = prepare(wide, x, s)
                if ROW_WISE:
                    new, _ = follow(wide, before, x, square, s)
                else:
                    new, total = follow(wide, tl.load(a + i, inside), x, x * x, s)
                    tl.store(a + i, total, inside)
                stored = narrow(new, STORED)
            if AVERAGED:
                mean = average(tl.load(m + i, inside), widen(stored), s)
                tl.store(m + i, mean, inside)
                if overwrite:
                    stored = narrow(mean, STORED)
            tl.store(p + i, stored, inside)


@triton.jit(do_not_specialize=["v", "n"])
def accumulate(
    slots,
    scalars,
    flags,
    ids,
    sums,
    v,
    n,
    count,
    width,
    STATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Stages 3 and 4: ``b[row] = b[row] + g / scale`` for the rows that ``ids`` lists, in place on b."""
    v = tl.cast(v, tl.int64)
    width = tl.cast(width, tl.int64)
    if tl.load(flags + SKIP) == 0:
        s = scalars_of(scalars, v, STATE)
        b = pointer(tl.load(slots + v * SLOT_COLUMNS + BUFFER), STATE, False)
        j = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        r, live = is_first(ids, j, n, count)
        r, live, j = r[:, None], live[:, None], j[:, None]
        for begin in range(0, width, COLUMNS):
            c = (begin + tl.arange(0, COLUMNS))[None, :]
            inside = live & (c < width)
            x = gradient(tl.load(sums + j * width + c, inside), s)
            tl.store(b + r * width + c, tl.load(b + r * width + c, inside) + x, inside)
