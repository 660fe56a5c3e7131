"""The contract as whole-array NumPy code over `adagrad.rule`: what every kernel must equal, bit for bit.

Gradients are dense here, so this judges row gradients too: `dense_of` adds repeated rows in the order they came. The order
of summation of a norm is part of the contract, so it is written out; everything else is one line a stage. That the stages
themselves are right is judged by `reference`, which shares no line with the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from adagrad import rule

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def assert_same_bits(actual: Any, expected: Any, what: object = "") -> None:
    """Equal dtype (of any byte order), shape and bits; but every NaN is like every other."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    actual = np.ascontiguousarray(actual, actual.dtype.newbyteorder("=")).reshape(actual.shape)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), what
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan, str(what))
    bits = f"u{expected.dtype.itemsize}"
    different = (actual.view(bits) != np.ascontiguousarray(expected).reshape(expected.shape).view(bits)) & ~nan
    assert not different.any(), f"{what}: {actual[different][:4]} is not {expected[different][:4]}, {different.sum()} differ"


def state_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the arithmetic and of the state of parameters of ``dtype``."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def dense_of(gradient: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """A gradient (an array, None, or ``("rows", values, indices)``) as a dense array of the arithmetic's dtype."""
    state = state_dtype(dtype)
    with np.errstate(all="ignore"):
        if not isinstance(gradient, tuple):
            return None if gradient is None else np.asarray(gradient).astype(state)
        _, values, indices = gradient
        total = np.zeros(shape, state)
        for row, index in zip(np.asarray(values).astype(state), indices, strict=True):
            total[index] = total[index] + row
        return total


