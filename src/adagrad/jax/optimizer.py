"""Adagrad for JAX: a pure ``init``/``apply`` pair over pytrees, and the same as an optax gradient transformation."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adagrad.gradients import IndexedSlices
from adagrad.jax import counting, stages
from adagrad.jax.native import has_kernels
from adagrad.jax.rows import checked_rows, is_row_gradient
from adagrad.jax.stages import Slot, Spec
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import Settings

__all__ = ["Adagrad", "AdagradState", "adagrad", "flat_params", "flat_state"]

Array = jax.Array
Tree = Any
Rate = float | Array | LearningRateSchedule | Callable[[Any], Any]
Mask = Tree | Callable[[Tree], Tree] | None


class AdagradState(NamedTuple):
    """The state, a pytree; each tree in it is shaped as the parameters, and None where the arguments need none.

    Attributes
    ----------
    count : calls so far, in two uint32 words, low and high, which do not wrap
    accumulator : the sums of squared gradients; float32 for half parameters, real for complex ones, a number a row with
        ``row_wise``
    average : moving averages of the parameters (``use_ema``)
    gradient_accumulator : what this accumulation cycle has gathered (``gradient_accumulation_steps``)
    in_cycle : for each parameter, whether it has had a gradient in this cycle; bool
    """

    count: Array  # type: ignore[assignment]  # as optax calls it; nobody counts in a state
    accumulator: Tree
    average: Tree = None
    gradient_accumulator: Tree = None
    in_cycle: Tree = None


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

    Every number among the arguments may be a scalar array instead, traced too, which is then not checked. Integers, which
    decide what is compiled, may not.

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
        self._given: dict[str, Array] = {}
        for key, value in arguments.items():
            if isinstance(value, jax.core.Tracer):
                if key in ("ema_overwrite_frequency", "gradient_accumulation_steps", "use_ema", "row_wise"):
                    raise TypeError(
                        f"{key} decides what is compiled and must be known, got {value!r}; with optax.inject_hyperparams, "
                        "name it in static_args"
                    )
                if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number):
                    raise ValueError(f"{key} must be a real scalar, got {value!r}")
                self._given[key] = value
                arguments[key] = 0.5  # stands for it, within the range of every argument
            elif isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
                arguments[key] = value.item()
        self.settings = Settings(**arguments)
        if weight_decay_mask is not None and weight_decay is None:
            raise ValueError(f"weight_decay_mask needs a weight_decay, got {weight_decay_mask!r} without one")
        self._mask, self._constraints = weight_decay_mask, constraints

    def __repr__(self) -> str:
        traced = f", traced: {', '.join(self._given)}" if self._given else ""
        return f"<adagrad.jax.Adagrad {self.settings}{traced}>"

    @property
    def traced(self) -> list[str]:
        """The arguments whose values are only known inside a compiled function."""
        return list(self._given)

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
        gradients = _flat_gradients(grads, structure, names, leaves, "params")
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
        factor = self._given.get("loss_scale_factor", self.settings.loss_scale_factor)
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
        spec = Spec(self.settings, self.decays_of(params, count), self._constraints_of(params, count), as_update, kernels)
        calls, slots, out = _compiled(spec, self._given, state.count, slots, gradients, leaves)

        def tree(field: str) -> Tree:
            if getattr(state, field) is None:
                return None
            return jax.tree.unflatten(structure, [getattr(slot, _FIELDS[field]) for slot in slots])

        return AdagradState(calls, *(tree(field) for field in _FIELDS)), out

    def decays_of(self, params: Tree, count: int) -> tuple[bool, ...]:
        """For each leaf of ``params`` whether weight decay applies to it."""
        if self._mask is None:
            return (self.settings.weight_decay is not None,) * count
        mask = self._mask(params) if callable(self._mask) else self._mask
        return tuple(bool(m) for m in _spread("weight_decay_mask", mask, params))

    def _constraints_of(self, params: Tree, count: int) -> tuple[Any, ...]:
        if self._constraints is None:
            return (None,) * count
        found = tuple(_spread("constraints", self._constraints, params, is_leaf=lambda c: c is None))
        if wrong := [c for c in found if c is not None and not callable(c)]:
            raise TypeError(f"constraints must be functions from array to array or None, got {wrong[0]!r}")
        return found


_FIELDS = {
    "accumulator": "accumulator",
    "average": "average",
    "gradient_accumulator": "buffer",
    "in_cycle": "in_cycle",
}

# Compiled by itself too, so that a step outside of jit is one call, and an operation that is not selected has no NaN to show.
_compiled = jax.jit(stages.call, static_argnums=0)


def adagrad(
    learning_rate: Rate,
    initial_accumulator_value: float = 0.1,
    eps: float = 1e-7,
    *,
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
    epsilon_placement: str = "inside",
    weight_decay_mode: str = "decoupled",
    row_wise: bool = False,
    weight_decay_mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Adagrad as an optax transformation; ``optax.adagrad``'s arguments first, then those of `Adagrad`.

    The updates have the dtypes of the gradients, and are what ``optax.apply_updates`` adds. Where nothing but the rule moves
    a parameter, the sum is rounded as `Adagrad.apply` rounds it, unless it is half: then the update is rounded, too.
    Averages follow the parameters as this transformation leaves them, so with ``use_ema`` it stands last in a chain;
    `Adagrad.finalize` takes its state. ``params`` must be given to ``update`` for weight decay, averages and ``row_wise``.

    Row gradients (`IndexedSlices`) are refused: other transformations, ``optax.global_norm`` for one, would take the ids for
    numbers. They belong to `Adagrad.apply`.

    >>> import jax.numpy as jnp, optax
    >>> optimizer = optax.chain(optax.clip(1.0), adagrad(0.5, weight_decay=0.01))
    >>> params = {"w": jnp.ones(2)}
    >>> updates, state = optimizer.update({"w": jnp.array([3.0, -1.0])}, optimizer.init(params), params)
    >>> [round(w, 3) for w in optax.apply_updates(params, updates)["w"].tolist()]
    [0.518, 1.472]
    """
    optimizer = Adagrad(
        learning_rate,
        initial_accumulator_value,
        eps,
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
        weight_decay_mask=weight_decay_mask,
    )
    own = optimizer.settings
    needs = [
        what
        for what, on in (
            ("weight_decay", own.weight_decay is not None),
            ("use_ema", own.use_ema),
            ("row_wise", own.row_wise),
        )
        if on
    ]

    def update(updates: Tree, state: AdagradState, params: Tree = None, **extra_args: Any) -> tuple[Tree, AdagradState]:
        del extra_args  # other transformations' of the same chain
        if any(map(is_row_gradient, jax.tree.leaves(updates, is_leaf=is_row_gradient))):
            raise TypeError(
                "an optax transformation can't take IndexedSlices, whose ids others would treat as numbers; use "
                "adagrad.jax.Adagrad(...).apply(grads, state, params)"
            )
        if params is None:
            if needs:
                raise ValueError(f"update needs params for {', '.join(needs)}: call update(grads, state, params)")
            structure, leaves = jax.tree.structure(state.accumulator), None
            names = _names(state.accumulator)
            gradients = _flat_gradients(updates, structure, names, jax.tree.leaves(state.accumulator), "the state")
        else:
            leaves, structure, names = flat_params(params)
            gradients = _flat_gradients(updates, structure, names, leaves, "params")
        missing = [name for name, g in zip(names, gradients, strict=True) if g is None]
        if missing and (own.accumulation_steps > 1 or own.ema_overwrite_frequency is not None):
            raise ValueError(
                f"an update of None can't bring what gradient accumulation or an overwrite owes, got None for {missing[0]}; "
                "give zeros, or use adagrad.jax.Adagrad(...).apply"
            )
        state, out = optimizer._call(gradients, state, leaves, structure, names, params, as_update=True)
        return jax.tree.unflatten(structure, out), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


