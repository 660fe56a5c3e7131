"""Linear models learned online: one example a step, over a chunk of sparse rows, in one compiled call.

The weights of ``width`` outputs and their accumulators lie side by side in one flat array, ``table``: coordinate k has its
``width`` weights from ``2*width*k`` and its accumulators right behind them, so that a coordinate costs one cache line.
The last coordinate is the intercept; its x is 1. Rows are CSR: row i has ``data[indptr[i]:indptr[i+1]]`` at the columns
``indices[indptr[i]:indptr[i+1]]``, in any order; a column that repeats counts once, with the sum of its values.

A step copies the coordinates of its row into small buffers, works there on whole vectors, and copies them back: ``x[j]``
is the value at position j of the row, ``w[c*m + j]`` and ``a[c*m + j]`` are weight and accumulator of output c there, where
m is the length of the row, intercept included, rounded up to whole vectors.

Sums over a row go from left to right in double precision; everything else is in the dtype of the table.
Stages that move every weight at every step (decay, moving average) are applied lazily, by `adagrad.kernels.lazy`, and so are
penalties, by `adagrad.kernels.proximal`. Losses are those of `adagrad.kernels.losses`.
"""

import math

import numba
import numpy as np

from adagrad import rule
from adagrad.kernels import elements, proximal
from adagrad.kernels.compiling import inline, kernel, prefetch
from adagrad.kernels.elements import advance, gradient, select
from adagrad.kernels.lazy import catch_up, finish_step, settle, tick
from adagrad.kernels.losses import link_of, slope_of

__all__ = ["LONGEST", "compress", "gradients", "learn", "margins"]

# Rows with more entries must not repeat a column: to look for the first of each takes the square of the length.
LONGEST = 1 << 12
# How many entries ahead the table is asked for, and how many rows where nothing is copied.
_AHEAD = 48
_ROWS_AHEAD = 4
_VECTOR = 8

# LLVM judges these functions too large to inline, but calling them takes a third of the time of a short row.
_inline = numba.njit(error_model="numpy", forceinline=True)

_clip_by_norm = _inline(rule.clip_by_norm)


@_inline
def _ask(array, indices, lo, hi, size):
    """Ask for the memory of the coordinates ``indices[lo:hi]``, which have ``size`` elements each."""
    ids = indices[lo:hi]
    for j in range(ids.size):
        prefetch(array, size * np.int64(ids[j]), size)


@_inline
def _margin(w, x, start, n):
    """``sum(w[start+j] * x[j])`` from left to right, in double precision, where products of float32 are exact."""
    p, h = w[start : start + n], x[:n]
    total = 0.0
    for j in range(p.size):
        total += np.float64(p[j]) * np.float64(h[j])
    return total


@_inline
def _copy_in(table, k, width, m, w, a, j):
    start = np.uint64(2 * width) * np.uint64(k)
    for c in range(width):
        w[c * m + j] = table[start + np.uint64(c)]
        a[c * m + j] = table[start + np.uint64(width + c)]


@_inline
def _copy_out(table, k, width, m, w, a, j):
    start = np.uint64(2 * width) * np.uint64(k)
    for c in range(width):
        table[start + np.uint64(c)] = w[c * m + j]
        table[start + np.uint64(width + c)] = a[c * m + j]


@_inline
def _gather(table, indices, data, lo, hi, width, m, w, a, x, repeats):
    """The columns of the row into the buffers; ``repeats`` gets (position, first position) of repeats.

    Returns how many repeats there are, and the margin of the first output: a loop of its own would be left by a branch
    that is mispredicted for every row.

    An accumulator is never negative. While its row is being learned, -1 stands in its place, which costs next to nothing
    and shows that a column repeats; only then its first position is looked for. `_scatter` puts an accumulator back.
    """
    seen = table.dtype.type(-1)
    ids, values = indices[lo:hi], data[lo:hi]
    found, total = 0, 0.0
    for j in range(ids.size):
        k = np.int64(ids[j])
        later = lo + j + _AHEAD
        if later < indices.size:
            prefetch(table, 2 * width * np.int64(indices[np.uint64(later)]), 2 * width)
        total += np.float64(table[np.uint64(2 * width) * np.uint64(k)]) * np.float64(values[j])
        _copy_in(table, k, width, m, w, a, j)
        x[j] = values[j]
        if a[j] < 0:
            first = 0
            while ids[first] != ids[j]:
                first += 1
            repeats[found, 0], repeats[found, 1] = j, first
            found += 1
        table[np.uint64(2 * width) * np.uint64(k) + np.uint64(width)] = seen
    return found, total


@_inline
def _scatter(table, indices, lo, hi, width, m, w, a, repeats, found):
    """The buffers into the table, a repeated column's from its first position."""
    for r in range(found):
        for c in range(width):
            w[c * m + repeats[r, 0]] = w[c * m + repeats[r, 1]]
            a[c * m + repeats[r, 0]] = a[c * m + repeats[r, 1]]
    ids = indices[lo:hi]
    for j in range(ids.size):
        _copy_out(table, np.int64(ids[j]), width, m, w, a, j)


