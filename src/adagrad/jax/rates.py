"""The learning rate inside a compiled step: the schedules of `adagrad.schedules` as array code over the count of calls.

Which period or cycle a step falls into is decided in integers, as the schedules themselves do it, so no restart is missed and
no two steps are taken for one however long training goes on. The rates are computed in float64 where JAX has it, else in
float32: within 2**-20 of the schedule's, relatively; for a power r**x, times 1 + |x * log(r)|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from adagrad import schedules
from adagrad.jax import counting
from adagrad.schedules import LearningRateSchedule

__all__ = ["optax_schedule", "rate_at"]

Array = jax.Array
_MOST_CYCLES = 65_536  # of which the starts are kept in a table


def rate_at(rate: Any, count: Array) -> Array:
    """The learning rate of the call numbered ``count`` (two words, see `counting`): a scalar, float64 if JAX has it.

    ``rate`` is a number or an array, a schedule, or a function of the count as an int32 (optax's).
    """
    dtype = jnp.result_type(float)
    if type(rate) in _SIX:
        return _SIX[type(rate)](rate, count, dtype)
    if callable(rate):
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
    return jnp.asarray(rate, dtype if isinstance(rate, float) else None)


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


def _fraction(number: Any) -> Fraction:
    """The number; a float is the decimal that Python prints for it, as everywhere in the schedules."""
    return Fraction(number if isinstance(number, int) else repr(number))


def _left(count: Array, length: Any, dtype: Any, start: Any = 0) -> Array:
    """The fraction of the length, begun at ``start``, that is left: 1 at most, 0 beyond its end."""
    end = _fraction(start) + _fraction(length)
    whole = math.ceil(end)
    left = counting.remaining(count, whole, dtype) - float(whole - end)
    return jnp.clip(left / float(length), 0, 1)


def _periods(count: Array, length: Any, staircase: bool, dtype: Any) -> Array:
    if staircase:
        return counting.to_float(counting.divide(count, _fraction(length), dtype)[0], dtype)
    return counting.to_float(count, dtype) / float(length)


def _half_cosine(left: Array) -> Array:
    """(1 + cos(pi * (1 - left))) / 2, as a square: near its end nothing cancels."""
    return jnp.sin(0.5 * math.pi * left) ** 2


def _mix(start: Any, end: Any, share: Array) -> Array:
    return start * share + end * (1 - share)


def _exponential(s: schedules.ExponentialDecay, count: Array, dtype: Any) -> Array:
    periods = _periods(count, s.decay_steps, s.staircase, dtype)
    return s.initial_learning_rate * jnp.power(jnp.asarray(s.decay_rate, dtype), periods)


def _inverse_time(s: schedules.InverseTimeDecay, count: Array, dtype: Any) -> Array:
    return s.initial_learning_rate / (1 + s.decay_rate * _periods(count, s.decay_steps, s.staircase, dtype))


def _polynomial(s: schedules.PolynomialDecay, count: Array, dtype: Any) -> Array:
    left = _left(count, s.decay_steps, dtype)
    if s.cycle:
        number, elapsed, rest = counting.divide(count, _fraction(s.decay_steps), dtype)
        # Period n (from 0) is the last of n + 1 lengths; an exact multiple of the length is an end.
        cycled = rest / float(s.decay_steps) / (counting.to_float(number, dtype) + 1)
        left = jnp.where(counting.reaches(number, 1), jnp.where(elapsed == 0, 0, cycled), left)
    return _mix(s.initial_learning_rate, s.end_learning_rate, jnp.power(left, s.power))


def _cosine(s: schedules.CosineDecay, count: Array, dtype: Any) -> Array:
    peak = s.initial_learning_rate if s.warmup_target is None else s.warmup_target
    rate = peak * _mix(1.0, s.alpha, _half_cosine(_left(count, s.decay_steps, dtype, s.warmup_steps)))
    if s.warmup_steps > 0:
        rising = _mix(s.initial_learning_rate, peak, _left(count, s.warmup_steps, dtype))
        rate = jnp.where(counting.reaches(count, math.ceil(_fraction(s.warmup_steps))), rate, rising)
    return rate


def _restarts(s: schedules.CosineDecayRestarts, count: Array, dtype: Any) -> Array:
    first, ratio = _fraction(s.first_decay_steps), _fraction(s.t_mul)
    if ratio == 1:
        number, _, rest = counting.divide(count, first, dtype)
        cycle, left = counting.to_float(number, dtype), rest / float(first)
    else:
        cycle, left = _growing_cycle(count, first, ratio, dtype)
    height = jnp.power(jnp.asarray(s.m_mul, dtype), cycle) * _half_cosine(left)
    return s.initial_learning_rate * _mix(1.0, s.alpha, height)


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


def _piecewise(s: schedules.PiecewiseConstantDecay, count: Array, dtype: Any) -> Array:
    # A whole step is beyond a boundary when it reaches the next whole number.
    passed = [counting.reaches(count, math.floor(_fraction(b)) + 1) for b in s.boundaries]
    return jnp.asarray(s.values, dtype)[sum((p.astype(jnp.int32) for p in passed), jnp.zeros((), jnp.int32))]


_SIX: dict[Any, Callable[[Any, Array, Any], Array]] = {
    schedules.CosineDecay: _cosine,
    schedules.CosineDecayRestarts: _restarts,
    schedules.ExponentialDecay: _exponential,
    schedules.InverseTimeDecay: _inverse_time,
    schedules.PiecewiseConstantDecay: _piecewise,
    schedules.PolynomialDecay: _polynomial,
}
