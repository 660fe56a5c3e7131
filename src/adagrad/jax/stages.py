"""The stages of a call in order, as array code over `adagrad.rule`: pure functions of lists of leaves, traced by JAX.

The order is the contract's: 3 unscale, 4 accumulate, 5 clip, 6 decay, 7 the rule, 8 constrain, 9 average, 10 overwrite,
11 count; what can be wrong is checked before by the caller. Numbers are rounded as XLA likes it (it contracts and reorders).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adagrad import rule
from adagrad.gradients import IndexedSlices
from adagrad.jax import counting, rates
from adagrad.jax.native import dispatched_step
from adagrad.jax.norms import with_factors
from adagrad.jax.rows import Rows, padded, put, summed, take
from adagrad.settings import Settings

__all__ = ["Scalars", "Slot", "Spec", "advance", "call", "real_dtype", "wide_dtype"]

Array = jax.Array
Constraint = Callable[[Array], Array]


class Slot(NamedTuple):
    """The state of one parameter; what the settings don't ask for is None."""

    accumulator: Array
    average: Array | None = None
    buffer: Array | None = None
    in_cycle: Array | None = None


class Spec(NamedTuple):
    """What a compiled call is compiled for; hashable."""

    settings: Settings
    decays: tuple[bool, ...]
    constraints: tuple[Constraint | None, ...]
    as_update: bool  # what comes out is what optax adds to the parameters, not the parameters
    kernels: bool  # rows go through the compiled kernels where they can


class Scalars(NamedTuple):
    """The numbers of a call for one parameter, in the dtype of its arithmetic and the order of the kernels; None: off."""

    lr: Any
    inside: Any
    outside: Any
    scale: Any = None
    steps: Any = None
    clipvalue: Any = None
    factor: Any = None
    decay: Any = None
    l2: Any = None
    momentum: Any = None
    complement: Any = None
    first: Any = None


class Flags(NamedTuple):
    """What of a step is decided when it is traced."""

    row_wise: bool
    kernels: bool
    as_update: bool = False
    constraint: Constraint | None = None


def real_dtype(dtype: Any) -> Any:
    """The dtype of the accumulators and scalars: float64 for double precision (complex too), else float32."""
    return jnp.float64 if dtype in (jnp.float64, jnp.complex128) else jnp.float32


def wide_dtype(dtype: Any) -> Any:
    """The dtype of the arithmetic, of averages and of gradient buffers."""
    return dtype if jnp.issubdtype(dtype, jnp.complexfloating) else real_dtype(dtype)


# -- a call ------------------------------------------------------------------------------------------------------------


def call(
    spec: Spec,
    given: dict[str, Array],
    count: Array,
    slots: list[Slot],
    gradients: Sequence[Any],
    params: list[Array] | None,
) -> tuple[Array, list[Slot], list[Any]]:
    """One call: the count, the slots, and the parameters (or, if ``spec`` says so, the updates) after it.

    ``given`` holds arguments whose values are arrays, in place of those in the settings. ``gradients`` are arrays,
    `IndexedSlices` or None.
    """
    steps = spec.settings.accumulation_steps
    if steps == 1:
        slots, out = _real_call(spec, given, count, slots, gradients, params)
    else:
        is_real = counting.divide(counting.increment(count), steps, jnp.float32)[1] == 0
        slots, out = jax.lax.cond(
            is_real,
            lambda: _real_call(spec, given, count, slots, gradients, params),
            lambda: _gathering_call(spec, given, count, slots, gradients, params),
        )
    return counting.increment(count), slots, out


