"""`Learner`: what online and mini-batch learners share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from adagrad.kernels import losses, proximal
from adagrad.kernels.losses import LOGISTIC, SOFTMAX
from adagrad.kernels.threads import give_lock
from adagrad.linear.penalty import Objective, Penalty
from adagrad.linear.rows import PLAIN, Rows, check_rows, chunks, without_long_repeats
from adagrad.settings import Settings

__all__ = ["Learner"]

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

    def losses(self, values: np.ndarray, targets: np.ndarray, linked: bool = True) -> np.ndarray:
        """The loss of each row, float64 (rows,), summed over outputs, of predictions as `learn` and `predict` return them.

        Of `margins`, if they are not ``linked``: those are exact where a probability is rounded to 1, by which the log loss
        of a row of the other class can't be told any more and counts as 37.4.
        """
        targets = np.require(targets, np.float64, PLAIN).reshape(len(values), -1)
        result = np.empty(len(values))
        flat = np.require(values, np.float64, PLAIN).reshape(-1)
        with np.errstate(all="ignore"):
            losses.losses(flat, linked, targets, self.width, self.objective.loss, float(self.objective.parameter), result)
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

    def copy(self) -> Self:
        """Another learner that has learned the same."""
        other = type(self)(*self._made())
        with self._lock:
            other.load(self._arrays(), self.counters())
        return other

    def _made(self) -> tuple[Any, ...]:
        """The constructor's arguments, as they are now."""
        return self.settings, self.features, self.width, self.objective, self.intercept, self.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        # By `state`, not by attributes: joblib gives an array that two of them share (the weights are the engine's, too) to
        # each as memory of its own, and what it maps from a file can't be written to.
        with self._lock:
            return type(self), self._made(), {"arrays": self.state(), "counters": self.counters()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.load(**state)

    def _memory(self) -> tuple[np.ndarray, np.ndarray]:
        """The flat memory of weights and accumulators, for the penalty."""
        raise NotImplementedError
