"""A count of calls that never wraps: two uint32 words, low and high, since JAX has no 64-bit integers unless asked for.

Everything is exact, below 2**64. The schedules ask where a count stands in a period; the stages, whether a step is due.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["divide", "increment", "of", "reaches", "remaining", "saturated", "to_float", "to_int"]

Array = jax.Array
Words = tuple[Array, Array]  # low, high

_MASK = 2**32 - 1
_END = 2**64


def of(number: int) -> Array:
    """The count of a Python int in [0, 2**64): uint32, shape (2,)."""
    if not 0 <= number < _END:
        raise ValueError(f"a count must be in [0, 2**64), got {number}")
    return jnp.array([number & _MASK, number >> 32], jnp.uint32)


def to_int(count: Any) -> int:
    """The Python int of a count."""
    low, high = np.asarray(count).tolist()
    return int(low) | int(high) << 32


def increment(count: Array) -> Array:
    """``count + 1``."""
    low = count[0] + jnp.uint32(1)
    return jnp.stack([low, count[1] + (low == 0).astype(jnp.uint32)])


def saturated(count: Array) -> Array:
    """The count as an int32 that stays at its largest value: what optax hands to a schedule."""
    top = jnp.uint32(2**31 - 1)
    return jnp.where(count[1] > 0, top, jnp.minimum(count[0], top)).astype(jnp.int32)


def reaches(count: Array, number: int) -> Array:
    """``count >= number``."""
    if number >= _END:
        return jnp.zeros((), bool)
    return _not_less((count[0], count[1]), _words(max(number, 0)))


def to_float(count: Array, dtype: Any) -> Array:
    """The count in a floating dtype, within an ULP."""
    return _float((count[0], count[1]), dtype)


def remaining(count: Array, end: int, dtype: Any) -> Array:
    """``max(end - count, 0)``: the difference is taken in integers, then rounded."""
    if end >= _END:  # what is taken away is less than the rounding
        return jnp.asarray(float(end), dtype) - to_float(count, dtype)
    left = _subtract(_words(max(end, 0)), (count[0], count[1]))
    return jnp.where(reaches(count, end), 0, _float(left, dtype))


def divide(count: Array, length: Fraction | int, dtype: Any) -> tuple[Array, Array, Array]:
    """``(floor(count / length), elapsed, left)``: the quotient as a count, and how much of the period is over and left.

    By long division, bit by bit, in units in which both are integers; only ``elapsed`` and ``left`` are rounded.
    """
    top, bottom = Fraction(length).as_integer_ratio()
    if top >= 2**62:
        if bottom == 1:  # longer than any count
            return of(0), to_float(count, dtype), remaining(count, top, dtype)
        raise ValueError(f"a length must be a fraction with a numerator below 2**62 inside JAX, got {length}")
    # Each bit of the count that comes down is worth bottom = whole * top + part.
    whole, part = divmod(bottom, top)
    unit, add, add_whole = _words(top), _words(part), _words(whole % _END)

    def body(i: Array, state: tuple[Words, Words]) -> tuple[Words, Words]:
        quotient, rest = state
        place = 63 - i
        word = jnp.where(place >= 32, count[1], count[0])
        bit = (word >> (place % 32).astype(jnp.uint32)) & 1
        quotient = _add(_add(quotient, quotient), _times(add_whole, bit))
        rest = _add(_add(rest, rest), _times(add, bit))
        for _ in range(2):  # rest < 3 * top
            due = _not_less(rest, unit)
            less = _subtract(rest, unit)
            rest = jnp.where(due, less[0], rest[0]), jnp.where(due, less[1], rest[1])
            quotient = _add(quotient, (due.astype(jnp.uint32), jnp.zeros((), jnp.uint32)))
        return quotient, rest

    zero = (jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.uint32))
    quotient, rest = jax.lax.fori_loop(0, 64, body, (zero, zero))
    elapsed, left = _float(rest, dtype), _float(_subtract(unit, rest), dtype)
    return jnp.stack(quotient), elapsed / float(bottom), left / float(bottom)


def _words(number: int) -> Words:
    return jnp.asarray(number & _MASK, jnp.uint32), jnp.asarray(number >> 32, jnp.uint32)


def _float(words: Words, dtype: Any) -> Array:
    return words[1].astype(dtype) * 2.0**32 + words[0].astype(dtype)


def _add(x: Words, y: Words) -> Words:
    low = x[0] + y[0]
    return low, x[1] + y[1] + (low < x[0]).astype(jnp.uint32)


def _subtract(x: Words, y: Words) -> Words:
    return x[0] - y[0], x[1] - y[1] - (x[0] < y[0]).astype(jnp.uint32)


def _times(x: Words, bit: Array) -> Words:
    return x[0] * bit, x[1] * bit


def _not_less(x: Words, y: Words) -> Array:
    return (x[1] > y[1]) | ((x[1] == y[1]) & (x[0] >= y[0]))
