"""Learning-rate schedules: the six of Keras in double precision, a base class for your own, to and from plain dicts.

A schedule maps the number of a step (0, 1, 2, ...; an int of any size) to a learning rate. Names, arguments, defaults
and formulas are those of ``keras.optimizers.schedules``; what differs:

- Rates are Python floats (double precision) whatever was given, so an integer initial rate decays like any other.
- A step is never rounded. Which period or cycle it falls into is decided in integers: no restart is missed, and no two
  steps are taken for one. A fraction in ``decay_steps``, ``first_decay_steps``, ``warmup_steps`` or ``t_mul`` is read
  as the decimal that Python prints: ``t_mul=1.1`` is eleven tenths, and 10 + 11 steps end exactly at step 21.
- Arguments are checked once, when the schedule is made (``ValueError``); afterwards it doesn't change.
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any, Self, SupportsIndex

from adagrad.steps import Length, Step, Steps

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "deserialize",
    "serialize",
]


class LearningRateSchedule:
    """A learning rate that depends on the step: subclass it for a schedule of your own.

    A subclass defines ``__call__(step) -> float``. To be saved with an optimizer it also defines ``get_config()``: a
    dict of JSON values from which its constructor makes an equal schedule. Schedules are equal when they are of one
    class and their configs are equal.

    >>> class Reciprocal(LearningRateSchedule):
    ...     def __init__(self, initial_learning_rate):
    ...         self.initial_learning_rate = initial_learning_rate
    ...
    ...     def __call__(self, step):
    ...         return self.initial_learning_rate / (step + 1)
    ...
    ...     def get_config(self):
    ...         return {"initial_learning_rate": self.initial_learning_rate}
    >>> Reciprocal(0.5)(4)
    0.1
    >>> deserialize(serialize(Reciprocal(0.5)), custom_objects={"Reciprocal": Reciprocal}) == Reciprocal(0.5)
    True
    """

    def __call__(self, step: SupportsIndex) -> float:
        """Return the learning rate of the step numbered ``step``, an integer counted from 0."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(step)")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as a new dict of JSON values."""
        raise NotImplementedError(f"{type(self).__name__} must define get_config() to be saved or compared")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make the schedule that `get_config` described; ``ValueError`` for a key that is unknown or missing."""
        try:
            inspect.signature(cls).bind(**config)
        except TypeError as error:
            raise ValueError(f"the config of {cls.__name__} doesn't fit: {error}, got {dict(config)!r}") from None
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, LearningRateSchedule) or type(self) is not type(other):
            return NotImplemented
        try:
            return self.get_config() == other.get_config()
        except NotImplementedError:
            return False

    def __hash__(self) -> int:
        return hash(type(self))


