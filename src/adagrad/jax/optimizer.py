"""Adagrad for JAX: a pure ``init``/``apply`` pair over pytrees."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adagrad.gradients import IndexedSlices
from adagrad.jax import counting, stages
from adagrad.jax.native import has_kernels
from adagrad.jax.rows import is_row_gradient
from adagrad.jax.stages import Spec
from adagrad.jax.trees import AdagradState, flat_gradients, flat_params, flat_state, spread, state_of
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import Settings

__all__ = ["Adagrad", "Mask", "Rate"]

Array = jax.Array
Tree = Any
Rate = float | Array | LearningRateSchedule | Callable[[Any], Any]
Mask = Tree | Callable[[Tree], Tree] | None

# Arguments that decide what is compiled, and what stands there for an array: within the range of every other argument.
_COMPILED_IN = ("ema_overwrite_frequency", "gradient_accumulation_steps", "use_ema", "row_wise")
_STAND_IN = 0.5


class Adagrad:
    r"""Adagrad as two pure functions: ``state = init(params)``; ``params, state = apply(grads, state, params)``.

    .. math::  a \leftarrow a + g^2, \qquad p \leftarrow p - \eta \, g / \sqrt{a + \epsilon}

    The arguments are those of `adagrad.Adagrad`, with their meaning and defaults; here is what differs.

    Parameters
    ----------
    learning_rate
        A number, a scalar array (also a traced one), a schedule of `adagrad.schedules`, or an optax schedule: a function of
        the count of calls, an int32 that stops at its largest value.
    weight_decay_mask
        A pytree of bools, the parameters' or a prefix of it, or a function from parameters to that: where weight decay
        applies. By default everywhere.
    constraints
        A pytree, the parameters' or a prefix of it, of functions from array to array, or None: ``p = constraint(p)``
        after every step. They are traced, so they compute with ``jax.numpy``.

    Every number among the arguments may be a scalar array instead, traced too, which is then not checked. Another value of
    a JAX array compiles nothing anew. Integers, which decide what is compiled, may not be traced.

    ``params`` is any pytree of float16, bfloat16, float32, float64 or complex arrays. ``grads`` has its structure, with an
    array, None (skipped, said once while tracing; an error if all are) or an `IndexedSlices` in the place of each. Half
    parameters are rounded once a step, their state is float32. A complex parameter moves along ``g``, and ``|g|^2`` is
    what is summed, as in optax.

    Nothing changes in place by itself: under ``jax.jit`` donate ``params`` and ``state``, in the order in which they come
    back, and no array of a parameter's size is made. Numbers are within a few ULP a step of the other faces', whose bits
    XLA does not keep. An optimizer has no state and may be made anew in each call. Raises ``ValueError`` or ``TypeError``,
    naming what is wrong, when it is made or when a call is traced.

    >>> import jax, jax.numpy as jnp
    >>> optimizer = Adagrad(learning_rate=1.0, initial_accumulator_value=0.0, epsilon=0.0)
    >>> params = {"w": jnp.zeros(2)}
    >>> step = jax.jit(lambda params, state, grads: optimizer.apply(grads, state, params), donate_argnums=(0, 1))
    >>> params, state = step(params, optimizer.init(params), {"w": jnp.array([3.0, -0.5])})
    >>> params["w"].tolist()  # the paper's first step is lr * sign(g)
    [-1.0, 1.0]

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 12
    (2011), diagonal version.
    """

    def __init__(
        self,
        learning_rate: Rate = 0.001,
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
        weight_decay_mask: Mask = None,
        constraints: Tree = None,
    ) -> None:
        arguments: dict[str, Any] = {
            field.name: value
            for field, value in zip(
                dataclasses.fields(Settings),
                (
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
                    epsilon_placement,
                    weight_decay_mode,
                    row_wise,
                ),
                strict=True,
            )
        }
        self._given: dict[str, Any] = {}  # the arguments that are arrays
        for key, value in arguments.items():
            if isinstance(value, jax.core.Tracer):
                if key in _COMPILED_IN:
                    raise TypeError(
                        f"{key} decides what is compiled and must be known, got {value!r}; with optax.inject_hyperparams, "
                        "name it in static_args"
                    )
                if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number):
                    raise ValueError(f"{key} must be a real scalar, got {value!r}")
                self._given[key] = value
                arguments[key] = _STAND_IN
            elif isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
                arguments[key] = value.item()
                if isinstance(value, jax.Array) and key not in _COMPILED_IN:
                    self._given[key] = np.asarray(value)  # on no device yet, whatever its own
        self.settings = Settings(**arguments)
        # What is compiled for all values of the arrays.
        stand_ins: dict[str, Any] = dict.fromkeys(self._given, _STAND_IN)
        self._static = dataclasses.replace(self.settings, **stand_ins)
        if weight_decay_mask is not None and weight_decay is None:
            raise ValueError(f"weight_decay_mask needs a weight_decay, got {weight_decay_mask!r} without one")
        self._mask, self._constraints = weight_decay_mask, constraints

    def __repr__(self) -> str:
        traced = f", traced: {', '.join(self.traced)}" if self.traced else ""
        return f"<adagrad.jax.Adagrad {self.settings}{traced}>"

    @property
    def traced(self) -> list[str]:
        """The arguments whose values are only known inside a compiled function."""
        return [name for name, value in self._given.items() if isinstance(value, jax.core.Tracer)]

    # -- pure functions ------------------------------------------------------------------------------------------------

    def init(self, params: Tree) -> AdagradState:
        """The state before the first step. Outside jit its arrays are sharded as their parameters."""
        own = self.settings
        leaves, structure, _ = flat_params(params)
        start = self._given.get("initial_accumulator_value", own.initial_accumulator_value)
        steps = own.accumulation_steps

        def tree(make: Callable[[Array], Array]) -> Tree:
            return jax.tree.unflatten(structure, [make(p) for p in leaves])

        def zeros() -> Tree:
            return tree(lambda p: jnp.zeros_like(p, stages.wide_dtype(p.dtype)))

        return AdagradState(
            count=counting.of(0),
            accumulator=tree(lambda p: _accumulator(p, start, own.row_wise)),
            average=zeros() if own.use_ema else None,
            gradient_accumulator=zeros() if steps > 1 else None,
            in_cycle=tree(lambda p: jnp.zeros((), bool)) if steps > 1 else None,
        )

    def apply(self, grads: Tree, state: AdagradState, params: Tree) -> tuple[Tree, AdagradState]:
        """One step: the parameters and the state after it, each rounded once."""
        leaves, structure, names = flat_params(params)
        gradients = flat_gradients(grads, structure, names, leaves, "params")
        state, out = self._call(gradients, state, leaves, structure, names, params, as_update=False)
        return jax.tree.unflatten(structure, out), state

    def finalize(self, params: Tree, state: AdagradState) -> Tree:
        """The parameters after training: with ``use_ema`` their averages, ``p = constraint(m)``, else as they are.

        Before the first real step nothing changes.
        """
        if not self.settings.use_ema:
            return params
        leaves, structure, names = flat_params(params)
        slots = flat_state(state, structure, self.settings, names, leaves)
        started = counting.reaches(state.count, self.settings.accumulation_steps)
        out = []
        for p, slot, constraint in zip(leaves, slots, self._constraints_of(params, len(leaves)), strict=True):
            assert slot.average is not None
            average = slot.average.astype(p.dtype)
            out.append(jnp.where(started, average if constraint is None else constraint(average).astype(p.dtype), p))
        return jax.tree.unflatten(structure, out)

    def scale_loss(self, loss: Any) -> Any:
        """``loss * loss_scale_factor``, or ``loss`` if there is none: what the gradients should be taken of."""
        traced = "loss_scale_factor" in self.traced
        factor = self._given["loss_scale_factor"] if traced else self.settings.loss_scale_factor
        return loss if factor is None else loss * factor

    def iterations(self, state: AdagradState) -> int:
        """The real steps so far, as an int: calls // ``gradient_accumulation_steps``. Not inside jit."""
        return counting.to_int(state.count) // self.settings.accumulation_steps

    # -- state files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], state: AdagradState, params: Tree) -> None:
        """Write the state to the one state file that all faces share; the parameters are yours to save.

        A parameter is named by its path in the pytree, ``dense/kernel``. Raises ``ValueError`` for complex parameters,
        which the file has no place for.
        """
        from adagrad.jax import statefile

        statefile.save(self, path, state, params)

    def load(
        self,
        path: str | os.PathLike[str],
        params: Tree,
        *,
        strict: bool = True,
        names: Mapping[str, str] | None = None,
        transpose: Iterable[str] = (),
    ) -> AdagradState:
        """The state that any face wrote for these parameters, sharded as they are.

        ``names`` maps names in the file to names here, and the variables in ``transpose`` (names here) lie transposed in
        the file. Names, shapes, dtypes and settings must agree, the learning rate too; else ``ValueError``. With
        ``strict=False`` settings may differ (then those here hold), but for ``use_ema`` and
        ``gradient_accumulation_steps``, which shape the state. Nothing in a file can run code.
        """
        from adagrad.jax import statefile

        return statefile.load(self, path, params, strict=strict, names=names or {}, transpose=set(transpose))

    # -- a call --------------------------------------------------------------------------------------------------------

    def _call(
        self,
        gradients: list[Any],
        state: AdagradState,
        leaves: list[Array] | None,
        structure: Any,
        names: list[str],
        params: Tree,
        *,
        as_update: bool,
    ) -> tuple[AdagradState, list[Any]]:
        slots = flat_state(state, structure, self.settings, names, leaves)
        missing = [name for name, g in zip(names, gradients, strict=True) if g is None]
        if missing and self.settings.accumulation_steps == 1:
            if len(missing) == len(names):
                raise ValueError(f"no gradient is given for any parameter, got None for {', '.join(missing)}")
            warnings.warn(f"no gradient for {', '.join(missing)}: skipped (said when traced)", UserWarning, stacklevel=3)
        if self.settings.clipvalue is not None:
            for name, g in zip(names, gradients, strict=True):
                if jnp.iscomplexobj(g.values if isinstance(g, IndexedSlices) else g):
                    raise ValueError(f"clipvalue needs real gradients, which can be compared, but {name} is complex")
        count = len(names)
        # Asked here, so that a change of the answer is another compilation.
        kernels = any(map(is_row_gradient, gradients)) and has_kernels()
        spec = Spec(self._static, self.decays_of(params, count), self._constraints_of(params, count), as_update, kernels)
        calls, slots, out = _compiled(spec, self._given, state.count, slots, gradients, leaves)
        return state_of(calls, slots, state, structure), out

    def decays_of(self, params: Tree, count: int) -> tuple[bool, ...]:
        """For each leaf of ``params`` whether weight decay applies to it."""
        if self._mask is None:
            return (self.settings.weight_decay is not None,) * count
        mask = self._mask(params) if callable(self._mask) else self._mask
        found = spread("weight_decay_mask", mask, params)
        for m in found:
            if not isinstance(m, bool) and (np.shape(m), getattr(m, "dtype", None)) != ((), np.dtype(bool)):
                raise TypeError(f"weight_decay_mask must be a pytree of bools, got {m!r}")
        return tuple(map(bool, found))

    def _constraints_of(self, params: Tree, count: int) -> tuple[Any, ...]:
        if self._constraints is None:
            return (None,) * count
        found = tuple(spread("constraints", self._constraints, params, is_leaf=lambda c: c is None))
        if wrong := [c for c in found if c is not None and not callable(c)]:
            raise TypeError(f"constraints must be functions from array to array or None, got {wrong[0]!r}")
        return found


# Compiled by itself too, so that a step outside of jit is one call, and an operation that is not selected has no NaN to show.
_compiled = jax.jit(stages.call, static_argnums=0)


def _accumulator(p: Array, start: Any, row_wise: bool) -> Array:
    dtype = stages.real_dtype(p.dtype)
    if not (row_wise and p.ndim >= 2):
        return jnp.full_like(p, start, dtype)
    if jnp.iscomplexobj(p):
        raise TypeError(f"row_wise needs real parameters, got {p.dtype}")
    return jnp.full_like(p.sum(tuple(range(1, p.ndim))), start, dtype)  # the sum lies as the rows do
