"""The stages of `adagrad.rule` once more, in Triton: what the CUDA kernels do to an element.

It is the one second text of the mathematics, and it gives the same bits: division and square root are those of IEEE 754
(`div_rn`, `sqrt_rn`; Triton's plain ones are approximate in float32), every kernel is compiled without contraction of
``a*b + c``, and a half is widened before anything else. `kernels.elements` says which scalar is where; here they stand in
double precision in the device's memory, in rows of `COLUMNS`, and are rounded once to the arithmetic's dtype.
"""

import triton
import triton.language as tl

from adagrad.kernels import elements

__all__ = [
    "BOUND",
    "COLUMNS",
    "EXACT",
    "GIVEN_SCALE",
    "RATE_DECAY",
    "average",
    "follow",
    "gradient",
    "mean_gradient",
    "narrow",
    "prepare",
    "scalars_of",
    "widen",
]

# Columns beyond those of `elements`, which `cuda_scalars` makes the others of: the factor of the gradient's scale that is
# known beforehand, the decay of the rate by the parameter's own steps, the bound of the norm.
GIVEN_SCALE, RATE_DECAY, BOUND = range(12, 15)
COLUMNS = tl.constexpr(16)
# What every launch is compiled with: no a*b + c in one instruction.
EXACT = {"enable_fp_fusion": False}

_LR = tl.constexpr(elements.LR)
_INSIDE = tl.constexpr(elements.INSIDE)
_OUTSIDE = tl.constexpr(elements.OUTSIDE)
_SCALE = tl.constexpr(elements.SCALE)
_STEPS = tl.constexpr(elements.STEPS)
_CLIPVALUE = tl.constexpr(elements.CLIPVALUE)
_FACTOR = tl.constexpr(elements.FACTOR)
_DECAY = tl.constexpr(elements.DECAY)
_L2 = tl.constexpr(elements.L2)
_MOMENTUM = tl.constexpr(elements.MOMENTUM)
_COMPLEMENT = tl.constexpr(elements.COMPLEMENT)
_FIRST = tl.constexpr(elements.FIRST)


@triton.jit
def widen(x):
    """The number that a stored element stands for; a bfloat16 comes as its bits (uint16)."""
    if x.dtype == tl.uint16:
        x = (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.float16:
        x = x.to(tl.float32)
    return x


@triton.jit
def narrow(x, stored: tl.constexpr):
    """The element that is stored for ``x``: halves rounded to nearest, ties to even; a bfloat16 as its bits."""
    if stored == tl.uint16:
        # In integers: Triton's interpreter rounds otherwise, and so do devices without an instruction for it.
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        x = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits >> 16) | 0x40, rounded).to(tl.uint16)
    elif stored == tl.float16:
        x = x.to(tl.float16)
    return x


@triton.jit
def _div(x, y):
    if x.dtype == tl.float64:
        quotient = x / y
    else:
        quotient = tl.math.div_rn(x, y)
    return quotient


@triton.jit
def _sqrt(x):
    if x.dtype == tl.float64:
        root = tl.sqrt(x)
    else:
        root = tl.math.sqrt_rn(x)
    return root


@triton.jit
def scalars_of(scalars, v, STATE: tl.constexpr):
    """The scalars of slot ``v`` in the dtype of the arithmetic, loaded once."""
    row = scalars + v * COLUMNS
    return (
        tl.load(row + 0).to(STATE),
        tl.load(row + 1).to(STATE),
        tl.load(row + 2).to(STATE),
        tl.load(row + 3).to(STATE),
        tl.load(row + 4).to(STATE),
        tl.load(row + 5).to(STATE),
        tl.load(row + 6).to(STATE),
        tl.load(row + 7).to(STATE),
        tl.load(row + 8).to(STATE),
        tl.load(row + 9).to(STATE),
        tl.load(row + 10).to(STATE),
        tl.load(row + 11).to(STATE),
    )


@triton.jit
def gradient(g, s):
    """Stage 3."""
    return _div(g, s[_SCALE])


@triton.jit
def mean_gradient(b, s):
    """Stage 4 on the real step: the buffer has every gradient of the cycle, the last call's too."""
    return _div(b, s[_STEPS] + tl.zeros_like(b))


@triton.jit
def prepare(p, g, s):
    """Stages 5 and 6: ``(p, g)`` decayed and clipped."""
    c = s[_CLIPVALUE]
    g = tl.where(g > c, c, tl.where(g < -c, -c, g))
    g = tl.where(g != 0, g * s[_FACTOR], g)
    p = tl.where(s[_DECAY] != 0, p - (p * s[_DECAY]) * s[_LR], p)
    g = tl.where(s[_L2] != 0, g + s[_L2] * p, g)
    return p, g


@triton.jit
def follow(p, a, g, square, s):
    """Stage 7."""
    lr = s[_LR]
    a = a + square
    divisor = _sqrt(a + s[_INSIDE]) + s[_OUTSIDE]
    step = tl.where(divisor == 0, tl.where(g > 0, lr, -lr), _div(lr * g, divisor))
    return tl.where(g == 0, p, p - step), a


@triton.jit
def average(m, p, s):
    """Stage 9."""
    return tl.where(s[_FIRST] != 0, p, s[_MOMENTUM] * m + s[_COMPLEMENT] * p)
