"""The learners behind `adagrad.sklearn`: a linear model and its Adagrad state, over sparse rows, without scikit-learn.

`OnlineLearner` takes one example a step, a whole chunk of rows in one compiled call; `BatchLearner` takes mini-batches
through the engine, as row gradients. Both keep ``features`` rows of weights, one a column of the data, and one more, the
intercept, which is a coordinate like any other; ``width`` weights a row, one an output.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from adagrad.engine import Engine
from adagrad.gradients import IndexedSlices
from adagrad.kernels import elements, lazy, linear
from adagrad.kernels.linear import LOGISTIC, SOFTMAX, SQUARED
from adagrad.kernels.threads import give_lock
from adagrad.settings import Settings, check_integer, rate_at

__all__ = ["LOGISTIC", "SOFTMAX", "SQUARED", "BatchLearner", "Learner", "OnlineLearner", "Rows", "make_learner"]

# Rows a compiled call, and elements of a dense chunk, which is turned into sparse rows; rounded to whole mini-batches.
_ROWS = 1 << 17
_ELEMENTS = 1 << 20
_PLAIN: list[Literal["C", "A", "W"]] = ["C", "A", "W"]


class Rows(NamedTuple):
    """Sparse rows: row i has ``data[indptr[i]:indptr[i+1]]`` at the columns ``indices[indptr[i]:indptr[i+1]]``."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray


