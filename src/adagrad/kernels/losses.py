"""The losses of linear models: one table, and the compiled value, slope and link that every learner uses.

With margin ``z = x @ w + b``, the prediction is ``p = link(z)``; value and slope (the derivative in z) are functions of p
and the target t. A class is the target 0 or 1, and ``s = 2*t - 1`` is its sign. Everything is in double precision.

>>> LOSSES["hinge"].formula
'max(0, 1 - s*p)'
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from adagrad.kernels.compiling import kernel

__all__ = [
    "CLASSIFICATION",
    "EPSILON_INSENSITIVE",
    "HINGE",
    "HUBER",
    "LOGISTIC",
    "LOSSES",
    "MODIFIED_HUBER",
    "POISSON",
    "QUANTILE",
    "REGRESSION",
    "SOFTMAX",
    "SQUARED",
    "SQUARED_EPSILON_INSENSITIVE",
    "SQUARED_HINGE",
    "Loss",
    "link",
    "link_of",
    "losses",
    "slope_of",
]

# Those up to POISSON have the slope ``p - t``.
SQUARED, LOGISTIC, SOFTMAX, POISSON, HINGE, SQUARED_HINGE, MODIFIED_HUBER = range(7)
HUBER, EPSILON_INSENSITIVE, SQUARED_EPSILON_INSENSITIVE, QUANTILE = range(7, 11)

CLASSIFICATION, REGRESSION = "classification", "regression"


class Loss(NamedTuple):
    """One line of the table: number, task, formulas of link, value and slope; whether predictions are probabilities.

    ``parameter`` is the name of the number that the formulas call e (``loss_epsilon``) or q (``quantile``); None: none.
    """

    number: int
    task: str
    link: str
    formula: str
    slope: str
    probabilities: bool = False
    parameter: str | None = None


LOSSES = {
    "log_loss": Loss(LOGISTIC, CLASSIFICATION, "1 / (1 + exp(-z))", "-t*log(p) - (1-t)*log(1-p)", "p - t", True),
    "hinge": Loss(HINGE, CLASSIFICATION, "z", "max(0, 1 - s*p)", "-s if s*p < 1 else 0"),
    "squared_hinge": Loss(SQUARED_HINGE, CLASSIFICATION, "z", "max(0, 1 - s*p)**2", "-2*s*max(0, 1 - s*p)"),
    "modified_huber": Loss(
        MODIFIED_HUBER,
        CLASSIFICATION,
        "z",
        "max(0, 1 - s*p)**2 if s*p >= -1 else -4*s*p",
        "-2*s*max(0, 1 - s*p) if s*p >= -1 else -4*s",
        True,
    ),
    "squared_error": Loss(SQUARED, REGRESSION, "z", "(p - t)**2 / 2", "p - t"),
    "huber": Loss(
        HUBER,
        REGRESSION,
        "z",
        "(p - t)**2 / 2 if |p - t| <= e else e*|p - t| - e**2/2",
        "p - t, clipped to [-e, e]",
        parameter="loss_epsilon",
    ),
    "epsilon_insensitive": Loss(
        EPSILON_INSENSITIVE,
        REGRESSION,
        "z",
        "max(0, |p - t| - e)",
        "sign(p - t) if |p - t| > e else 0",
        parameter="loss_epsilon",
    ),
    "squared_epsilon_insensitive": Loss(
        SQUARED_EPSILON_INSENSITIVE,
        REGRESSION,
        "z",
        "max(0, |p - t| - e)**2",
        "2*sign(p - t)*max(0, |p - t| - e)",
        parameter="loss_epsilon",
    ),
    "quantile": Loss(
        QUANTILE,
        REGRESSION,
        "z",
        "q*(t - p) if p < t else (1 - q)*(p - t)",
        "-q if p < t, 1 - q if p > t, else 0",
        parameter="quantile",
    ),
    "poisson": Loss(POISSON, REGRESSION, "exp(z)", "p - t*log(p)", "p - t"),
}
"""By scikit-learn's names. `SOFTMAX` is ``log_loss`` of three classes or more: ``-log(p_t)``, ``p = exp(z) / sum(exp(z))``."""

_inline = numba.njit(error_model="numpy", forceinline=True)
_TINY = np.finfo(np.float64).tiny
_ROUNDED = 2.0**-54  # what 1 - p may be where p was rounded to 1
_LARGEST = 709.78


