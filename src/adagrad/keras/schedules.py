"""The formulas of `adagrad.schedules` as array code, for a step whose number only the compiled program knows.

Which period or cycle a step falls into is decided in integers, as there; the rest is arithmetic of ``dtype``: float64
where the backend has it, so that the rates are those of `adagrad.schedules` to a few roundings, else float32 (JAX without
x64), where they are within 4e-6 of them, relative to the largest rate of the schedule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from keras import backend, ops

from adagrad.schedules import LearningRateSchedule, rate_by
from adagrad.steps import Length, Steps, cycle_bounds, exact

__all__ = ["rate_at_step"]

Tensor = Any


def rate_at_step(schedule: LearningRateSchedule, step: Tensor, dtype: str) -> Tensor:
    """The learning rate of the step numbered ``step``, an integer tensor, as a scalar of ``dtype``.

    A class of your own is called with the tensor, and must be made of operations that the backend has.
    """
    rate = rate_by(schedule, _Step(step, dtype))
    return ops.cast(schedule(step) if rate is None else rate, dtype)


class _Step:
    """The number of a step, as the formulas ask of it; the methods of `adagrad.steps.Step`, which see."""

    choose = staticmethod(ops.where)

    def __init__(self, step: Tensor, dtype: str) -> None:
        self.whole, self.dtype = step, dtype
        self.highest = np.iinfo(backend.standardize_dtype(step.dtype)).max

    def _real(self, value: Any) -> Tensor:
        # Keras makes float32 of a Python number first.
        return ops.cast(value if ops.is_tensor(value) else np.asarray(value, self.dtype), self.dtype)

    def _integers(self, values: Any) -> Tensor:
        return ops.cast(np.array([min(int(value), self.highest) for value in values], np.int64), self.whole.dtype)

    def _beyond(self, start: Steps) -> Tensor:
        """``step - start``, exact in integers where ``start`` is one."""
        if float(start).is_integer() and start <= self.highest:
            return self._real(self.whole - int(start))
        return self._real(self.whole) - start

    def periods(self, length: Length, whole: bool) -> Tensor:
        if not whole:
            return self._real(self.whole) / length
        if float(length).is_integer() and length <= self.highest:
            return self._real(self.whole // int(length))
        return self._real(self.whole) // length

    def left(self, length: Length, start: Steps = 0) -> Tensor:
        left = -self._beyond(start + length)  # ops.clip makes float32 of float64
        left = ops.where(left > 0, left, ops.zeros_like(left)) / length
        return ops.where(left < 1, left, ops.ones_like(left))

    def left_of_multiple(self, length: Length) -> Tensor:
        now = self._real(self.whole)
        if float(length).is_integer() and length <= self.highest:
            # What is missing to the next multiple; at step 0, one whole length.
            rest = self._real((-self.whole) % int(length))
        else:
            rest = -(-now // length) * length - now  # ops.ceil makes float32 of float64
        rest = ops.where(self.whole == 0, self._real(length), rest)
        return rest / (now + rest)

    def cycle(self, first: Length, ratio: float) -> tuple[Tensor, Tensor]:
        if ratio != 1:
            return self._growing_cycle(exact(first), exact(ratio))
        n, d = exact(first).as_integer_ratio()
        if n > self.highest // d:  # hardly a step comes so far
            return self._real(0), self.left(first)
        # d cycles take n steps.
        within = (self.whole % n) * d
        return self._real(self.whole // n) * d + self._real(within // n), (n - self._real(within % n)) / n

    def _growing_cycle(self, first: Fraction, ratio: Fraction) -> tuple[Tensor, Tensor]:
        starts, lengths = _cycles(first, ratio, self.highest)
        number = ops.sum(ops.cast(self.whole >= self._integers(np.ceil(starts[1:])), "int32"))
        ceilings = np.ceil(starts)
        since = self._real(self.whole - ops.take(self._integers(ceilings), number))
        elapsed = since + ops.take(self._real(ceilings - starts), number)
        return self._real(number), 1.0 - elapsed / ops.take(self._real(lengths), number)

    def reaches(self, number: Steps) -> Tensor:
        return self._beyond(number) >= 0

    def pick(self, boundaries: Sequence[Steps], values: Sequence[float]) -> Tensor:
        # A step is an integer: it is beyond 2.7 if it is beyond 2.
        passed = [math.floor(boundary) for boundary in boundaries if boundary < self.highest]
        if not passed:
            return self._real(values[0])
        number = ops.sum(ops.cast(self.whole > self._integers(passed), "int32"))
        return ops.take(self._real(list(values)), number)

    @staticmethod
    def half_cosine(left: Tensor) -> Tensor:
        return 0.5 * (1.0 + ops.cos(math.pi * (1.0 - left)))

    def power(self, base: Any, exponent: Any) -> Tensor:
        return ops.power(self._real(base), self._real(exponent))


_MOST_CYCLES = 4096  # of a table of restarts


def _cycles(first: Fraction, ratio: Fraction, highest: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the cycles start, and how long they are, up to the highest step: exact integers over a unit, rounded once."""
    starts: list[float] = []
    lengths: list[float] = []
    n, d = ratio.as_integer_ratio()
    for cycle in itertools.count():
        unit, start, length = cycle_bounds(first.numerator, n, d, cycle)
        unit *= first.denominator * (n - d)
        if start > highest * unit:
            return np.array(starts), np.array(lengths)
        if cycle == _MOST_CYCLES:
            raise ValueError(f"t_mul must be 1, or so large that {_MOST_CYCLES} cycles last for ever, got {float(ratio)!r}")
        starts.append(start / unit)
        lengths.append(length / unit)
    raise AssertionError
