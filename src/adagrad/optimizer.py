"""The NumPy face: `Adagrad` on arrays that change in place."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Self

import numpy as np

from adagrad import checkpoint
from adagrad.engine import Engine
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import LearningRate, Settings, check_rate
from adagrad.slots import Constraint

__all__ = ["Adagrad"]

Variables = Sequence[np.ndarray] | Mapping[str, np.ndarray]
Gradients = Sequence[Any] | Mapping[str, Any]


class Adagrad:
    """Adagrad, with the arguments and the meaning of ``keras.optimizers.Adagrad``, on NumPy arrays.

    For a parameter p with gradient g and accumulator a, element by element::

        a = a + g * g
        p = p - learning_rate * g / sqrt(a + epsilon)

    so that a parameter that is updated often takes smaller steps (Duchi, Hazan and Singer, JMLR 12, 2011). A step costs
    what the gradients touch: a row gradient (`IndexedSlices`, ``scipy.sparse``) moves only its rows, its repeated ids
    summed first, with the bits that the equal dense gradient gives.

    Variables are writable arrays of float64, float32, float16 or ``ml_dtypes.bfloat16`` of any shape and strides, in a
    list or as a dict ``{name: array}``; they change in place. Arithmetic and state are float64 for float64 variables, else
    float32. Gradients are dense arrays of the variable's shape (of any real dtype; rounded to the arithmetic's), row
    gradients, or None.

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 0.001
        A number >= 0, kept in double precision; a schedule of `adagrad.schedules`, called with the number of the call,
        from 0; or a callable of no arguments, called once for each real step. Adagrad likes larger rates than other
        optimizers; the paper's form is 1.0.
    initial_accumulator_value : float >= 0, default 0.1
        What every accumulator starts at.
    epsilon : float >= 0, default 1e-7
        Added inside the root.
    weight_decay : float >= 0 or None
        Before the rule, ``p = p - (p * weight_decay) * learning_rate``, for every variable with a gradient that is not
        excluded; all rows of a table decay.
    clipnorm, clipvalue, global_clipnorm : float > 0 or None, at most one of them
        Each gradient scaled to a norm of at most ``clipnorm``; its elements clamped to [-clipvalue, clipvalue]; all
        gradients scaled so that the norm over them together is at most ``global_clipnorm``. Norms are summed in double
        precision; a norm that is not finite makes the gradients that are not zero NaN.
    use_ema, ema_momentum, ema_overwrite_frequency : bool, float in [0, 1], int >= 1 or None
        Keep the moving average ``m = ema_momentum * m + (1 - ema_momentum) * p`` of every variable, one update a real
        step, m = p at the first; every ``ema_overwrite_frequency`` real steps, p = m. `finalize_variable_values` sets
        p = m after training.
    loss_scale_factor : float >= 2**-126 or None
        Gradients are divided by it; `scale_loss` multiplies the loss with it.
    gradient_accumulation_steps : int >= 1 or None
        Only every so many calls are a real step, with the mean of the gradients of these calls.
    name : str, default "adagrad"
    epsilon_placement : {"inside", "outside"}, keyword only
        Outside: ``p = p - learning_rate * g / (sqrt(a) + epsilon)``, as PyTorch does.
    weight_decay_mode : {"decoupled", "l2"}, keyword only
        l2: ``g = g + weight_decay * p`` before the rule, as PyTorch does.
    row_wise : bool, keyword only
        Variables of two dimensions or more keep one accumulator a row, of shape ``(len(variable),)``:
        ``a_row = a_row + mean(g*g)`` over the row, as FBGEMM's ``EXACT_ROWWISE_ADAGRAD`` does for embedding tables.

    Raises
    ------
    ValueError
        An argument outside its range or unknown; later, variables or gradients that don't fit. Nothing has changed then.

    Reference: https://keras.io/api/optimizers/adagrad/. Where Keras departs from that page or its backends disagree, see
    the page "Differences from Keras" of the documentation.

    >>> import numpy as np, adagrad
    >>> w = np.array([1.0, 2.0])
    >>> optimizer = adagrad.Adagrad(learning_rate=0.5)
    >>> optimizer.apply([2 * w], [w])  # the gradient of sum(w**2)
    >>> w.round(4).tolist()
    [0.5061, 1.5016]
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
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
        self._engine = Engine(
            Settings(
                learning_rate,
                initial_accumulator_value,
                epsilon,
                weight_decay,
                clipnorm,
                clipvalue,
                global_clipnorm,
                use_ema,
                ema_momentum,
                ema_overwrite_frequency,
                loss_scale_factor,
                gradient_accumulation_steps,
                name,
                epsilon_placement=epsilon_placement,
                weight_decay_mode=weight_decay_mode,
                row_wise=row_wise,
            )
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {len(self._engine.slots)} variables, {self.iterations} iterations>"

    # -- settings --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The optimizer's name."""
        return self._engine.settings.name

    @property
    def learning_rate(self) -> float:
        """The learning rate now: the number, or what the schedule or the callable gives for the next call.

        Settable to a number, a schedule or a callable, unless it is a schedule: then ``TypeError``.
        """
        return self._engine.rate_now()

    @learning_rate.setter
    def learning_rate(self, value: LearningRate) -> None:
        if isinstance(self._engine.rate, LearningRateSchedule):
            raise TypeError(
                f"learning_rate is a schedule, {self._engine.rate!r}, which decides it; make an optimizer with another "
                f"one to change it, got {value!r}"
            )
        self._engine.rate = value if callable(value) else check_rate(value)

    @property
    def iterations(self) -> int:
        """The real steps so far: calls of `apply` // ``gradient_accumulation_steps``."""
        return self._engine.iterations

    @property
    def built(self) -> bool:
        """Whether the variables are known."""
        return self._engine.built

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as a dict of JSON values; `from_config` makes an equal optimizer, without state.

        A schedule becomes ``{"class_name", "config"}``. Raises ``ValueError`` if the learning rate is a callable.
        """
        return self._engine.current_settings().to_dict()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, type] | None = None) -> Self:
        """Make an optimizer from what `get_config` gave; ``custom_objects`` names schedule classes of your own.

        No name in ``config`` is ever imported. Unknown arguments raise ``ValueError``.
        """
        settings = Settings.from_dict(config, custom_objects)
        return cls(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})

    # -- a step ----------------------------------------------------------------------------------------------------

    def build(
        self, variables: Variables, constraints: Sequence[Constraint | None] | Mapping[str, Constraint] | None = None
    ) -> None:
        """Make the state for ``variables``; `apply` does it by itself at its first call.

        ``constraints`` gives, for each variable (a list) or by name (a dict), a callable that takes the array after a step
        and returns its new value, or None. If one raises, nothing of the step has happened. Raises ``ValueError`` if
        already built for other variables, ``TypeError`` or ``ValueError`` for a variable that can't be optimized.
        """
        arrays, names = _named(variables)
        given: list[Constraint | None] = [None] * len(arrays)
        if isinstance(constraints, Mapping):
            unknown = sorted(set(constraints) - set(names))
            if unknown:
                raise ValueError(f"constraints name no variable: {', '.join(map(repr, unknown))}; known: {', '.join(names)}")
            given = [constraints.get(name) for name in names]
        elif constraints is not None:
            given = list(constraints)
            if len(given) != len(arrays):
                raise ValueError(f"constraints must be as many as variables, {len(arrays)}, got {len(given)}")
        if self.built:
            positions = self._engine.positions(arrays)
            if len(positions) != len(self._engine.slots) or constraints is not None:
                raise ValueError("the optimizer is already built; make another one for other variables or constraints")
            return
        self._engine.build(arrays, names, given)

    def apply(self, grads: Gradients, trainable_variables: Variables | None = None) -> None:
        """Take one step: change the variables in place by their gradients.

        ``grads`` and ``trainable_variables`` are lists of equal length or dicts of equal keys; without variables, those
        that the optimizer was built for, in their order. A gradient of None skips its variable (a warning says so once;
        all None: ``ValueError``; under accumulation None counts as zero). An empty list does nothing. An error leaves every
        array and counter as it was.
        """
        found = self._match(grads, trainable_variables)
        if found is not None:
            self._engine.apply(*found)

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, np.ndarray]]) -> int:
        """`apply` on pairs of (gradient, variable); returns `iterations`."""
        pairs = list(grads_and_vars)
        self.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])
        return self.iterations

    def _match(self, grads: Gradients, variables: Variables | None) -> tuple[np.ndarray, Sequence[Any]] | None:
        """The slots and their gradients, built if need be; None if there are no gradients."""
        engine = self._engine
        if type(grads) is not list and isinstance(grads, Mapping):
            if variables is not None and not isinstance(variables, Mapping):
                raise TypeError("grads is a dict, so trainable_variables must be one, got a list")
            if variables is None and not self.built:
                raise ValueError("trainable_variables must be given at the first call, or to build(), got None")
            known = list(variables) if variables is not None else [slot.name for slot in engine.slots]
            unknown = [name for name in grads if name not in known]
            missing = [name for name in known if name not in grads] if variables is not None else []
            if unknown or missing:
                raise ValueError(f"grads must have the names of the variables; unknown: {unknown}, missing: {missing}")
            if variables is None:
                variables = {slot.name: slot.array for slot in engine.slots if slot.name in grads}
            gradients: Sequence[Any] = [grads[name] for name in variables]
        else:
            if isinstance(variables, Mapping):
                raise TypeError("trainable_variables is a dict, so grads must be one, got a list")
            gradients = grads if isinstance(grads, list) else list(grads)
        if not gradients:
            return None
        if variables is None:
            if not self.built:
                raise ValueError("trainable_variables must be given at the first call, or to build(), got None")
            slots = engine.all_slots()
        else:
            arrays = list(variables.values()) if isinstance(variables, Mapping) else list(variables)
            if len(arrays) == len(gradients):
                if not self.built:
                    self.build(variables if isinstance(variables, Mapping) else arrays)
                slots = engine.positions(arrays)
            else:
                slots = np.empty(len(arrays), np.int64)
        if len(slots) != len(gradients):
            raise ValueError(f"grads must be as many as variables, {len(slots)}, got {len(gradients)}")
        return slots, gradients

    def exclude_from_weight_decay(
        self, var_list: Iterable[np.ndarray] | None = None, var_names: Iterable[str] | None = None
    ) -> None:
        """Exclude variables from weight decay: those in ``var_list``, and those whose name a regex of ``var_names`` finds.

        To be called before `build` or after; names are the keys of the dict of variables.
        """
        for name, given in (("var_list", var_list), ("var_names", var_names)):
            if isinstance(given, str | np.ndarray):
                raise TypeError(f"{name} must be a list, got {given!r}")
        self._engine.exclude(list(var_list or ()), [re.compile(name) for name in var_names or ()])

    def finalize_variable_values(self, var_list: Variables) -> None:
        """Set each variable of ``var_list``, known by identity, to its moving average: ``p = constraint(m)``.

        To be called after training with ``use_ema``. Before the first real step, and without EMA, it changes nothing.
        """
        arrays, _ = _named(var_list)
        if self.built:
            self._engine.finalize(self._engine.positions(arrays))

    def scale_loss(self, loss: Any) -> Any:
        """``loss * loss_scale_factor``, or ``loss`` if there is none: what the gradients should be taken of."""
        factor = self._engine.settings.loss_scale_factor
        return loss if factor is None else loss * factor

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def variables(self) -> list[np.ndarray]:
        """The state in Keras's order: count of calls, learning rate if a number, averages, gradient buffers, accumulators.

        The first two are copies; use `set_weights` and `learning_rate` to change them. The others are the arrays themselves.
        """
        return list(checkpoint.keras_variables(self._engine))

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the state from arrays in the order of `variables`; number and shapes must fit, else nothing has changed.

        There is no place here for whether a cycle of gradient accumulation has brought a variable a gradient: one whose
        buffer is all zero counts as having had none, so if none comes in the rest of the cycle it is skipped, its weight
        decay too. `save` and `load` keep this exactly.
        """
        checkpoint.set_keras_variables(self._engine, list(weights))

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Put copies of `variables` into ``store`` under "0", "1", ..., as Keras does."""
        with self._engine._lock:
            for number, array in enumerate(self.variables):
                store[str(number)] = array.copy()

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Set the state from what `save_own_variables` stored, as `set_weights` does; anything missing or more raises."""
        names = [str(number) for number in range(len(self.variables))]
        if set(store) != set(names):
            raise ValueError(f"store must have the keys '0' to '{len(names) - 1}', got {sorted(store)}")
        self.set_weights([store[name] for name in names])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings, counters and state to one safetensors file; whenever it is killed, the old file or the new is there.

        The variables themselves are yours to save. Raises ``ValueError`` before the first `build`.
        """
        checkpoint.save(self._engine, path)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        names: Mapping[str, str] | None = None,
        transpose: Iterable[str] = (),
    ) -> None:
        """Restore what `save` wrote, into an optimizer built for the same variables with the same settings.

        Training goes on, bit for bit, as if it had never stopped, in the middle of an accumulation cycle too. The
        learning rate, if a number, comes from the file. Names, shapes, dtypes and settings must agree; anything else, and
        a damaged or foreign file, raises ``ValueError`` and nothing is loaded. With ``strict=False`` settings may differ
        (then those of this optimizer hold), but for ``use_ema`` and ``gradient_accumulation_steps``, which shape the state.
        Nothing in a file can run code.

        A file that another framework's face wrote may have other names: ``names`` maps those of the file to those here.
        The variables in ``transpose``, by their names here, lie transposed in the file.
        """
        checkpoint.load(self._engine, path, strict=strict, names=names, transpose=transpose)


def _named(variables: Variables) -> tuple[list[Any], list[str]]:
    """The arrays and their names: the keys of a dict, else variable_0, variable_1, ..."""
    if isinstance(variables, Mapping):
        names = list(variables)
        wrong = [name for name in names if not isinstance(name, str) or not name]
        if wrong:
            raise TypeError(f"the names of variables must be strings that are not empty, got {wrong[0]!r}")
        return list(variables.values()), names
    arrays = list(variables)
    return arrays, [f"variable_{number}" for number in range(len(arrays))]