class _BuiltIn(LearningRateSchedule):
    """What the six share: they are frozen dataclasses, and each field is an argument, checked by its type."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            self._set(field.name, _CHECKS[field.type](field.name, getattr(self, field.name)))  # type: ignore[index]

    def __call__(self, step: SupportsIndex) -> float:
        """Return the learning rate of the step numbered ``step``, an integer counted from 0.

        Raises ``TypeError`` for a step that isn't an integer; ``ValueError`` for a negative one, and where a growing
        rate leaves the range of a double.
        """
        try:
            number = operator.index(step)
        except TypeError:
            raise TypeError(f"step must be an integer, got {step!r}") from None
        if number < 0:
            raise ValueError(f"step must be in [0, inf), got {number}")
        rate = self._rate(Step(number))
        if not math.isfinite(rate):
            raise ValueError(f"the learning rate at step {number} is beyond the range of a double: {self!r}")
        return rate

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as a new dict of JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def _rate(self, at: Any) -> Any:
        raise NotImplementedError

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class ExponentialDecay(_BuiltIn):
    """``initial_learning_rate * decay_rate ** p`` with ``p = step / decay_steps``; ``staircase`` takes p's floor.

    Rates are in [0, inf) and ``decay_steps`` in (0, inf). With a ``decay_rate`` above 1 the rate grows.

    >>> ExponentialDecay(1, decay_steps=10, decay_rate=0.5)(20)
    0.25
    """

    initial_learning_rate: float
    decay_steps: Length
    decay_rate: float
    staircase: bool = False
    name: str = "ExponentialDecay"

    def _rate(self, at: Any) -> Any:
        return self.initial_learning_rate * at.power(self.decay_rate, at.periods(self.decay_steps, self.staircase))


@dataclass(frozen=True, eq=False)
class InverseTimeDecay(_BuiltIn):
    """``initial_learning_rate / (1 + decay_rate * p)`` with ``p = step / decay_steps``; ``staircase`` takes p's floor.

    Rates are in [0, inf) and ``decay_steps`` in (0, inf).

    >>> InverseTimeDecay(0.5, decay_steps=10, decay_rate=2, staircase=True)(29)
    0.1
    """

    initial_learning_rate: float
    decay_steps: Length
    decay_rate: float
    staircase: bool = False
    name: str = "InverseTimeDecay"

    def _rate(self, at: Any) -> Any:
        return self.initial_learning_rate / (1.0 + self.decay_rate * at.periods(self.decay_steps, self.staircase))


@dataclass(frozen=True, eq=False)
class PolynomialDecay(_BuiltIn):
    """``(initial - end) * (1 - t / d) ** power + end``: from the initial to the end rate, and there it stays.

    ``d = decay_steps`` and ``t = min(step, d)``. With ``cycle``, ``t = step`` and d is the smallest multiple of
    ``decay_steps`` that is not below the step (one ``decay_steps`` at step 0): at an exact multiple the rate is the end
    rate, and the step after it starts down again from part of the way. So Keras computes it (its text speaks of the
    first *bigger* multiple). Rates and ``power`` are in [0, inf), ``decay_steps`` in (0, inf).

    >>> [PolynomialDecay(1.0, 10, end_learning_rate=0.0, cycle=True)(step) for step in (0, 5, 10, 15, 20)]
    [1.0, 0.5, 0.0, 0.25, 0.0]
    """

    initial_learning_rate: float
    decay_steps: Length
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str = "PolynomialDecay"

    def _rate(self, at: Any) -> Any:
        left = at.left_of_multiple(self.decay_steps) if self.cycle else at.left(self.decay_steps)
        return _mix(self.initial_learning_rate, self.end_learning_rate, at.power(left, self.power))


@dataclass(frozen=True, eq=False)
class CosineDecay(_BuiltIn):
    """Half a cosine from the initial rate down to ``alpha`` times it, after an optional linear warm-up.

    ``rate * ((1 - alpha) * (1 + cos(pi * t / decay_steps)) / 2 + alpha)`` with ``t = min(step, decay_steps)`` and
    ``rate = initial_learning_rate``. With a ``warmup_target``, steps below ``warmup_steps`` go in a straight line from
    ``initial_learning_rate`` to the target; then the cosine starts from the target, ``t`` counted from there.

    Rates, ``alpha`` and ``warmup_steps`` are in [0, inf), ``decay_steps`` in (0, inf). ``warmup_steps`` without a
    ``warmup_target``, which Keras ignores, is refused. Source: Loshchilov and Hutter (2016), SGDR, section 3.

    >>> [CosineDecay(0, 10, warmup_target=0.5, warmup_steps=10)(step) for step in (0, 5, 10, 15, 20)]
    [0.0, 0.25, 0.5, 0.25, 0.0]
    """

    initial_learning_rate: float
    decay_steps: Length
    alpha: float = 0.0
    name: str = "CosineDecay"
    warmup_target: float | None = None
    warmup_steps: Steps = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_target is None and self.warmup_steps > 0:
            raise ValueError(f"warmup_steps needs a warmup_target, got warmup_steps={self.warmup_steps!r} without one")

    def _rate(self, at: Any) -> Any:
        peak = self.initial_learning_rate if self.warmup_target is None else self.warmup_target
        rate = peak * _mix(1.0, self.alpha, at.half_cosine(at.left(self.decay_steps, self.warmup_steps)))
        if self.warmup_steps > 0:
            rising = _mix(self.initial_learning_rate, peak, at.left(self.warmup_steps))
            rate = at.choose(at.reaches(self.warmup_steps), rate, rising)
        return rate


@dataclass(frozen=True, eq=False)
class CosineDecayRestarts(_BuiltIn):
    """Half cosines in a row: cycle i has ``first_decay_steps * t_mul ** i`` steps and starts ``m_mul ** i`` as high.

    ``initial_learning_rate * ((1 - alpha) * m_mul ** i * (1 + cos(pi * f)) / 2 + alpha)``, f the fraction of cycle i
    that is over; a restart (f = 0) belongs to the new cycle.

    Rates, ``m_mul`` and ``alpha`` are in [0, inf), ``first_decay_steps`` in (0, inf), ``t_mul`` in [1, inf): with a
    smaller one all cycles together would end at step ``first_decay_steps / (1 - t_mul)``, with no rate beyond it (Keras
    gives NaN there). With ``m_mul`` above 1 the peaks grow. Source: Loshchilov and Hutter (2016), SGDR, section 3.

    >>> [CosineDecayRestarts(1.0, 10)(step) for step in (0, 5, 10, 20, 30)]
    [1.0, 0.5, 1.0, 0.5, 1.0]
    """

    initial_learning_rate: float
    first_decay_steps: Length
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0
    name: str = "SGDRDecay"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_mul < 1.0:
            raise ValueError(f"t_mul must be in [1, inf), got {self.t_mul!r}")

    def _rate(self, at: Any) -> Any:
        cycle, left = at.cycle(self.first_decay_steps, self.t_mul)
        height = at.power(self.m_mul, cycle) * at.half_cosine(left)
        return self.initial_learning_rate * _mix(1.0, self.alpha, height)


@dataclass(frozen=True, eq=False)
class PiecewiseConstantDecay(_BuiltIn):
    """``values[j]`` for ``boundaries[j - 1] < step <= boundaries[j]``: at a boundary, the value before it.

    ``boundaries`` are numbers in [0, inf), strictly increasing and compared exactly (a step of 3 is beyond 2.7);
    ``values``, one more than boundaries, are in [0, inf). With no boundary the one value holds for ever.

    >>> [PiecewiseConstantDecay([10, 20], [1, 0.5, 0.1])(step) for step in (0, 10, 11, 20, 21)]
    [1.0, 1.0, 0.5, 0.5, 0.1]
    """

    boundaries: Sequence[Steps]
    values: Sequence[float]
    name: str = "PiecewiseConstant"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.values) != len(self.boundaries) + 1:
            counts = f"{len(self.values)} values and {len(self.boundaries)} boundaries"
            raise ValueError(f"values must have one entry more than boundaries, got {counts}")
        if any(not low < high for low, high in pairwise(self.boundaries)):
            raise ValueError(f"boundaries must be strictly increasing, got {list(self.boundaries)!r}")

    def _rate(self, at: Any) -> Any:
        return at.pick(self.boundaries, self.values)


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """Describe a schedule as ``{"class_name": ..., "config": {...}}``, the config holding JSON values.

    Raises ``ValueError`` for a class of your own that has a built-in's name: it would come back as the wrong one.

    >>> serialize(PiecewiseConstantDecay([10], [1, 0.5], name="two"))
    {'class_name': 'PiecewiseConstantDecay', 'config': {'boundaries': [10], 'values': [1.0, 0.5], 'name': 'two'}}
    """
    if not isinstance(schedule, LearningRateSchedule):
        raise TypeError(f"schedule must be a LearningRateSchedule, got {schedule!r}")
    name = type(schedule).__name__
    if _REGISTRY.get(name, type(schedule)) is not type(schedule):
        raise ValueError(f"a schedule class of your own can't be called {name}, as a built-in one is: rename it")
    return {"class_name": name, "config": schedule.get_config()}


def deserialize(
    config: Mapping[str, Any], custom_objects: Mapping[str, type[LearningRateSchedule]] | None = None
) -> LearningRateSchedule:
    """Make the schedule that `serialize` described. Nothing is imported: its class is a built-in or a custom object.

    What Keras's ``serialize`` gives is understood too, by its ``class_name``: of its two further keys,
    ``registered_name`` isn't looked at, and a ``module`` outside of Keras is refused for a built-in name.
    Raises ``ValueError`` for a class or a key that is unknown, and for whatever the class refuses.

    >>> deserialize({"class_name": "CosineDecay", "config": {"initial_learning_rate": 0.1, "decay_steps": 100}})(100)
    0.0
    """
    if not isinstance(config, Mapping) or not {"class_name", "config"} <= set(config):
        raise ValueError(f"a schedule is described by a dict with the keys class_name and config, got {config!r}")
    unknown = set(config) - {"class_name", "config", "module", "registered_name"}
    if unknown:
        raise ValueError(f"unknown keys in the description of a schedule: {', '.join(sorted(map(repr, unknown)))}")
    known = {**_REGISTRY, **(custom_objects or {})}
    name, module = config["class_name"], config.get("module", "keras")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"class_name must be one of {', '.join(sorted(known))}, got {name!r}")
    cls = known[name]
    if not (isinstance(cls, type) and issubclass(cls, LearningRateSchedule)):
        raise ValueError(f"custom_objects[{name!r}] must be a subclass of LearningRateSchedule, got {cls!r}")
    if cls is _REGISTRY.get(name) and str(module).split(".")[0] != "keras":
        raise ValueError(f"{name} of module {module!r} is not the built-in one: pass its class in custom_objects")
    if not isinstance(config["config"], Mapping):
        raise ValueError(f"config must be a dict, got {config['config']!r}")
    return cls.from_config(config["config"])


_SIX = (CosineDecay, CosineDecayRestarts, ExponentialDecay, InverseTimeDecay, PiecewiseConstantDecay, PolynomialDecay)
_REGISTRY: dict[str, type[LearningRateSchedule]] = {cls.__name__: cls for cls in _SIX}


def rate_by(schedule: LearningRateSchedule, at: Any) -> Any:
    """The rate by the formula of a built-in schedule, where a step stands as ``at`` answers: an `adagrad.steps.Step`, or an
    object of another class with its methods, for arrays. None for a class of your own, whose formula is not known.
    """
    return schedule._rate(at) if isinstance(schedule, _BuiltIn) and type(schedule) in _SIX else None


def _steps(name: str, value: Any) -> Steps:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be a real number, got {value!r}")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not 0 <= number <= sys.float_info.max:
        raise ValueError(f"{name} must be in [0, inf), got {value!r}")
    return number


def _length(name: str, value: Any) -> Length:
    if _steps(name, value) == 0:
        raise ValueError(f"{name} must be in (0, inf), got {value!r}")
    return _steps(name, value)


def _non_negative(name: str, value: Any) -> float:
    return float(_steps(name, value))


def _each(check: Callable[[str, Any], Any], name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence of numbers, got {values!r}")
    return tuple(check(f"{name}[{j}]", value) for j, value in enumerate(values))


def _instance(kind: type, name: str, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
    return value


# How an argument is checked, by the type that its field is annotated with; what comes back is kept.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "Length": _length,
    "Steps": _steps,
    "float": _non_negative,
    "float | None": lambda name, value: None if value is None else _non_negative(name, value),
    "Sequence[Steps]": partial(_each, _steps),
    "Sequence[float]": partial(_each, _non_negative),
    "bool": partial(_instance, bool),
    "str": partial(_instance, str),
}


def _mix(start: float, end: float, share: Any) -> Any:
    """(start - end) * share + end, in a form that gives start itself at share = 1 and end itself at share = 0."""
    return start * share + end * (1.0 - share)
