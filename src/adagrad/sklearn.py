"""Adagrad for scikit-learn: linear models that learn online, one example a step, or in mini-batches.

>>> from adagrad.sklearn import AdagradClassifier
>>> X = [[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [2.0, 0.0]]
>>> model = AdagradClassifier(learning_rate=0.5).fit(X, ["sour", "sweet", "sour", "sweet"])
>>> model.predict([[3.0, 0.0]]).tolist()
['sweet']
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from adagrad.linear import LOGISTIC, SOFTMAX, SQUARED, Learner, make_learner
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import LearningRate, Settings, check_integer

__all__ = ["AdagradClassifier", "AdagradRegressor"]

# A linear model is no table of rows: each weight has an accumulator of its own.
_SETTINGS = [field.name for field in dataclasses.fields(Settings) if field.name != "row_wise"]
_FORMAT = 1


class _AdagradLinear(BaseEstimator):
    """What classifier and regressor share; see them."""

    def __init__(
        self,
        learning_rate: LearningRate = 0.05,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str = "adagrad",
        *,
        epsilon_placement: str = "inside",
        weight_decay_mode: str = "decoupled",
        batch_size: int | None = None,
        epochs: int = 1,
        shuffle: bool = False,
        random_state: Any = None,
        fit_intercept: bool = True,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.learning_rate = learning_rate
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        self.use_ema = use_ema
        self.ema_momentum = ema_momentum
        self.ema_overwrite_frequency = ema_overwrite_frequency
        self.loss_scale_factor = loss_scale_factor
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.name = name
        self.epsilon_placement = epsilon_placement
        self.weight_decay_mode = weight_decay_mode
        self.batch_size = batch_size
        self.epochs = epochs
        self.shuffle = shuffle
        self.random_state = random_state
        self.fit_intercept = fit_intercept
        self.warm_start = warm_start
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_learner")

    # -- learning --------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from all rows, in order, ``epochs`` times; begins anew unless ``warm_start``.

        Parameters
        ----------
        X : array or sparse matrix, shape (rows, features)
            float32 is learned in float32, everything else in float64. A sparse matrix is taken as CSR.
        y : shape (rows,)
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
        if not weights.any():
            raise ValueError("sample_weight must not be zero for every row, got all zeros")
        targets = self._encode(y, first)
        learner = self._ready(settings, X, first)
        shuffler = check_random_state(self.random_state) if self.shuffle else None
        for epoch in range(epochs):
            if shuffler is not None:
                order = shuffler.permutation(X.shape[0])
                X, targets, weights = X[order], targets[order], weights[order]
            predictions = learner.learn(X, targets, weights)
            if self.verbose:
                loss = float(np.average(self._losses(predictions, targets), weights=weights))
                print(f"epoch {epoch + 1} of {epochs}: online loss {loss:.6f}")
        learner.finalize()
        self._learner, self.n_iter_ = learner, epochs
        self.__dict__.pop("progressive_prediction_", None)
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        with self._as_before_on_error():
            settings, first = self._settings(), not self.__sklearn_is_fitted__()
            X, y, weights = self._validate(X, y, sample_weight, first)
            targets = self._encode(y, first, classes, partial=True)
            learner = self._ready(settings, X, first)
            predictions = learner.learn(X, targets, weights)
            self._learner, self.n_iter_ = learner, 1
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
        """The optimizer's arguments; they and the others are checked."""
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size)
        for name in ("shuffle", "fit_intercept", "warm_start"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        return Settings(**{name: getattr(self, name) for name in _SETTINGS})

    def _validate(self, X: Any, y: Any, sample_weight: Any, first: bool) -> tuple[Any, np.ndarray, np.ndarray]:
        dtype: Any = [np.float64, np.float32] if first else self._learner.dtype
        numeric = isinstance(self, RegressorMixin)
        X, y = validate_data(self, X, y, reset=first, accept_sparse="csr", dtype=dtype, order="C", y_numeric=numeric)
        if sample_weight is None:
            return X, y, np.ones(X.shape[0])
        weights = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
        if weights.shape != y.shape:
            raise ValueError(f"sample_weight must have shape {y.shape}, got {weights.shape}")
        if (weights < 0).any():
            raise ValueError(f"sample_weight must be in [0, inf), got {weights.min()}")
        return X, y, weights

    def _ready(self, settings: Settings, X: Any, first: bool) -> Learner:
        if first:
            return self._make_learner(settings, X.shape[1], X.dtype)
        for name, ours in self._fixed.items():
            theirs = getattr(self, name)
            if theirs != ours:
                raise ValueError(f"{name} can't change while a model is learned, got {theirs!r} after {ours!r}")
        self._learner.set_rate(settings)
        return self._learner

    def _make_learner(self, settings: Settings, features: int, dtype: np.dtype) -> Learner:
        self._fixed = self._model_arguments()
        return make_learner(settings, features, *self._shape, bool(self.fit_intercept), dtype, self.batch_size)

    def _model_arguments(self) -> dict[str, Any]:
        """The arguments beside the optimizer's that decide what is learned."""
        return {"batch_size": self.batch_size, "fit_intercept": bool(self.fit_intercept)}

    @property
    def _shape(self) -> tuple[int, int]:
        """The number of outputs and the loss."""
        raise NotImplementedError

    def _encode(self, y: np.ndarray, first: bool, classes: Any = None, partial: bool = False) -> np.ndarray:
        """``y`` as the learner's targets, float64."""
        raise NotImplementedError

    def _losses(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The loss of each row."""
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
    def coef_(self) -> np.ndarray:
        """The weights as they are now: (1 or classes, features), for a regressor (features,); made when it is read."""
        return np.ascontiguousarray(self._fitted().weights()[0].T)

    @property
    def intercept_(self) -> np.ndarray:
        """The intercepts as they are now, shape (outputs,); zero without ``fit_intercept``."""
        return self._fitted().weights()[1]

    @property
    def t_(self) -> int:
        """The optimizer's steps so far: examples, or mini-batches."""
        return self._fitted().steps

    # -- state -----------------------------------------------------------------------------------------------------

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Copies of all arrays that training needs to go on, bit for bit.

        ``coef`` (features, outputs), ``intercept`` (outputs,), of each its ``/accumulator``, and what the arguments ask
        for: ``/average``, ``/buffer``, and ``lazy/touched`` and ``lazy/clock``, by which weights and averages may be
        behind, until `finalize`.
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
            "estimator": type(self).__name__,
            "arguments": self._arguments(learner.settings) | self._fixed,
            "n_features_in": learner.features,
            "feature_names_in": None if names is None else names.tolist(),
            "dtype": learner.dtype.name,
            "n_iter": self.n_iter_,
            "counters": learner.counters(),
            "classes": self._describe_classes(),
        }

    def load_state(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Self:
        """Take over `state_arrays` and `state_metadata` of an estimator with equal arguments; training goes on, bit for bit.

        Only the learning rate may differ; then this estimator's holds. Raises ``ValueError`` for what doesn't fit, and
        has changed nothing then.
        """
        loaded = type(self)(**self.get_params(deep=False))
        try:
            loaded._load(arrays, metadata)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"this is no state of an {type(self).__name__}: {error!r}") from error
        self.__dict__.clear()
        self.__dict__.update(vars(loaded))
        return self

    def _load(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        settings = self._settings()
        ours = self._arguments(settings) | {"format": _FORMAT, "estimator": type(self).__name__}
        theirs = {**metadata["arguments"], "format": metadata["format"], "estimator": metadata["estimator"]}
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


_ARGUMENTS = """
    The arguments up to ``weight_decay_mode`` are those of `adagrad.Adagrad`, all of them; only the learning rate's default
    differs, 0.05, since 0.001 is too small for a single pass. A schedule is asked once a step. All stages act on two
    variables, the weights and the intercept, as they would on the equal dense gradient; weight decay acts on the
    intercept, too. Online, decay and moving average are applied lazily, to the weights that an example touches, which
    is the same in real arithmetic as moving all of them at every step; the rounding is better. Gradient accumulation
    and ``weight_decay_mode="l2"`` have no lazy equal: with them an example is a mini-batch of one, which is slow.

    Parameters
    ----------
    learning_rate, ..., weight_decay_mode
        See `adagrad.Adagrad`.
    batch_size : int or None
        None: online, one example a step. A number: mini-batches of so many rows (fewer at the end of the data), with the
        mean of their gradients.
    epochs : int
        Passes of `fit` over the data.
    shuffle : bool
        Whether `fit` shuffles the rows before each pass, by ``random_state``.
    random_state : int, RandomState or None
    fit_intercept : bool
    warm_start : bool
        Whether `fit` goes on from what was learned before.
    verbose : int
        Above 0, `fit` prints the online loss of each pass: every row predicted before it is learned.

    Attributes
    ----------
    coef_, intercept_ : arrays, as scikit-learn shapes them
    n_features_in_, feature_names_in_ : what `fit` saw
    n_iter_ : passes of the last `fit`
    t_ : steps so far
    progressive_prediction_ : after `partial_fit`, the prediction for each of its rows from before the row was learned
"""


class AdagradClassifier(ClassifierMixin, _AdagradLinear):
    """Logistic regression (log loss; softmax for three classes or more) by Adagrad, online or in mini-batches.
    {arguments}    classes_ : the labels, sorted

        >>> import numpy as np
        >>> X = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [2.0, 0.0]], np.float32)
        >>> model = AdagradClassifier(epochs=20).fit(X, [0, 1, 0, 1])
        >>> model.predict_proba([[1.0, 0.0]]).round(2).tolist()
        [[0.38, 0.62]]
    """

    classes_: np.ndarray

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Learn from a chunk of rows, once, in order; see `fit`.

        ``classes``, all labels that will ever come, are needed at the first call. ``progressive_prediction_`` has the
        probability of ``classes_[1]``, shape (rows,), or those of three classes or more, (rows, classes), in float64.
        A moving average is put in the weights' place by `finalize` alone.
        """
        return self._partial_fit(X, y, sample_weight, classes)

    @property
    def _shape(self) -> tuple[int, int]:
        return (1, LOGISTIC) if len(self.classes_) == 2 else (len(self.classes_), SOFTMAX)

    def _encode(self, y: np.ndarray, first: bool, classes: Any = None, partial: bool = False) -> np.ndarray:
        if first:
            check_classification_targets(y)
        if first and partial and classes is None:
            raise ValueError("classes must be given at the first call of partial_fit: all labels that will ever come")
        known = np.unique(y) if first and classes is None else self.classes_ if classes is None else unique_labels(classes)
        if len(known) < 2:
            raise ValueError(f"a classifier needs two classes or more, got one class: {known}")
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes must stay {self.classes_}, got {known}")
        places = np.searchsorted(known, y)
        unknown = known[np.minimum(places, len(known) - 1)] != y
        if unknown.any():
            raise ValueError(f"y has labels that are not in classes {known}: {np.unique(y[unknown])}")
        self.classes_ = known
        return places.astype(np.float64)

    def _losses(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        right = np.take_along_axis(self._probabilities(predictions), targets.astype(np.intp)[:, None], 1)[:, 0]
        return -np.log(np.maximum(right, np.finfo(np.float64).tiny))

    @staticmethod
    def _probabilities(predictions: np.ndarray) -> np.ndarray:
        return np.hstack([1.0 - predictions, predictions]) if predictions.shape[1] == 1 else predictions

    def decision_function(self, X: Any) -> np.ndarray:
        """The margins ``X @ coef_.T + intercept_``, float64: shape (rows,), for three classes or more (rows, classes)."""
        rows = self._rows(X)
        margins = self._learner.margins(rows)
        return margins[:, 0] if margins.shape[1] == 1 else margins

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row, shape (rows,)."""
        margins = self.decision_function(X)
        return self.classes_[(margins > 0).astype(np.intp) if margins.ndim == 1 else margins.argmax(1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, in the order of ``classes_``; float64, shape (rows, classes)."""
        rows = self._rows(X)
        return self._probabilities(self._learner.predict(rows))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithm of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def _describe_classes(self) -> Any:
        return {"dtype": self.classes_.dtype.str, "values": self.classes_.tolist()}

    def _load_classes(self, described: Any) -> None:
        self.classes_ = np.array(described["values"], np.dtype(described["dtype"]))


class AdagradRegressor(RegressorMixin, _AdagradLinear):
    """Linear regression (squared loss, ``(prediction - y)**2 / 2``) by Adagrad, online or in mini-batches.
    {arguments}
        >>> import numpy as np
        >>> X = np.array([[0.0], [1.0], [2.0]])
        >>> model = AdagradRegressor(learning_rate=1.0, epochs=50).fit(X, [1.0, 3.0, 5.0])
        >>> model.predict([[3.0]]).round(2).tolist()
        [7.0]
    """

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from a chunk of rows, once, in order; see `fit`.

        ``progressive_prediction_`` has the predicted values, shape (rows,), in float64. A moving average is put in the
        weights' place by `finalize` alone.
        """
        return self._partial_fit(X, y, sample_weight)

    @property
    def _shape(self) -> tuple[int, int]:
        return 1, SQUARED

    def _encode(self, y: np.ndarray, first: bool, classes: Any = None, partial: bool = False) -> np.ndarray:
        return np.asarray(y, np.float64)

    def _losses(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return (predictions[:, 0] - targets) ** 2 / 2

    @property
    def coef_(self) -> np.ndarray:
        """The weights as they are now, shape (features,); made when it is read."""
        return super().coef_[0]

    def predict(self, X: Any) -> np.ndarray:
        """The value of each row, float64, shape (rows,)."""
        rows = self._rows(X)
        return self._learner.predict(rows)[:, 0]


for _class in (AdagradClassifier, AdagradRegressor):
    _class.__doc__ = str(_class.__doc__).replace("{arguments}", _ARGUMENTS)
