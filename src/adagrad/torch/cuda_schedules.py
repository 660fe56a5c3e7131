"""The built-in schedules on a device: a learning rate from a count of calls that the host does not know.

The formulas of `adagrad.schedules`, in float64. Whole periods and cycles are counted in integers, as there, so that no
restart is missed (where int64 can't count them, the host is asked); beyond that a rate is within a few roundings of double
precision of the host's.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch

from adagrad import schedules
from adagrad.schedules import LearningRateSchedule

__all__ = ["rate_on_device"]

_LAST = 2**53  # calls beyond which nothing is promised
_CYCLES = 2048  # as many restarts are tabled


def rate_on_device(schedule: LearningRateSchedule, calls: torch.Tensor, capturing: bool) -> torch.Tensor | None:
    """The rate for the largest of ``calls`` (int64), a float64 tensor of one on its device; None for one of the user's own.

    What a schedule needs beside is sent to the device when it is first asked, which must not be in a CUDA graph.

    Raises ``ValueError`` where a step is being captured in a CUDA graph and the schedule has to be asked on the host.
    """
    formula = _FORMULAS.get(type(schedule))
    if formula is not None:
        with contextlib.suppress(_UncountableError):
            return formula(schedule, calls.max())
    if capturing:
        raise ValueError(
            "in a CUDA graph lr must be a number, a tensor on the device, or a built-in schedule whose periods can be counted "
            "there (their lengths are numbers of up to nine digits, and if they grow, by at least a percent); "
            f"got {schedule!r}"
        )
    return None


class _UncountableError(Exception):
    """A schedule whose periods can't be counted on a device."""


def _fraction(number: float) -> Fraction:
    """A number of steps exactly: a float is the decimal that Python prints for it."""
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))


def _counted(length: float) -> Fraction:
    """A length whose periods int64 counts for 2**32 calls and more."""
    exact = _fraction(length)
    if exact.numerator >= 2**31 or exact.denominator >= 2**31:
        raise _UncountableError
    return exact


def _periods(step: torch.Tensor, length: float, whole: bool) -> torch.Tensor:
    """How many lengths fit into the step; only whole ones count if ``whole``."""
    if whole:
        exact = _counted(length)
        return (step * exact.denominator // exact.numerator).double()
    return step.double() / float(length)


def _half_cosine(left: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1.0 + torch.cos(math.pi * (1.0 - left)))


def _mix(start: float, end: float, share: torch.Tensor) -> torch.Tensor:
    return start * share + end * (1.0 - share)


def _exponential(own: schedules.ExponentialDecay, step: torch.Tensor) -> torch.Tensor:
    base = torch.full((), own.decay_rate, dtype=torch.float64, device=step.device)
    return own.initial_learning_rate * base ** _periods(step, own.decay_steps, own.staircase)


def _inverse_time(own: schedules.InverseTimeDecay, step: torch.Tensor) -> torch.Tensor:
    return own.initial_learning_rate / (1.0 + own.decay_rate * _periods(step, own.decay_steps, own.staircase))


def _polynomial(own: schedules.PolynomialDecay, step: torch.Tensor) -> torch.Tensor:
    length = float(own.decay_steps)
    elapsed = step.double()
    if own.cycle:
        exact = _counted(own.decay_steps)
        # The number of lengths, rounded up: minus the floor of minus.
        lengths = -((-step * exact.denominator) // exact.numerator)
        limit = lengths.clamp(min=1).double() * length
    else:
        limit = torch.full_like(elapsed, length)
    left = (limit - elapsed).clamp(min=0.0) / limit
    return _mix(own.initial_learning_rate, own.end_learning_rate, left**own.power)


def _cosine(own: schedules.CosineDecay, step: torch.Tensor) -> torch.Tensor:
    peak = own.initial_learning_rate if own.warmup_target is None else own.warmup_target
    warmup = float(own.warmup_steps)
    left = ((warmup + float(own.decay_steps)) - step.double()).clamp(0.0, float(own.decay_steps)) / float(own.decay_steps)
    rate = peak * _mix(1.0, own.alpha, _half_cosine(left))
    if not own.warmup_steps:
        return rate
    rising = _mix(own.initial_learning_rate, peak, (warmup - step.double()).clamp(min=0.0) / warmup)
    return torch.where(step.double() < warmup, rising, rate)


@functools.lru_cache(maxsize=16)
def _cycles(first: float, t_mul: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first whole step of each cycle but the first, and where all cycles start and end; there may be too many."""
    ratio, length, starts = _fraction(t_mul), _fraction(first), [Fraction(0)]
    while starts[-1] < _LAST:
        if len(starts) > _CYCLES:
            raise _UncountableError
        starts.append(starts[-1] + length)
        length *= ratio
    bounds = torch.tensor([float(start) for start in starts], dtype=torch.float64, device="cpu")
    firsts = torch.tensor([math.ceil(start) for start in starts[1:]], dtype=torch.int64, device="cpu")
    return firsts.to(device), bounds[:-1].to(device), bounds[1:].to(device)


def _restarts(own: schedules.CosineDecayRestarts, step: torch.Tensor) -> torch.Tensor:
    if own.t_mul == 1:
        exact = _counted(own.first_decay_steps)
        cycle = step * exact.denominator // exact.numerator
        elapsed, length = (step * exact.denominator - cycle * exact.numerator).double(), float(exact.numerator)
        left = (length - elapsed) / length
    else:
        firsts, starts, ends = _cycles(own.first_decay_steps, own.t_mul, step.device)
        cycle = torch.bucketize(step, firsts, right=True)
        left = (ends[cycle] - step.double()) / (ends[cycle] - starts[cycle])
    height = torch.full((), own.m_mul, dtype=torch.float64, device=step.device) ** cycle.double() * _half_cosine(left)
    return own.initial_learning_rate * _mix(1.0, own.alpha, height)


def _piecewise(own: schedules.PiecewiseConstantDecay, step: torch.Tensor) -> torch.Tensor:
    rate = torch.full((), own.values[0], dtype=torch.float64, device=step.device)
    for boundary, value in zip(own.boundaries, own.values[1:], strict=True):
        rate = torch.where(step > math.floor(boundary), value, rate)
    return rate


_FORMULAS: dict[type, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    schedules.ExponentialDecay: _exponential,
    schedules.InverseTimeDecay: _inverse_time,
    schedules.PolynomialDecay: _polynomial,
    schedules.CosineDecay: _cosine,
    schedules.CosineDecayRestarts: _restarts,
    schedules.PiecewiseConstantDecay: _piecewise,
}