@_inline
def link_of(z, width, loss):
    """Margins of one row to predictions, in place."""
    if loss == LOGISTIC:
        for c in range(width):
            small = math.exp(-abs(z[c]))
            large = 1.0 / (1.0 + small)
            z[c] = large if z[c] >= 0 else small * large
    elif loss == SOFTMAX:
        top, total = z[0], 0.0
        for c in range(width):
            top = max(top, z[c])
        for c in range(width):
            z[c] = math.exp(z[c] - top)
            total += z[c]
        for c in range(width):
            z[c] /= total
    elif loss == POISSON:
        for c in range(width):
            z[c] = np.inf if z[c] > _LARGEST else math.exp(z[c])  # beyond it math.exp raises in plain Python


@_inline
def slope_of(p, t, loss, parameter):
    """The derivative of the loss in the margin, from the prediction."""
    if loss <= POISSON:
        return p - t
    if loss <= MODIFIED_HUBER:
        s = 2.0 * t - 1.0
        m = s * p
        if m >= 1.0:
            return 0.0
        if loss == HINGE:
            return -s
        if loss == MODIFIED_HUBER and m < -1.0:
            return -4.0 * s
        return -2.0 * s * (1.0 - m)
    r = p - t
    if loss == HUBER:
        return min(max(r, -parameter), parameter)
    if loss == QUANTILE:
        return 1.0 - parameter if r > 0 else (-parameter if r < 0 else 0.0)
    beyond = abs(r) - parameter
    size = 1.0 if loss == EPSILON_INSENSITIVE else 2.0 * beyond
    return (size if r > 0 else -size) if beyond > 0 else 0.0


@_inline
def _value_of(p, t, loss, parameter):
    """The loss of one output, but for `SOFTMAX`."""
    if loss == SQUARED:
        return (p - t) ** 2 / 2
    if loss == LOGISTIC:
        return -t * math.log(max(p, _TINY)) - (1.0 - t) * math.log(max(1.0 - p, _ROUNDED))
    if loss == POISSON:
        return p - t * math.log(max(p, _TINY))
    if loss <= MODIFIED_HUBER:
        m = (2.0 * t - 1.0) * p
        if loss == HINGE:
            return max(0.0, 1.0 - m)
        return -4.0 * m if loss == MODIFIED_HUBER and m < -1.0 else max(0.0, 1.0 - m) ** 2
    r = abs(p - t)
    if loss == HUBER:
        return r * r / 2 if r <= parameter else parameter * r - parameter * parameter / 2
    if loss == QUANTILE:
        return parameter * r if p < t else (1.0 - parameter) * r
    beyond = max(0.0, r - parameter)
    return beyond if loss == EPSILON_INSENSITIVE else beyond * beyond


@_inline
def _value_at(z, t, loss, parameter):
    """`_value_of` by the margin, which knows more than a probability that was rounded to 0 or 1."""
    if loss == LOGISTIC:
        m = z if t == 1.0 else -z
        return math.log1p(math.exp(-abs(m))) + max(-m, 0.0)
    if loss == POISSON:
        return (np.inf if z > _LARGEST else math.exp(z)) - t * z
    return _value_of(z, t, loss, parameter)


@_inline
def _log_of_sum(z):
    """``log(sum(exp(z)))``."""
    top, total = z[0], 0.0
    for c in range(z.size):
        top = max(top, z[c])
    for c in range(z.size):
        total += math.exp(z[c] - top)
    return top + math.log(total)


@kernel
def link(margins, width, loss):
    """Margins (flat, rows * width) to predictions, in place."""
    for i in range(margins.size // width):
        link_of(margins[i * width : (i + 1) * width], width, loss)


@kernel
def losses(values, linked, targets, width, loss, parameter, result):
    """The loss of each row, over its outputs, to ``result``; ``targets`` are as `linear.learn` has them.

    ``values`` are flat, predictions if they are ``linked``, else margins.
    """
    own = targets.shape[1] == width
    for i in range(result.size):
        total = 0.0
        if loss == SOFTMAX and not linked:
            total = _log_of_sum(values[i * width : (i + 1) * width])
        for c in range(width):
            p = values[i * width + c]
            t = targets[i, c] if own else (1.0 if targets[i, 0] == c else 0.0)
            if loss == SOFTMAX:
                if t == 1.0:
                    total -= math.log(max(p, _TINY)) if linked else p
            elif linked:
                total += _value_of(p, t, loss, parameter)
            else:
                total += _value_at(p, t, loss, parameter)
        result[i] = total