# -- trees -------------------------------------------------------------------------------------------------------------


def _names(tree: Tree) -> list[str]:
    """The path of each leaf, ``dense/kernel``; ``params`` for a leaf alone."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path in paths]


def flat_params(params: Tree) -> tuple[list[Array], Any, list[str]]:
    """The parameters, their structure and their names."""
    leaves, structure = jax.tree.flatten(params)
    names = _names(params)
    found = []
    for name, leaf in zip(names, leaves, strict=True):
        p = jnp.asarray(leaf)
        if not jnp.issubdtype(p.dtype, jnp.inexact) or p.dtype.itemsize < 2:
            raise TypeError(f"parameter {name} must be floating or complex, got {p.dtype}")
        found.append(p)
    return found, structure, names


def _accumulator(p: Array, start: Any, row_wise: bool) -> Array:
    dtype = stages.real_dtype(p.dtype)
    if not (row_wise and p.ndim >= 2):
        return jnp.full_like(p, start, dtype)
    if jnp.iscomplexobj(p):
        raise TypeError(f"row_wise needs real parameters, got {p.dtype}")
    return jnp.full_like(p.sum(tuple(range(1, p.ndim))), start, dtype)  # the sum lies as the rows do


def _flat_gradients(grads: Tree, structure: Any, names: list[str], leaves: list[Array], like: str) -> list[Any]:
    """The gradient of each parameter, checked: an array, an `IndexedSlices` or None."""
    try:
        gradients = structure.flatten_up_to(grads)
    except (TypeError, ValueError) as error:
        raise ValueError(f"grads must have the structure of {like}: {error}") from None
    found: list[Any] = []
    for name, g, p in zip(names, gradients, leaves, strict=True):
        if isinstance(g, IndexedSlices):
            found.append(checked_rows(name, g, p.shape))
            dtype = found[-1].values.dtype
        elif g is None:
            found.append(None)
            continue
        else:
            if not isinstance(g, jax.Array | np.ndarray | np.generic | float | int | complex):
                raise TypeError(f"the gradient of {name} must be an array, IndexedSlices or None, got {type(g).__name__}")
            found.append(jnp.asarray(g))
            dtype = found[-1].dtype
            if like == "params" and found[-1].shape != p.shape:
                raise ValueError(f"the gradient of {name} must have its shape {p.shape}, got {found[-1].shape}")
        if not jnp.issubdtype(dtype, jnp.number):
            raise TypeError(f"the gradient of {name} must be numbers, got {dtype}")
        if like == "params" and jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.iscomplexobj(p):
            raise TypeError(f"the gradient of {name} must be real as its parameter is, got {dtype}")
    return found


def flat_state(state: AdagradState, structure: Any, own: Settings, names: list[str], leaves: list[Array] | None) -> list[Slot]:
    """The state by parameter; ``ValueError`` where it is not one of these arguments and parameters."""
    wanted = {
        "accumulator": True,
        "average": own.use_ema,
        "gradient_accumulator": own.accumulation_steps > 1,
        "in_cycle": own.accumulation_steps > 1,
    }
    columns = []
    for field, on in wanted.items():
        tree = getattr(state, field)
        if (tree is not None) != on and structure.num_leaves:
            raise ValueError(f"the state was made for other arguments: it has {'no' if on else 'an'} {field}")
        if not on or not structure.num_leaves:
            columns.append([None] * structure.num_leaves)
            continue
        try:
            columns.append(structure.flatten_up_to(tree))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the state was made for other parameters: {error}") from None
    slots = [Slot(*values) for values in zip(*columns, strict=True)]
    for name, slot, p in zip(names, slots, leaves or [], strict=leaves is not None):
        shape = p.shape[:1] if own.row_wise and p.ndim >= 2 else p.shape
        if jnp.shape(slot.accumulator) != shape:
            raise ValueError(f"the accumulator of {name} must have shape {shape}, got {jnp.shape(slot.accumulator)}")
    return slots


def _spread(what: str, prefix: Tree, params: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """The leaf of ``prefix`` for each leaf of ``params``."""
    found: list[Any] = []
    try:
        jax.tree.map(lambda value, part: found.extend([value] * len(jax.tree.leaves(part))), prefix, params, is_leaf=is_leaf)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be a prefix of params: {error}") from None
    return found
