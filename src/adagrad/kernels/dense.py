"""Dense kernels: a whole list of variables in one call, over a table of addresses, in one pass over the memory.

``addresses`` is an int64 table with a row for each variable: where its parameter, accumulator, gradient, average and
gradient buffer begin. ``ends`` is the running total of their sizes, ``scalars`` their rows of scalars (`elements`). A call
works on the elements [lo, hi) of that total, so that threads share the work evenly whatever the sizes. ``param`` and
``grad`` are empty arrays that give the stored dtypes; state has the dtype of ``scalars``. What a call does not have is
None and costs nothing: the kernel is compiled without it.
"""

import numpy as np

from adagrad import rule
from adagrad.kernels.compiling import at, inline, kernel, narrow, widen
from adagrad.kernels.elements import FIRST, advance, average, gradient, scalars_of

__all__ = [
    "ACCUMULATOR",
    "AVERAGE",
    "BUFFER",
    "GRADIENT",
    "PARAMETER",
    "accumulate",
    "add_gradient",
    "ema",
    "step",
    "step_values",
]

PARAMETER, ACCUMULATOR, GRADIENT, AVERAGE, BUFFER = range(5)

_accumulate = inline(rule.accumulate)


@inline
def step_values(p, a, g, m, b, s, staged, overwrite):
    """Stages 3 to 10 on 1-D arrays of equal size, in place on p, a, m, b; g, m, b may be None, g None being zero."""
    zero = s[FIRST] - s[FIRST]  # 0 in the dtype of the arithmetic
    for i in range(p.size):
        x = widen(g[i]) if g is not None else zero
        if b is not None:
            x = gradient(x, b[i], s)
            b[i] = zero
        elif staged is not None:
            x = gradient(x, None, s)
        new, a[i] = advance(widen(p[i]), a[i], x, s, staged)
        stored = narrow(new, p[i])
        if m is not None:
            m[i] = average(m[i], widen(stored), s)
            if overwrite:
                stored = narrow(m[i], stored)
        p[i] = stored


@inline
def ema_values(p, m, s, overwrite):
    """Stages 9 and 10 alone, in place on m, and on p if ``overwrite``."""
    for i in range(p.size):
        m[i] = average(m[i], widen(p[i]), s)
        if overwrite:
            p[i] = narrow(m[i], p[i])


@inline
def add_gradient(b, g, s):
    """Stages 3 and 4 on a call that is no real step, in place on b."""
    for i in range(b.size):
        b[i] = _accumulate(b[i], gradient(widen(g[i]), None, s))


@kernel
def step(addresses, ends, scalars, lo, hi, param, grad, averaged, buffered, staged, overwrite):
    """Stages 3 to 10; ``grad`` None: the gradient of the cycle is in the buffer alone."""
    state = scalars[0, :0]
    v = np.searchsorted(ends, lo, side="right")
    while lo < hi:
        stop = min(hi, ends[v])
        begin = lo - (ends[v - 1] if v > 0 else 0)
        count = stop - lo
        p = at(addresses[v, PARAMETER] + begin * param.itemsize, count, param)
        a = at(addresses[v, ACCUMULATOR] + begin * state.itemsize, count, state)
        g = at(addresses[v, GRADIENT] + begin * (grad.itemsize if grad is not None else 0), count, grad)
        m = at(addresses[v, AVERAGE] + begin * state.itemsize, count, state if averaged is not None else None)
        b = at(addresses[v, BUFFER] + begin * state.itemsize, count, state if buffered is not None else None)
        step_values(p, a, g, m, b, scalars_of(scalars[v]), staged, overwrite)
        lo = stop
        v += 1


@kernel
def accumulate(addresses, ends, scalars, lo, hi, grad):
    """Stages 3 and 4 on a call that is no real step: ``b = b + g / scale``."""
    state = scalars[0, :0]
    v = np.searchsorted(ends, lo, side="right")
    while lo < hi:
        stop = min(hi, ends[v])
        begin = lo - (ends[v - 1] if v > 0 else 0)
        g = at(addresses[v, GRADIENT] + begin * grad.itemsize, stop - lo, grad)
        b = at(addresses[v, BUFFER] + begin * state.itemsize, stop - lo, state)
        add_gradient(b, g, scalars_of(scalars[v]))
        lo = stop
        v += 1


@kernel
def ema(addresses, ends, scalars, lo, hi, param, overwrite):
    """Stages 9 and 10 for variables without a gradient, and after a constraint."""
    state = scalars[0, :0]
    v = np.searchsorted(ends, lo, side="right")
    while lo < hi:
        stop = min(hi, ends[v])
        begin = lo - (ends[v - 1] if v > 0 else 0)
        p = at(addresses[v, PARAMETER] + begin * param.itemsize, stop - lo, param)
        m = at(addresses[v, AVERAGE] + begin * state.itemsize, stop - lo, state)
        ema_values(p, m, scalars_of(scalars[v]), overwrite)
        lo = stop
        v += 1
