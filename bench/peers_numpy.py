"""The rule as a NumPy user writes it, and the plain pass over memory that a step can't be faster than."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from adagrad.kernels import threads
from bench import harness
from bench.peers import SETTINGS, Peer

__all__ = ["Formula", "PlainPass"]


class Formula(Peer):
    """``a += g*g; p -= lr*g / np.sqrt(a + epsilon)``; rows by ``np.unique`` and ``np.add.at``."""

    row_form = "np.unique, np.add.at"

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        self.parameters = [p.copy() for p in parameters]
        self.accumulators = [np.full_like(p, SETTINGS["initial_accumulator_value"]) for p in parameters]
        self.rate, self.epsilon = np.float32(SETTINGS["learning_rate"]), np.float32(SETTINGS["epsilon"])

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """The list itself."""
        return list(gradients)

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """The pair itself."""
        return values, ids

    def step(self, gradient: Any) -> None:
        """One step."""
        if isinstance(gradient, tuple):
            values, ids = gradient
            rows, inverse = np.unique(ids, return_inverse=True)
            g = np.zeros((rows.size, values.shape[1]), np.float32)
            np.add.at(g, inverse, values)
            a = self.accumulators[0][rows] + g * g
            self.accumulators[0][rows] = a
            self.parameters[0][rows] -= self.rate * g / np.sqrt(a + self.epsilon)
            return
        for p, a, g in zip(self.parameters, self.accumulators, gradient, strict=True):
            a += g * g
            p -= self.rate * g / np.sqrt(a + self.epsilon)

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """The array, or a copy of its rows."""
        return self.parameters[number] if rows is None else self.parameters[number][rows]


@numba.njit(nogil=True)
def _add(p, a, g):  # type: ignore[no-untyped-def]
    for i in range(p.size):
        x = a[i] + g[i]
        a[i] = x
        p[i] += x


class PlainPass:
    """Read p, a and g, write p and a, and add: the memory traffic of a step, and next to no arithmetic."""

    def __init__(self, size: int) -> None:
        self.p, self.a = np.zeros(size, np.float32), np.zeros(size, np.float32)

    def step(self, gradient: list[np.ndarray]) -> None:
        """One pass, on our threads."""
        g = gradient[0]

        def work(lo: int, hi: int) -> None:
            _add(self.p[lo:hi], self.a[lo:hi], g[lo:hi])

        threads.run(work, g.size, g.size, 1024)

    turn = staticmethod(harness.own_threads)
