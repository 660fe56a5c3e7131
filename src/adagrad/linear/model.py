"""What a linear model is, whoever brings the data: its arguments, its learner, and both as arrays and JSON values.

`adagrad.sklearn` adds scikit-learn's habits. The command line judges its rows itself, takes these as they are, and does not
wait for scikit-learn, which takes longer to import than all else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from adagrad.kernels.losses import CLASSIFICATION, LOSSES, MODIFIED_HUBER, REGRESSION, SOFTMAX, Loss
from adagrad.linear.base import Learner
from adagrad.linear.making import make_learner
from adagrad.linear.penalty import Objective
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import Settings, check_flag, check_integer, check_number

__all__ = ["ClassifierModel", "LinearModel", "RegressorModel"]

# A linear model is no table of rows: each weight has an accumulator of its own.
_SETTINGS = [field.name for field in dataclasses.fields(Settings) if field.name != "row_wise"]
_MODEL = ("batch_size", "fit_intercept", "loss", "penalty", "alpha", "l1_ratio")
_PENALTIES = (None, "l2", "l1", "elasticnet")
_MULTI_CLASS = ("auto", "multinomial", "ovr")

_FORMAT = 2
# What the arguments were that format 1 didn't know, and the values that are not said, since they play no part.
_BEFORE: dict[str, Any] = {"penalty": None, "alpha": None, "l1_ratio": None, "loss_epsilon": None, "quantile": None}


class LinearModel:
    """The arguments, attributes by the names that the constructors of `adagrad.sklearn` have, and what was learned."""

    batch_size: int | None = None
    fit_intercept: bool = True
    loss: str
    penalty: str | None = None
    alpha: float = 1e-4
    l1_ratio: float = 0.15

    n_features_in_: int
    feature_names_in_: np.ndarray
    n_iter_: int

    _task: ClassVar[str]
    _own: ClassVar[tuple[str, ...]]  # the names of arguments that only it has
    _usual: ClassVar[dict[str, Any]]  # the arguments beside those in `_BEFORE` that format 1 didn't know
    _learner: Learner
    _fixed: dict[str, Any]  # `_model_arguments` as training began

    @classmethod
    def _names(cls) -> list[str]:
        """All arguments: the optimizer's, and those of the model."""
        return [*_SETTINGS, *_MODEL, *cls._own]

    def _fitted(self) -> Learner:
        return self._learner

    def _settings(self) -> Settings:
        """The optimizer's arguments; they and the others are checked."""
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size)
        check_flag("fit_intercept", self.fit_intercept)
        allowed = [name for name, loss in LOSSES.items() if loss.task == self._task]
        if self.loss not in allowed:
            raise ValueError(f"loss must be one of {', '.join(allowed)}, got {self.loss!r}")
        if self.penalty not in _PENALTIES:
            raise ValueError(f"penalty must be one of l2, l1, elasticnet or None, got {self.penalty!r}")
        check_number("alpha", self.alpha)
        check_number("l1_ratio", self.l1_ratio, high=1.0)
        return Settings(**{name: getattr(self, name) for name in _SETTINGS})

    def _make_learner(self, settings: Settings, features: int, dtype: np.dtype) -> Learner:
        self._fixed = self._model_arguments()
        outputs, loss = self._shape
        l1_ratio = {"l1": 1.0, "elasticnet": self.l1_ratio}.get(str(self.penalty), 0.0)
        alpha = self.alpha if self.penalty else 0.0
        parameter = getattr(self, self._loss.parameter) if self._loss.parameter else 0.0
        objective = Objective(loss, float(parameter), float(alpha * l1_ratio), float(alpha * (1.0 - l1_ratio)))
        return make_learner(settings, features, outputs, objective, bool(self.fit_intercept), dtype, self.batch_size)

    def _model_arguments(self) -> dict[str, Any]:
        """The arguments beside the optimizer's that decide what is learned; None for those that play no part."""
        own = (self._loss.parameter,)
        return {
            "batch_size": self.batch_size,
            "fit_intercept": bool(self.fit_intercept),
            "loss": self.loss,
            "penalty": self.penalty,
            "alpha": float(self.alpha) if self.penalty else None,
            "l1_ratio": float(self.l1_ratio) if self.penalty == "elasticnet" else None,
            **{name: float(getattr(self, name)) if name in own else None for name in ("loss_epsilon", "quantile")},
        }

    @property
    def _loss(self) -> Loss:
        return LOSSES[self.loss]

    @property
    def _shape(self) -> tuple[int, int]:
        """The number of outputs, and the loss as the learner numbers it."""
        raise NotImplementedError

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def _estimator(self) -> str:
        """The name by which a file knows it."""
        return type(self).__name__

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Copies of all arrays that training needs to go on, bit for bit.

        ``coef`` (features, outputs), ``intercept`` (outputs,), of each its ``/accumulator``, and what the arguments ask
        for: ``/average``, ``/buffer``, and those under ``lazy/``, by which weights and averages may be behind, until
        `finalize`.
        """
        return self._fitted().state()

    def state_metadata(self) -> dict[str, Any]:
        """What `load_state` needs beside `state_arrays`, as JSON values.

        ``arguments`` are those of the constructor that decide what is learned. A learning rate that is a schedule is a
        dict there (see `adagrad.schedules.deserialize`); any other callable is ``"callable"``, since code is not data.
        """
        learner = self._fitted()
        names = getattr(self, "feature_names_in_", None)
        return {
            "format": _FORMAT,
            "estimator": self._estimator,
            "arguments": {**self._arguments(learner.settings), **self._fixed},
            "n_features_in": learner.features,
            "feature_names_in": None if names is None else names.tolist(),
            "dtype": learner.dtype.name,
            "n_iter": self.n_iter_,
            "counters": learner.counters(),
            "classes": self._describe_classes(),
        }

    def _load(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        settings = self._settings()
        if metadata["format"] not in (1, _FORMAT):
            raise ValueError(f"format of the state must be 1 or {_FORMAT}, got {metadata['format']!r}: made by a newer version")
        ours = self._arguments(settings) | {"estimator": self._estimator}
        before = {**_BEFORE, **self._usual} if metadata["format"] == 1 else {}
        theirs = {**before, **metadata["arguments"], "estimator": metadata["estimator"]}
        free = ("learning_rate", "name")
        different = [name for name in ours if name not in free and (name not in theirs or theirs[name] != ours[name])]
        if different:
            clauses = [f"{name} is {theirs.get(name)!r} there and {ours[name]!r} here" for name in different]
            raise ValueError(f"the state doesn't fit this estimator: {'; '.join(clauses)}")
        if metadata["dtype"] not in ("float32", "float64"):
            raise ValueError(f"dtype of the state must be float32 or float64, got {metadata['dtype']!r}")
        self.n_features_in_ = check_integer("n_features_in", metadata["n_features_in"])
        if metadata["feature_names_in"] is not None:
            self.feature_names_in_ = np.array(metadata["feature_names_in"], object)
        self._load_classes(metadata["classes"])
        learner = self._make_learner(settings, self.n_features_in_, np.dtype(metadata["dtype"]))
        learner.load(arrays, metadata["counters"])
        self._learner, self.n_iter_ = learner, check_integer("n_iter", metadata["n_iter"])

    def _arguments(self, settings: Settings) -> dict[str, Any]:
        rate = settings.learning_rate
        code = callable(rate) and not isinstance(rate, LearningRateSchedule)
        values = (dataclasses.replace(settings, learning_rate=0.0) if code else settings).to_dict()
        values |= self._model_arguments()
        return values | ({"learning_rate": "callable"} if code else {})

    def _describe_classes(self) -> Any:
        return None

    def _load_classes(self, described: Any) -> None:
        """Set what `_describe_classes` described."""


class ClassifierModel(LinearModel):
    """A `LinearModel` of two classes, several, or several labels a row."""

    loss = "log_loss"
    multi_class: str = "auto"

    classes_: np.ndarray
    _task = CLASSIFICATION
    _own = ("multi_class",)
    _usual = {"loss": "log_loss", "multi_class": "auto"}  # noqa: RUF012
    _labels = 0  # labels a row, if there are several

    def _settings(self) -> Settings:
        if self.multi_class not in _MULTI_CLASS:
            raise ValueError(f"multi_class must be one of {', '.join(_MULTI_CLASS)}, got {self.multi_class!r}")
        settings = super()._settings()
        if self.multi_class == "multinomial" and self.loss != "log_loss":
            raise ValueError(f"multi_class='multinomial' needs loss='log_loss', got {self.loss!r}")
        return settings

    @property
    def _softmax(self) -> bool:
        return self.loss == "log_loss" and self.multi_class != "ovr" and not self._labels and len(self.classes_) > 2

    @property
    def _shape(self) -> tuple[int, int]:
        outputs = self._labels or (1 if len(self.classes_) == 2 else len(self.classes_))
        return outputs, SOFTMAX if self._softmax else self._loss.number

    def _model_arguments(self) -> dict[str, Any]:
        return super()._model_arguments() | {"multi_class": self.multi_class}

    def probabilities(self, predictions: np.ndarray) -> np.ndarray:
        """The probabilities, (rows, classes), that ``progressive_prediction_`` stands for."""
        found = predictions.reshape(len(predictions), -1)
        loss = self._fitted().objective.loss
        if loss == MODIFIED_HUBER:
            found = (np.clip(found, -1.0, 1.0) + 1.0) / 2.0
        if self._labels or loss == SOFTMAX:
            return found
        if found.shape[1] == 1:
            return np.hstack([1.0 - found, found])
        sums = found.sum(1, keepdims=True)
        return np.divide(found, sums, out=np.full_like(found, 1.0 / found.shape[1]), where=sums > 0)

    def _describe_classes(self) -> Any:
        described = {"dtype": self.classes_.dtype.str, "values": self.classes_.tolist()}
        return described | ({"labels": self._labels} if self._labels else {})

    def _load_classes(self, described: Any) -> None:
        self.classes_ = np.array(described["values"], np.dtype(described["dtype"]))
        self._labels = len(self.classes_) if described.get("labels") else 0


class RegressorModel(LinearModel):
    """A `LinearModel` of one value a row."""

    loss = "squared_error"
    loss_epsilon: float = 0.1
    quantile: float = 0.5

    _task = REGRESSION
    _own = ("loss_epsilon", "quantile")
    _usual = {"loss": "squared_error"}  # noqa: RUF012

    def _settings(self) -> Settings:
        settings = super()._settings()
        check_number("loss_epsilon", self.loss_epsilon, open_low=self.loss == "huber")
        if not 0.0 < check_number("quantile", self.quantile) < 1.0:
            raise ValueError(f"quantile must be in (0, 1), got {self.quantile!r}")
        return settings

    @property
    def _shape(self) -> tuple[int, int]:
        return 1, self._loss.number
