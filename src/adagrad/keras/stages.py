"""The stages of a step as array code: `adagrad.rule` on the tensors of JAX, of TensorFlow, and of PyTorch's devices.

The same text runs eagerly and is what ``tf.function``, XLA and ``jax.jit`` trace; on TensorFlow, eager or not, what a large
variable goes through is one program of XLA (`compiled`). The numbers are within a rounding or two a step of the engine's,
since XLA contracts and reorders arithmetic as it likes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import backend, ops

from adagrad import rule
from adagrad.keras.rows import BACKEND, Rows, in_stateless_scope, is_known, put, read, take, value_of
from adagrad.keras.slots import Slot, wide_dtype
from adagrad.settings import Settings, check_rate

__all__ = ["choose", "is_finite", "step"]

Tensor = Any
Variable = Any
Given = Tensor | Rows | None

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax

# Elements from which on a variable gets a program of its own: a step saves 0.1 ms or more, and compiling takes 0.1 to 0.2 s.
LARGE = 8192
_HIGHEST = np.iinfo(np.int32).max


def choose(condition: Tensor, yes: Callable[[], None], no: Callable[[], None], variables: Sequence[Variable]) -> None:
    """Run ``yes`` or ``no``, which may assign to ``variables``, as a scalar ``condition`` says, now or in the program."""
    if BACKEND == "tensorflow" and not tf.executing_eagerly():

        def without_result(branch: Callable[[], None]) -> Callable[[], Tensor]:
            def run() -> Tensor:
                branch()
                return tf.zeros(())

            return run

        if not in_stateless_scope():
            tf.cond(condition, without_result(yes), without_result(no))
            return
    elif not (BACKEND == "jax" and isinstance(condition, jax.core.Tracer)):
        (yes if bool(condition) else no)()
        return

    def values(branch: Callable[[], None]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with keras.StatelessScope(state_mapping=list(zip(variables, current, strict=True))) as scope:
                branch()
            return [scope.get_current_value(variable) for variable in variables]

        return run

    current = [value_of(variable) for variable in variables]
    new = ops.cond(condition, values(yes), values(no))
    for variable, value in zip(variables, new, strict=True):
        variable.assign(value)


def prepared(slots: Sequence[Slot], gradients: Sequence[Any], loss_scale: Any) -> list[Given]:
    """Stages 1 to 3: the gradients in the dtype of the arithmetic, repeated ids summed, divided by the loss scale."""
    found: list[Given] = [
        None if gradient is None else read(gradient, slot.name, slot.shape)
        for slot, gradient in zip(slots, gradients, strict=True)
    ]
    return [None if g is None else _unscaled(slot, g, loss_scale) for slot, g in zip(slots, found, strict=True)]


def _unscaled(slot: Slot, gradient: Tensor | Rows, loss_scale: Any) -> Tensor | Rows:
    if isinstance(gradient, Rows):
        gradient = gradient.grouped(slot.shape[0], slot.wide)
        if loss_scale is None:
            return gradient
        return Rows(rule.unscale(gradient.values, _scalar(loss_scale, slot.wide)), gradient.ids)
    gradient = ops.cast(gradient, slot.wide)
    return gradient if loss_scale is None else rule.unscale(gradient, _scalar(loss_scale, slot.wide))


def is_finite(gradients: Sequence[Given]) -> Tensor:
    """Whether all prepared gradients are finite, as a scalar."""
    parts = [ops.all(ops.isfinite(g.values if isinstance(g, Rows) else g)) for g in gradients if g is not None]
    return ops.all(ops.stack(parts)) if parts else ops.convert_to_tensor(True)


def step(
    settings: Settings,
    slots: Sequence[Slot],
    gradients: Sequence[Given],
    calls: Variable,
    rate: Callable[[Tensor], Tensor],
    variables: Sequence[Variable],
) -> None:
    """Stages 4 to 11 of one call, by gradients that `prepared` gave.

    ``rate`` gives the learning rate from the count of calls; ``variables`` are all that a step reads or assigns to. A rate
    that is negative or not finite raises ``ValueError`` where it can be looked at; then, or where a constraint raises, the
    call has changed nothing.
    """
    steps, now = settings.accumulation_steps, value_of(calls)
    call = _Call(settings, slots, now, rate)
    if steps == 1:
        call.step(gradients)
    else:
        choose(
            (now + 1) % steps == 0,
            lambda: call.step(gradients),
            lambda: call.accumulate(gradients),
            variables,
        )
    calls.assign(_next(now, steps * (settings.ema_overwrite_frequency or 1)))


def _next(calls: Tensor, period: int) -> Tensor:
    """``calls + 1``; a count of 32 bits steps back by one period of all cycles instead of becoming negative."""
    if backend.standardize_dtype(calls.dtype) != "int32" or period >= _HIGHEST:
        return calls + 1
    return ops.where(calls >= _HIGHEST - 1, calls - period + 1, calls + 1)


def _scalar(value: Any, dtype: str) -> Tensor:
    return ops.cast(value, dtype) if ops.is_tensor(value) else ops.convert_to_tensor(value, dtype)


def _checked(rate: Tensor) -> Tensor:
    """The learning rate, which must be one if its value is known already, and here."""
    found = value_of(rate)
    if not ops.is_tensor(found) or (is_known(found) and not _on_a_device(found)):
        check_rate(float(found))
    return found


def _on_a_device(tensor: Tensor) -> bool:
    """Whether reading a tensor's value would wait for a device, which computes on while PyTorch's calls return."""
    return BACKEND == "torch" and tensor.device.type != "cpu"


class _Call:
    """One call: what all variables have in common."""

    def __init__(self, settings: Settings, slots: Sequence[Slot], calls: Tensor, rate: Callable[[Tensor], Tensor]) -> None:
        self.settings, self.slots, self.calls, self._find_rate = settings, slots, calls, rate

    # -- accumulation ----------------------------------------------------------------------------------------------

    def accumulate(self, gradients: Sequence[Given]) -> None:
        """Stage 4 on a call that is no real step."""
        for slot, g in zip(self.slots, gradients, strict=True):
            if isinstance(g, Rows):
                put(slot.buffer, Rows(rule.accumulate(take(slot.buffer, g.ids), g.values), g.ids))
            elif g is not None:
                slot.buffer.assign(rule.accumulate(value_of(slot.buffer), g))

    def _mean(self, slot: Slot, g: Given) -> Tensor:
        """Stage 4 on the real step: the mean of the cycle."""
        held = ops.convert_to_tensor(value_of(slot.buffer))
        slot.moved = True if g is not None else ops.any(held != 0)
        if isinstance(g, Rows):
            held, g = _added(held, g), None
        return rule.mean_gradient(
            _scalar(0.0, slot.wide) if g is None else g, held, _scalar(self.settings.accumulation_steps, slot.wide)
        )

    # -- a real step -----------------------------------------------------------------------------------------------

    def step(self, gradients: Sequence[Given]) -> None:
        """Stages 4 to 10. What may raise, the rate and the constraints, comes before anything is assigned."""
        rate = _checked(self._find_rate(self.calls))
        if self.settings.accumulation_steps > 1:
            gradients = [self._mean(slot, g) for slot, g in zip(self.slots, gradients, strict=True)]
        given = list(zip(self.slots, gradients, self._factors(gradients), strict=True))
        constrained = [(slot, *self._stepped(slot, g, f, rate)) for slot, g, f in given if slot.constraint is not None]
        for slot in self.slots:
            if slot.buffer is not None:
                slot.buffer.assign(ops.zeros_like(ops.convert_to_tensor(value_of(slot.buffer))))
        for slot, g, factor in given:
            if slot.constraint is None:
                if isinstance(g, Rows) and not self._moves_all(slot):
                    self._move_rows(slot, self._clipped(slot, g, factor), rate)
                else:
                    self._move(slot, g, factor, rate)
        for stepped in constrained:
            _write(*stepped)
        for slot in self.slots:
            slot.moved = True

    def _moves_all(self, slot: Slot) -> bool:
        """Whether a step by some rows moves others too, or needs them."""
        return bool(slot.constraint is not None or self.settings.use_ema or (self.settings.weight_decay and slot.decays))

    def _move_rows(self, slot: Slot, g: Rows, rate: Tensor) -> None:
        p, a = take(slot.variable, g.ids), take(slot.accumulator, g.ids)
        p, a = self._ruled(slot, ops.cast(p, slot.wide), a, g.values, rate)
        put(slot.accumulator, Rows(a, g.ids))
        put(slot.variable, Rows(p, g.ids))

    def _move(self, slot: Slot, g: Given, factor: Tensor | None, rate: Tensor) -> None:
        """Stages 5 to 10 of a whole variable without a constraint."""
        program = compiled(self.settings, slot)
        if program is None:
            _write(slot, *self._stepped(slot, g, factor, rate))
        else:
            handles = [None if v is None else value_of(v).handle for v in (slot.variable, slot.accumulator, slot.average)]
            dense = None if g is None else _dense(g, slot)  # so many rows as come would be another program each time
            program(*handles, dense, factor, _scalar(rate, slot.wide), ops.convert_to_tensor(self.calls), slot.moved)

    def _stepped(self, slot: Slot, g: Given, factor: Tensor | None, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stages 5 to 10: the new parameter, accumulator and average; None for what stays as it is."""
        p, a = (None, None) if g is None else self._moved(slot, self._clipped(slot, g, factor), rate)
        m = None
        if self.settings.use_ema:
            p, m = self._averaged(slot, p)
        return p, a, m

    def _moved(self, slot: Slot, g: Tensor | Rows, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Stages 6 to 8: the new parameter, in its dtype, and the new accumulator."""
        settings, lr = self.settings, _scalar(rate, slot.wide)
        g = _dense(g, slot)
        before = ops.convert_to_tensor(value_of(slot.variable))
        p = ops.cast(before, slot.wide)
        if settings.weight_decay and slot.decays:
            decay = _scalar(settings.weight_decay, slot.wide)
            if settings.weight_decay_mode == "l2":
                g = (
                    rule.l2_gradient(g, p, decay)
                    if slot.moved is True
                    else ops.where(slot.moved, rule.l2_gradient(g, p, decay), g)
                )
            else:
                p = (
                    rule.decay_weights(p, decay, lr)
                    if slot.moved is True
                    else ops.where(slot.moved, rule.decay_weights(p, decay, lr), p)
                )
        p, a = self._ruled(slot, p, ops.convert_to_tensor(value_of(slot.accumulator)), g, rate)
        p = ops.cast(p, slot.dtype)
        if slot.constraint is not None:
            constrained = slot.constrained(p)
            p = constrained if slot.moved is True else ops.where(slot.moved, constrained, before)
        return p, a

    def _ruled(self, slot: Slot, p: Tensor, a: Tensor, g: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 7, on all rows or on some; ``p`` and ``g`` in the dtype of the arithmetic."""
        epsilon, zero = _scalar(self.settings.epsilon, slot.wide), _scalar(0.0, slot.wide)
        inside, outside = (epsilon, zero) if self.settings.epsilon_placement == "inside" else (zero, epsilon)
        # A choice between product and sum keeps XLA from rounding them once, as a whole, where rows are not XLA's.
        square = ops.where(g == 0, zero, g * g)
        if slot.row_wise:
            square = ops.mean(square, axis=tuple(range(1, len(slot.shape))), keepdims=True)
            a = ops.reshape(a, (-1, *[1] * (len(slot.shape) - 1)))
        p, a = rule.adagrad(p, a, g, square, _scalar(rate, slot.wide), inside, outside, ops.sqrt, ops.where)
        return p, ops.reshape(a, (-1,)) if slot.row_wise else a

    def _averaged(self, slot: Slot, p: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Stages 9 and 10: the parameter, None if it stays as it is, and its average."""
        settings, now = self.settings, ops.convert_to_tensor(value_of(slot.variable)) if p is None else p
        momentum, complement = (_scalar(x, slot.wide) for x in (settings.ema_momentum, 1 - settings.ema_momentum))
        done = self.calls // settings.accumulation_steps
        m = ops.convert_to_tensor(value_of(slot.average))
        m = rule.average(m, ops.cast(now, slot.wide), momentum, complement, done == 0, ops.where)
        if settings.ema_overwrite_frequency is not None:
            overwrite = (done + 1) % settings.ema_overwrite_frequency == 0
            p = ops.where(overwrite, slot.constrained(ops.cast(m, slot.dtype)), now)
        return p, m

    # -- clipping --------------------------------------------------------------------------------------------------

    def _factors(self, gradients: Sequence[Given]) -> list[Tensor | None]:
        """What stage 5 multiplies each gradient by; None where there is no norm to be clipped."""
        settings, given = self.settings, [_values(g) for g in gradients if g is not None]
        if settings.clipnorm is not None:
            bound = settings.clipnorm
            return [None if g is None else _factor([_values(g)], bound) for g in gradients]
        factor = None if settings.global_clipnorm is None else _factor(given, settings.global_clipnorm)
        return [factor] * len(gradients)

    def _clipped(self, slot: Slot, g: Any, factor: Tensor | None) -> Any:
        """Stage 5."""
        if isinstance(g, Rows):
            return Rows(self._clipped(slot, g.values, factor), g.ids)
        if self.settings.clipvalue is not None:
            return rule.clip_by_value(g, _scalar(self.settings.clipvalue, slot.wide), ops.where)
        return g if factor is None else rule.clip_by_norm(g, ops.cast(factor, slot.wide), ops.where)


def compiled(settings: Settings, slot: Slot) -> Callable[..., None] | None:
    """`_Call._move` as one program of XLA, where TensorFlow would run each operation alone, a pass over memory each.

    None elsewhere: JAX compiles the whole step; PyTorch's devices, a stateless call and ``tf.distribute`` do as they do;
    a small variable is not worth a compilation; and XLA would sum means of rows in another order than row gradients have.
    """
    if BACKEND != "tensorflow" or math.prod(slot.shape) < LARGE or slot.row_wise:
        return None
    if in_stateless_scope() or isinstance(value_of(slot.variable), tf.distribute.DistributedValues):
        return None
    if not tf.test.is_built_with_xla():
        return None
    # What a rate is is no part of the program, so optimizers that differ in it share one.
    return _program(dataclasses.replace(settings, learning_rate=0.0), slot.shape, slot.dtype, slot.decays, slot.moved is True)


@functools.lru_cache(maxsize=4096)
def _program(settings: Settings, shape: tuple[int, ...], dtype: str, decays: bool, known: bool) -> Callable[..., None]:
    """Cached by all that it is traced for."""
    # A partial: TensorFlow takes the traces of all functions of one text together, and warns of too many.
    run = functools.partial(_move, settings, dtype, decays, known)
    program: Callable[..., None] = tf.function(run, jit_compile=True, autograph=False)
    return program


def _move(
    settings: Settings, dtype: str, decays: bool, known: bool,
    p: Any, a: Any, m: Any, g: Any, factor: Any, rate: Any, calls: Any, moved: Any,
) -> None:  # fmt: skip
    """Handles of variables come in, not variables, since a program may outlive those that it is traced with."""
    before = [
        None if handle is None else tf.raw_ops.ReadVariableOp(resource=handle, dtype=of)
        for handle, of in ((p, dtype), (a, wide_dtype(dtype)), (m, wide_dtype(dtype)))
    ]
    slot = Slot(before[0], before[1], before[2], None, decays, True if known else moved)
    new = _Call(settings, [slot], calls, lambda _: rate)._stepped(slot, g, factor, rate)
    for handle, value in zip((p, a, m), new, strict=True):
        if value is not None:
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)


def _values(g: Tensor | Rows) -> Tensor:
    return g.values if isinstance(g, Rows) else g


def _factor(gradients: Sequence[Tensor], bound: float) -> Tensor:
    """Stage 5's factor: ``bound/n`` where the norm n over ``gradients`` is above the bound, else 1; NaN for n not finite.

    The squares are summed in the widest dtype there is. Where they leave its range, they are those of the gradients times a
    power of two.
    """
    exact = widest()
    # Keras takes a Python number beside float64 for a reason to compute in float32.
    number = functools.partial(_scalar, dtype=exact)
    if exact == "float64" and all(backend.standardize_dtype(g.dtype) == "float32" for g in gradients):
        scales, small = [1.0], 0.0
    else:
        scales, small = ([1.0, 2.0**-600, 2.0**600], 2.0**-900) if exact == "float64" else ([1.0, 2.0**-100, 2.0**80], 2.0**-70)
    sums: list[Tensor] = [sum(ops.sum(ops.square(ops.cast(g, exact) * number(scale))) for g in gradients) for scale in scales]
    total, scale = sums[0], number(1.0)
    if len(sums) > 1:
        high, low = ~ops.isfinite(total), total < number(small)
        total = ops.where(high, sums[1], ops.where(low, sums[2], total))
        scale = ops.where(high, number(scales[1]), ops.where(low, number(scales[2]), scale))
    norm, bound = ops.sqrt(total), number(bound)
    factor = ops.where(norm > bound * scale, bound / norm * scale, number(1.0))
    return ops.where(ops.isfinite(norm), factor, number(math.nan))


def widest() -> str:
    """The widest dtype of the backend: float64, or float32 where JAX has no other."""
    return "float32" if BACKEND == "jax" and not jax.config.read("jax_enable_x64") else "float64"


def _dense(g: Tensor | Rows, slot: Slot) -> Tensor:
    """A gradient, of grouped rows too, as a dense one."""
    if not isinstance(g, Rows):
        return g
    if BACKEND == "tensorflow":
        zeros = tf.zeros(slot.shape, slot.wide)
        return tf.tensor_scatter_nd_update(zeros, g.ids[:, None], g.values)
    zeros = ops.zeros(slot.shape, slot.wide)
    return zeros.index_copy(0, g.ids, g.values) if BACKEND == "torch" else zeros.at[g.ids].set(g.values, mode="drop")


def _added(held: Tensor, g: Rows) -> Tensor:
    """A gradient buffer plus grouped rows."""
    if BACKEND == "tensorflow":
        return tf.tensor_scatter_nd_add(held, g.ids[:, None], g.values)
    return held.index_add(0, g.ids, g.values) if BACKEND == "torch" else held.at[g.ids].add(g.values, mode="drop")


def _write(slot: Slot, p: Tensor | None, a: Tensor | None, m: Tensor | None) -> None:
    for variable, value in ((slot.accumulator, a), (slot.variable, p), (slot.average, m)):
        if value is not None:
            variable.assign(value)
