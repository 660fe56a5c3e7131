"""`BatchLearner`: mini-batches through the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adagrad.engine import Engine
from adagrad.gradients import IndexedSlices
from adagrad.kernels import linear, losses, proximal
from adagrad.linear.base import Learner
from adagrad.linear.penalty import Objective, Penalty
from adagrad.linear.rows import Rows
from adagrad.passes import Call, Scalars, average_slot
from adagrad.settings import Settings, check_integer, rate_at
from adagrad.slots import Slot

__all__ = ["BatchLearner"]


class _PenalizedEngine(Engine):
    """The engine for a penalty beside stages that move every weight: its step of the weights, all of them, is stage 8."""

    metric: tuple[float, ...]

    def _constrained(self, call: Call, v: int, scalars: Scalars, staged: bool, overwrite: bool) -> tuple[int, Slot]:
        copy = self.slots[v].copy()
        call.step_slot(copy, v, scalars, staged, overwrite=False, average=False)
        weights, accumulators = copy.array.reshape(-1), copy.accumulator.reshape(-1)
        window, history = np.array([0.0, self.rate]), np.zeros((1, proximal.POWERS))
        shrunk = np.zeros(weights.size, np.int64)
        proximal.catch_up_all(weights, accumulators, 1, 1, shrunk, 1, window, history, self.metric)
        if copy.average is not None:
            average_slot(copy, v, scalars, overwrite)
        return v, copy


def _as_it_is(array: np.ndarray) -> np.ndarray:
    """The constraint that sends the weights to `_PenalizedEngine._constrained`."""
    return array


class BatchLearner(Learner):
    """Mini-batches of up to ``batch_size`` rows, cut anew in each call of `learn`; the gradient is the mean over a batch."""

    def __init__(
        self,
        settings: Settings,
        features: int,
        width: int,
        objective: Objective,
        intercept: bool,
        dtype: np.dtype,
        batch_size: int,
    ) -> None:
        super().__init__(settings, features, width, objective, intercept, dtype)
        self._batch_size = batch_size
        self._coef, self._bias = np.zeros((features, width), dtype), np.zeros(width, dtype)
        eager = objective.penalized and bool(settings.use_ema or settings.weight_decay)
        self._engine = _PenalizedEngine(settings) if eager else Engine(settings)
        count = 2 if intercept else 1
        constraints = [_as_it_is if eager else None, None]
        self._engine.build([self._coef, self._bias][:count], ["coef", "intercept"][:count], constraints[:count])
        if objective.penalized:
            penalty = Penalty(settings, objective, *self._memory(), (features, width, width))
            if isinstance(self._engine, _PenalizedEngine):
                self._engine.metric = penalty.metric
            else:
                self._penalty = penalty

    @property
    def steps(self) -> int:
        """Batches so far."""
        return self._engine.calls

    def _made(self) -> tuple[Any, ...]:
        return *super()._made(), self._batch_size

    def _memory(self) -> tuple[np.ndarray, np.ndarray]:
        return self._coef.reshape(-1), self._engine.slots[0].accumulator.reshape(-1)

    @property
    def _real_steps(self) -> int:
        return self._engine.iterations

    def _rates(self, count: int) -> np.ndarray:
        rates = np.zeros(count)
        for call, row in enumerate(range(0, count, self._batch_size), self.steps):
            if (call + 1) % self.settings.accumulation_steps == 0:
                rates[row] = rate_at(self.settings.learning_rate, call)
        return rates

    def _learn(self, rows: Rows, targets: np.ndarray, weights: np.ndarray, rates: np.ndarray, predictions: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            scale = float(self.dtype.type(self.settings.loss_scale_factor or 1.0))
        for lo in range(0, rates.size, self._batch_size):
            hi = min(lo + self._batch_size, rates.size)
            indptr = rows.indptr[lo : hi + 1]
            batch = Rows(rows.data, rows.indices, indptr)
            ids = rows.indices[indptr[0] : indptr[-1]]
            flat = predictions[lo:hi].reshape(-1)
            before, penalty = self._engine.iterations, self._penalty
            if penalty is not None:
                penalty.catch_up(before, ids)
            linear.margins(*batch, self.width, self.width, self._coef.reshape(-1), self._bias, None, None, flat)
            losses.link(flat, self.width, self.objective.loss)
            values = np.empty((indptr[-1] - indptr[0], self.width), self.dtype)
            sums = np.empty(self.width, self.dtype)
            loss, parameter = self.objective.loss, float(self.objective.parameter)
            linear.gradients(rows.data, indptr, targets[lo:hi], weights[lo:hi], scale, loss, parameter, flat, values, sums)
            gradients = [IndexedSlices(values, ids), sums]
            self._engine.rate = float(rates[lo])
            self._engine.apply(self._engine.all_slots(), gradients[: len(self._engine.slots)])
            if penalty is not None and self._engine.iterations > before:
                penalty.begin(before, self._engine.rate)
                penalty.catch_up(before + 1, ids)

    def _margins(self, rows: Rows, result: np.ndarray) -> None:
        coef = self._penalized(self._coef.reshape(-1), self.width)
        linear.margins(*rows, self.width, self.width, coef, self._bias, None, None, result.reshape(-1))

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights as they are now, in new arrays: (features, width), and the intercepts (width,)."""
        return self._penalized(self._coef.reshape(-1), self.width).reshape(self._coef.shape).copy(), self._bias.copy()

    def finalize(self) -> None:
        """Bring every weight up to date; with a moving average, put it in the weights' place."""
        with self._lock, np.errstate(all="ignore"):
            if self._penalty is not None:
                self._penalty.catch_up(self._engine.iterations)
            self._engine.finalize(self._engine.all_slots())

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"coef": self._coef, "intercept": self._bias}
        for slot in self._engine.slots:
            for name in ("accumulator", "average", "buffer"):
                array = getattr(slot, name)
                if array is not None:
                    arrays[f"{slot.name}/{name}"] = array
        return arrays | (self._penalty.arrays() if self._penalty is not None else {})

    def counters(self) -> dict[str, Any]:
        """What belongs to `state` beside the arrays, as JSON values."""
        touched = [slot.name for slot in self._engine.slots if slot.touched is not None]
        return {"steps": self.steps, "has_gradient_in_cycle": touched}

    def _load_counters(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        steps, touched = check_integer("steps", counters.get("steps"), low=0), list(counters["has_gradient_in_cycle"])
        if self._penalty is not None:
            self._penalty.check(arrays, steps // self.settings.accumulation_steps)
        self._engine.calls = steps
        for slot in self._engine.slots:
            slot.touched = True if slot.name in touched else None