def _scalars(spec: Spec, given: dict[str, Array], count: Array) -> Callable[[Any, bool], Scalars]:
    """The scalars for a parameter's real dtype; its decay only if it decays."""
    own = spec.settings
    rate = rates.rate_at(given.get("learning_rate", own.learning_rate), count)

    def scalars(dtype: Any, decays: bool) -> Scalars:
        def number(name: str) -> Array | None:
            value = given.get(name, getattr(own, name))
            return None if value is None else jnp.asarray(value, dtype)

        zero, epsilon = jnp.zeros((), dtype), jnp.asarray(number("epsilon"))
        decay = number("weight_decay") if decays else None
        momentum = given.get("ema_momentum", own.ema_momentum)
        inside = own.epsilon_placement == "inside"
        return Scalars(
            lr=rate.astype(dtype),
            inside=epsilon if inside else zero,
            outside=zero if inside else epsilon,
            scale=number("loss_scale_factor"),
            steps=jnp.asarray(own.accumulation_steps, dtype) if own.accumulation_steps > 1 else None,
            clipvalue=number("clipvalue"),
            decay=decay if own.weight_decay_mode == "decoupled" else None,
            l2=decay if own.weight_decay_mode == "l2" else None,
            momentum=jnp.asarray(momentum, dtype) if own.use_ema else None,
            complement=jnp.asarray(1 - momentum, dtype) if own.use_ema else None,
            first=~counting.reaches(count, own.accumulation_steps) if own.use_ema else None,
        )

    return scalars


def _gathering_call(
    spec: Spec,
    given: dict[str, Array],
    count: Array,
    slots: list[Slot],
    gradients: Sequence[Any],
    params: list[Array] | None,
) -> tuple[list[Slot], list[Any]]:
    """Stages 3 and 4 on a call that is no real step."""
    scalars = _scalars(spec, given, count)
    new = []
    for slot, gradient in zip(slots, gradients, strict=True):
        assert slot.buffer is not None
        if gradient is not None:
            s = scalars(slot.accumulator.dtype, False)
            if isinstance(gradient, IndexedSlices):
                ids, g = summed(_rows(gradient, slot.buffer), len(slot.buffer))
                buffer = put(slot.buffer, ids, rule.accumulate(take(slot.buffer, ids), _unscaled(g, s)))
            else:
                buffer = rule.accumulate(slot.buffer, _unscaled(gradient.astype(slot.buffer.dtype), s))
            slot = slot._replace(buffer=buffer, in_cycle=jnp.ones((), bool))
        new.append(slot)
    if not spec.as_update:
        assert params is not None
        return new, list(params)
    places: Sequence[Array | None] = params if params is not None else [None] * len(slots)
    return new, [_no_update(g, slot, p) for g, slot, p in zip(gradients, slots, places, strict=True)]


def _no_update(gradient: Any, slot: Slot, p: Array | None) -> Array:
    """An update of zeros, in a dtype that has the gradient's and the parameter's numbers; of integers, the state's too."""
    known = [x for x in (gradient, p) if x is not None]
    if not any(jnp.issubdtype(x.dtype, jnp.inexact) for x in known):
        known.append(slot.accumulator if slot.buffer is None else slot.buffer)
    return jnp.zeros_like(known[0], functools.reduce(jnp.promote_types, [x.dtype for x in known]))


def _real_call(
    spec: Spec,
    given: dict[str, Array],
    count: Array,
    slots: list[Slot],
    gradients: Sequence[Any],
    params: list[Array] | None,
) -> tuple[list[Slot], list[Any]]:
    """Stages 3 to 10 of a real step."""
    own = spec.settings
    scalars = _scalars(spec, given, count)
    numbers = [scalars(slot.accumulator.dtype, decays) for slot, decays in zip(slots, spec.decays, strict=True)]
    closed = [_closed(g, slot, s) for g, slot, s in zip(gradients, slots, numbers, strict=True)]
    numbers = with_factors(spec, given, slots, closed, numbers)
    overwrite = None
    if own.use_ema and own.ema_overwrite_frequency is not None:
        every = own.accumulation_steps * own.ema_overwrite_frequency
        overwrite = counting.divide(counting.increment(count), every, jnp.float32)[1] == 0

    new, out = [], []
    for v, (slot, g, s) in enumerate(zip(slots, closed, numbers, strict=True)):
        p = None if params is None else params[v]
        flags = Flags(is_row_wise(own, slot, p), spec.kernels, spec.as_update, spec.constraints[v])
        like = _no_update(gradients[v], slot, p) if spec.as_update else None
        still: Any = _unmoved(p, slot, s, overwrite, flags, like) if gradients[v] is None else None
        if g is None:
            after, a, m = still
        elif isinstance(g, Rows):
            assert p is not None
            after, a, m = dispatched_step(_step_rows, flags, p, slot.accumulator, slot.average, g, s, overwrite)
        else:
            after, a, m = advance(p, slot.accumulator, slot.average, g, s, overwrite, flags, like)
            if still is not None:  # no gradient of this call; the rest of the cycle may have brought one, or not
                after, a, m = jax.tree.map(functools.partial(jnp.where, slot.in_cycle), (after, a, m), still)
        if slot.buffer is not None:
            slot = slot._replace(buffer=jnp.zeros_like(slot.buffer), in_cycle=jnp.zeros((), bool))
        new.append(slot._replace(accumulator=a, average=m))
        out.append(after)
    return new, out


