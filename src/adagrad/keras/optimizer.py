"""The Keras face: a ``keras.optimizers.Optimizer`` on TensorFlow, JAX and PyTorch."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import keras
from keras import backend, ops

from adagrad.keras import stages, statefile
from adagrad.keras.arguments import Arguments
from adagrad.keras.rows import BACKEND, as_it_stands, as_tensor, in_stateless_scope, value_of
from adagrad.keras.slots import Full, Slot, path_of, wide_dtype

if BACKEND == "torch":
    from adagrad.keras.tensors import TensorEngine, in_main_memory

__all__ = ["Adagrad", "stateless_apply"]

Tensor = Any
Variable = Any


@keras.saving.register_keras_serializable(package="adagrad")
class Adagrad(Arguments):
    """Adagrad for Keras, to put where ``keras.optimizers.Adagrad`` stands; TensorFlow, JAX and PyTorch.

    For a parameter p with gradient g and accumulator a, element by element::

        a = a + g * g
        p = p - learning_rate * g / sqrt(a + epsilon)

    The arguments, their meaning and their numbers are those of `adagrad.Adagrad`, on each backend. State and arithmetic are
    float64 for float64 variables, else float32, for half precision too.

    A gradient is a tensor of the variable's shape, some of its rows (``tf.IndexedSlices``, a sparse COO tensor of PyTorch,
    ``BCOO``, or `adagrad.IndexedSlices` of tensors), or None. Repeated ids are summed first, in the order they came, so that
    a step gives what the equal dense gradient gives, and it touches only their rows, unless weight decay, moving averages or
    a constraint must move the others too, or gradients are accumulated (on PyTorch the latter costs only the rows, too).

    Parameters
    ----------
    learning_rate : float, schedule or callable, default 0.001
        A number >= 0; a schedule of `keras.optimizers.schedules` or of `adagrad.schedules`, which is called with the number
        of the call; or a callable of no arguments.
    initial_accumulator_value : float >= 0, default 0.1
    epsilon : float >= 0, default 1e-7
    weight_decay : float >= 0 or None
    clipnorm, clipvalue, global_clipnorm : float > 0 or None, at most one of them
    use_ema, ema_momentum, ema_overwrite_frequency : bool, float in [0, 1], int >= 1 or None
    loss_scale_factor : float > 0 or None
    gradient_accumulation_steps : int >= 1 or None
    name : str, default "adagrad"
    epsilon_placement : "inside" or "outside" the root
    weight_decay_mode : "decoupled" or "l2"
    row_wise : bool
        One accumulator for each row of a variable of two dimensions or more.

    Raises
    ------
    ValueError
        An argument outside its range or unknown; later, variables or gradients that don't fit. Nothing has changed then.

    Reference: https://keras.io/api/optimizers/adagrad/. Where Keras departs from that page or its backends disagree, see
    the page "Differences from Keras" of the documentation.
    """

    def exclude_from_weight_decay(
        self, var_list: Iterable[Variable] | None = None, var_names: Iterable[str] | None = None
    ) -> None:
        """Exclude variables from weight decay: those in ``var_list``, and those whose path a regex of ``var_names`` finds.

        To be called before `build` or after. A path is the variable's name after those of its layers: "dense/kernel".
        Variables that the optimizer isn't built for are passed over, as in Keras: they may be frozen.
        """
        for name, given in (("var_list", var_list), ("var_names", var_names)):
            if isinstance(given, str | keras.Variable):
                raise TypeError(f"{name} must be a list, got {given!r}")
        variables = list(var_list or ())
        if names := [variable for variable in variables if isinstance(variable, str)]:
            raise TypeError(f"var_list must be of variables, and names be in var_names, got {names[0]!r}")
        excluded = variables, [re.compile(pattern) for pattern in var_names or ()]
        if self.built:
            self._exclude(*excluded)
        self._excluded.append(excluded)

    def _exclude(self, variables: Sequence[Variable], patterns: Sequence[re.Pattern[str]]) -> None:
        keys = {self._var_key(variable) for variable in variables}
        for slot in self._slots:
            if self._var_key(slot.variable) in keys or any(pattern.search(slot.name) for pattern in patterns):
                slot.decays = False

    @property
    def iterations(self) -> Any:
        """The real steps so far: calls of `apply` // ``gradient_accumulation_steps``."""
        steps = self._settings.accumulation_steps
        return self._iterations if steps == 1 else value_of(self._iterations) // steps

    # -- state -----------------------------------------------------------------------------------------------------

    def build(self, variables: Sequence[Variable]) -> None:
        """Make the state for ``variables``; `apply` does it by itself at its first call.

        Raises ``ValueError`` for a variable that comes twice and where the optimizer is built for others, ``TypeError`` for
        one that is not of real numbers.
        """
        variables = list(variables)
        keys = [self._var_key(variable) for variable in variables]
        if self.built:
            if keys != [self._var_key(variable) for variable in self._trainable_variables]:
                raise ValueError("the optimizer is already built; make another one for other variables")
            return
        for number, variable in enumerate(variables):
            if keys[number] in keys[:number]:
                raise ValueError(f"every variable may be given once, got {path_of(variable)} twice")
            if not backend.is_float_dtype(variable.dtype):
                raise TypeError(f"variable {path_of(variable)} must be of a real dtype, got {variable.dtype}")
        if BACKEND == "tensorflow" and self._distribution_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "tf.distribute strategies with more than one replica are not supported, got "
                f"{self._distribution_strategy.num_replicas_in_sync}; keras.distribution on JAX is"
            )
        settings, count = self._settings, len(variables)
        stepped = [not self._overwrite_variable_with_gradient(variable) for variable in variables]

        def state(name: str, wanted: bool, value: float = 0.0, *, every: bool = False) -> list[Variable | None]:
            return [
                self.add_variable_from_reference(variable, name, Full(value)) if wanted and (every or steps) else None
                for variable, steps in zip(variables, stepped, strict=True)
            ]

        averages = state("average", settings.use_ema)
        buffers = state("gradient_accumulator", settings.accumulation_steps > 1, every=True)
        accumulators = state("accumulator", True, settings.initial_accumulator_value)
        # By the names that Keras and its callbacks know them by. They are tracked already.
        object.__setattr__(self, "_trainable_variables", variables)
        object.__setattr__(self, "_trainable_variables_indices", dict(zip(keys, range(count), strict=True)))
        object.__setattr__(self, "_accumulators", accumulators)
        if settings.use_ema:
            object.__setattr__(self, "_model_variables_moving_average", averages)
        if settings.accumulation_steps > 1:
            object.__setattr__(self, "_accumulated_gradients", buffers)
        made = [
            Slot(*parts)
            for parts, steps in zip(zip(variables, accumulators, averages, buffers, strict=True), stepped, strict=True)
            if steps
        ]
        object.__setattr__(self, "_slots", made)
        self.built = True
        for excluded in self._excluded:
            self._exclude(*excluded)

    def add_variable_from_reference(
        self, reference_variable: Variable, name: str | None = None, initializer: Any = "zeros"
    ) -> Variable:
        """Make a variable of state beside a variable: of its shape, float64 for float64, else float32.

        ``name`` says what it is; an "accumulator" has one element a row with ``row_wise``.
        """
        shape, layout = tuple(reference_variable.shape), getattr(reference_variable, "_layout", None)
        dtype = wide_dtype(reference_variable.dtype)
        if self._overwrite_variable_with_gradient(reference_variable):
            dtype = backend.standardize_dtype(reference_variable.dtype)  # Keras moves it to and fro as it is
        if name == "accumulator" and self.row_wise and len(shape) > 1:
            shape = shape[:1]
            if isinstance(layout, keras.distribution.TensorLayout):
                layout = keras.distribution.TensorLayout(layout.axes[:1], layout.device_mesh)
        path = path_of(reference_variable).replace("/", "_").replace(":", "_")
        place: Any = contextlib.nullcontext()
        if BACKEND == "tensorflow":
            place = self._distribution_strategy.extended.colocate_vars_with(value_of(reference_variable))
        with place:
            return self.add_variable(shape, initializer, dtype, layout=layout, name=f"{path}_{name or 'var'}")

    # -- a step ----------------------------------------------------------------------------------------------------

    @as_it_stands
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Variable] | None = None) -> None:
        """Take one step: change the variables by their gradients.

        ``grads`` is as long as ``trainable_variables``; without them, gradients are those of the variables that the optimizer
        was built for, in their order. A gradient of None skips its variable (a warning says so once; all None:
        ``ValueError``; under accumulation None counts as zero). An empty list does nothing.
        """
        found = self._match(grads, trainable_variables)
        if found is not None:
            self._call(*found, loss_scale=self._settings.loss_scale_factor)

    @as_it_stands
    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Variable]]) -> Any:
        """`apply` on pairs of (gradient, variable); returns `iterations`."""
        pairs = list(grads_and_vars)
        self.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])
        return self.iterations

    def stateless_apply(
        self, optimizer_variables: Sequence[Tensor], grads: Sequence[Any], trainable_variables: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """`apply` as a function: from the tensors of state, gradients and parameters to the new parameters and state.

        The lists are as `variables` and the variables of `build`. Nothing that is given changes, nor do this optimizer and
        its variables. Raises ``ValueError`` if not built, or for a list of another length.
        """
        return stateless_apply(self, optimizer_variables, grads, trainable_variables)

    def _match(self, grads: Sequence[Any], variables: Sequence[Variable] | None) -> tuple[list[Any], list[Any]] | None:
        """The gradient of each slot, and those of variables to overwrite as (gradient, variable); None if there are none."""
        grads = list(grads)
        if variables is not None:
            variables = list(variables)
        if not grads and not variables:
            return None
        if variables is None:
            if not self.built:
                raise ValueError("trainable_variables must be given at the first call, or to build(), got None")
            variables = list(self._trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(f"grads must be as many as variables, {len(variables)}, got {len(grads)}")
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(variables)
        self._check_variables_are_known(variables)
        by_key: dict[Any, Any] = {}
        overwrites = []
        for gradient, variable in zip(grads, variables, strict=True):
            key = self._var_key(variable)
            if key in by_key:
                raise ValueError(f"every variable may be given once, got {path_of(variable)} twice")
            by_key[key] = gradient
            if gradient is not None and self._overwrite_variable_with_gradient(variable):
                overwrites.append((gradient, variable))
        missing = [path_of(variable) for gradient, variable in zip(grads, variables, strict=True) if gradient is None]
        if missing and self._settings.accumulation_steps == 1:
            if len(missing) == len(grads):
                raise ValueError(f"no gradient is given for any variable, got None for {', '.join(missing)}")
            new = [name for name in missing if name not in self._warned]
            if new:
                self._warned.update(new)
                warnings.warn(f"no gradient for {', '.join(new)}: skipped (said once)", UserWarning, stacklevel=3)
        return [by_key.get(self._var_key(slot.variable)) for slot in self._slots], overwrites

    def _call(self, gradients: list[Any], overwrites: list[Any], *, loss_scale: Any) -> None:
        """One call that counts, whatever the gradients are."""
        engine = self._current_engine()
        if engine is None:
            prepared = stages.prepared(self._slots, gradients, loss_scale)
            self._overwrite(overwrites)
            self._step(prepared)
        else:
            self._step_engine(engine, gradients, overwrites, loss_scale)

    def _step(self, prepared: list[Any]) -> None:
        everything = [*self.variables, *self._trainable_variables]
        stages.step(self._settings, self._slots, prepared, self._iterations, self._rate_at, everything)

    def _step_engine(
        self, engine: Any, gradients: list[Any], overwrites: list[Any], loss_scale: Any, *, skip: bool = False
    ) -> bool:
        calls = int(value_of(self._iterations))
        scale = None if loss_scale is None else float(loss_scale)
        if not engine.call(gradients, calls, scale, skip=skip):
            return False
        self._overwrite(overwrites)
        if engine is not self._engine:
            engine.store()
        self._iterations.assign(calls + 1)
        return True

    def _current_engine(self) -> Any:
        """The engine over the variables as they are now; None where the stages run as array code."""
        if BACKEND != "torch":
            return None
        arguments = self._settings, self._slots, self._rate_now, self._warned
        if in_stateless_scope():
            return TensorEngine(*arguments, copied=True) if in_main_memory(self._slots) else None
        if self._engine is None or not self._engine.is_current(self._settings):
            if not in_main_memory(self._slots):
                return None
            new = TensorEngine(*arguments)
            # What of the cycle has reached which variable: a buffer of zeros doesn't tell.
            known = self._touched if self._engine is None else [slot.touched for slot in self._engine.slots]
            for slot, touched in zip(new.slots, known or (), strict=bool(known)):
                slot.touched = touched
            object.__setattr__(self, "_engine", new)
            object.__setattr__(self, "_touched", None)
        return self._engine

    def _overwrite(self, overwrites: list[tuple[Tensor, Variable]]) -> None:
        """Put the gradients of variables that are to be overwritten in their place, the largest of a cycle."""
        steps = self._settings.accumulation_steps
        for gradient, variable in overwrites:
            gradient = ops.cast(ops.convert_to_tensor(gradient), variable.dtype)
            if steps > 1:
                buffer = self._accumulated_gradients[self._get_variable_index(variable)]
                real = (value_of(self._iterations) + 1) % steps == 0
                largest = ops.maximum(gradient, ops.convert_to_tensor(value_of(buffer)))
                buffer.assign(ops.where(real, ops.zeros_like(largest), largest))
                gradient = ops.where(real, largest, ops.convert_to_tensor(value_of(variable)))
            variable.assign(gradient)

    def finalize_variable_values(self, var_list: Iterable[Variable]) -> None:
        """Set each variable of ``var_list``, known by identity, to its moving average: ``p = constraint(m)``.

        ``fit`` calls it at its end. Before the first real step, and without moving averages, it changes nothing.
        """
        if not (self.built and self.use_ema):
            return
        var_list = list(var_list)
        self._check_variables_are_known(var_list)
        keys = {self._var_key(variable) for variable in var_list}
        started = value_of(self._iterations) >= self._settings.accumulation_steps
        for slot in self._slots:
            if self._var_key(slot.variable) in keys:
                p = ops.convert_to_tensor(value_of(slot.variable))
                average = ops.cast(ops.convert_to_tensor(value_of(slot.average)), slot.dtype)
                slot.variable.assign(ops.where(started, slot.constrained(average), p))

    # -- files -----------------------------------------------------------------------------------------------------

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the state from arrays in the order of `variables`; number and shapes must fit, else nothing has changed."""
        weights = list(weights)
        if not self.built:
            raise ValueError("the optimizer must be built before its weights are set; call build(variables)")
        if len(weights) != len(self.variables):
            raise ValueError(f"weights must be {len(self.variables)} arrays, got {len(weights)}")
        statefile.set_variables(self, weights)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Set the state from what `save_own_variables` stored; what doesn't fit raises ``ValueError``, and nothing is loaded.

        An optimizer that was saved before it was built has its count and its rate only. One that is not built yet can take
        nothing else, and warns. Of variables that were frozen since `build` when it was saved, the state is left out where
        there is no place for it, as in a model that is opened.
        """
        counters = 1 + isinstance(self._learning_rate, keras.Variable)
        arrays = statefile.stored_variables(store, len(self.variables))
        if len(arrays) != counters and not self.built:
            warnings.warn(
                f"the state of {self.name} is not loaded, since it is not built yet: call optimizer.build(variables) first",
                stacklevel=2,
            )
            return
        if len(arrays) not in (counters, len(self.variables)):
            raise ValueError(
                f"the stored optimizer has {len(arrays)} variables and this one {len(self.variables)}: they differ in "
                "arguments that decide which state there is (learning_rate, use_ema, gradient_accumulation_steps), or in the "
                "model's trainable variables; load_model(..., compile=False) opens a file without its optimizer"
            )
        statefile.set_variables(self, arrays)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Put copies of `variables` into ``store`` under "0", "1", ..., as Keras does."""
        statefile.store_variables(self, (), store)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings, counters and state to the one state file of all faces; see `adagrad.Adagrad.save`.

        Variables go by their paths. Raises ``ValueError`` before the first `build`.
        """
        statefile.save(self, path)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        names: Mapping[str, str] | None = None,
        transpose: Iterable[str] = (),
    ) -> None:
        """Restore what `save` wrote here or in another face; see `adagrad.Adagrad.load`."""
        statefile.load(self, path, strict=strict, names=names, transpose=transpose)


def stateless_apply(
    optimizer: Any, optimizer_variables: Sequence[Tensor], grads: Sequence[Any], trainable_variables: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """``optimizer.apply`` in a scope of its own; see `Adagrad.stateless_apply`."""
    if not optimizer.built:
        raise ValueError("the optimizer must be built before stateless_apply; call build(variables)")
    pairs = [
        ("optimizer_variables", optimizer.variables, optimizer_variables),
        ("trainable_variables", optimizer._trainable_variables, trainable_variables),
    ]
    mapping: list[tuple[Variable, Tensor]] = []
    for name, variables, values in pairs:
        if len(variables) != len(values):
            raise ValueError(f"{name} must be as many as the optimizer was built with, {len(variables)}, got {len(values)}")
        mapping += zip(variables, values, strict=True)
    with keras.StatelessScope(state_mapping=mapping) as scope:
        optimizer.apply(grads)
    first, second = ([as_tensor(scope.get_current_value(v)) for v in variables] for _, variables, _ in pairs)
    return second, first
