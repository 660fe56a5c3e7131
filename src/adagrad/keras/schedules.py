"""The schedules of `adagrad.schedules` as array code, for a step whose number only the compiled program knows.

Which period or cycle a step falls into is decided in integers, as there; the rest is arithmetic of ``dtype``: float64
where the backend has it, so that the rates are those of `adagrad.schedules` to a few roundings, else float32 (JAX without
x64), where they are within 4e-6 of them, relative to the largest rate of the schedule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import backend, ops

from adagrad import schedules
from adagrad.schedules import LearningRateSchedule

__all__ = ["rate_at_step"]

Tensor = Any


def rate_at_step(schedule: LearningRateSchedule, step: Tensor, dtype: str) -> Tensor:
    """The learning rate of the step numbered ``step``, an integer tensor, as a scalar of ``dtype``.

    A class of your own is called with the tensor, and must be made of operations that the backend has.
    """
    find = _RATES.get(type(schedule))
    if find is None:
        return ops.cast(schedule(step), dtype)
    return ops.cast(find(schedule, _Step(step, dtype)), dtype)


class _Step:
    """The number of a step, as an integer and in the dtype of the arithmetic."""

    def __init__(self, step: Tensor, dtype: str) -> None:
        self.whole, self.dtype = step, dtype
        self.highest = np.iinfo(backend.standardize_dtype(step.dtype)).max

    def real(self, value: Any) -> Tensor:
        # Keras makes float32 of a Python number first.
        return ops.cast(value if ops.is_tensor(value) else np.asarray(value, self.dtype), self.dtype)

    def beyond(self, start: float) -> Tensor:
        """``step - start``, exact in integers where ``start`` is one."""
        if float(start).is_integer() and start <= self.highest:
            return self.real(self.whole - int(start))
        return self.real(self.whole) - start

    def periods(self, length: float, whole: bool) -> Tensor:
        """``step / length``; with ``whole`` its floor."""
        if not whole:
            return self.real(self.whole) / length
        if float(length).is_integer() and length <= self.highest:
            return self.real(self.whole // int(length))
        return self.real(self.whole) // length

    def left(self, length: float, start: float = 0) -> Tensor:
        """The fraction of ``length``, from ``start`` on, that is left; 0 beyond its end."""
        end = start + length
        left = -self.beyond(end)  # ops.maximum makes float32 of float64
        return ops.where(left > 0, left, ops.zeros_like(left)) / length


def _mix(start: float, end: float, share: Tensor) -> Tensor:
    return start * share + end * (1.0 - share)


def _half_cosine(left: Tensor) -> Tensor:
    return 0.5 * (1.0 + ops.cos(math.pi * (1.0 - left)))


def _exponential(s: schedules.ExponentialDecay, step: _Step) -> Tensor:
    return s.initial_learning_rate * ops.power(step.real(s.decay_rate), step.periods(s.decay_steps, s.staircase))


def _inverse_time(s: schedules.InverseTimeDecay, step: _Step) -> Tensor:
    return s.initial_learning_rate / (1.0 + s.decay_rate * step.periods(s.decay_steps, s.staircase))


def _polynomial(s: schedules.PolynomialDecay, step: _Step) -> Tensor:
    if s.cycle:
        now = step.real(step.whole)
        if float(s.decay_steps).is_integer() and s.decay_steps <= step.highest:
            # What is missing to the next multiple; at step 0, one whole length.
            rest = step.real((-step.whole) % int(s.decay_steps))
        else:
            rest = -(-now // s.decay_steps) * s.decay_steps - now  # ops.ceil makes float32 of float64
        rest = ops.where(step.whole == 0, step.real(s.decay_steps), rest)
        left = rest / (now + rest)
    else:
        left = step.left(s.decay_steps)
    return _mix(s.initial_learning_rate, s.end_learning_rate, ops.power(left, step.real(s.power)))


def _cosine(s: schedules.CosineDecay, step: _Step) -> Tensor:
    peak = s.initial_learning_rate if s.warmup_target is None else s.warmup_target
    left = step.left(s.decay_steps, s.warmup_steps)
    rate = peak * _mix(1.0, s.alpha, _half_cosine(left))
    if s.warmup_steps > 0:
        warm = step.beyond(s.warmup_steps) < 0
        rate = ops.where(warm, _mix(s.initial_learning_rate, peak, step.left(s.warmup_steps)), rate)
    return rate


_MOST_CYCLES = 4096  # of a table of restarts


def _cosine_restarts(s: schedules.CosineDecayRestarts, step: _Step) -> Tensor:
    first, t_mul = schedules._ratio(s.first_decay_steps), schedules._ratio(s.t_mul)
    if t_mul[0] == t_mul[1]:
        n, d = first
        if n > step.highest // d:  # hardly a step comes so far
            cycle, left = step.real(0), step.left(s.first_decay_steps)
        else:
            # d cycles take n steps.
            within = (step.whole % n) * d
            cycle = step.real(step.whole // n) * d + step.real(within // n)
            left = (n - step.real(within % n)) / n
        height = ops.power(step.real(s.m_mul), cycle)
    else:
        starts, lengths = _restarts(first, t_mul, step.highest)
        number = ops.sum(ops.cast(step.whole >= _integers(np.ceil(starts[1:]), step), "int32"))
        ceilings = np.ceil(starts)
        since = step.real(step.whole - ops.take(_integers(ceilings, step), number))
        elapsed = since + ops.take(step.real(ceilings - starts), number)
        left = 1.0 - elapsed / ops.take(step.real(lengths), number)
        height = ops.take(step.real([schedules._power(s.m_mul, i) for i in range(len(starts))]), number)
    return s.initial_learning_rate * _mix(1.0, s.alpha, height * _half_cosine(left))


def _integers(values: np.ndarray, step: _Step) -> Tensor:
    return ops.cast(np.array([min(int(value), step.highest) for value in values], np.int64), step.whole.dtype)


def _restarts(first: tuple[int, int], t_mul: tuple[int, int], highest: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the cycles start, and how long they are, up to the highest step: exact integers over a unit, rounded once."""
    starts: list[float] = []
    lengths: list[float] = []
    for cycle in itertools.count():
        unit, start, length = schedules._cycle_bounds(first[0], *t_mul, cycle)
        unit *= first[1] * (t_mul[0] - t_mul[1])
        if start > highest * unit:
            return np.array(starts), np.array(lengths)
        if cycle == _MOST_CYCLES:
            raise ValueError(
                f"t_mul must be 1, or so large that {_MOST_CYCLES} cycles last for ever, got {t_mul[0] / t_mul[1]!r}"
            )
        starts.append(start / unit)
        lengths.append(length / unit)
    raise AssertionError


def _piecewise(s: schedules.PiecewiseConstantDecay, step: _Step) -> Tensor:
    # A step is an integer: it is beyond 2.7 if it is beyond 2.
    passed = [math.floor(boundary) for boundary in s.boundaries if boundary < step.highest]
    if not passed:
        return step.real(s.values[0])
    number = ops.sum(ops.cast(step.whole > _integers(np.array(passed, object), step), "int32"))
    return ops.take(step.real(list(s.values)), number)


_RATES: dict[type, Callable[[Any, _Step], Tensor]] = {
    schedules.ExponentialDecay: _exponential,
    schedules.InverseTimeDecay: _inverse_time,
    schedules.PolynomialDecay: _polynomial,
    schedules.CosineDecay: _cosine,
    schedules.CosineDecayRestarts: _cosine_restarts,
    schedules.PiecewiseConstantDecay: _piecewise,
}
