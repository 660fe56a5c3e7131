"""The learning rate inside a compiled step: the formulas of `adagrad.schedules` over the count of calls.

Which period or cycle a step falls into is decided in integers, as the schedules themselves do it, so no restart is missed and
no two steps are taken for one however long training goes on. The rates are computed in float64 where JAX has it, else in
float32: within 2**-20 of the schedule's, relatively; for a power r**x, times 1 + |x * log(r)|.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from adagrad.jax import counting
from adagrad.schedules import LearningRateSchedule, rate_by
from adagrad.steps import Length, Steps, exact

__all__ = ["optax_schedule", "rate_at"]

Array = jax.Array
_MOST_CYCLES = 65_536  # of which the starts are kept in a table


def rate_at(rate: Any, count: Array) -> Array:
    """The learning rate of the call numbered ``count`` (two words, see `counting`): a scalar, float64 if JAX has it.

    ``rate`` is a number or an array, a schedule, or a function of the count as an int32 (optax's).
    """
    dtype = jnp.result_type(float)
    if not callable(rate):
        return jnp.asarray(rate, dtype if isinstance(rate, float) else None)
    found = rate_by(rate, _Step(count, dtype))
    if found is not None:
        return jnp.asarray(found)
    try:
        value = jnp.asarray(rate(counting.saturated(count)))
    except (TypeError, ValueError, jax.errors.JAXTypeError) as error:
        error.add_note(
            f"learning_rate is {rate!r}, called with the count of calls as an int32 array: inside jit it must compute "
            "with jax.numpy"
        )
        raise
    if value.shape != () or jnp.iscomplexobj(value):
        raise ValueError(f"learning_rate must give a real scalar, got {value.dtype} of {value.shape}")
    return value


def optax_schedule(schedule: LearningRateSchedule) -> Callable[[Any], Array]:
    """A schedule of `adagrad.schedules` as optax has them, a function of the count, which also works inside jit.

    For ``optax.inject_hyperparams``, or for other optimizers; ``learning_rate`` takes the schedule itself.

    >>> from adagrad import schedules
    >>> float(optax_schedule(schedules.InverseTimeDecay(0.5, 1, 1.0))(1))
    0.25
    """

    def rate(count: Any) -> Array:
        low = jnp.asarray(count).astype(jnp.uint32)
        return rate_at(schedule, jnp.stack([low, jnp.zeros_like(low)]))

    return rate


class _Step:
    """A count as the formulas ask of it; the methods of `adagrad.steps.Step`, which see."""

    choose = staticmethod(jnp.where)

    def __init__(self, count: Array, dtype: Any) -> None:
        self.count, self.dtype = count, dtype

    def periods(self, length: Length, whole: bool) -> Array:
        if whole:
            return counting.to_float(counting.divide(self.count, exact(length), self.dtype)[0], self.dtype)
        return counting.to_float(self.count, self.dtype) / float(length)

    def left(self, length: Length, start: Steps = 0) -> Array:
        end = exact(start) + exact(length)
        whole = math.ceil(end)
        left = counting.remaining(self.count, whole, self.dtype) - float(whole - end)
        return jnp.clip(left / float(length), 0, 1)

    def left_of_multiple(self, length: Length) -> Array:
        number, elapsed, rest = counting.divide(self.count, exact(length), self.dtype)
        # Period n (from 0) is the last of n + 1 lengths; an exact multiple of the length is an end.
        left = rest / float(length) / (counting.to_float(number, self.dtype) + 1)
        return jnp.where(counting.reaches(number, 1) & (elapsed == 0), 0, left)

    def cycle(self, first: Length, ratio: float) -> tuple[Array, Array]:
        if ratio == 1:
            number, _, rest = counting.divide(self.count, exact(first), self.dtype)
            return counting.to_float(number, self.dtype), rest / float(first)
        return _growing_cycle(self.count, exact(first), exact(ratio), self.dtype)

    def reaches(self, number: Steps) -> Array:
        return counting.reaches(self.count, math.ceil(exact(number)))

    def pick(self, boundaries: Sequence[Steps], values: Sequence[float]) -> Array:
        # A whole step is beyond a boundary when it reaches the next whole number.
        passed = [counting.reaches(self.count, math.floor(exact(b)) + 1) for b in boundaries]
        return jnp.asarray(values, self.dtype)[sum((p.astype(jnp.int32) for p in passed), jnp.zeros((), jnp.int32))]

    @staticmethod
    def half_cosine(left: Array) -> Array:
        return jnp.sin(0.5 * math.pi * left) ** 2  # near its end nothing cancels

    def power(self, base: Any, exponent: Any) -> Array:
        return jnp.power(jnp.asarray(base, self.dtype), exponent)


def _growing_cycle(count: Array, first: Fraction, ratio: Fraction, dtype: Any) -> tuple[Array, Array]:
    """The number of the cycle and what is left of it, each ``ratio`` > 1 times as long as the one before."""
    if math.log1p(2.0**64 * float((ratio - 1) / first)) > _MOST_CYCLES * math.log(ratio):
        raise ValueError(
            f"t_mul must be 1, or so large that 2**64 steps have at most {_MOST_CYCLES} cycles inside JAX, got {float(ratio)!r}"
        )
    # The end of each cycle, exactly: first * (r**n - 1) / (r - 1).
    ends: list[Fraction] = []
    power = ratio
    while not ends or ends[-1] < 2**64:
        ends.append(first * (power - 1) / (ratio - 1))
        power *= ratio
        if power.denominator.bit_length() > 4096:  # enough for a double; exact to here
            power = power.limit_denominator(2**512)
    whole = [min(math.ceil(end), 2**64 - 1) for end in ends]
    lows = jnp.array([n & 0xFFFFFFFF for n in whole], jnp.uint32)
    highs = jnp.array([n >> 32 for n in whole], jnp.uint32)
    passed = (count[1] > highs) | ((count[1] == highs) & (count[0] >= lows))
    number = jnp.minimum(jnp.sum(passed, dtype=jnp.int32), len(ends) - 1)
    low, high = lows[number], highs[number]
    difference = jnp.stack([low - count[0], high - count[1] - (low < count[0]).astype(jnp.uint32)])
    gaps = jnp.array([float(n - end) for n, end in zip(whole, ends, strict=True)], dtype)[number]
    starts = [Fraction(0), *ends[:-1]]
    lengths = jnp.array([float(end - start) for start, end in zip(starts, ends, strict=True)], dtype)[number]
    left = (counting.to_float(difference, dtype) - gaps) / lengths
    return number.astype(dtype), jnp.clip(left, 0, 1)