@_inline
def _advance(w, a, x, factors, start, m, slope, s, staged):
    """Stages 3 to 7 on one output: the gradient of position j is ``slope * x[j]``."""
    p, q, h, f = w[start : start + m], a[start : start + m], x[:m], factors[:m]
    for j in range(p.size):
        g = slope * h[j]
        if staged is not None:
            g = _clip_by_norm(gradient(g, None, s), f[j], select)
        p[j], q[j] = advance(p[j], q[j], g, s, staged)


@_inline
def _shrink(w, a, start, n, rate, metric):
    """The penalty's step on the first ``n`` positions of one output: see `adagrad.kernels.proximal`."""
    p, q = w[start : start + n], a[start : start + n]
    for j in range(p.size):
        p[j] = proximal.shrink(p[j], q[j], rate, *metric)


@_inline
def _target(targets, i, c, own):
    """Output c's target in row i: a number of its own, or whether the row's class is c."""
    if own:
        return targets[i, c]
    return 1.0 if targets[i, 0] == c else 0.0


@inline
def _squares(slopes, x, lo, hi, s, scale):
    """The sum of squares of the gradients at positions [lo, hi), each times ``scale``, in double precision."""
    total = 0.0
    for c in range(slopes.size):
        for j in range(lo, hi):
            g = np.float64(gradient(slopes[c] * x[j], None, s)) * scale
            total += g * g
    return total


@inline
def _clip_factor(slopes, x, lo, hi, s, bound):
    """Stage 5's ``c/n`` if the norm n is above c, in double precision; see `adagrad.rule.clip_by_norm`."""
    scale = 1.0
    total = _squares(slopes, x, lo, hi, s, scale)
    if not 2.0**-900 <= total < np.inf:  # squares of float64 can vanish or overflow: again, scaled by a power of two
        scale = 2.0**-600 if total > 1 else 2.0**600
        total = _squares(slopes, x, lo, hi, s, scale)
    norm = math.sqrt(total)
    if not norm < np.inf:
        return np.nan
    return bound / norm * scale if norm / scale > bound else 1.0


@_inline
def _scalars(s, rate, first):
    """The row of scalars as a tuple, which can't overlap with any array: so loops over arrays become vectors."""
    rate, first = s.dtype.type(rate), s.dtype.type(first)
    return (rate, s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], first)


