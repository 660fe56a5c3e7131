"""Sums of squares for clipping on CUDA, in the very order of `norms`, and the factors that follow from them.

Every block of 4096 of the flat index is summed by itself: element f to lane f % 64, then the lanes. ``partials`` get the
sums of blocks in their order, with zeros in between, which change nothing; `totals` adds them up from left to right. With
RESCUED, asked for where there are float64 gradients, every sum is also taken of gradients times two powers of two, one for
squares that overflow and one for those that vanish: three sums side by side, of which `factors` takes the right one.
"""

import triton
import triton.language as tl

from adagrad.kernels import elements
from adagrad.kernels.cuda import BUFFER, SIZE, SLOT_COLUMNS, pointer
from adagrad.kernels.cuda_elements import BOUND, COLUMNS, gradient, mean_gradient, scalars_of, widen
from adagrad.kernels.cuda_rows import is_first
from adagrad.kernels.norms import BLOCK, LANES

__all__ = ["BLOCK", "BLOCKS", "SUMS", "dense_squares", "factors", "row_squares", "total", "totals"]

_BLOCK, _LANES = tl.constexpr(BLOCK), tl.constexpr(LANES)
BLOCKS = 2  # of a program, and so of a chunk
SUMS = tl.constexpr(3)  # scaled by 1, by _SMALL, by _LARGE
_SMALL, _LARGE = tl.constexpr(2.0**-600), tl.constexpr(2.0**600)
_TINY = tl.constexpr(2.0**-900)
_BOUND, _FACTOR = tl.constexpr(BOUND), tl.constexpr(elements.FACTOR)
_UNROLL = tl.constexpr(16)


@triton.jit
def _add(sums, x, RESCUED: tl.constexpr):
    """``sums``, of the squares scaled each way, with those of ``x`` added."""
    x = x.to(tl.float64)
    plain, small, large = sums
    plain += x * x
    if RESCUED:
        small += (x * _SMALL) * (x * _SMALL)
        large += (x * _LARGE) * (x * _LARGE)
    return plain, small, large


