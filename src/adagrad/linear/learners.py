"""The learners: `OnlineLearner`, `BatchLearner`, and what they share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adagrad.engine import Engine
from adagrad.gradients import IndexedSlices
from adagrad.kernels import elements, lazy, linear, losses, proximal
from adagrad.kernels.losses import LOGISTIC, SOFTMAX
from adagrad.kernels.threads import give_lock
from adagrad.linear.penalty import Objective, Penalty
from adagrad.linear.rows import PLAIN, Rows, check_rows, chunks, without_long_repeats
from adagrad.passes import Call, Scalars, average_slot
from adagrad.settings import Settings, check_integer, rate_at
from adagrad.slots import Slot

__all__ = ["BatchLearner", "Learner", "OnlineLearner", "make_learner"]

_OF_CLASSES = (LOGISTIC, SOFTMAX, losses.HINGE, losses.SQUARED_HINGE, losses.MODIFIED_HUBER)


class Learner:
    """What both learners share: rows in, predictions out, state as named arrays.

    Parameters
    ----------
    settings : every argument of the optimizer
    features, width : the shape of the model; ``width`` outputs
    objective : the loss and the penalty; ``intercept`` : whether there is one
    dtype : float32 or float64, of data, weights and state

    X is a C-contiguous 2-D array or a CSR matrix of SciPy, in ``dtype``; targets are, a row, one for each output (0, 1 or a
    value), or the number of the class.
    """

    _lock: Any
    _batch_size = 1  # rows a step
    _penalty: Penalty | None = None  # what is lazy of it
    _ahead: np.ndarray | None = None  # the weights up to date, while those that are trained are behind

    def __init__(
        self, settings: Settings, features: int, width: int, objective: Objective, intercept: bool, dtype: np.dtype
    ) -> None:
        self.settings, self.features, self.width, self.objective = settings, features, width, objective
        self.intercept, self.dtype = intercept, np.dtype(dtype)
        give_lock(self)

    @property
    def steps(self) -> int:
        """Calls of the optimizer so far."""
        raise NotImplementedError

    def set_rate(self, settings: Settings) -> None:
        """Take over the learning rate of ``settings``; anything else that differs raises ``ValueError``."""
        for field in dataclasses.fields(Settings):
            theirs, ours = getattr(settings, field.name), getattr(self.settings, field.name)
            if theirs != ours and field.name != "learning_rate":
                raise ValueError(f"{field.name} can't change while a model is learned, got {theirs!r} after {ours!r}")
        self.settings = settings
        if self._penalty is not None:
            self._penalty.make_history(self._real_steps, callable(settings.learning_rate))

    def learn(self, X: Any, targets: np.ndarray, weights: np.ndarray, watch: Callable[[int], None] | None = None) -> np.ndarray:
        """Learn all rows of X, in order; returns the predictions (rows, width) that each got before it was learned.

        ``watch`` is called with the number of rows done, from time to time.

        Raises ``ValueError`` before anything has changed. Two threads that call it wait for each other.
        """
        check_rows(X, self.features)
        X = without_long_repeats(X)
        targets, weights = (np.require(array, np.float64, PLAIN) for array in (targets, weights))
        allowed: list[tuple[int, ...]] = [(X.shape[0],)] if self.width == 1 or self.objective.loss in _OF_CLASSES else []
        allowed += [(X.shape[0], self.width)] if self.objective.loss != SOFTMAX else []
        for name, array, shapes in (("targets", targets, allowed), ("weights", weights, [(X.shape[0],)])):
            if array.shape not in shapes:
                raise ValueError(f"{name} must have shape {shapes[0]}, got {array.shape}")
        targets = targets.reshape(len(targets), -1) if targets.size else np.empty((0, 1))
        predictions = np.empty((X.shape[0], self.width))
        with self._lock, np.errstate(all="ignore"):
            rates = self._rates(X.shape[0])
            self._ahead = None
            for lo, hi, rows in chunks(X, self._batch_size):
                self._learn(rows, targets[lo:hi], weights[lo:hi], rates[lo:hi], predictions[lo:hi])
                if watch is not None:
                    watch(hi)
        return predictions

    def losses(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The loss of each row, float64 (rows,), summed over outputs, of predictions as `learn` and `predict` return them."""
        targets = np.require(targets, np.float64, PLAIN).reshape(len(predictions), -1)
        result = np.empty(len(predictions))
        flat = np.require(predictions, np.float64, PLAIN).reshape(-1)
        with np.errstate(all="ignore"):
            losses.losses(flat, targets, self.width, self.objective.loss, float(self.objective.parameter), result)
        return result

    def margins(self, X: Any) -> np.ndarray:
        """``X @ weights + intercept``, float64, shape (rows, width)."""
        check_rows(X, self.features)
        result = np.empty((X.shape[0], self.width))
        with np.errstate(all="ignore"):
            for lo, hi, rows in chunks(X):
                self._margins(rows, result[lo:hi])
        return result

    def predict(self, X: Any) -> np.ndarray:
        """The loss's link of each margin (values, or probabilities); float64, shape (rows, width)."""
        result = self.margins(X)
        with np.errstate(all="ignore"):
            losses.link(result.reshape(-1), self.width, self.objective.loss)
        return result

    @property
    def _real_steps(self) -> int:
        """Steps that moved weights."""
        return self.steps

    def _penalized(self, weights: np.ndarray, stride: int) -> np.ndarray:
        """The memory of the weights, or if penalties are yet to be applied a copy that is up to date, made once."""
        if self._penalty is None or (self._penalty.shrunk == self._real_steps).all():
            return weights
        ahead = self._ahead
        if ahead is None:
            with np.errstate(all="ignore"):
                ahead = self._ahead = self._penalty.current(self._real_steps)
        return ahead

    def _rates(self, count: int) -> np.ndarray:
        """The learning rates of the steps over the next ``count`` rows, each at the first row of its step."""
        raise NotImplementedError

    def _learn(self, rows: Rows, targets: np.ndarray, weights: np.ndarray, rates: np.ndarray, predictions: np.ndarray) -> None:
        raise NotImplementedError

    def _margins(self, rows: Rows, result: np.ndarray) -> None:
        raise NotImplementedError

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights as they are now, in new arrays: (features, width), and the intercepts (width,)."""
        raise NotImplementedError

    def finalize(self) -> None:
        """Bring every weight up to date; with a moving average, put it in the weights' place."""
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """Copies of all arrays that training needs to go on, bit for bit."""
        with self._lock:
            return {name: np.ascontiguousarray(array).copy() for name, array in self._arrays().items()}

    def load(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        """Take over what `state` and `counters` gave; raises ``ValueError`` and changes nothing if it doesn't fit."""
        own = self._arrays()
        if self._penalty is not None:
            own = {name: array for name, array in own.items() if name != "lazy/history"} | self._penalty.fitting(arrays)
        problems = [f"there is no array {name}" for name in own if name not in arrays]
        problems += [f"array {name} is unknown" for name in arrays if name not in own]
        for name, array in own.items():
            given = np.asarray(arrays.get(name, array))
            if (given.shape, given.dtype) != (array.shape, array.dtype):
                problems.append(f"{name} is {given.dtype} of {given.shape}, needed is {array.dtype} of {array.shape}")
            elif "accumulator" in name and (given < 0).any():
                problems.append(f"{name} has negative elements")
        if problems:
            raise ValueError(f"this state doesn't fit the model: {'; '.join(problems)}")
        with self._lock:
            self._load_counters(arrays, counters)
            for name, array in own.items():
                array[...] = arrays[name]
            self._ahead = None
            if self._penalty is not None:
                self._penalty.history = own.get("lazy/history", np.zeros((1, proximal.POWERS)))
                self._penalty.make_history(self._real_steps, callable(self.settings.learning_rate))

    def counters(self) -> dict[str, Any]:
        """What belongs to `state` beside the arrays, as JSON values."""
        return {"steps": self.steps}

    def _arrays(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _load_counters(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_ahead")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        give_lock(self)
        if self._penalty is not None:
            self._penalty.weights, self._penalty.accumulators = self._memory()

    def _memory(self) -> tuple[np.ndarray, np.ndarray]:
        """The flat memory of weights and accumulators, for the penalty."""
        raise NotImplementedError


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


def make_learner(
    settings: Settings,
    features: int,
    width: int,
    objective: Objective,
    intercept: bool,
    dtype: np.dtype,
    batch_size: int | None,
) -> Learner:
    """An `OnlineLearner` without ``batch_size``, if the settings have a lazy equal, else a `BatchLearner`.

    Gradient accumulation has none, "l2" decay has none, since it moves every accumulator at every step, and a penalty
    beside decay or moving average has none: then an example is a batch of one.
    """
    whole = settings.accumulation_steps > 1 or (settings.weight_decay and settings.weight_decay_mode == "l2")
    whole = whole or (objective.penalized and (settings.use_ema or settings.weight_decay))
    if batch_size is None and not whole:
        return OnlineLearner(settings, features, width, objective, intercept, dtype)
    return BatchLearner(settings, features, width, objective, intercept, dtype, batch_size or 1)
