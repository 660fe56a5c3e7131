"""The built-in schedules on a device: a learning rate from a count of calls that the host does not know.

The formulas of `adagrad.schedules`, in float64. Whole periods and cycles are counted in integers, as there, so that no
restart is missed (where int64 can't count them, the host is asked); beyond that a rate is within a few roundings of double
precision of the host's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import torch

from adagrad.schedules import LearningRateSchedule, rate_by
from adagrad.steps import Length, Steps, exact

__all__ = ["rate_on_device"]

_LAST = 2**53  # calls beyond which nothing is promised
_CYCLES = 2048  # as many restarts are tabled


def rate_on_device(schedule: LearningRateSchedule, calls: torch.Tensor, capturing: bool) -> torch.Tensor | None:
    """The rate for the largest of ``calls`` (int64), a float64 tensor of one on its device; None for one of the user's own.

    What a schedule needs beside is sent to the device when it is first asked, which must not be in a CUDA graph.

    Raises ``ValueError`` where a step is being captured in a CUDA graph and the schedule has to be asked on the host.
    """
    try:
        rate: torch.Tensor | None = rate_by(schedule, _Step(calls.max()))
    except _UncountableError:
        rate = None
    if rate is not None:
        return rate
    if capturing:
        raise ValueError(
            "in a CUDA graph lr must be a number, a tensor on the device, or a built-in schedule whose periods can be counted "
            "there (their lengths are numbers of up to nine digits, and if they grow, by at least a percent); "
            f"got {schedule!r}"
        )
    return None


class _UncountableError(Exception):
    """A schedule whose periods can't be counted on a device."""


class _Step:
    """The number of a step, as the formulas ask of it; the methods of `adagrad.steps.Step`, which see."""

    choose = staticmethod(torch.where)

    def __init__(self, step: torch.Tensor) -> None:
        self.step = step

    def _number(self, value: float) -> torch.Tensor:
        return torch.full((), value, dtype=torch.float64, device=self.step.device)

    def periods(self, length: Length, whole: bool) -> torch.Tensor:
        if whole:
            n, d = _counted(length)
            return (self.step * d // n).double()
        return self.step.double() / float(length)

    def left(self, length: Length, start: Steps = 0) -> torch.Tensor:
        rest = (float(start) + float(length)) - self.step.double()
        return rest.clamp(0.0, float(length)) / float(length)

    def left_of_multiple(self, length: Length) -> torch.Tensor:
        n, d = _counted(length)
        # The number of lengths, rounded up: minus the floor of minus.
        lengths = -((-self.step * d) // n)
        limit = lengths.clamp(min=1).double() * float(length)
        return (limit - self.step.double()).clamp(min=0.0) / limit

    def cycle(self, first: Length, ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
        if ratio == 1:
            n, d = _counted(first)
            cycle = self.step * d // n
            elapsed = (self.step * d - cycle * n).double()
            return cycle.double(), (float(n) - elapsed) / float(n)
        firsts, starts, ends = _cycles(first, ratio, self.step.device)
        cycle = torch.bucketize(self.step, firsts, right=True)
        return cycle.double(), (ends[cycle] - self.step.double()) / (ends[cycle] - starts[cycle])

    def reaches(self, number: Steps) -> torch.Tensor:
        return self.step.double() >= float(number)

    def pick(self, boundaries: Sequence[Steps], values: Sequence[float]) -> torch.Tensor:
        rate = self._number(values[0])
        for boundary, value in zip(boundaries, values[1:], strict=True):
            rate = torch.where(self.step > math.floor(boundary), value, rate)
        return rate

    @staticmethod
    def half_cosine(left: torch.Tensor) -> torch.Tensor:
        return 0.5 * (1.0 + torch.cos(math.pi * (1.0 - left)))

    def power(self, base: float | torch.Tensor, exponent: float | torch.Tensor) -> torch.Tensor:
        return torch.pow(self._number(base) if isinstance(base, float) else base, exponent)


def _counted(length: Length) -> tuple[int, int]:
    """A length as a fraction, with which int64 counts periods for 2**32 calls and more."""
    n, d = exact(length).as_integer_ratio()
    if max(n, d) >= 2**31:
        raise _UncountableError
    return n, d


@functools.lru_cache(maxsize=16)
def _cycles(first: float, t_mul: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first whole step of each cycle but the first, and where all cycles start and end; there may be too many."""
    ratio, length, starts = exact(t_mul), exact(first), [Fraction(0)]
    while starts[-1] < _LAST:
        if len(starts) > _CYCLES:
            raise _UncountableError
        starts.append(starts[-1] + length)
        length *= ratio
    bounds = torch.tensor([float(start) for start in starts], dtype=torch.float64, device="cpu")
    firsts = torch.tensor([math.ceil(start) for start in starts[1:]], dtype=torch.int64, device="cpu")
    return firsts.to(device), bounds[:-1].to(device), bounds[1:].to(device)
