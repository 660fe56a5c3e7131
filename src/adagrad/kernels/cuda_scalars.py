"""What a step begins and ends with on the device: the scalars of every slot, and the counters.

Nothing of it is looked at by the host, so that a step can be captured in a CUDA graph and be skipped by `GradScaler`
without waiting for the device.
"""

import triton
import triton.language as tl

from adagrad.kernels import elements
from adagrad.kernels.cuda import GROUP, OVERWRITE, REAL, SKIP, SLOT_COLUMNS
from adagrad.kernels.cuda_elements import COLUMNS, GIVEN_SCALE, RATE_DECAY

__all__ = ["count", "prepare"]

_LR, _SCALE, _FIRST = tl.constexpr(elements.LR), tl.constexpr(elements.SCALE), tl.constexpr(elements.FIRST)
_GIVEN_SCALE, _RATE_DECAY = tl.constexpr(GIVEN_SCALE), tl.constexpr(RATE_DECAY)


@triton.jit
def _latest(calls, groups, GROUPS: tl.constexpr):
    """The count of calls of the optimizer: the largest of its groups'."""
    k = tl.arange(0, GROUPS)
    return tl.max(tl.load(calls + k, k < groups, other=0), axis=0)


@triton.jit
def prepare(
    slots,
    grads,
    scalars,
    active,
    cycle,
    flags,
    calls,
    steps,
    rates,
    grad_scale,
    found_inf,
    count,
    groups,
    every,
    frequency,
    SCALED: tl.constexpr,
    CHECKED: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find out what this call is, and write the scalars that depend on it.

    ``calls`` of each group and ``steps`` of each slot are int64, ``rates`` of each group float64, ``cycle`` int32: whether
    a slot has had a gradient in this cycle of ``every`` calls. ``frequency`` 0 stands for no overwriting. With SCALED
    gradients are divided by ``grad_scale`` too, with CHECKED a ``found_inf`` that is not 0 makes the call do nothing.
    """
    latest = _latest(calls, groups, GROUPS)
    skip = 0
    if CHECKED:
        skip = (tl.load(found_inf) != 0).to(tl.int32)
    real = ((latest + 1) % every == 0).to(tl.int32) * (1 - skip)
    overwrite = 0
    if frequency > 0:
        overwrite = ((latest // every + 1) % frequency == 0).to(tl.int32)
    if tl.program_id(0) == 0:
        tl.store(flags + SKIP, skip)
        tl.store(flags + REAL, real)
        tl.store(flags + OVERWRITE, overwrite)
    v = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = v < count
    group = tl.load(slots + v * SLOT_COLUMNS + GROUP, there, other=0)
    row = scalars + v * COLUMNS
    done = tl.load(steps + v, there, other=0).to(tl.float64)
    decay = tl.load(row + _RATE_DECAY, there, other=0.0)
    rate = tl.load(rates + group, there, other=0.0) / (1.0 + done * decay)
    tl.store(row + _LR, rate, there)
    scale = tl.load(row + _GIVEN_SCALE, there, other=1.0)
    if SCALED:
        scale *= tl.load(grad_scale).to(tl.float64)
    tl.store(row + _SCALE, scale, there)
    real_steps = latest // every - (latest - tl.load(calls + group, there, other=0)) // every
    tl.store(row + _FIRST, (real_steps == 0).to(tl.float64), there)
    given = (tl.load(grads + v, there, other=0) != 0).to(tl.int32) * (1 - skip)
    given = tl.maximum(given, tl.load(cycle + v, there, other=0))
    tl.store(cycle + v, given * (1 - real), there)
    tl.store(active + v, given * real, there)


@triton.jit
def count(flags, active, calls, steps, size, groups, BLOCK: tl.constexpr):
    """Stage 11: every group's calls, and the steps of each slot that has moved; nothing where the call was skipped."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    moved = tl.load(active + i, i < size, other=0).to(tl.int64)
    tl.store(steps + i, tl.load(steps + i, i < size, other=0) + moved, i < size)
    done = (1 - tl.load(flags + SKIP)).to(tl.int64)
    tl.store(calls + i, tl.load(calls + i, i < groups, other=0) + done, i < groups)
