"""Sums of squares for clipping: in double precision over fixed blocks of the flat index, blocks in order.

Within a block, element f adds to lane f % 64 in the order of f; the lanes are added in a fixed order, then the blocks.
A zero adds nothing, so that the rows of a row gradient, the equal dense gradient, any chunking and any number of threads
give the same bits. The square of a float32 neither overflows nor vanishes in double precision; for float64 the caller
hands in a power of two as ``scale`` when the plain sum did.
"""

import numpy as np

from adagrad.kernels.compiling import at, inline, kernel, widen
from adagrad.kernels.dense import BUFFER, GRADIENT
from adagrad.kernels.elements import FIRST, gradient, scalars_of

__all__ = ["BLOCK", "LANES", "add_run", "add_stream", "dense_blocks", "end_stream", "sum_in_order", "sum_lanes"]

BLOCK = 4096
LANES = 64


@inline
def sum_lanes(lanes):
    """The sum of the lanes, every fourth from left to right, then the four; the lanes are zero afterwards."""
    a = b = c = d = 0.0
    for lane in range(0, LANES, 4):
        a += lanes[lane]
        b += lanes[lane + 1]
        c += lanes[lane + 2]
        d += lanes[lane + 3]
    lanes[:] = 0.0
    return (a + b) + (c + d)


@inline
def _square(g, b, i, s, scale):
    """The square of gradient i times ``scale``, after stages 3 and 4; ``g`` None is zero, ``b`` None no buffer."""
    x = widen(g[i]) if g is not None else s[FIRST] - s[FIRST]
    x = np.float64(gradient(x, b[i] if b is not None else None, s)) * scale
    return x * x


@inline
def add_run(lanes, total, block, first, size, g, b, s, scale):
    """Add the squares of ``size`` gradients from flat index ``first``; returns (total before the last block, that block)."""
    done = 0
    while done < size:
        here = first + done
        if here // BLOCK != block:
            total += sum_lanes(lanes)
            block = here // BLOCK
        lane = here % LANES
        count = min(size - done, LANES - lane)
        if count == LANES:
            for i in range(LANES):  # of fixed length: compiled without branches
                lanes[i] += _square(g, b, done + i, s, scale)
        else:
            for i in range(count):
                lanes[lane + i] += _square(g, b, done + i, s, scale)
        done += count
    return total, block


@kernel
def add_stream(lanes, state, first, size, g, b, s, scale):
    """`add_run` for a gradient that comes in chunks; ``state`` keeps (total, block) between them, -1 before the first."""
    total, block = add_run(lanes, state[0], int(state[1]), first, size, g, b, scalars_of(s), scale)
    state[0], state[1] = total, block


@kernel
def end_stream(lanes, state):
    """The sum of a stream of chunks."""
    return state[0] + sum_lanes(lanes)


@kernel
def sum_in_order(values, begin, end):
    """``values[begin] + values[begin+1] + ...`` from left to right, for each pair of (begin, end)."""
    totals = np.zeros(begin.size)
    for v in range(begin.size):
        for k in range(begin[v], end[v]):
            totals[v] += values[k]
    return totals


@kernel
def dense_blocks(addresses, sizes, ends, scalars, scale, lo, hi, partials, grad, buffered):
    """The sums of the blocks [lo, hi) of a table of gradients, where ``ends`` is the running total of their blocks."""
    state = scalars[0, :0]
    lanes = np.zeros(LANES)
    v = np.searchsorted(ends, lo, side="right")
    for k in range(lo, hi):
        while k >= ends[v]:
            v += 1
        begin = (k - (ends[v - 1] if v > 0 else 0)) * BLOCK
        count = min(BLOCK, sizes[v] - begin)
        g = at(addresses[v, GRADIENT] + begin * (grad.itemsize if grad is not None else 0), count, grad)
        b = at(addresses[v, BUFFER] + begin * state.itemsize, count, state if buffered is not None else None)
        s = scalars_of(scalars[v])
        whole = count // LANES * LANES
        for chunk in range(0, whole, LANES):
            for lane in range(LANES):  # of fixed length
                lanes[lane] += _square(g, b, chunk + lane, s, scale)
        for i in range(whole, count):
            lanes[i - whole] += _square(g, b, i, s, scale)
        partials[k] = sum_lanes(lanes)