def _unmoved(p: Array | None, slot: Slot, s: Scalars, overwrite: Array | None, flags: Flags, like: Array | None) -> Any:
    """What `advance` returns, for a parameter that has no gradient: only its average moves, and may overwrite it."""
    after, m = p, slot.average
    if m is not None:
        assert p is not None
        after, m = _averaged(p, m, s, overwrite, flags)
    if like is not None:
        update = like
        if m is not None and p is not None and after is not None and overwrite is not None:
            update = jnp.where(overwrite, (after.astype(m.dtype) - p.astype(m.dtype)).astype(like.dtype), update)
        after = update
    return after, slot.accumulator, m


def _rows(gradient: IndexedSlices, like: Array) -> Rows:
    """A row gradient made ready: values in the dtype of ``like``, ids in [0, len(like)]."""
    return Rows(jnp.asarray(gradient.values).astype(like.dtype), padded(jnp.asarray(gradient.indices), len(like)))


def _unscaled(g: Array, s: Scalars) -> Array:
    return g if s.scale is None else rule.unscale(g, s.scale)


def _closed(gradient: Any, slot: Slot, s: Scalars) -> Any:
    """Stages 3 and 4 on the real step: an array; without accumulation also `Rows`, not yet unscaled, or None."""
    b, a = slot.buffer, slot.accumulator
    if b is None:
        if gradient is None:
            return None
        if isinstance(gradient, IndexedSlices):
            return _rows(gradient, a)
        number = jnp.zeros((), jnp.complex64 if jnp.iscomplexobj(gradient) else a.dtype)
        return _unscaled(gradient.astype(jnp.promote_types(number.dtype, a.dtype)), s)
    if gradient is None:
        return rule.mean_gradient(jnp.zeros((), b.dtype), b, s.steps)
    if isinstance(gradient, IndexedSlices):
        ids, g = summed(_rows(gradient, b), len(b))
        b = put(b, ids, take(b, ids) + _unscaled(g, s))
        return rule.mean_gradient(jnp.zeros((), b.dtype), b, s.steps)
    return rule.mean_gradient(_unscaled(gradient.astype(b.dtype), s), b, s.steps)


# -- one parameter -----------------------------------------------------------------------------------------------------


def is_row_wise(own: Settings, slot: Slot, p: Array | None) -> bool:
    """Whether the accumulator has one number a row."""
    return own.row_wise and (p is not None and p.ndim != slot.accumulator.ndim)