@triton.jit
def _sum_lanes(lanes, ROWS: tl.constexpr):
    """The sum of each row of lanes, every fourth from left to right, then the four.

    A sum of one number and zeros is exact in any order, so that a number is taken out by `tl.sum` of it alone.
    """
    lanes = tl.reshape(lanes, [ROWS, _LANES // 4, 4])
    place = tl.arange(0, _LANES // 4)[None, :, None]
    four = tl.zeros([ROWS, 4], tl.float64)
    for k in tl.static_range(_LANES // 4):
        four += tl.sum(tl.where(place == k, lanes, 0.0), axis=1)
    column = tl.arange(0, 4)[None, :]
    a = tl.sum(tl.where(column == 0, four, 0.0), axis=1)
    b = tl.sum(tl.where(column == 1, four, 0.0), axis=1)
    c = tl.sum(tl.where(column == 2, four, 0.0), axis=1)
    d = tl.sum(tl.where(column == 3, four, 0.0), axis=1)
    return (a + b) + (c + d)


@triton.jit
def _store(partials, k, sums, ROWS: tl.constexpr, RESCUED: tl.constexpr):
    plain, small, large = sums
    tl.store(partials + k * SUMS, _sum_lanes(plain, ROWS))
    if RESCUED:
        tl.store(partials + k * SUMS + 1, _sum_lanes(small, ROWS))
        tl.store(partials + k * SUMS + 2, _sum_lanes(large, ROWS))


@triton.jit
def dense_squares(
    slots,
    grads,
    chunks,
    scalars,
    partials,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    STAGED: tl.constexpr,
    RESCUED: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The sums of the BLOCKS blocks of each chunk, after stages 3 and 4; GRAD None: of the gradients in the buffers."""
    chunk = tl.program_id(0).to(tl.int64)
    v = tl.load(chunks + 2 * chunk)
    first = tl.load(chunks + 2 * chunk + 1)
    row = slots + v * SLOT_COLUMNS
    size = tl.load(row + SIZE)
    s = scalars_of(scalars, v, STATE)
    b = pointer(tl.load(row + BUFFER), STATE, False)
    block = tl.arange(0, BLOCKS)
    lane = first + block[:, None] * _BLOCK + tl.arange(0, _LANES)[None, :]
    zero = tl.zeros([BLOCKS, _LANES], tl.float64)
    sums = zero, zero, zero
    for begin in range(0, _BLOCK, 8 * _LANES):
        for k in tl.static_range(8):
            i = lane + begin + k * _LANES
            if GRAD is None:
                x = mean_gradient(tl.load(b + i, i < size, other=0.0), s)
            else:
                x = widen(tl.load(pointer(tl.load(grads + v), GRAD, False) + i, i < size, other=0)).to(STATE)
                if STAGED:
                    x = gradient(x, s)
            sums = _add(sums, x, RESCUED)
    _store(partials, chunk * BLOCKS + block, sums, BLOCKS, RESCUED)


@triton.jit(do_not_specialize=["v", "n"])
def row_squares(
    slots,
    scalars,
    ids,
    sums,
    ends,
    partials,
    v,
    n,
    count,
    width,
    STATE: tl.constexpr,
    BUFFERED: tl.constexpr,
    RESCUED: tl.constexpr,
):
    """The sums of the blocks of a table that its row gradient touches, each by the program of the first row in it.

    ``sums`` and ``ends`` are those of `cuda_rows.gather`; BUFFERED: the gradients of these rows are in the buffer.
    ``partials``, all zero before, have ``(width - 1) // 4096 + 2`` entries for each position.
    """
    j = tl.program_id(0).to(tl.int64)
    width = tl.cast(width, tl.int64)
    r, first = is_first(ids, j, n, count)
    if first:
        s = scalars_of(scalars, tl.cast(v, tl.int64), STATE)
        b = pointer(tl.load(slots + tl.cast(v, tl.int64) * SLOT_COLUMNS + BUFFER), STATE, False)
        before = tl.load(ids + j - 1, j > 0, other=-1).to(tl.int64)
        taken = tl.where(before < 0, -1, ((before + 1) * width - 1) // _BLOCK)  # the last block of the row before
        low = r * width // _BLOCK
        high = ((r + 1) * width - 1) // _BLOCK
        for block in range(tl.maximum(low, taken + 1), high + 1):
            zero = tl.zeros([1, _LANES], tl.float64)
            found = zero, zero, zero
            q = j
            at = r
            stop = (block + 1) * _BLOCK
            while (at * width < stop) & (at < count) & (q < n):
                begin = tl.maximum(at * width, block * _BLOCK)
                end = tl.minimum((at + 1) * width, stop)
                for f in range(begin // _LANES * _LANES, end, _LANES):
                    i = f + tl.arange(0, _LANES)[None, :]
                    inside = (i >= begin) & (i < end)
                    if BUFFERED:
                        x = mean_gradient(tl.load(b + i, inside, other=0.0), s)
                    else:
                        x = gradient(tl.load(sums + q * width + (i - at * width), inside, other=0.0), s)
                    found = _add(found, x, RESCUED)
                q = tl.load(ends + q)
                at = tl.load(ids + q, q < n, other=-1).to(tl.int64)
            slot = j * ((width - 1) // _BLOCK + 2) + (block - low) + tl.arange(0, 1)
            _store(partials, slot, found, 1, RESCUED)


@triton.jit
def _total(partials, first, last, found, v, RESCUED: tl.constexpr):
    for kind in tl.static_range(SUMS if RESCUED else 1):
        total = tl.zeros([], tl.float64)
        for begin in range(first, last, _UNROLL):
            for ahead in tl.static_range(_UNROLL):
                k = begin + ahead
                total += tl.load(partials + k * SUMS + kind, k < last, other=0.0)
        tl.store(found + v * SUMS + kind, total)


@triton.jit
def totals(members, partials, found, RESCUED: tl.constexpr):
    """``found[slot]`` = the sum of its partials from left to right; ``members`` has rows (slot, first, after the last)."""
    row = members + 3 * tl.program_id(0)
    _total(partials, tl.load(row + 1), tl.load(row + 2), found, tl.load(row), RESCUED)


@triton.jit(do_not_specialize=["v", "count"])
def total(partials, found, v, count, RESCUED: tl.constexpr):
    """``found[v]`` = the sum of ``count`` partials from left to right."""
    _total(partials, 0, count, found, v, RESCUED)


@triton.jit
def _chosen(plain, small, large, RESCUED: tl.constexpr):
    """The sum to use and the power of two that its gradients were scaled by."""
    total = plain
    scale = tl.full(plain.shape, 1.0, tl.float64)
    if RESCUED:
        overflows, vanishes = (plain - plain) != 0, plain < _TINY
        total = tl.where(overflows, small, tl.where(vanishes, large, plain))
        scale = tl.where(overflows, _SMALL, tl.where(vanishes, _LARGE, scale))
    return total, scale


@triton.jit
def factors(found, scalars, count, OVER_ALL: tl.constexpr, RESCUED: tl.constexpr, SLOTS: tl.constexpr):
    """Stage 5: ``c/n`` where the norm n > c, else 1, NaN where n is not finite, as scalars of each slot.

    With OVER_ALL n is that of all ``count`` slots together, whose sums are added in their order.
    """
    v = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    there = v < count
    plain = tl.load(found + v * SUMS, there, other=0.0)
    small, large = plain, plain
    if RESCUED:
        small = tl.load(found + v * SUMS + 1, there, other=0.0)
        large = tl.load(found + v * SUMS + 2, there, other=0.0)
    if OVER_ALL:
        total = tl.zeros([], tl.float64)
        down, up = total, total
        for k in range(count):
            total += tl.load(found + k * SUMS)
            if RESCUED:
                down += tl.load(found + k * SUMS + 1)
                up += tl.load(found + k * SUMS + 2)
        zero = tl.zeros([SLOTS], tl.float64)
        plain, small, large = total + zero, down + zero, up + zero
    total, scale = _chosen(plain, small, large, RESCUED)
    norm = tl.sqrt(total)
    bound = tl.load(scalars + v * COLUMNS + _BOUND, there, other=1.0)
    factor = tl.where(norm / scale > bound, bound / norm * scale, 1.0)
    finite = ((norm - norm) == 0) | (bound == float("inf"))
    tl.store(scalars + v * COLUMNS + _FACTOR, tl.where(finite, factor, float("nan")), there)
