"""`AdagradRegressor`: linear regression by squared error, or a loss that bears outliers, quantiles or counts."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin

from adagrad.linear import RegressorModel
from adagrad.settings import LearningRate
from adagrad.sklearn.arguments import documented
from adagrad.sklearn.base import AdagradLinear, keep

__all__ = ["AdagradRegressor"]


class AdagradRegressor(RegressorMixin, RegressorModel, AdagradLinear):
    """Linear regression by Adagrad, online or in mini-batches.

    {optimizer}
    loss : str
        "squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive", "quantile" or "poisson", which
        predicts ``exp(X @ coef_ + intercept_)`` for a y that is not negative. The formulas stand in
        `adagrad.kernels.losses.LOSSES`.
    loss_epsilon : float
        What scikit-learn calls epsilon: where the Huber loss turns straight, or errors that "epsilon_insensitive" and its
        square take for none.
    quantile : float in (0, 1)
        The quantile that loss "quantile" predicts.
    {shared}

    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0]])
    >>> model = AdagradRegressor(learning_rate=1.0, epochs=50).fit(X, [1.0, 3.0, 5.0])
    >>> model.predict([[3.0]]).round(2).tolist()
    [7.0]
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
        loss: str = "squared_error",
        loss_epsilon: float = 0.1,
        quantile: float = 0.5,
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

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from a chunk of rows, once, in order; see `fit`.

        ``progressive_prediction_`` has the predicted values, shape (rows,), in float64. A moving average is put in the
        weights' place by `finalize` alone.
        """
        return self._partial_fit(X, y, sample_weight)

    def _encode(self, y: np.ndarray, first: bool, classes: Any = None, partial: bool = False) -> np.ndarray:
        y = np.asarray(y, np.float64)
        if self.loss == "poisson" and (y < 0).any():
            raise ValueError(f"y must not be negative for loss='poisson', got {y.min()}")
        return y

    def _coef(self, coef: np.ndarray) -> Any:
        return super()._coef(coef) if self._sparse else coef[0]

    def predict(self, X: Any) -> np.ndarray:
        """The value of each row, float64, shape (rows,)."""
        rows = self._rows(X)
        return self._learner.predict(rows)[:, 0]


AdagradRegressor.__doc__ = documented(str(AdagradRegressor.__doc__))