def sum_of_squares(g: np.ndarray, scale: float) -> float:
    """In double, over blocks of 4096 of the flat index: element f to lane f % 64, the lanes in four sums, then the blocks."""
    flat = np.zeros(-(-g.size // 4096) * 4096)
    flat[: g.size] = g.astype(np.float64).reshape(-1) * scale
    total = 0.0
    for block in flat.reshape(-1, 64, 64):
        lanes = np.zeros(64)
        for row in block:
            lanes += row * row
        four = np.zeros(4)
        for row in lanes.reshape(-1, 4):
            four += row
        a, b, c, d = four.tolist()
        total += (a + b) + (c + d)
    return total


def clip_factor(gradients: Sequence[np.ndarray], bound: float) -> float:
    """``c/n`` if the norm n over all gradients is above c, else 1; NaN if n is not finite.

    Where the sum of squares leaves the range of double, it is taken of gradients times a power of two.
    """

    def total(scale: float) -> float:
        result = 0.0
        for g in gradients:
            result += sum_of_squares(g, scale)
        return result

    scale, squares = 1.0, total(1.0)
    if not math.isfinite(squares):
        scale, squares = 2.0**-600, total(2.0**-600)
    elif squares < 2.0**-900:
        scale, squares = 2.0**600, total(2.0**600)
    norm = math.sqrt(squares) if squares >= 0 else math.nan
    if not math.isfinite(norm):
        return math.nan
    return bound / norm * scale if norm > bound * scale else 1.0


def row_means(g: np.ndarray) -> np.ndarray:
    """The mean of the squares of each row: in double, column i to sum i % 4, those beyond a multiple of 4 to the first.

    Then the four; rounded once. A row of no columns has the mean 0.
    """
    width = math.prod(g.shape[1:])
    columns = g.reshape(len(g), width).astype(np.float64).T
    sums = np.zeros((4, len(g)))
    for i, column in enumerate(columns):
        sums[i % 4 if i < width // 4 * 4 else 0] += column * column
    return (((sums[0] + sums[1]) + (sums[2] + sums[3])) / max(1, width)).astype(g.dtype)


class PlainAdagrad:
    """Adagrad over arrays that are replaced at every step; arguments as on the page.

    ``rate`` is called with the count of calls and gives the learning rate; without it ``learning_rate`` is a number.
    """

    def __init__(
        self,
        variables: Sequence[np.ndarray],
        arguments: dict[str, Any],
        *,
        constraints: Sequence[Callable[[np.ndarray], Any] | None] | None = None,
        decays: Sequence[bool] | None = None,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        self.arguments = arguments
        self.parameters = [np.array(v, v.dtype.newbyteorder("="), order="C") for v in variables]
        self.constraints = constraints or [None] * len(self.parameters)
        self.decays = decays or [True] * len(self.parameters)
        self.rate = rate or (lambda calls: arguments.get("learning_rate", 0.001))
        start = arguments.get("initial_accumulator_value", 0.1)
        self.row_wise = [bool(arguments.get("row_wise")) and p.ndim >= 2 for p in self.parameters]
        self.accumulators = [
            np.full(p.shape[:1] if rows else p.shape, start, state_dtype(p.dtype))
            for p, rows in zip(self.parameters, self.row_wise, strict=True)
        ]
        self.averages = [np.zeros(p.shape, state_dtype(p.dtype)) for p in self.parameters]
        self.buffers = [np.zeros_like(m) for m in self.averages]
        self.pending = [False] * len(self.parameters)
        self.calls = 0

    @property
    def state(self) -> list[np.ndarray]:
        """Averages, buffers and accumulators, as far as the arguments ask for them: Keras's order."""
        averages = self.averages if self.arguments.get("use_ema") else []
        buffers = self.buffers if self.steps > 1 else []
        return [*averages, *buffers, *self.accumulators]

    @property
    def steps(self) -> int:
        return self.arguments.get("gradient_accumulation_steps") or 1

    def apply(self, gradients: Sequence[Any]) -> None:
        """One call with a gradient for every variable, each as `dense_of` takes it."""
        with np.errstate(all="ignore"):
            self._apply([dense_of(g, p.shape, p.dtype) for g, p in zip(gradients, self.parameters, strict=True)])

    def _apply(self, gradients: list[np.ndarray | None]) -> None:
        get = self.arguments.get
        scale = get("loss_scale_factor") or 1.0
        gradients = [None if g is None else rule.unscale(g, g.dtype.type(scale)) for g in gradients]
        if (self.calls + 1) % self.steps:
            for v, g in enumerate(gradients):
                if g is not None:
                    self.buffers[v] = rule.accumulate(self.buffers[v], g)
                    self.pending[v] = True
            self.calls += 1
            return
        if self.steps > 1:
            for v, (g, b) in enumerate(zip(gradients, self.buffers, strict=True)):
                if self.pending[v] or g is not None:
                    zero = np.zeros_like(b)
                    gradients[v] = rule.mean_gradient(zero if g is None else g, b, b.dtype.type(self.steps))
                self.buffers[v], self.pending[v] = np.zeros_like(b), False

        given = [g for g in gradients if g is not None]
        for v, g in enumerate(gradients):
            if g is None:
                continue
            number = g.dtype.type
            if get("clipvalue") is not None:
                g = rule.clip_by_value(g, number(get("clipvalue")), np.where)
            for name, norm_of in (("clipnorm", [g]), ("global_clipnorm", given)):
                if get(name) is not None:
                    g = rule.clip_by_norm(g, number(clip_factor(norm_of, get(name))), np.where)
            self._move(v, g, number)

        for v, (m, g) in enumerate(zip(self.averages, gradients, strict=True)):
            if get("use_ema"):
                self._average(v, m, m.dtype.type, constrained=g is not None)
        self.calls += 1

    def _move(self, v: int, g: np.ndarray, number: Callable[[float], Any]) -> None:
        get = self.arguments.get
        p, stored = self.parameters[v].astype(g.dtype), self.parameters[v].dtype
        lr, decay, epsilon = number(self.rate(self.calls)), number(get("weight_decay") or 0.0), number(get("epsilon", 1e-7))
        l2 = get("weight_decay_mode", "decoupled") == "l2"
        if decay != 0 and self.decays[v]:
            if l2:
                g = rule.l2_gradient(g, p, decay)
            else:
                p = rule.decay_weights(p, decay, lr)
        inside, outside = (number(0), epsilon) if get("epsilon_placement") == "outside" else (epsilon, number(0))
        a, square = self.accumulators[v], g * g
        if self.row_wise[v]:
            ones = (1,) * (p.ndim - 1)
            a, square = a.reshape(-1, *ones), row_means(g).reshape(-1, *ones)
        p, a = rule.adagrad(p, a, g, square, lr, inside, outside, np.sqrt, np.where)
        self.accumulators[v] = a.reshape(self.accumulators[v].shape)
        self.parameters[v] = self._constrain(v, np.asarray(p).astype(stored))

    def _average(self, v: int, m: np.ndarray, number: Callable[[float], Any], *, constrained: bool) -> None:
        momentum, frequency = self.arguments.get("ema_momentum", 0.99), self.arguments.get("ema_overwrite_frequency")
        done = self.calls // self.steps
        p = self.parameters[v]
        m = rule.average(m, p.astype(m.dtype), number(momentum), number(1 - momentum), done == 0, np.where)
        self.averages[v] = m
        if frequency and (done + 1) % frequency == 0:
            self.parameters[v] = self._constrain(v, m.astype(p.dtype))

    def _constrain(self, v: int, p: np.ndarray) -> np.ndarray:
        constraint = self.constraints[v]
        return p if constraint is None else np.asarray(constraint(p)).astype(p.dtype).reshape(p.shape)