class Learner:
    """What both learners share: rows in, predictions out, state as named arrays.

    Parameters
    ----------
    settings : every argument of the optimizer
    features, width : the shape of the model; ``width`` outputs
    loss : `SQUARED` and `LOGISTIC` (width 1), or `SOFTMAX`; ``intercept`` : whether there is one
    dtype : float32 or float64, of data, weights and state

    X is a C-contiguous 2-D array or a CSR matrix of SciPy, in ``dtype``; targets are numbers of classes or values.
    """

    _lock: Any
    _batch_size = 1  # rows a step

    def __init__(self, settings: Settings, features: int, width: int, loss: int, intercept: bool, dtype: np.dtype) -> None:
        self.settings, self.features, self.width, self.loss = settings, features, width, loss
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

    def learn(self, X: Any, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Learn all rows of X, in order; returns the predictions (rows, width) that each got before it was learned.

        Raises ``ValueError`` before anything has changed. Two threads that call it wait for each other.
        """
        check_rows(X, self.features)
        X = without_long_repeats(X)
        targets, weights = (np.require(array, np.float64, _PLAIN) for array in (targets, weights))
        for name, array in (("targets", targets), ("weights", weights)):
            if array.shape != (X.shape[0],):
                raise ValueError(f"{name} must have shape {(X.shape[0],)}, got {array.shape}")
        predictions = np.empty((X.shape[0], self.width))
        with self._lock, np.errstate(all="ignore"):
            rates = self._rates(X.shape[0])
            for lo, hi, rows in chunks(X, self._batch_size):
                self._learn(rows, targets[lo:hi], weights[lo:hi], rates[lo:hi], predictions[lo:hi])
        return predictions

    def margins(self, X: Any) -> np.ndarray:
        """``X @ weights + intercept``, float64, shape (rows, width)."""
        check_rows(X, self.features)
        result = np.empty((X.shape[0], self.width))
        with np.errstate(all="ignore"):
            for lo, hi, rows in chunks(X):
                self._margins(rows, result[lo:hi])
        return result

    def predict(self, X: Any) -> np.ndarray:
        """The values, the probabilities of class 1, or those of each class; float64, shape (rows, width)."""
        result = self.margins(X)
        with np.errstate(all="ignore"):
            linear.link(result.reshape(-1), self.width, self.loss)
        return result

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

    def counters(self) -> dict[str, Any]:
        """What belongs to `state` beside the arrays, as JSON values."""
        return {"steps": self.steps}

    def _arrays(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _load_counters(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        give_lock(self)


class OnlineLearner(Learner):
    """One example a step. Decay and moving average are lazy: see `adagrad.kernels.lazy`."""

    def __init__(self, settings: Settings, features: int, width: int, loss: int, intercept: bool, dtype: np.dtype) -> None:
        super().__init__(settings, features, width, loss, intercept, dtype)
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
        staged = self._touched is not None or any(clip is not None for clip in clips)
        with np.errstate(over="ignore"):
            self._scalars = scalars.astype(dtype)
        self._staged = self._scalars if staged else None
        momentum = settings.ema_momentum if settings.use_ema else 0.0
        self._lazy = (momentum, lazy.powers_of(momentum))

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
            self.loss,
            self.intercept,
            self.width if self.loss == SOFTMAX else None,
            self._table.reshape(-1),
            predictions.reshape(-1),
            self._staged,
            None if self._average is None else self._average.reshape(-1),
            self._touched,
            self._clock,
            settings.weight_decay or 0.0,
            *self._lazy,
            settings.ema_overwrite_frequency or 0 if settings.use_ema else 0,
        )

    def _margins(self, rows: Rows, result: np.ndarray) -> None:
        stale = (self._touched, self._clock) if self.settings.weight_decay else (None, None)
        bias = self._current(slice(self.features, None))[0]
        linear.margins(*rows, self.width, 2 * self.width, self._table.reshape(-1), bias, *stale, result.reshape(-1))

    def _current(self, part: slice) -> np.ndarray:
        weights = self._table[part, 0]
        if self._touched is None or not self.settings.weight_decay:
            return weights.copy()
        return (weights * (self._clock[1] / self._touched[part, 1])[:, None]).astype(self.dtype)

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights as they are now, in new arrays: (features, width), and the intercepts (width,)."""
        return self._current(slice(self.features)), self._current(slice(self.features, None))[0]

    def finalize(self) -> None:
        """Bring every weight up to date; with a moving average, put it in the weights' place."""
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
        return arrays

    def _load_counters(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        steps = check_integer("steps", counters.get("steps"), low=0)
        if self._touched is not None:
            last, clock = arrays["lazy/touched"][:, 0], arrays["lazy/clock"]
            if clock[0] != steps or not ((last >= 0) & (last <= steps) & (last % 1 == 0)).all():
                raise ValueError(f"this state doesn't fit the model: touched and clock are not of step {steps}")
        self._clock[0] = steps


class BatchLearner(Learner):
    """Mini-batches of up to ``batch_size`` rows, cut anew in each call of `learn`; the gradient is the mean over a batch."""

    def __init__(
        self,
        settings: Settings,
        features: int,
        width: int,
        loss: int,
        intercept: bool,
        dtype: np.dtype,
        batch_size: int,
    ) -> None:
        super().__init__(settings, features, width, loss, intercept, dtype)
        self._batch_size = batch_size
        self._coef, self._bias = np.zeros((features, width), dtype), np.zeros(width, dtype)
        self._engine = Engine(settings)
        count = 2 if intercept else 1
        self._engine.build([self._coef, self._bias][:count], ["coef", "intercept"][:count])

    @property
    def steps(self) -> int:
        """Batches so far."""
        return self._engine.calls

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
            flat = predictions[lo:hi].reshape(-1)
            self._margins(batch, flat)
            linear.link(flat, self.width, self.loss)
            values = np.empty((indptr[-1] - indptr[0], self.width), self.dtype)
            sums = np.empty(self.width, self.dtype)
            linear.gradients(rows.data, indptr, targets[lo:hi], weights[lo:hi], scale, self.loss, flat, values, sums)
            gradients = [IndexedSlices(values, rows.indices[indptr[0] : indptr[-1]]), sums]
            self._engine.rate = float(rates[lo])
            self._engine.apply(self._engine.all_slots(), gradients[: len(self._engine.slots)])

    def _margins(self, rows: Rows, result: np.ndarray) -> None:
        linear.margins(*rows, self.width, self.width, self._coef.reshape(-1), self._bias, None, None, result.reshape(-1))

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights as they are now, in new arrays: (features, width), and the intercepts (width,)."""
        return self._coef.copy(), self._bias.copy()

    def finalize(self) -> None:
        """With a moving average, put it in the weights' place."""
        with self._lock:
            self._engine.finalize(self._engine.all_slots())

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"coef": self._coef, "intercept": self._bias}
        for slot in self._engine.slots:
            for name in ("accumulator", "average", "buffer"):
                array = getattr(slot, name)
                if array is not None:
                    arrays[f"{slot.name}/{name}"] = array
        return arrays

    def counters(self) -> dict[str, Any]:
        """What belongs to `state` beside the arrays, as JSON values."""
        touched = [slot.name for slot in self._engine.slots if slot.touched is not None]
        return {"steps": self.steps, "has_gradient_in_cycle": touched}

    def _load_counters(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        steps, touched = check_integer("steps", counters.get("steps"), low=0), list(counters["has_gradient_in_cycle"])
        self._engine.calls = steps
        for slot in self._engine.slots:
            slot.touched = True if slot.name in touched else None


def make_learner(
    settings: Settings,
    features: int,
    width: int,
    loss: int,
    intercept: bool,
    dtype: np.dtype,
    batch_size: int | None,
) -> Learner:
    """An `OnlineLearner` without ``batch_size``, if the settings have a lazy equal, else a `BatchLearner`.

    Gradient accumulation has none, and "l2" decay has none, since it moves every accumulator at every step: then an
    example is a batch of one.
    """
    whole = settings.accumulation_steps > 1 or (settings.weight_decay and settings.weight_decay_mode == "l2")
    if batch_size is None and not whole:
        return OnlineLearner(settings, features, width, loss, intercept, dtype)
    return BatchLearner(settings, features, width, loss, intercept, dtype, batch_size or 1)


def check_rows(X: Any, features: int) -> None:
    """Raise ``ValueError`` for rows that a kernel would read or write out of bounds with."""
    if X.shape[1] != features:
        raise ValueError(f"X must have {features} columns, got {X.shape[1]}")
    if isinstance(X, np.ndarray):
        return
    lengths = np.diff(X.indptr)
    entries = min(X.data.size, X.indices.size)
    if X.indptr.size != X.shape[0] + 1 or X.indptr[0] != 0 or X.indptr[-1] > entries or (lengths < 0).any():
        raise ValueError(f"X.indptr must rise from 0 to at most the {entries} entries, in {X.shape[0]} rows")
    ids = X.indices[: X.indptr[-1]]
    if ids.size and ids.view(f"u{ids.itemsize}").max() >= features:  # a negative number is a large one there
        raise ValueError(f"X.indices must be in [0, {features}), got {ids.min()} to {ids.max()}")


def without_long_repeats(X: Any) -> Any:
    """X, or a copy whose repeated columns are summed if it has rows for which a kernel would take too long to do it."""
    if isinstance(X, np.ndarray) or np.diff(X.indptr).max(initial=0) <= linear.LONGEST or X.has_canonical_format:
        return X
    X = X.copy()
    X.sum_duplicates()
    return X


def chunks(X: Any, batch_size: int = 1) -> Iterator[tuple[int, int, Rows]]:
    """``(lo, hi, rows)`` for each chunk of X, of whole mini-batches (but for the last) of ``batch_size`` rows.

    The rows are of the types that the kernels are compiled for, and writable.
    (An array that is read-only is another type to Numba, and would have everything compiled anew.)
    """
    dense = isinstance(X, np.ndarray)
    size = _ELEMENTS // max(1, X.shape[1]) if dense else _ROWS
    size = max(1, size // batch_size) * batch_size
    for lo in range(0, X.shape[0], size):
        hi = min(lo + size, X.shape[0])
        if dense:
            block = np.require(X[lo:hi], requirements=_PLAIN)
            data, indices = np.empty(block.size, X.dtype), np.empty(block.size, np.int32)
            indptr = np.zeros(hi - lo + 1, np.int64)
            linear.compress(block, data, indices, indptr)
        else:
            indptr = X.indptr[lo : hi + 1].astype(np.int64)
            begin, end = indptr[0], indptr[-1]
            indptr -= begin
            data = np.require(X.data[begin:end], requirements=_PLAIN)
            indices = np.require(X.indices[begin:end], np.int32 if X.shape[1] <= 2**31 else np.int64, _PLAIN)
        yield lo, hi, Rows(data, indices, indptr)
