"""The learners of the command line: the estimators' models, without scikit-learn, by rows that are judged already."""

from __future__ import annotations

from typing import Any

import numpy as np

from adagrad.linear import ClassifierModel, LinearModel, RegressorModel

__all__ = ["Learner", "make"]


class Learner(LinearModel):
    """A `LinearModel` of the arguments that are given, by the names that the estimator's constructor has for them.

    Its state is the estimator's: a file of one is as good as a file of the other.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        for name, value in arguments.items():
            if name not in self._names():
                raise TypeError(f"a learner has no argument {name!r}")
            setattr(self, name, value)
        self._settings()

    def learn(self, x: Any, targets: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        """Learn from CSR rows, in order; returns (rows, outputs), the predictions before each row was learned from."""
        if not hasattr(self, "_learner"):
            self._learner, self.n_iter_ = self._make_learner(self._settings(), x.shape[1], x.dtype), 1
        return self._learner.learn(x, targets, np.ones(x.shape[0]) if weight is None else weight)

    def predict(self, x: Any) -> np.ndarray:
        """What the loss links the margins to, (rows, outputs)."""
        return self._learner.predict(x)

    @property
    def coef(self) -> np.ndarray:
        """The weights, (outputs, features)."""
        return np.ascontiguousarray(self._learner.weights()[0].T)

    def load(self, arrays: Any, metadata: Any) -> None:
        """Take over what `state_arrays` and `state_metadata` gave; only the learning rate may differ."""
        self._load(arrays, metadata)

    def finalize(self) -> None:
        """End training: bring lazy weights up to date, and put a moving average in the weights' place."""
        self._learner.finalize()


class _Classifier(Learner, ClassifierModel):
    _estimator = "AdagradClassifier"


class _Regressor(Learner, RegressorModel):
    _estimator = "AdagradRegressor"


def make(arguments: dict[str, Any], classes: int) -> Learner:
    """A learner of so many classes, or of a value where there are none; raises ``ValueError`` for what is not allowed."""
    if not classes:
        return _Regressor(arguments)
    made = _Classifier(arguments)
    made.classes_ = np.arange(classes)
    return made
