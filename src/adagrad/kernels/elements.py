"""The stages of `adagrad.rule` compiled, and the row of scalars that every kernel reads them with.

A kernel gets one row of scalars for each variable, in the dtype of the arithmetic; a stage that is off has its neutral
value there, one that changes no bit: a loss scale of 1, a clip of infinity, a factor of 1. (Weight decay has none,
since inf * 0 is NaN, so 0 means off.)
"""

import numpy as np

from adagrad import rule
from adagrad.kernels.compiling import inline

__all__ = [
    "CLIPVALUE",
    "COMPLEMENT",
    "DECAY",
    "FACTOR",
    "FIRST",
    "INSIDE",
    "L2",
    "LR",
    "MOMENTUM",
    "NEUTRAL",
    "OUTSIDE",
    "SCALE",
    "STEPS",
    "advance",
    "average",
    "follow",
    "gradient",
    "prepare",
    "scalars_of",
    "select",
]

LR, INSIDE, OUTSIDE, SCALE, STEPS, CLIPVALUE, FACTOR, DECAY, L2, MOMENTUM, COMPLEMENT, FIRST = range(12)

NEUTRAL = np.zeros(12)
NEUTRAL[[SCALE, STEPS, FACTOR]] = 1.0
NEUTRAL[CLIPVALUE] = np.inf
NEUTRAL.setflags(write=False)


@inline
def scalars_of(row):
    """A row of scalars as a tuple, which no store to an array can change: so they stay in registers."""
    return (row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10], row[11])


@inline
def select(condition, x, y):
    """``where`` for scalars."""
    return x if condition else y


_unscale = inline(rule.unscale)
_mean_gradient = inline(rule.mean_gradient)
_clip_by_value = inline(rule.clip_by_value)
_clip_by_norm = inline(rule.clip_by_norm)
_decay_weights = inline(rule.decay_weights)
_l2_gradient = inline(rule.l2_gradient)
_adagrad = inline(rule.adagrad)
_average = inline(rule.average)


@inline
def gradient(g, b, s):
    """Stages 3 and 4: the gradient of the real step from a gradient as it came and what the cycle gathered (or None)."""
    g = _unscale(g, s[SCALE])
    if b is not None:
        g = _mean_gradient(g, b, s[STEPS])
    return g


@inline
def prepare(p, g, s, staged):
    """Stages 5 and 6: ``(p, g)`` decayed and clipped; ``staged`` None: as they are."""
    if staged is not None:
        g = _clip_by_norm(_clip_by_value(g, s[CLIPVALUE], select), s[FACTOR], select)
        p = select(s[DECAY] != 0, _decay_weights(p, s[DECAY], s[LR]), p)
        g = select(s[L2] != 0, _l2_gradient(g, p, s[L2]), g)
    return p, g


@inline
def follow(p, a, g, square, s):
    """Stage 7."""
    return _adagrad(p, a, g, square, s[LR], s[INSIDE], s[OUTSIDE], np.sqrt, select)


@inline
def advance(p, a, g, s, staged):
    """Stages 5 to 7 of an element; ``staged`` None: the rule alone."""
    p, g = prepare(p, g, s, staged)
    return follow(p, a, g, g * g, s)


@inline
def average(m, p, s):
    """Stage 9."""
    return _average(m, p, s[MOMENTUM], s[COMPLEMENT], s[FIRST] != 0, select)
