"""What both estimators share: arguments, learning, what was learned, and its state."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from scipy import sparse
from sklearn.base import RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from adagrad.linear import Learner
from adagrad.settings import Settings, check_flag, check_integer, check_number
from adagrad.sklearn.progress import Progress
from adagrad.sklearn.saving import Saving

__all__ = ["AdagradLinear", "keep"]


def keep(estimator: Any, arguments: dict[str, Any]) -> None:
    """Set the constructor's arguments as attributes, as they came: scikit-learn wants them checked by `fit`."""
    for name, value in arguments.items():
        if name not in ("self", "__class__"):
            setattr(estimator, name, value)


class AdagradLinear(Saving):
    """What classifier and regressor share; see them."""

    class_weight: Any = None
    epochs: int
    shuffle: bool
    random_state: Any
    warm_start: bool
    verbose: int
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float | None

    _sparse = False

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_learner")

    # -- learning --------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from all rows, in order, up to ``epochs`` times; begins anew unless ``warm_start``.

        Parameters
        ----------
        X : array, data frame or sparse matrix, shape (rows, features)
            float32 is learned in float32, everything else in float64. A sparse matrix is taken as CSR.
        y : shape (rows,); for several labels a row, 0 or 1 each, (rows, labels), dense or sparse
        sample_weight : shape (rows,), not negative, optional
            Factors of the examples' losses. An example of weight 0 still is a step, with a gradient of zero.

        With ``use_ema`` the weights are their moving average afterwards. Raises ``ValueError`` for arguments and data
        that are not allowed, before anything is learned; the estimator then is as it was.
        """
        with self._as_before_on_error():
            return self._fit(X, y, sample_weight)

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> Self:
        settings, epochs = self._settings(), check_integer("epochs", self.epochs)
        first = not (self.warm_start and self.__sklearn_is_fitted__())
        X, y, weights = self._validate(X, y, sample_weight, first)
        targets = self._encode(y, first)
        weights = weights * self._class_weights(y, targets)
        if not weights.any():
            raise ValueError("sample_weight, times class_weight, must not be zero for every row, got all zeros")
        random = check_random_state(self.random_state)
        held: tuple[Any, np.ndarray, np.ndarray] | None = None
        if self.early_stopping:
            rows, others = self._split(targets, weights, random)
            held = X[others], targets[others], weights[others]
            X, targets, weights = X[rows], targets[rows], weights[rows]
        learner = self._ready(settings, X, first)
        best, best_loss, waited = learner, math.inf, 0
        validation_losses: list[float] = []
        for epoch in range(epochs):
            if self.shuffle:
                order = random.permutation(X.shape[0])
                X, targets, weights = X[order], targets[order], weights[order]
            with Progress(self.verbose, epoch, epochs, X.shape[0]) as progress:
                predictions = learner.learn(X, targets, weights, progress.watch)
                if self.verbose:
                    progress.losses["online loss"] = _mean(learner.losses(predictions, targets), weights)
                if held is not None:
                    validation_losses.append(self._judge(learner, *held))
                    progress.losses["validation loss"] = validation_losses[-1]
            if held is not None:
                better = validation_losses[-1] < best_loss - (self.tol or 0.0)
                waited = 0 if better or self.tol is None else waited + 1
                if validation_losses[-1] < best_loss:
                    best, best_loss = learner.copy(), validation_losses[-1]
                if waited >= self.n_iter_no_change:
                    break
        if held is not None:
            learner, self.validation_losses_ = best, validation_losses
        else:
            self.__dict__.pop("validation_losses_", None)
        learner.finalize()
        self._learner, self.n_iter_, self._sparse = learner, epoch + 1, False
        self.__dict__.pop("progressive_prediction_", None)
        return self

    def _split(self, targets: np.ndarray, weights: np.ndarray, random: Any) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the rows to learn from, and of those held out; classes in equal shares where there is one a row."""
        rows = np.arange(len(targets))
        by_class = targets if self._task == "classification" and targets.ndim == 1 else None
        learned, held = train_test_split(rows, test_size=self.validation_fraction, stratify=by_class, random_state=random)
        learned.sort()
        if not weights[held].any() or not weights[learned].any():
            raise ValueError(
                f"early_stopping needs rows of weight above 0 on both sides of validation_fraction={self.validation_fraction}"
            )
        return learned, held

    def _judge(self, learner: Learner, X: Any, targets: np.ndarray, weights: np.ndarray) -> float:
        if learner.settings.use_ema:
            learner = learner.copy()
            learner.finalize()
        return _mean(learner.losses(learner.margins(X), targets, linked=False), weights)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        with self._as_before_on_error():
            settings, first = self._settings(), not self.__sklearn_is_fitted__()
            if self.class_weight is not None and isinstance(self.class_weight, str):
                raise ValueError(f"class_weight={self.class_weight!r} needs all of y, which partial_fit has not: give a dict")
            if self.early_stopping:
                raise ValueError("early_stopping must be False for partial_fit, which makes one pass, got True")
            X, y, weights = self._validate(X, y, sample_weight, first)
            targets = self._encode(y, first, classes, partial=True)
            weights = weights * self._class_weights(y, targets)
            learner = self._ready(settings, X, first)
            predictions = learner.learn(X, targets, weights)
            self._learner, self.n_iter_, self._sparse = learner, 1, False
            self.progressive_prediction_ = predictions[:, 0] if learner.width == 1 else predictions
            return self

    @contextlib.contextmanager
    def _as_before_on_error(self) -> Iterator[None]:
        """The attributes belong together (``n_features_in_``, ``classes_``, the learner): all are set, or none."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def finalize(self) -> Self:
        """End training by `partial_fit`: bring lazy weights up to date and, with ``use_ema``, set them to their average.

        `fit` does it by itself. Training may go on afterwards, from there.
        """
        self._fitted().finalize()
        return self

    def _settings(self) -> Settings:
        for name in ("shuffle", "warm_start", "early_stopping"):
            check_flag(name, getattr(self, name))
        if not 0.0 < check_number("validation_fraction", self.validation_fraction) < 1.0:
            raise ValueError(f"validation_fraction must be in (0, 1), got {self.validation_fraction!r}")
        check_integer("n_iter_no_change", self.n_iter_no_change)
        if self.tol is not None:
            check_number("tol", self.tol)
        return super()._settings()

    def _validate(self, X: Any, y: Any, sample_weight: Any, first: bool) -> tuple[Any, np.ndarray, np.ndarray]:
        dtype: Any = [np.float64, np.float32] if first else self._learner.dtype
        numeric = isinstance(self, RegressorMixin)
        many = self._many_labels(y)
        X, y = validate_data(
            self, X, y, reset=first, accept_sparse="csr", dtype=dtype, order="C", y_numeric=numeric, multi_output=many
        )
        if many and sparse.issparse(y):
            y = y.toarray()
        if sample_weight is None:
            return X, y, np.ones(X.shape[0])
        weights = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
        if weights.shape != y.shape[:1]:
            raise ValueError(f"sample_weight must have shape {y.shape[:1]}, got {weights.shape}")
        if (weights < 0).any():
            raise ValueError(f"sample_weight must be in [0, inf), got {weights.min()}")
        return X, y, weights

    def _ready(self, settings: Settings, X: Any, first: bool) -> Learner:
        if first:
            return self._make_learner(settings, X.shape[1], X.dtype)
        for name, ours in self._fixed.items():
            theirs = self._model_arguments()[name]
            if theirs != ours:
                raise ValueError(f"{name} can't change while a model is learned, got {theirs!r} after {ours!r}")
        self._learner.set_rate(settings)
        return self._learner

    def _many_labels(self, y: Any) -> bool:
        """Whether a row of y has several labels."""
        return False

    def _class_weights(self, y: np.ndarray, targets: np.ndarray) -> Any:
        """A factor for each row."""
        return 1.0

    def _encode(self, y: np.ndarray, first: bool, classes: Any = None, partial: bool = False) -> np.ndarray:
        """``y`` as the learner's targets, float64."""
        raise NotImplementedError

    # -- what was learned ------------------------------------------------------------------------------------------

    def _fitted(self) -> Learner:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit or partial_fit first")
        return self._learner

    def _rows(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, X, reset=False, accept_sparse="csr", dtype=self._learner.dtype, order="C")

    @property
    def coef_(self) -> Any:
        """The weights as they are now: (1 or classes, features), for a regressor (features,); made when it is read.

        A CSR matrix after `sparsify`.
        """
        return self._coef(np.ascontiguousarray(self._fitted().weights()[0].T))

    def _coef(self, coef: np.ndarray) -> Any:
        return sparse.csr_matrix(coef) if self._sparse else coef

    @property
    def intercept_(self) -> np.ndarray:
        """The intercepts as they are now, shape (outputs,); zero without ``fit_intercept``."""
        return self._fitted().weights()[1]

    def sparsify(self) -> Self:
        """Have ``coef_`` as a CSR matrix, until `densify` or the next training; it pays where a penalty has made most zero.

        What the estimator itself keeps stays dense, as training needs it.
        """
        self._fitted()
        self._sparse = True
        return self

    def densify(self) -> Self:
        """Have ``coef_`` as an array again."""
        self._fitted()
        self._sparse = False
        return self

    @property
    def t_(self) -> int:
        """The optimizer's steps so far: examples, or mini-batches."""
        return self._fitted().steps


def _mean(losses: np.ndarray, weights: np.ndarray) -> float:
    return float(np.average(losses, weights=weights))
