"""What is minimized, and the lazy state of its penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from adagrad.kernels import proximal
from adagrad.settings import Settings

__all__ = ["Objective", "Penalty"]


class Objective(NamedTuple):
    """What is minimized: the loss, by its number in `adagrad.kernels.losses`, with its parameter, and the penalty.

    The penalty is ``l1*|w| + l2*w**2/2`` of every weight but the intercept, at every step: see `adagrad.kernels.proximal`.
    """

    loss: int
    parameter: float = 0.0
    l1: float = 0.0
    l2: float = 0.0

    @property
    def penalized(self) -> bool:
        """Whether there is a penalty."""
        return self.l1 > 0 or self.l2 > 0


class Penalty:
    """The lazy state of the penalty: up to which step each weight is shrunk, and the rates of the steps since.

    ``history`` has one row while the rate is a constant, else what `proximal.begin_step` needs. ``accumulators`` lie like
    ``weights``, each ``stride`` apart; ``step`` is the last step that was begun.
    """

    def __init__(
        self, settings: Settings, objective: Objective, weights: np.ndarray, accumulators: np.ndarray, shape: Any
    ) -> None:
        features, self.width, self.stride = shape
        self.weights, self.accumulators = weights, accumulators
        self.shrunk = np.zeros(features, np.int64)
        self.window = np.array([0.0, math.nan])
        self.history = np.zeros((proximal.ROWS if callable(settings.learning_rate) else 1, proximal.POWERS))
        epsilons = (settings.epsilon, 0.0) if settings.epsilon_placement == "inside" else (0.0, settings.epsilon)
        self.metric = (*(float(weights.dtype.type(e)) for e in epsilons), float(objective.l1), float(objective.l2))

    @property
    def place(self) -> tuple[Any, ...]:
        """The weights, as the kernels of `proximal` take them."""
        return self.weights, self.accumulators, self.stride, self.width, self.shrunk

    def catch_up(self, step: int, indices: np.ndarray | None = None) -> None:
        """Bring all weights, or those in ``indices``, up to date, in place."""
        if indices is None:
            proximal.catch_up_all(*self.place, step, self.window, self.history, self.metric)
        else:
            proximal.catch_up_rows(indices, *self.place, step, self.window, self.history, self.metric)

    def begin(self, step: int, rate: float) -> None:
        """Enter the rate of the step after ``step``."""
        proximal.begin_step(np.float64(rate), *self.place, step, self.window, self.history, self.metric)

    def current(self, step: int) -> np.ndarray:
        """A copy of the weights' memory, up to date."""
        weights = self.weights.copy()
        accumulators = weights[self.width :] if self.stride > self.width else self.accumulators
        shrunk = self.shrunk.copy()
        where = (weights, accumulators, self.stride, self.width, shrunk)
        proximal.catch_up_all(*where, step, self.window, self.history, self.metric)
        return weights

    def make_history(self, step: int, variable: bool) -> None:
        """Begin anew, for a rate that varies or one that does not."""
        if variable != (len(self.history) > 1):
            self.catch_up(step)
            self.window[:] = step, math.nan
            self.history = np.zeros((proximal.ROWS if variable else 1, proximal.POWERS))

    def arrays(self) -> dict[str, np.ndarray]:
        """What belongs to the state."""
        found = {"lazy/shrunk": self.shrunk, "lazy/window": self.window}
        return found | ({"lazy/history": self.history} if len(self.history) > 1 else {})

    def fitting(self, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """`arrays` as they would be for a rate like that of other ``arrays``: a constant one has no history."""
        found = {"lazy/shrunk": self.shrunk, "lazy/window": self.window}
        return found | ({"lazy/history": np.zeros((proximal.ROWS, proximal.POWERS))} if "lazy/history" in arrays else {})

    def check(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        """Raise ``ValueError`` for arrays that would have a kernel read out of bounds."""
        shrunk, start = arrays["lazy/shrunk"], float(arrays["lazy/window"][0])
        rows = len(arrays.get("lazy/history", [0]))
        fits = start % 1 == 0 and 0 <= start <= step and (rows == 1 or step - start < rows)
        if not fits or ((shrunk < start) | (shrunk > step)).any():
            raise ValueError(f"this state doesn't fit the model: shrunk and window are not of step {step}")
