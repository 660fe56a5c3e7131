"""Decay and moving average, applied only to the coordinates that an example touches; equal to moving all at every step.

Where a coordinate has no gradient, step t of the contract is ``p_t = d_t * p_{t-1}`` with ``d_t = 1 - weight_decay * lr_t``,
and ``m_t = mu * m_{t-1} + (1 - mu) * p_t``. With two running numbers, the same for all coordinates,

    D_t = d_t * D_{t-1},    G_t = mu * G_{t-1} + (1 - mu) * D_t,    D_0 = 1, G_0 = 0,

any number of such steps, from s to t, is one:

    p_t = p_s * D_t / D_s,    m_t = mu**(t-s) * m_s + p_s * (G_t - mu**(t-s) * G_s) / D_s.

``clock`` holds (t, D_t, G_t), ``touched[k]`` the same as of the last step s that coordinate k is up to date with. All of it
is in double precision and rounded once, when p and m are stored. Before D loses its range, or G so outgrows D that the
difference above cancels, every coordinate is brought up to date and D and G begin anew.

``table`` is laid out as in `adagrad.kernels.linear`, ``average[k*width + c]`` is m; None if there is no moving average.
"""

import numba
import numpy as np

from adagrad.kernels import elements
from adagrad.kernels.compiling import inline, kernel

__all__ = ["catch_up", "catch_up_all", "finish_step", "powers_of", "settle", "tick"]

# Where D and G begin anew: D out of [2**-500, 2**500], or |G / D| above these, which costs as many bits of the difference.
_SMALL, _LARGE = 2.0**-500, 2.0**500
_CANCEL_32, _CANCEL_64 = 2.0**20, 2.0**4

_BITS = 10
_SIZE = 1 << _BITS
_LOW = _SIZE - 1

_inline = numba.njit(error_model="numpy", forceinline=True)


def powers_of(momentum: float) -> np.ndarray:
    """``momentum**n`` and ``momentum**(1024*n)`` for n < 1024, from which `catch_up` makes every power below 2**20."""
    exponents = np.arange(_SIZE, dtype=np.float64)
    powers = momentum ** np.concatenate([exponents, exponents * _SIZE])
    return np.where(powers < 1e-300, 0.0, powers)  # arithmetic with subnormal numbers would take a hundred times as long


@_inline
def tick(clock, decay, momentum):
    """Step t of the running numbers, where ``decay = weight_decay * lr_t``."""
    clock[0] += 1
    clock[1] *= 1.0 - decay
    clock[2] = momentum * clock[2] + (1.0 - momentum) * clock[1]


@_inline
def catch_up(table, average, touched, k, width, clock, momentum, powers):
    """Bring coordinate ``k`` up to date with the clock, in place; ``powers`` is `powers_of` the momentum.

    One that is up to date stays as it is, bit for bit; to find out by a branch would take longer, mostly.
    """
    kept = clock[1] / touched[k, 1]
    fading, moved = 0.0, 0.0
    if average is not None:
        gap = int(clock[0] - touched[k, 0])
        fading = powers[gap & _LOW] * powers[_SIZE + min(gap >> _BITS, _LOW)]
        if gap >> _BITS > _LOW:
            fading = momentum ** float(gap)
        moved = (clock[2] - fading * touched[k, 2]) / touched[k, 1]
    for c in range(width):
        place = 2 * width * k + c
        p = np.float64(table[place])
        table[place] = kept * p
        if average is not None:
            average[k * width + c] = fading * np.float64(average[k * width + c]) + moved * p
    for i in range(3):
        touched[k, i] = clock[i]


@_inline
def settle(table, average, touched, k, width, clock, s):
    """Stage 9 of a coordinate that the step of the clock has moved, once, though its column may repeat in the row."""
    if touched[k, 0] != clock[0]:
        if average is not None:
            for c in range(width):
                m = k * width + c
                average[m] = elements.average(average[m], table[2 * width * k + c], s)
        for i in range(3):
            touched[k, i] = clock[i]


@kernel
def catch_up_all(table, average, touched, width, clock, momentum, powers):
    """Bring every coordinate up to date, in place, and let the running numbers begin anew."""
    for k in range(touched.shape[0]):
        if touched[k, 0] != clock[0]:  # one that the last step moved may have D = 0
            catch_up(table, average, touched, k, width, clock, momentum, powers)
        touched[k, 1], touched[k, 2] = 1.0, 0.0
    clock[1], clock[2] = 1.0, 0.0


@inline
def finish_step(table, average, touched, width, clock, momentum, powers, frequency):
    """Begin anew in time; and stage 10, the overwriting of every weight, at every ``frequency``-th step (0: never)."""
    d = abs(clock[1])
    if not (_SMALL < d < _LARGE and abs(clock[2]) <= (_CANCEL_32 if table.itemsize == 4 else _CANCEL_64) * d):
        catch_up_all(table, average, touched, width, clock, momentum, powers)
    if frequency > 0 and clock[0] % frequency == 0:
        catch_up_all(table, average, touched, width, clock, momentum, powers)
        if average is not None:
            for k in range(touched.shape[0]):
                for c in range(width):
                    table[2 * width * k + c] = average[k * width + c]
