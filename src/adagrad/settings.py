"""Settings: every argument of the optimizer, checked once, to and from a plain dict."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from adagrad import schedules
from adagrad.schedules import LearningRateSchedule

__all__ = ["LearningRate", "Settings", "check_flag", "check_integer", "check_number", "check_rate", "rate_at"]

# The smallest normal number of float32: where a smaller one becomes 0, a gradient of 0 would become NaN.
_SMALLEST_SCALE = 2.0**-126

LearningRate = float | LearningRateSchedule | Callable[[], float]


def check_number(name: str, value: Any, *, low: float = 0.0, high: float = math.inf, open_low: bool = False) -> float:
    """``value`` as a float, if it is a finite real number within [low, high], or (low, high] with ``open_low``."""
    if getattr(value, "ndim", None) == 0 and not isinstance(value, numbers.Number) and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be a real number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (low < number if open_low else low <= number) or not number <= high or math.isinf(number):
        closing = "]" if math.isfinite(high) else ")"
        raise ValueError(f"{name} must be in {'(' if open_low else '['}{low:g}, {high:g}{closing}, got {value!r}")
    return number


def check_rate(value: Any) -> float:
    """A learning rate, as a number or as a schedule or callable returned it: finite and not negative, in double precision."""
    return check_number("learning_rate", value)


def rate_at(rate: LearningRate, step: int) -> float:
    """The learning rate of the call numbered ``step`` (from 0), evaluated now and checked."""
    if isinstance(rate, LearningRateSchedule):
        return check_rate(rate(step))
    return check_rate(rate() if callable(rate) else rate)


def check_integer(name: str, value: Any, *, low: int = 1) -> int:
    """``value`` as an int, if it is an integer (not a bool, not a float) of at least ``low``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """``value`` as a bool, if it is one."""
    if value is not True and value is not False and type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of the page, in its order, and the two switches beyond it; see `adagrad.Adagrad` for their meaning.

    Construction checks every one and raises ``ValueError`` naming the argument, the allowed range and the value.
    """

    learning_rate: LearningRate = 0.001
    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7
    weight_decay: float | None = None
    clipnorm: float | None = None
    clipvalue: float | None = None
    global_clipnorm: float | None = None
    use_ema: bool = False
    ema_momentum: float = 0.99
    ema_overwrite_frequency: int | None = None
    loss_scale_factor: float | None = None
    gradient_accumulation_steps: int | None = None
    name: str = "adagrad"
    epsilon_placement: str = dataclasses.field(default="inside", kw_only=True)
    weight_decay_mode: str = dataclasses.field(default="decoupled", kw_only=True)
    row_wise: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.learning_rate):
            self._set("learning_rate", check_rate(self.learning_rate))
        for name in ("initial_accumulator_value", "epsilon"):
            self._set(name, check_number(name, getattr(self, name)) + 0.0)  # + 0.0: a zero is a positive zero
        if self.weight_decay is not None:
            self._set("weight_decay", check_number("weight_decay", self.weight_decay))
        clips = ("clipnorm", "clipvalue", "global_clipnorm")
        given = [name for name in clips if getattr(self, name) is not None]
        for name in given:
            self._set(name, check_number(name, getattr(self, name), open_low=True))
        if len(given) > 1:
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in given)
            raise ValueError(f"at most one of {', '.join(clips)} may be set, got {values}")
        self._set("use_ema", check_flag("use_ema", self.use_ema))
        self._set("ema_momentum", check_number("ema_momentum", self.ema_momentum, high=1.0))
        for name in ("ema_overwrite_frequency", "gradient_accumulation_steps"):
            if getattr(self, name) is not None:
                self._set(name, check_integer(name, getattr(self, name)))
        if self.loss_scale_factor is not None:
            self._set("loss_scale_factor", check_number("loss_scale_factor", self.loss_scale_factor, low=_SMALLEST_SCALE))
        if self.name is None:
            self._set("name", "adagrad")
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise ValueError(f"name must be a string that is not empty and has no '/', got {self.name!r}")
        self._set("epsilon_placement", _check_choice("epsilon_placement", self.epsilon_placement, ("inside", "outside")))
        self._set("weight_decay_mode", _check_choice("weight_decay_mode", self.weight_decay_mode, ("decoupled", "l2")))
        self._set("row_wise", check_flag("row_wise", self.row_wise))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def accumulation_steps(self) -> int:
        """Calls to a real step: ``gradient_accumulation_steps``, 1 where there is no accumulation."""
        return self.gradient_accumulation_steps or 1

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values with every argument; a schedule becomes ``{"class_name", "config"}``.

        ``row_wise`` stands there only if it is on, so that what was written before there was one still fits.
        Raises ``ValueError`` for a learning rate that is a plain callable: code is not data.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not self.row_wise:
            del values["row_wise"]
        if isinstance(self.learning_rate, LearningRateSchedule):
            values["learning_rate"] = schedules.serialize(self.learning_rate)
        elif callable(self.learning_rate):
            raise ValueError(
                "learning_rate is a callable, which can't be written down; use a number or a schedule of "
                f"adagrad.schedules, got {self.learning_rate!r}"
            )
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], custom_objects: Mapping[str, type] | None = None) -> Settings:
        """The settings that `to_dict` described; unknown names are refused.

        ``custom_objects`` names classes of schedules beside the six; nothing is imported by name.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown arguments: {', '.join(map(repr, unknown))}")
        values = dict(values)
        if isinstance(values.get("learning_rate"), Mapping):
            values["learning_rate"] = schedules.deserialize(values["learning_rate"], custom_objects)
        return cls(**values)
