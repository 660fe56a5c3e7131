"""Penalties, by the proximal step in the accumulator's metric, applied only to the weights that are looked at.

Duchi, Hazan and Singer's composite mirror descent puts the penalty beside the gradient, not into it. After the rule's step
with learning rate lr, where ``h = sqrt(a + epsilon)`` is what the rule divided by, the weight becomes the minimum of
``l1*|x| + l2*x**2/2 + (h/lr)*(x - p)**2/2``, which is

    p = sign(p) * max(|p| - lr*l1/h, 0) / (1 + lr*l2/h).

A weight without a gradient keeps its h, so n such steps, of the rates r_1 to r_n, are one (while it is not 0, where it stays):

    |p| + l1/l2 -> (|p| + l1/l2) * exp(-S),    S = sum of log(1 + r_i*l2/h);    with l2 = 0: |p| - (l1/h) * sum of r_i.

With ``r_i = r*(1 + d_i)`` and ``u = c/(1 + c)``, ``c = r*l2/h``, each term of S is ``log(1 + c) + log(1 + u*d_i)``, and the
latter is ``u*d_i - (u*d_i)**2/2 + ...``: so S needs no more than n and the sums of the powers of d, which are the same for
all weights. ``history[t - start]`` holds those sums after step t, counted from step ``start``, where every weight was up to
date; ``window`` holds (start, r). When d leaves [-1/16, 1/16], or the history is full, all weights are brought up to date
and it begins anew. Twelve powers leave an error below 2**-53. A constant rate has a history of one row of zeros.

Weights lie at ``weights[stride*k + c]``, their accumulators at the same places of ``accumulators``; ``shrunk[k]`` is the
last step that coordinate k is up to date with. All is computed in double precision and rounded once.
"""

import math

import numba
import numpy as np

from adagrad.kernels.compiling import kernel

__all__ = ["POWERS", "ROWS", "begin_step", "catch_up", "catch_up_all", "catch_up_rows", "shrink"]

POWERS = 12
ROWS = 1 << 15
_WIDEST = 1.0 / 16

_inline = numba.njit(error_model="numpy", forceinline=True)


@_inline
def shrink(p, a, rate, inside, outside, l1, l2):
    """One proximal step; 0 where the divisor is 0, the limit."""
    h = math.sqrt(np.float64(a) + inside) + outside
    left = abs(np.float64(p)) - rate * l1 / h
    if p != p:
        return np.float64(p)
    size = left / (1.0 + rate * l2 / h) if left > 0.0 and h > 0.0 else 0.0
    return size if p > 0 else 0.0 - size  # a zero is +0.0


@_inline
def _shrink_by(p, a, count, window, now, then, inside, outside, l1, l2):
    """``count`` steps without a gradient at once; ``now`` and ``then`` are the rows of the history behind and before them."""
    h = math.sqrt(np.float64(a) + inside) + outside
    if p != p:
        return np.float64(p)
    if h == 0.0:
        return 0.0
    size = abs(np.float64(p))
    if l2 == 0.0:
        size -= l1 / h * (window[1] * (count + (now[0] - then[0])))
    else:
        c = window[1] * l2 / h
        u = -c / (1.0 + c)
        total, power = count * math.log1p(c), -1.0
        for k in range(now.size):
            power *= u
            total += power / (k + 1) * (now[k] - then[k])
        size += (size + l1 / l2) * math.expm1(-total)
    size = max(size, 0.0)
    return size if p > 0 else 0.0 - size  # a zero is +0.0


@_inline
def catch_up(weights, accumulators, stride, width, shrunk, k, step, window, history, metric):
    """Bring coordinate k up to date with ``step``; ``metric`` is (epsilon inside, outside, l1, l2)."""
    count = step - shrunk[k]
    if count > 0:
        start = np.int64(window[0])
        last = history.shape[0] - 1
        now, then = history[min(step - start, last)], history[min(shrunk[k] - start, last)]
        for c in range(width):
            place = stride * k + c
            p = weights[place]
            if p != 0:
                weights[place] = _shrink_by(p, accumulators[place], count, window, now, then, *metric)
        shrunk[k] = step


@kernel
def catch_up_all(weights, accumulators, stride, width, shrunk, step, window, history, metric):
    """Bring every coordinate up to date with ``step``, in place."""
    for k in range(shrunk.size):
        catch_up(weights, accumulators, stride, width, shrunk, k, step, window, history, metric)


@kernel
def catch_up_rows(indices, weights, accumulators, stride, width, shrunk, step, window, history, metric):
    """Bring the coordinates in ``indices``, which may repeat, up to date with ``step``, in place."""
    for j in range(indices.size):
        catch_up(weights, accumulators, stride, width, shrunk, np.int64(indices[j]), step, window, history, metric)


@kernel
def begin_step(rate, weights, accumulators, stride, width, shrunk, step, window, history, metric):
    """Enter the rate of step ``step + 1``; begins anew, with every weight up to date, where it doesn't fit the window."""
    start, rows = np.int64(window[0]), history.shape[0]
    d = 0.0 if rate == window[1] else rate / window[1] - 1.0
    fits = d == 0.0 if rows == 1 else abs(d) <= _WIDEST and step + 1 - start < rows
    if not fits:
        catch_up_all(weights, accumulators, stride, width, shrunk, step, window, history, metric)
        window[0], window[1] = step, rate
        start, d = step, 0.0
        history[0, :] = 0.0
    if rows > 1:
        power = 1.0
        for k in range(history.shape[1]):
            power *= d
            history[step + 1 - start, k] = history[step - start, k] + power