def advance(
    p: Array | None,
    a: Array,
    m: Array | None,
    g: Array,
    s: Scalars,
    overwrite: Array | None,
    flags: Flags,
    like: Array | None = None,
) -> tuple[Array, Array, Array | None]:
    """Stages 5 to 10 by an unscaled gradient: ``(p, a, m)``, or the update, of the dtype of ``like``, in the place of p."""
    if s.clipvalue is not None:
        g = rule.clip_by_value(g, s.clipvalue, jnp.where)
    if s.factor is not None:
        g = rule.clip_by_norm(g, s.factor, jnp.where)
    wide: Any = None if p is None else p.astype(wide_dtype(p.dtype))
    base = wide
    if s.decay is not None:
        base = rule.decay_weights(wide, s.decay, s.lr)
    if s.l2 is not None:
        g = rule.l2_gradient(g, wide, s.l2)
    if flags.as_update:  # the rule on what has been added so far: p + (0 - step) has the rounding of p - step
        base = jnp.zeros_like(g) if s.decay is None else base - wide
    new, a = _rule(base, a, g, s, flags.row_wise)
    if not flags.as_update:
        assert p is not None
        stored = _constrained(new.astype(p.dtype), flags)
        if m is not None:
            stored, m = _averaged(stored, m, s, overwrite, flags)
        return stored, a, m
    assert like is not None
    update = new.astype(like.dtype)
    if m is not None:
        assert p is not None
        after, m = _averaged((p + update).astype(p.dtype), m, s, overwrite, flags)
        if overwrite is not None:
            update = jnp.where(overwrite, (after.astype(m.dtype) - wide).astype(like.dtype), update)
    return update, a, m


def _rule(p: Any, a: Array, g: Array, s: Scalars, row_wise: bool) -> tuple[Array, Array]:
    """Stage 7. A complex gradient moves its parameter by its direction, the accumulator takes |g|^2: optax's way."""
    if jnp.iscomplexobj(g):
        size = jnp.abs(g)
        step, a = rule.adagrad(jnp.zeros_like(size), a, size, size * size, s.lr, s.inside, s.outside, jnp.sqrt, jnp.where)
        return p + step * (g / jnp.where(size == 0, 1, size)), a
    square = g * g
    if row_wise:
        axes = tuple(range(1, p.ndim))
        square = jnp.broadcast_to(square, p.shape).sum(axes, keepdims=True) / max(1, math.prod(p.shape[1:]))
    spread = a.reshape(square.shape) if row_wise else a
    p, spread = rule.adagrad(p, spread, g, square, s.lr, s.inside, s.outside, jnp.sqrt, jnp.where)
    return p, spread.reshape(a.shape)


def _averaged(p: Array, m: Any, s: Scalars, overwrite: Array | None, flags: Flags) -> tuple[Array, Array]:
    """Stages 9 and 10."""
    m = rule.average(m, p.astype(m.dtype), s.momentum, s.complement, s.first, jnp.where)
    if overwrite is not None:
        p = jnp.where(overwrite, _constrained(m.astype(p.dtype), flags), p)
    return p, m


def _constrained(p: Array, flags: Flags) -> Array:
    """Stage 8."""
    if flags.constraint is None:
        return p
    result = jnp.asarray(flags.constraint(p))
    if result.shape != p.shape:
        raise ValueError(f"a constraint must keep the shape {p.shape} of its parameter, got {result.shape}")
    return result.astype(p.dtype)


def _step_rows(
    flags: Flags, p: Array, a: Array, m: Array | None, rows: Rows, s: Scalars, overwrite: Array | None
) -> tuple[Array, Array, Array | None]:
    """Stages 3 to 10 by a row gradient, on the rows that it names where only they move, or the others move without it."""
    ids, g = summed(rows, len(p))
    g = _unscaled(g, s)
    in_place = s.decay is None or p.dtype == wide_dtype(p.dtype)  # a half is rounded once, so it can't be decayed ahead
    if s.l2 is not None or flags.constraint is not None or not in_place:
        return advance(p, a, m, put(jnp.zeros(p.shape, g.dtype), ids, g), s, overwrite, flags)
    if s.decay is not None:
        p = rule.decay_weights(p, s.decay, s.lr)
    moved, accumulated, _ = advance(take(p, ids), take(a, ids), None, g, s._replace(decay=None), None, flags)
    p, a = put(p, ids, moved), put(a, ids, accumulated)
    if m is not None:
        p, m = _averaged(p, m, s, overwrite, flags)
    return p, a, m