@kernel
def learn(
    data, indices, indptr, targets, weights, rates, scalars, clipnorm, global_clipnorm, loss, parameter, intercept, outputs,
    table, predictions, staged, average, touched, clock, decay, momentum, powers, frequency, shrunk, window, history, metric,
):  # fmt: skip
    """Learn row after row, in place on ``table`` and the lazy state; the prediction before each goes to ``predictions``.

    targets : float64 (rows, outputs), 0 or 1 or a value each; or (rows, 1) with the number of the class
    weights, rates : float64, one a row; the loss's factor; the learning rate
    scalars : the row of scalars of `elements`, without rate and factor, in the dtype of the table
    clipnorm, global_clipnorm : float64, infinity if off
    loss, parameter : of `adagrad.kernels.losses`; ``intercept``: whether it is learned
    outputs : their number, or None, which stands for 1 and compiles to simpler loops
    staged : None if stages 3 to 6 are all off
    average, touched, clock : see `lazy`; ``touched`` None if decay and moving average are off, when the clock only counts
    decay, momentum, powers, frequency : weight decay (0: off), the average's momentum, its powers, and after how many
        steps it overwrites the weights (0: never)
    shrunk, window, history, metric : see `proximal`; ``shrunk`` None if there is no penalty. Never beside ``touched``.
    predictions : float64, rows * outputs
    """
    width = 1 if outputs is None else outputs
    own = targets.shape[1] == width
    longest = 0
    for i in range(rates.size):
        longest = max(longest, indptr[i + 1] - indptr[i])
    longest += 1 + _VECTOR
    x, factors = np.zeros(longest, table.dtype), np.ones(longest, table.dtype)
    w, a = np.zeros(longest * width, table.dtype), np.zeros(longest * width, table.dtype)
    z, slopes = np.empty(width), np.empty(width, table.dtype)
    repeats = np.empty((longest, 2), np.int64)
    last = table.size // (2 * width) - 1
    scale = np.float64(scalars[elements.SCALE])
    for i in range(rates.size):
        lo, hi = indptr[i], indptr[i + 1]
        n = hi - lo
        stop = n + 1 if intercept else n
        m = (stop + _VECTOR - 1) & ~(_VECTOR - 1)
        ahead = min(i + _ROWS_AHEAD, rates.size - 1)
        if touched is not None:
            _ask(touched, indices, indptr[ahead], indptr[ahead + 1], 3)
        if average is not None:
            _ask(average, indices, indptr[ahead], indptr[ahead + 1], width)
        if shrunk is not None:
            _ask(shrunk, indices, indptr[ahead], indptr[ahead + 1], 1)
            step, accumulators = np.int64(clock[0]), table[width:]
            proximal.begin_step(rates[i], table, accumulators, 2 * width, width, shrunk, step, window, history, metric)
            for j in range(lo, hi):
                k = np.int64(indices[j])
                proximal.catch_up(table, accumulators, 2 * width, width, shrunk, k, step, window, history, metric)
                shrunk[k] = step + 1

        if touched is not None:
            for j in range(stop):
                k = np.int64(indices[lo + j]) if j < n else last
                catch_up(table, average, touched, k, width, clock, momentum, powers)
            tick(clock, decay * rates[i], momentum)

        found, z[0] = _gather(table, indices, data, lo, hi, width, m, w, a, x, repeats)
        if intercept:
            _copy_in(table, last, width, m, w, a, n)
            x[n] = 1
            z[0] += np.float64(w[n])
        behind = x[stop : stop + _VECTOR]
        for j in range(_VECTOR):
            behind[j] = 0
        for c in range(1, width):
            z[c] = _margin(w, x, c * m, stop)
        link_of(z, width, loss)
        for c in range(width):
            predictions[i * width + c] = z[c]
            target = targets[i, 0] if outputs is None else _target(targets, i, c, own)
            slopes[c] = slope_of(z[c], target, loss, parameter) * weights[i] * scale
        for r in range(found):
            x[repeats[r, 1]] += x[repeats[r, 0]]
            x[repeats[r, 0]] = 0

        first = 1 if touched is not None and clock[0] == 1 else 0
        s = _scalars(scalars, rates[i], first)
        if staged is not None:
            for start, end, bound in ((0, n, clipnorm), (n, stop, clipnorm), (0, stop, global_clipnorm)):
                if bound < np.inf:
                    factors[start:end] = _clip_factor(slopes, x, start, end, s, bound)
        for c in range(width):
            _advance(w, a, x, factors, c * m, m, slopes[c], s, staged)
            if shrunk is not None:
                _shrink(w, a, c * m, n, rates[i], metric)

        _scatter(table, indices, lo, hi, width, m, w, a, repeats, found)
        if intercept:
            _copy_out(table, last, width, m, w, a, n)
        if touched is not None:
            for j in range(stop):
                k = np.int64(indices[lo + j]) if j < n else last
                settle(table, average, touched, k, width, clock, s)
            finish_step(table, average, touched, width, clock, momentum, powers, frequency)
        else:
            clock[0] += 1


@kernel
def margins(data, indices, indptr, width, stride, table, bias, touched, clock, result):
    """The margins of each row, to ``result`` (float64, rows * width), which then goes through `losses.link`.

    Weights of coordinate k lie from ``stride*k``: 2*width in a table with accumulators. ``bias`` are the intercepts.
    ``touched`` and ``clock`` None: no lazy decay.
    """
    rows = indptr.size - 1
    for i in range(rows):
        ahead = min(i + _ROWS_AHEAD, rows - 1)
        _ask(table, indices, indptr[ahead], indptr[ahead + 1], stride)
        for c in range(width):
            total = 0.0
            for j in range(indptr[i], indptr[i + 1]):
                k = np.int64(indices[j])
                weight = table[stride * k + c]
                if touched is not None:
                    weight = table.dtype.type(clock[1] / touched[k, 1] * np.float64(weight))
                total += np.float64(weight) * np.float64(data[j])
            result[i * width + c] = total + np.float64(bias[c])


@kernel
def gradients(data, indptr, targets, weights, scale, loss, parameter, predictions, values, sums):
    """The gradient of a batch: ``values[j, c]`` of each entry, ``sums[c]`` of the intercept; both of the dtype of the state.

    It is the mean over the batch of weight * loss * scale. ``predictions`` are those of its rows, flat.
    """
    width = sums.size
    rows = indptr.size - 1
    own = targets.shape[1] == width
    sums[:] = 0
    for i in range(rows):
        for c in range(width):
            slope = (
                slope_of(predictions[i * width + c], _target(targets, i, c, own), loss, parameter) * weights[i] * scale / rows
            )
            d = sums.dtype.type(slope)
            sums[c] += d
            for j in range(indptr[i], indptr[i + 1]):
                values[j - indptr[0], c] = d * data[j]


@kernel
def compress(dense, data, indices, indptr):
    """The entries that are not 0 of a 2-D array, as CSR, into arrays that are large enough."""
    count = 0
    for i in range(dense.shape[0]):
        row = dense[i]
        for j in range(row.size):
            data[count] = row[j]
            indices[count] = j
            count += row[j] != 0
        indptr[i + 1] = count
