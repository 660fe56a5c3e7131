"""Where a step stands in the periods of a schedule: decided in integers, so that no restart is missed, then a double.

The formulas of `adagrad.schedules` ask a `Step` and compute with what it answers. Where the number of a step is known to a
compiled program alone, a face gives them a class of its own with the same methods, whose answers are arrays.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

__all__ = ["Length", "Step", "Steps", "cycle_bounds", "exact"]

Steps = int | float  # a number of steps in [0, inf); an int stays one, however large
Length = int | float  # the same in (0, inf)


class Step:
    """The step numbered ``number``, an int of any size."""

    def __init__(self, number: int) -> None:
        self.number = number

    def periods(self, length: Length, whole: bool) -> float:
        """How many lengths fit into the step; only whole ones count if ``whole``."""
        elapsed, unit = self._in_units(length)
        if whole:
            return _float(elapsed // unit)
        try:
            return elapsed / unit  # of two ints: correctly rounded, however large they are
        except OverflowError:
            return sys.float_info.max

    def left(self, length: Length, start: Steps = 0) -> float:
        """The fraction that is left of a length which begins at ``start``, rounded once: 1 before it, 0 beyond its end."""
        elapsed, unit = self._in_units(length, start)
        return min(max(unit - elapsed, 0), unit) / unit

    def left_of_multiple(self, length: Length) -> float:
        """The same of the smallest multiple of the length that is not below the step, and not 0."""
        elapsed, unit = self._in_units(length)
        whole = unit * max(-(-elapsed // unit), 1)
        return (whole - elapsed) / whole

    def cycle(self, first: Length, ratio: float) -> tuple[float, float]:
        """The number of the cycle, and the fraction that is left of it; ``first`` is the length of cycle 0, each next one is
        ``ratio`` >= 1 times as long.
        """
        number, elapsed, length = _cycle(*self._in_units(first), *exact(ratio).as_integer_ratio())
        return _float(number), (length - elapsed) / length

    def reaches(self, number: Steps) -> bool:
        """Whether the step is not below ``number``."""
        return self.number >= number

    def pick(self, boundaries: Sequence[Steps], values: Sequence[float]) -> float:
        """``values[j]``, j being the number of ascending boundaries below the step."""
        return values[bisect_left(boundaries, self.number)]

    @staticmethod
    def choose(condition: bool, yes: float, no: float) -> float:
        """One of two numbers."""
        return yes if condition else no

    @staticmethod
    def half_cosine(left: float) -> float:
        """(1 + cos(pi * f)) / 2 for f = 1 - left; exact at left = 0, 1/2 and 1."""
        return 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))

    @staticmethod
    def power(base: float, exponent: float) -> float:
        """``base ** exponent``, infinite beyond the range of a double."""
        try:
            return base**exponent
        except OverflowError:
            return math.inf

    def _in_units(self, length: Length, start: Steps = 0) -> tuple[int, int]:
        """The step less ``start``, and ``length``, as integers in one unit that is small enough for both."""
        top, bottom = exact(length).as_integer_ratio()
        first, unit = exact(start).as_integer_ratio()
        return (self.number * unit - first) * bottom, top * unit


@lru_cache
def exact(number: Steps) -> Fraction:
    """The number; a float is the decimal that Python prints for it."""
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))


def _float(number: int) -> float:
    """The nearest double, the largest double for what is larger."""
    return float(min(number, int(sys.float_info.max)))


def _cycle(step: int, first: int, n: int, d: int) -> tuple[int, int, int]:
    """Return the number of the step's cycle, how much of it is over, and its length, both in one exact unit.

    ``first`` is the length of cycle 0, and each next one is ``n / d`` as long. A logarithm guesses, integers decide.
    """
    if n == d:
        return *divmod(step, first), first
    over, under = step * (n - d), first * d
    cycle = int((math.log(under + over) - math.log(under)) / math.log1p((n - d) / d))
    while True:
        unit, start, length = cycle_bounds(first, n, d, cycle)
        elapsed = over * unit - start
        if 0 <= elapsed < length:
            return cycle, elapsed, length
        cycle += 1 if elapsed > 0 else -1


@lru_cache(maxsize=16)  # the powers take long where n/d is hardly above 1, and the next steps need the same ones
def cycle_bounds(first: int, n: int, d: int, cycle: int) -> tuple[int, int, int]:
    """Return start and length of a cycle times ``(n - d) * unit``, and the unit, which makes them whole: (unit, start, length).

    With r = n/d, cycle i starts at first * (r**i - 1) / (r - 1) and has first * r**i steps; the unit is d**i.
    """
    return d**cycle, first * d * (n**cycle - d**cycle), first * (n - d) * n**cycle
