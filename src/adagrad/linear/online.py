"""`OnlineLearner`: one example a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adagrad.kernels import elements, lazy, linear
from adagrad.linear.base import Learner
from adagrad.linear.penalty import Objective, Penalty
from adagrad.linear.rows import Rows
from adagrad.settings import Settings, check_integer, rate_at

__all__ = ["OnlineLearner"]


class OnlineLearner(Learner):
    """One example a step. Decay, moving average and penalties are lazy: see `adagrad.kernels.lazy` and `.proximal`."""

    def __init__(
        self, settings: Settings, features: int, width: int, objective: Objective, intercept: bool, dtype: np.dtype
    ) -> None:
        super().__init__(settings, features, width, objective, intercept, dtype)
        self._table = np.zeros((features + 1, 2, width), dtype)
        self._table[:, 1] = settings.initial_accumulator_value
        decay = settings.weight_decay or 0.0
        self._average = np.zeros((features + 1, width), dtype) if settings.use_ema else None
        self._touched = None
        if settings.use_ema or decay:
            self._touched = np.tile([0.0, 1.0, 0.0], (features + 1, 1))
        self._clock = np.array([0.0, 1.0, 0.0])  # its first number counts the steps also where nothing is lazy
        scalars = elements.NEUTRAL.copy()
        scalars[elements.INSIDE if settings.epsilon_placement == "inside" else elements.OUTSIDE] = settings.epsilon
        scalars[elements.SCALE] = settings.loss_scale_factor or 1.0
        scalars[elements.CLIPVALUE] = math.inf if settings.clipvalue is None else settings.clipvalue
        scalars[elements.DECAY] = decay
        scalars[elements.MOMENTUM] = settings.ema_momentum
        scalars[elements.COMPLEMENT] = 1 - settings.ema_momentum
        clips = (settings.clipnorm, settings.clipvalue, settings.global_clipnorm, settings.loss_scale_factor)
        # What is lazy takes so long that the other stages come along for nothing, and one kernel serves for two.
        staged = self._touched is not None or objective.penalized or any(clip is not None for clip in clips)
        with np.errstate(over="ignore"):
            self._scalars = scalars.astype(dtype)
        self._staged = self._scalars if staged else None
        momentum = settings.ema_momentum if settings.use_ema else 0.0
        self._lazy = (momentum, lazy.powers_of(momentum))
        if objective.penalized:
            self._penalty = Penalty(settings, objective, *self._memory(), (features, width, 2 * width))

    def _memory(self) -> tuple[np.ndarray, np.ndarray]:
        flat = self._table.reshape(-1)
        return flat, flat[self.width :]

    @property
    def steps(self) -> int:
        """Examples so far."""
        return int(self._clock[0])

    def _rates(self, count: int) -> np.ndarray:
        rate = self.settings.learning_rate
        if callable(rate):
            return np.array([rate_at(rate, step) for step in range(self.steps, self.steps + count)], np.float64)
        return np.full(count, rate)

    def _learn(self, rows: Rows, targets: np.ndarray, weights: np.ndarray, rates: np.ndarray, predictions: np.ndarray) -> None:
        settings = self.settings
        linear.learn(
            *rows,
            targets,
            weights,
            rates,
            self._scalars,
            settings.clipnorm or math.inf,
            settings.global_clipnorm or math.inf,
            self.objective.loss,
            float(self.objective.parameter),
            self.intercept,
            self.width if self.width > 1 else None,
            self._table.reshape(-1),
            predictions.reshape(-1),
            self._staged,
            None if self._average is None else self._average.reshape(-1),
            self._touched,
            self._clock,
            settings.weight_decay or 0.0,
            *self._lazy,
            settings.ema_overwrite_frequency or 0 if settings.use_ema else 0,
            *self._penalty_arguments(),
        )

    def _penalty_arguments(self) -> tuple[Any, ...]:
        penalty = self._penalty
        if penalty is None:
            return (None,) * 4
        return penalty.shrunk, penalty.window, penalty.history, penalty.metric

    def _margins(self, rows: Rows, result: np.ndarray) -> None:
        table = self._penalized(self._table.reshape(-1), 2 * self.width)
        stale = (self._touched, self._clock) if self.settings.weight_decay else (None, None)
        bias = self._current(slice(self.features, None))[0]
        linear.margins(*rows, self.width, 2 * self.width, table, bias, *stale, result.reshape(-1))

    def _current(self, part: slice) -> np.ndarray:
        weights = self._penalized(self._table.reshape(-1), 2 * self.width).reshape(self._table.shape)[part, 0]
        if self._touched is None or not self.settings.weight_decay:
            return weights.copy()
        return (weights * (self._clock[1] / self._touched[part, 1])[:, None]).astype(self.dtype)

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights as they are now, in new arrays: (features, width), and the intercepts (width,)."""
        return self._current(slice(self.features)), self._current(slice(self.features, None))[0]

    def finalize(self) -> None:
        """Bring every weight up to date; with a moving average, put it in the weights' place."""
        if self._penalty is not None:
            with self._lock, np.errstate(all="ignore"):
                self._penalty.catch_up(self.steps)
        if self._touched is None:
            return
        with self._lock, np.errstate(all="ignore"):
            average = None if self._average is None else self._average.reshape(-1)
            lazy.catch_up_all(self._table.reshape(-1), average, self._touched, self.width, self._clock, *self._lazy)
            if self._average is not None:
                self._table[:, 0] = self._average

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {}
        for name, part in (("coef", slice(self.features)), ("intercept", self.features)):
            arrays[name] = self._table[part, 0]
            if name == "coef" or self.intercept:
                arrays[f"{name}/accumulator"] = self._table[part, 1]
                if self._average is not None:
                    arrays[f"{name}/average"] = self._average[part]
        if self._touched is not None:
            arrays |= {"lazy/touched": self._touched, "lazy/clock": self._clock}
        return arrays | (self._penalty.arrays() if self._penalty is not None else {})

    def _load_counters(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        steps = check_integer("steps", counters.get("steps"), low=0)
        if self._penalty is not None:
            self._penalty.check(arrays, steps)
        if self._touched is not None:
            last, clock = arrays["lazy/touched"][:, 0], arrays["lazy/clock"]
            if clock[0] != steps or not ((last >= 0) & (last <= steps) & (last % 1 == 0)).all():
                raise ValueError(f"this state doesn't fit the model: touched and clock are not of step {steps}")
        self._clock[0] = steps
