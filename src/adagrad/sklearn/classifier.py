"""`AdagradClassifier`: linear classification, of two classes, several, or several labels a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from scipy import sparse
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from adagrad.linear import ClassifierModel
from adagrad.settings import LearningRate, Settings, check_number
from adagrad.sklearn.arguments import documented
from adagrad.sklearn.base import AdagradLinear, keep

__all__ = ["AdagradClassifier"]


def _has_probabilities(estimator: AdagradClassifier) -> bool:
    # What was learned decides, though the argument may have been set to another loss since.
    loss = estimator._fixed["loss"] if estimator.__sklearn_is_fitted__() else estimator.loss
    if loss not in ("log_loss", "modified_huber"):
        raise AttributeError(f"probabilities need loss 'log_loss' or 'modified_huber', got {loss!r}")
    return True


class AdagradClassifier(ClassifierMixin, ClassifierModel, AdagradLinear):
    """A linear classifier by Adagrad, online or in mini-batches: logistic regression, unless ``loss`` says otherwise.

    Three classes or more are learned by the softmax with log loss, else one against the rest. A y of several columns of 0
    and 1 is several labels a row, learned side by side.

    {optimizer}
    loss : "log_loss", "hinge", "squared_hinge" or "modified_huber"
        The formulas stand in `adagrad.kernels.losses.LOSSES`. Probabilities come with the first and the last.
    multi_class : "auto", "multinomial" or "ovr"
        The softmax, or one class against the rest, for three classes or more; "auto" is "multinomial" with log loss.
    class_weight : dict from label to weight, "balanced" or None
        A factor of the loss of each row, by its label; "balanced" (of `fit` alone): inverse to the label's share.
    {shared}
    classes_ : the labels, sorted; for several labels a row their numbers

    >>> import numpy as np
    >>> X = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [2.0, 0.0]], np.float32)
    >>> model = AdagradClassifier(epochs=20).fit(X, [0, 1, 0, 1])
    >>> model.predict_proba([[1.0, 0.0]]).round(2).tolist()
    [[0.38, 0.62]]
    """

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
        loss: str = "log_loss",
        multi_class: str = "auto",
        class_weight: Any = None,
        penalty: str | None = None,
        alpha: float = 1e-4,
        l1_ratio: float = 0.15,
        batch_size: int | None = None,
        epochs: int = 1,
        shuffle: bool = False,
        random_state: Any = None,
        fit_intercept: bool = True,
        warm_start: bool = False,
        verbose: int = 0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        tol: float | None = 1e-3,
    ) -> None:
        keep(self, locals())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Learn from a chunk of rows, once, in order; see `fit`.

        ``classes``, all labels that will ever come, are needed at the first call (not where y has a column a label).
        ``progressive_prediction_`` has what the loss links the margins to, in float64: with log loss the probability of
        ``classes_[1]``, shape (rows,), or a column for each of three classes or more; with other losses the margins.
        A moving average is put in the weights' place by `finalize` alone.
        """
        return self._partial_fit(X, y, sample_weight, classes)

    def _settings(self) -> Settings:
        settings = super()._settings()
        if self.class_weight is not None and not (isinstance(self.class_weight, Mapping) or self.class_weight == "balanced"):
            raise ValueError(f"class_weight must be a dict, 'balanced' or None, got {self.class_weight!r}")
        return settings

    def _many_labels(self, y: Any) -> bool:
        try:
            shape = y.shape if sparse.issparse(y) or isinstance(y, np.ndarray) else np.asarray(y).shape
        except ValueError:  # a ragged list, which is refused with all else
            return False
        # To look at every label takes a tenth of the time of a pass: only where there can be several.
        return len(shape) == 2 and shape[1] > 1 and type_of_target(y, input_name="y") == "multilabel-indicator"

    def _encode(self, y: np.ndarray, first: bool, classes: Any = None, partial: bool = False) -> np.ndarray:
        many = y.ndim == 2
        if not first and many != bool(self._labels):
            raise ValueError(f"y must {'' if self._labels else 'not '}have a column for each label, as when training began")
        if many:
            return self._encode_labels(y, first, classes)
        if first:
            check_classification_targets(y)
        if first and partial and classes is None:
            raise ValueError("classes must be given at the first call of partial_fit: all labels that will ever come")
        if not first and (classes is None or np.array_equal(classes, self.classes_)):
            known = self.classes_
        else:
            known = np.unique(y) if classes is None else unique_labels(classes)
        if len(known) < 2:
            raise ValueError(f"a classifier needs two classes or more, got one class: {known}")
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(f"classes must stay {self.classes_}, got {known}")
        if len(known) == 2:  # a search would take as long as half a pass
            places = y == known[1]
            unknown = ~(places | (y == known[0]))
        else:
            places = np.searchsorted(known, y)
            unknown = known[np.minimum(places, len(known) - 1)] != y
        if unknown.any():
            raise ValueError(f"y has labels that are not in classes {known}: {np.unique(y[unknown])}")
        self.classes_, self._labels = known, 0
        return places.astype(np.float64)

    def _encode_labels(self, y: np.ndarray, first: bool, classes: Any) -> np.ndarray:
        known = np.arange(y.shape[1])
        if classes is not None and not np.array_equal(np.sort(classes), known):
            raise ValueError(f"classes must be the numbers of the {len(known)} columns of y, got {classes}")
        if not first and len(known) != self._labels:
            raise ValueError(f"y must have {self._labels} columns, one a label, got {len(known)}")
        if not np.isin(y, (0, 1)).all():
            raise ValueError("a y with a column a label must hold 0 and 1 alone")
        self.classes_, self._labels = known, len(known)
        return y.astype(np.float64)

    def _class_weights(self, y: np.ndarray, targets: np.ndarray) -> Any:
        if self.class_weight is None:
            return 1.0
        if self._labels:
            raise ValueError("class_weight is not for several labels a row: give sample_weight")
        places = targets.astype(np.intp)
        present = np.unique(places)
        weights = np.ones(len(self.classes_))
        if isinstance(self.class_weight, str):
            weights[present] = compute_class_weight("balanced", classes=self.classes_[present], y=y)
            return weights[places]
        known = self.classes_.tolist()
        for label, weight in self.class_weight.items():
            if label not in known:
                raise ValueError(f"class_weight has the label {label!r}, which is not in classes {self.classes_}")
            weights[known.index(label)] = check_number(f"class_weight of {label!r}", weight)
        return weights[places]

    def decision_function(self, X: Any) -> np.ndarray:
        """The margins ``X @ coef_.T + intercept_``, float64: shape (rows,), for several outputs (rows, outputs)."""
        rows = self._rows(X)
        margins = self._learner.margins(rows)
        return margins[:, 0] if margins.shape[1] == 1 else margins

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row, shape (rows,); of several labels a row 0 or 1 each, (rows, labels)."""
        margins = self.decision_function(X)
        if self._labels:
            return (margins > 0).astype(np.int64)
        return self.classes_[(margins > 0).astype(np.intp) if margins.ndim == 1 else margins.argmax(1)]

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, in the order of ``classes_``; float64, shape (rows, classes).

        By one against the rest they are each class's own, divided by their sum; of several labels a row, each label's own.
        With loss "modified_huber" they are ``(clip(margin, -1, 1) + 1) / 2`` (Zhang, 2004).
        """
        rows = self._rows(X)
        return self.probabilities(self._learner.predict(rows))

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithm of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))


AdagradClassifier.__doc__ = documented(str(AdagradClassifier.__doc__))
