"""The whole contract of one Adagrad step, slowly: plain Python loops in float64, to judge everything else by.

Nothing here comes from the package. NumPy only carries arrays in and out; each stage is a few lines over flat lists of
Python floats, in the order of the contract's table (its numbers stand in the comments of `ReferenceAdagrad.apply`).

    parameter = np.array([1.0, 2.0])                       # float64, changed in place
    reference = ReferenceAdagrad(learning_rate=0.5)
    reference.build([parameter], constraints=[None])       # or build({"w": parameter}, constraints={"w": f})
    reference.apply([np.array([0.1, -0.2])], [parameter])
    reference.accumulator(parameter), reference.average(parameter), reference.gradient_buffer(parameter)
    reference.calls, reference.iterations
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Flat = list[float]


def flat(array: Any) -> Flat:
    """All elements of an array, in C order, as Python floats."""
    return [float(x) for x in np.asarray(array, dtype=np.float64).ravel()]


def dense(gradient: Any, shape: tuple[int, ...]) -> Flat | None:
    """A gradient as a flat list: an array, None, or ("rows", values, indices) with repeated rows summed in order."""
    if gradient is None:
        return None
    if not (isinstance(gradient, tuple) and gradient and isinstance(gradient[0], str)):
        if np.shape(gradient) != shape:
            raise ValueError(f"gradient has shape {np.shape(gradient)}, its variable {shape}")
        return flat(gradient)
    _, values, indices = gradient
    if np.shape(values) != (len(indices), *shape[1:]):
        raise ValueError(f"rows have shape {np.shape(values)}, needed is {(len(indices), *shape[1:])}")
    width = math.prod(shape[1:])
    total = [0.0] * math.prod(shape)
    for row, index in zip(values, indices, strict=True):
        if not 0 <= index < shape[0]:
            raise ValueError(f"index {index} is outside [0, {shape[0]})")
        for column, value in enumerate(flat(row)):
            total[int(index) * width + column] += value
    return total


def norm(values: Flat) -> float:
    """The root of the sum of squares; `math.hypot` scales, so neither 1e200 nor 1e-200 is lost."""
    return math.hypot(*values)


def clip_by_norm(g: Flat, n: float, limit: float) -> Flat:
    """Scale `g` down, if its norm `n` is above the limit; a norm that is not finite leaves NaN where g is not 0."""
    if not math.isfinite(n):
        return [x if x == 0.0 else math.nan for x in g]
    if n > limit:
        return [x * (limit / n) for x in g]
    return g


def clip_by_value(x: float, limit: float) -> float:
    """Bring `x` into [-limit, limit]; NaN stays NaN."""
    if x > limit:
        return limit
    if x < -limit:
        return -limit
    return x


def rule(p: Flat, a: float, g: Flat, rate: float, epsilon: float, placement: str) -> tuple[Flat, float]:
    """The rule for the elements that share an accumulator, one element or a row: the new ones and the new accumulator."""
    a = a + sum(x * x for x in g) / max(1, len(g))
    denominator = math.sqrt(a + epsilon) if placement == "inside" else math.sqrt(a) + epsilon

    def step(x: float) -> float:
        if denominator == 0.0:  # x * x vanished: the limit of x / sqrt(x * x) is the sign
            return rate if x > 0.0 else -rate
        return (rate * x) / denominator

    return [y if x == 0.0 else y - step(x) for x, y in zip(g, p, strict=True)], a


@dataclass(eq=False)
class Slot:
    """One variable and all that is kept for it."""

    name: str
    variable: Array
    constraint: Callable[[Array], Array] | None
    round_param: Callable[[float], float] | None
    accumulator: Flat
    average: Flat
    buffer: Flat
    pending: bool = False  # has this accumulation cycle brought a gradient?
    excluded: bool = False  # from weight decay

    def stored(self, p: Flat) -> Flat:
        """What memory holds after `p` was written to it."""
        return p if self.round_param is None else [self.round_param(x) for x in p]

    def constrained(self, p: Flat) -> Flat:
        if self.constraint is None:
            return p
        return self.stored(flat(self.constraint(np.array(p).reshape(self.variable.shape))))


@dataclass(eq=False)
class ReferenceAdagrad:
    """Adagrad over float64 arrays that change in place; arguments as on the page, and two switches beyond it.

    The learning rate is a number, a callable of no arguments, or (by keyword) `schedule`, a callable of the raw count
    of calls.
    """

    learning_rate: float | Callable[[], float] = 0.001
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
    epsilon_placement: str = field(default="inside", kw_only=True)
    weight_decay_mode: str = field(default="decoupled", kw_only=True)
    row_wise: bool = field(default=False, kw_only=True)
    schedule: Callable[[int], float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.calls = 0
        self.slots: list[Slot] = []

    # --- set up -------------------------------------------------------------------------------------------------

    def build(
        self,
        variables: Sequence[Array] | Mapping[str, Array],
        constraints: Any = None,
        round_params: Any = None,
    ) -> None:
        """Make the state. `constraints` and `round_params` are callables or None, a list or dict beside `variables`.

        A `round_params` callable takes and gives a float: it is what storing a parameter in half precision does.
        """
        names = list(variables) if isinstance(variables, Mapping) else [f"variable_{i}" for i in range(len(variables))]
        arrays = list(variables.values()) if isinstance(variables, Mapping) else list(variables)

        def per_variable(functions: Any) -> list[Any]:
            if isinstance(functions, Mapping):
                return [functions.get(name) for name in names]
            return [None] * len(names) if functions is None else list(functions)

        for name, array, constraint, round_param in zip(
            names, arrays, per_variable(constraints), per_variable(round_params), strict=True
        ):
            assert array.dtype == np.float64, "the reference computes in float64"
            n = array.size
            count = len(array) if self.row_wise and array.ndim >= 2 else n
            start = [float(self.initial_accumulator_value)] * count
            self.slots.append(Slot(name, array, constraint, round_param, start, [0.0] * n, [0.0] * n))

    def exclude_from_weight_decay(
        self, var_list: Sequence[Array] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """No decay for these variables; names are searched as regular expressions."""
        for slot in self.slots:
            listed = any(slot.variable is v for v in var_list or [])
            named = any(re.search(pattern, slot.name) for pattern in var_names or [])
            slot.excluded = slot.excluded or listed or named

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def iterations(self) -> int:
        """Real steps done."""
        return self.calls // (self.gradient_accumulation_steps or 1)

    def slot(self, variable: Array) -> Slot:
        for slot in self.slots:
            if slot.variable is variable:
                return slot
        raise ValueError("this variable was not built")

    def accumulator(self, variable: Array) -> Array:
        shape = variable.shape[:1] if self.row_wise and variable.ndim >= 2 else variable.shape
        return np.array(self.slot(variable).accumulator).reshape(shape)

    def average(self, variable: Array) -> Array:
        return np.array(self.slot(variable).average).reshape(variable.shape)

    def gradient_buffer(self, variable: Array) -> Array:
        return np.array(self.slot(variable).buffer).reshape(variable.shape)

    # --- the step -----------------------------------------------------------------------------------------------

    def apply(self, grads: Any, variables: Any = None) -> None:
        """One call. Built variables that are not given count as given with None."""
        # 1: check everything
        if isinstance(grads, Mapping):
            by_name = {slot.name: slot.variable for slot in self.slots}
            variables, grads = [by_name[name] for name in grads], list(grads.values())
        slots = self.slots if variables is None else [self.slot(v) for v in variables]
        if len(grads) == 0 and (variables is None or len(variables) == 0):
            return
        if len(grads) != len(slots):
            raise ValueError(f"{len(grads)} gradients for {len(slots)} variables")
        if len(set(map(id, slots))) != len(slots):
            raise ValueError("a variable is given twice")
        given = {id(slot): dense(g, slot.variable.shape) for g, slot in zip(grads, slots, strict=True)}

        # 2: gradients that are None. Under accumulation they are zeros, even all of them.
        k = self.gradient_accumulation_steps or 1
        if k == 1 and all(g is None for g in given.values()):
            raise ValueError("all gradients are None")

        # 3: unscale
        if self.loss_scale_factor is not None:
            for key, g in given.items():
                given[key] = None if g is None else [x / self.loss_scale_factor for x in g]

        # 4: accumulate
        if (self.calls + 1) % k != 0:
            for slot in self.slots:
                g = given.get(id(slot))
                if g is not None:
                    slot.buffer = [b + x for b, x in zip(slot.buffer, g, strict=True)]
                    slot.pending = True
            self.calls += 1
            return
        gradients: dict[int, Flat] = {}  # by slot; a slot without one is skipped in stages 5 to 8
        for slot in self.slots:
            g = given.get(id(slot))
            if slot.pending:
                g = [0.0] * len(slot.buffer) if g is None else g
                g = [x + b for x, b in zip(g, slot.buffer, strict=True)]
            if g is not None:
                gradients[id(slot)] = [x / k for x in g]

        # 5: clip
        norm_of_all = norm([x for g in gradients.values() for x in g])
        for key, g in gradients.items():
            if self.clipvalue is not None:
                gradients[key] = [clip_by_value(x, self.clipvalue) for x in g]
            if self.clipnorm is not None:
                gradients[key] = clip_by_norm(g, norm(g), self.clipnorm)
            if self.global_clipnorm is not None:
                gradients[key] = clip_by_norm(g, norm_of_all, self.global_clipnorm)

        # What follows fills `after`; only the end writes it, so that a constraint that raises leaves nothing changed.
        rate = self._rate()
        real_step = (self.calls + 1) // k  # this one, counted from 1
        after: list[tuple[Slot, Flat, Flat, Flat]] = []
        for slot in self.slots:
            p, a, m = flat(slot.variable), slot.accumulator, slot.average
            if id(slot) in gradients:
                g = gradients[id(slot)]
                decay = 0.0 if slot.excluded else self.weight_decay or 0.0
                # 6: weight decay
                if decay != 0.0 and self.weight_decay_mode == "decoupled":
                    p = [x - (x * decay) * rate for x in p]
                if decay != 0.0 and self.weight_decay_mode == "l2":
                    g = [y + decay * x for x, y in zip(p, g, strict=True)]
                # 7: the rule
                width = len(p) // max(1, len(a))  # 1, or that of a row
                shares = [(p[i * width : (i + 1) * width], s, g[i * width : (i + 1) * width]) for i, s in enumerate(a)]
                pairs = [rule(*share, rate, self.epsilon, self.epsilon_placement) for share in shares]
                p, a = slot.stored([x for row, _ in pairs for x in row]), [s for _, s in pairs]
                # 8: constraint
                p = slot.constrained(p)
            if self.use_ema:
                # 9: moving average, of variables without a gradient too
                momentum = self.ema_momentum
                if real_step == 1:
                    m = p
                else:
                    m = [momentum * y + (1.0 - momentum) * x for x, y in zip(p, m, strict=True)]
                # 10: overwrite
                if self.ema_overwrite_frequency is not None and real_step % self.ema_overwrite_frequency == 0:
                    p = slot.constrained(slot.stored(m))
            after.append((slot, p, a, m))

        for slot, p, a, m in after:
            slot.variable[...] = np.array(p).reshape(slot.variable.shape)
            slot.accumulator, slot.average = a, m
            slot.buffer, slot.pending = [0.0] * len(p), False
        # 11: count
        self.calls += 1

    def _rate(self) -> float:
        """The learning rate of this real step; a schedule is asked with the raw count of calls before it."""
        if self.schedule is not None:
            return float(self.schedule(self.calls))
        return float(self.learning_rate()) if callable(self.learning_rate) else float(self.learning_rate)

    def finalize_variable_values(self, variables: Sequence[Array]) -> None:
        """Put each variable's average in its place; nothing to do before the first real step or without averages."""
        slots = [self.slot(v) for v in variables]
        if self.use_ema and self.iterations > 0:
            for slot in slots:
                p = slot.constrained(slot.stored(slot.average))
                slot.variable[...] = np.array(p).reshape(slot.variable.shape)


@dataclass(eq=False)
class ReferenceLossScale:
    """Dynamic loss scaling around a `ReferenceAdagrad`."""

    inner: ReferenceAdagrad
    initial_scale: float = 2.0**15
    dynamic_growth_steps: int = 2000

    def __post_init__(self) -> None:
        self.scale = float(self.initial_scale)
        self.clean_steps = 0

    def apply(self, grads: Sequence[Any], variables: Sequence[Array]) -> None:
        if len(grads) == 0 and len(variables) == 0:
            return
        sums = [dense(g, v.shape) for g, v in zip(grads, variables, strict=True)]
        if not all(math.isfinite(x) for g in sums if g is not None for x in g):
            self.scale = max(self.scale * 0.5, 2.0**-20)
            self.clean_steps = 0
            return
        unscaled = [
            None if g is None else np.array([x / self.scale for x in g]).reshape(v.shape)
            for g, v in zip(sums, variables, strict=True)
        ]
        self.inner.apply(unscaled, variables)
        self.clean_steps += 1
        if self.clean_steps == self.dynamic_growth_steps:
            self.scale = min(self.scale * 2.0, 2.0**40)
            self.clean_steps = 0
