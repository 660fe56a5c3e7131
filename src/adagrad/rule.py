"""The mathematics of one step: one small pure function a stage, written once and read everywhere.

The arguments are numbers or arrays; every operation goes left to right in the dtype that comes in. Numba compiles and
inlines these very functions into the dense, row and online kernels; array libraries run them as they stand. Two names are
handed in where scalars and arrays differ: ``sqrt(x)`` and ``where(condition, x, y)``.

Symbols, after Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization"
(JMLR 12, 2011), diagonal version: ``p`` parameter, ``g`` gradient, ``a`` accumulator (the running sum of squares, G_t,ii in
the paper), ``lr`` learning rate (eta), ``b`` gradient buffer of the accumulation cycle, ``m`` moving average of ``p``.

>>> import numpy as np
>>> g = np.float64(2.0)
>>> p, a = adagrad(np.float64(1.0), np.float64(0.0), g, g * g, 1.0, 0.0, 0.0, np.sqrt, np.where)
>>> float(p), float(a)  # the paper's first step is lr * sign(g), whatever the size of g
(0.0, 4.0)
"""

from collections.abc import Callable
from typing import Any

__all__ = [
    "accumulate",
    "adagrad",
    "average",
    "clip_by_norm",
    "clip_by_value",
    "decay_weights",
    "l2_gradient",
    "mean_gradient",
    "unscale",
]

Number = Any  # a float or an array of any library
Function = Callable[..., Any]


def unscale(g: Number, loss_scale: Number) -> Number:
    """Stage 3: ``g = g / loss_scale``, the gradient of the loss from the gradient of the scaled loss."""
    return g / loss_scale


def accumulate(b: Number, g: Number) -> Number:
    """Stage 4, on every call of a cycle but the last: ``b = b + g``."""
    return b + g


def mean_gradient(g: Number, b: Number, steps: Number) -> Number:
    """Stage 4, on the last call of a cycle of ``steps`` calls: ``g = (g + b) / steps``."""
    return (g + b) / steps


def clip_by_value(g: Number, c: Number, where: Function) -> Number:
    """Stage 5, ``clipvalue``: ``g`` to [-c, c]; NaN stays NaN."""
    return where(g > c, c, where(g < -c, -c, g))


def clip_by_norm(g: Number, factor: Number, where: Function) -> Number:
    """Stage 5, ``clipnorm`` and ``global_clipnorm``: ``g = g * factor``, where ``factor`` is c/n if the norm n > c, else 1.

    A norm that is not finite makes ``factor`` NaN: every gradient that is not zero becomes NaN, a zero stays zero.
    """
    return where(g != 0, g * factor, g)


def decay_weights(p: Number, weight_decay: Number, lr: Number) -> Number:
    """Stage 6, decoupled weight decay: ``p = p - (p * weight_decay) * lr``."""
    return p - (p * weight_decay) * lr


def l2_gradient(g: Number, p: Number, weight_decay: Number) -> Number:
    """Stage 6, ``weight_decay_mode="l2"``: ``g = g + weight_decay * p``, the gradient of ``weight_decay/2 * |p|^2`` added."""
    return g + weight_decay * p


def adagrad(
    p: Number,
    a: Number,
    g: Number,
    square: Number,
    lr: Number,
    inside: Number,
    outside: Number,
    sqrt: Function,
    where: Function,
) -> tuple[Number, Number]:
    """Stage 7, the rule: ``a = a + square; p = p - (lr*g) / (sqrt(a + inside) + outside)``; returns ``(p, a)``.

    ``square`` is ``g*g``; where a row of a table has one accumulator, the mean of ``g*g`` over the row. Epsilon is
    ``inside`` the root (the page, Keras) or ``outside`` (PyTorch); the other one is 0. A gradient of zero moves nothing,
    even where the divisor is 0 or NaN. A divisor of zero with a gradient that is not (its square underflowed) steps by
    ``lr * sign(g)``, the limit that the formula takes as g shrinks towards 0 with ``a = 0``.
    """
    a = a + square
    divisor = sqrt(a + inside) + outside
    step = where(divisor == 0, where(g > 0, lr, -lr), (lr * g) / divisor)
    return where(g == 0, p, p - step), a


def average(m: Number, p: Number, momentum: Number, complement: Number, first: Number, where: Function) -> Number:
    """Stage 9: ``m = momentum*m + complement*p``, with ``complement = 1 - momentum``; on the first real step ``m = p``."""
    return where(first, p, momentum * m + complement * p)
