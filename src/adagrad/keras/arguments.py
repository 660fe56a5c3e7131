"""The arguments of the Keras face: checked once, settable, to and from a configuration; and the learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self, cast

import keras
import numpy as np
from keras import backend, ops

from adagrad import schedules
from adagrad.keras import stages
from adagrad.keras.rows import BACKEND, value_of
from adagrad.keras.schedules import rate_at_step
from adagrad.keras.slots import Full, Slot
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import Settings, check_rate

__all__ = ["Arguments"]

Tensor = Any
Variable = Any

# The arguments, in the order of Keras's configuration and with those beyond the page last.
_NAMES = [field.name for field in dataclasses.fields(Settings)]
_SHAPING = ("initial_accumulator_value", "use_ema", "gradient_accumulation_steps", "row_wise")


def _argument(name: str) -> property:
    """An argument as an attribute that can be set, checked as in the constructor."""

    def get(self: Any) -> Any:
        return getattr(self._settings, name)

    def put(self: Any, value: Any) -> None:
        changed = dataclasses.replace(self._settings, **{name: value})
        if changed == self._settings:
            return
        if name in _SHAPING and getattr(self, "built", False):
            raise ValueError(f"{name} decides which state there is and can't change after build, got {value!r}")
        self._settings = changed

    return property(get, put, doc=f"The argument {name}; settable.")


class Arguments(keras.optimizers.Optimizer):
    """What `adagrad.keras.Adagrad` is made with; see there."""

    _settings: Settings
    _learning_rate: Any
    _slots: list[Slot]
    _tracker: Any
    built: bool

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str = "adagrad",
        *,
        epsilon_placement: str = "inside",
        weight_decay_mode: str = "decoupled",
        row_wise: bool = False,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise ValueError(f"unknown arguments: {', '.join(f'{key}={value!r}' for key, value in kwargs.items())}")
        given = {key: value for key, value in locals().items() if key in _NAMES}
        object.__setattr__(self, "_settings", Settings(**given))
        super().__init__(learning_rate=lambda: 0.0, name=self._settings.name)  # no variable for a rate in float32
        object.__setattr__(self, "_settings", Settings(**given))  # Keras's constructor has set its defaults
        object.__setattr__(self, "_slots", [])
        object.__setattr__(self, "_excluded", [])
        object.__setattr__(self, "_warned", set())
        object.__setattr__(self, "_engine", None)
        object.__setattr__(self, "_touched", None)
        self._keep([])  # nor a count in 32 bits
        self._iterations = self._make_scalar("iteration", 0, "int64")
        rate: Any = self._settings.learning_rate
        self._learning_rate = rate if callable(rate) else self._make_scalar("learning_rate", rate, "float64")

    initial_accumulator_value = _argument("initial_accumulator_value")
    epsilon = _argument("epsilon")
    weight_decay = _argument("weight_decay")
    clipnorm = _argument("clipnorm")
    clipvalue = _argument("clipvalue")
    global_clipnorm = _argument("global_clipnorm")
    use_ema = _argument("use_ema")
    ema_momentum = _argument("ema_momentum")
    ema_overwrite_frequency = _argument("ema_overwrite_frequency")
    loss_scale_factor = _argument("loss_scale_factor")
    gradient_accumulation_steps = _argument("gradient_accumulation_steps")
    epsilon_placement = _argument("epsilon_placement")
    weight_decay_mode = _argument("weight_decay_mode")
    row_wise = _argument("row_wise")

    def _var_key(self, variable: Variable) -> int:
        """What a variable is known by, in a stateless scope too; TensorFlow's own stands for the Keras variable over it."""
        return id(variable._value if BACKEND == "tensorflow" and isinstance(variable, keras.Variable) else variable)

    def _keep(self, variables: list[Variable]) -> None:
        """Let ``variables`` be the optimizer's, in this order, to which others are added.

        They lie in a new list: TensorFlow saves no list that something was taken out of or put into the middle of.
        """
        tracker = self._tracker
        del self._tracker  # which would put a list of Keras's around this one
        self._variables = variables
        is_variable, _ = tracker.config["variables"]
        tracker.config["variables"] = is_variable, self._variables
        tracker.stored_ids["variables"] = {id(variable) for variable in variables}
        self._tracker = tracker

    def _make_scalar(self, name: str, value: float, dtype: str) -> Variable:
        if stages.widest() == "float32":  # JAX without x64
            dtype = dtype.replace("64", "32")
        return self.add_variable((), Full(value), dtype, aggregation="only_first_replica", name=name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} on {BACKEND}: {len(self._slots)} variables>"

    # -- settings --------------------------------------------------------------------------------------------------

    def _get_current_learning_rate(self) -> Any:
        rate = self._learning_rate
        if isinstance(rate, keras.Variable):
            return rate
        return self._rate_at(value_of(self._iterations))

    def _rate_at(self, calls: Tensor) -> Tensor:
        """The learning rate of the call numbered ``calls``, as array code."""
        rate = self._learning_rate
        if isinstance(rate, keras.Variable):
            return value_of(rate)
        if isinstance(rate, LearningRateSchedule):
            return rate_at_step(rate, calls, stages.widest())
        return rate(calls) if _is_schedule(rate) else rate()

    def _rate_now(self, calls: int) -> float:
        """The learning rate of the call numbered ``calls``, as a number."""
        rate = self._learning_rate
        if isinstance(rate, LearningRateSchedule):
            return check_rate(rate(calls))
        if isinstance(rate, keras.Variable):
            return check_rate(self._rate_number())
        return check_rate(float(rate(value_of(self._iterations)) if _is_schedule(rate) else rate()))

    def _rate_number(self) -> float:
        """The number that was set, if the variable still holds it: the variable may be narrower."""
        found = value_of(self._learning_rate)
        number, wanted = float(found), cast(Any, self._settings.learning_rate)
        same = not callable(wanted) and float(np.asarray(wanted, backend.standardize_dtype(found.dtype))) == number
        return wanted if same else number

    @property
    def learning_rate(self) -> Any:
        """The learning rate now: the variable that holds it, or what the schedule or the callable gives for the next call.

        Settable to a number, a schedule or a callable; if it is a schedule, not to a number: ``TypeError``.
        """
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        held, is_variable = self._learning_rate, isinstance(value, keras.Variable) or ops.is_tensor(value)
        if callable(value) and not is_variable:
            self._settings = dataclasses.replace(self._settings, learning_rate=value)
            if isinstance(held, keras.Variable):
                del self._learning_rate  # TensorFlow would go on to save the variable
                self._keep([variable for variable in self.variables if variable is not held])
            self._learning_rate = value
            return
        if _is_schedule(held) or isinstance(held, LearningRateSchedule):
            raise TypeError(
                f"learning_rate is a schedule, {held!r}, which decides it; make an optimizer with another one to change it, "
                f"got {value!r}"
            )
        number = value if is_variable and _is_symbolic(value) else check_rate(float(value) if is_variable else value)
        if isinstance(held, keras.Variable):
            held.assign(number)
        else:
            self._learning_rate = self._make_scalar("learning_rate", number, "float64")
            count, *others, rate = self.variables
            self._keep([count, rate, *others])
        if isinstance(number, float):
            self._settings = dataclasses.replace(self._settings, learning_rate=number)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as a dict that Keras can write down; `from_config` makes an equal optimizer, without state."""
        config = {name: getattr(self._settings, name) for name in _NAMES}
        config["name"] = self.name
        rate = self._learning_rate
        if isinstance(rate, keras.Variable):
            config["learning_rate"] = self._rate_number()
        elif isinstance(rate, LearningRateSchedule):
            config["learning_rate"] = schedules.serialize(rate)
        else:
            config["learning_rate"] = keras.saving.serialize_keras_object(rate)
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Make an optimizer from what `get_config` gave; a schedule class of your own is in ``custom_objects``.

        It takes the configuration of a ``keras.optimizers.Adagrad`` too. Unknown arguments raise ``ValueError``.
        """
        config = dict(config)
        rate = config.get("learning_rate")
        if isinstance(rate, Mapping):
            ours = set(rate) == {"class_name", "config"}  # what adagrad.schedules writes; Keras names a module
            make = schedules.deserialize if ours else keras.saving.deserialize_keras_object
            config["learning_rate"] = make(dict(rate), custom_objects)
        return cls(**config)


def _is_schedule(rate: Any) -> bool:
    return isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)


def _is_symbolic(value: Any) -> bool:
    """Whether a tensor has no value yet."""
    try:
        float(value_of(value))
    except Exception:
        return True
    return False
