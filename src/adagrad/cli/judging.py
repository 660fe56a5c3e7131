"""How good predictions are, summed chunk by chunk in flat memory, and the plain predictors that a model must beat.

Predictions are probabilities, float64 (n, classes), for classification, margins where the loss is a hinge, and float64 (n,) in
the target's own units for regression. Every row counts with its weight.
"""

from typing import Any

import numpy as np

from adagrad.cli.kernels.losses import follow_classes, log_losses
from adagrad.cli.labels import CLASSIFICATION, Labels
from adagrad.kernels.losses import LOSSES, losses

__all__ = ["HEADS", "Baseline", "RunningMean", "Score", "loss_name", "loss_of", "make_score", "row_losses"]

HEADS = {
    "log_loss": "log loss",
    "hinge": "hinge loss",
    "squared_hinge": "squared hinge loss",
    "rmse": "RMSE",
    "auc": "AUC",
    "calibration": "predicted/actual",
    "accuracy": "accuracy",
    "mae": "MAE",
    "r2": "R2",
    "huber": "Huber loss",
    "epsilon_insensitive": "epsilon-insensitive loss",
    "squared_epsilon_insensitive": "squared epsilon-insensitive loss",
    "quantile": "quantile loss",
    "poisson": "Poisson loss",
}
"""What the figures are called in a table."""

_SMALLEST = 1e-15  # a probability counts as at least this in a log loss, so that one sure mistake doesn't make it infinite
_BINS = 1 << 17  # of the log odds from -_REACH to _REACH, over which the AUC of two classes is taken
_REACH = 24.0

Row = dict[str, float | None]


def row_losses(labels: Labels, prediction: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The loss of each row, (n,): ``-log p_y`` in nats, a hinge loss, or ``(prediction - y)**2``.

    A hinge loss is ``max(0, 1 - s*margin)``, or its square, s = 1 for the class of the row and -1 for others; of two classes
    that of the second, of more the sum over them, which is what is learned.
    """
    if labels.margins:
        signs = np.where(np.arange(len(labels.classes)) == y[:, None], 1.0, -1.0)
        missing = np.maximum(0.0, 1.0 - signs * prediction)[:, 1 if len(labels.classes) == 2 else 0 :]
        return (np.square(missing) if labels.loss == "squared_hinge" else missing).sum(1)
    if labels.task == CLASSIFICATION:
        loss = np.empty(len(y))
        log_losses(prediction, y, _SMALLEST, loss)
        return loss
    return np.square(prediction - y)


class ClassificationScore:
    """Log loss, AUC and mean predicted over mean actual, of rows added chunk by chunk; of margins loss, AUC and accuracy.

    The AUC comes from a histogram of the log odds (two classes: 131,072 bins of 0.0004; more: 4,096 bins each, the mean
    over the classes, one against the rest); values that share a bin count as ties, which moves it by less than 1e-4.
    For more than two classes the calibration is that of the class where it is furthest from 1.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels, self._classes = labels, len(labels.classes)
        self._judged = [1] if self._classes == 2 else list(range(self._classes))
        self._bins = _BINS if self._classes == 2 else _BINS >> 5
        self._weight = self._loss = self._right = 0.0
        self._predicted, self._actual = np.zeros(self._classes), np.zeros(self._classes)
        self._histogram = np.zeros((2, len(self._judged), self._bins))  # of rows of other classes, of rows of the class

    def add(self, prediction: np.ndarray, y: np.ndarray, weight: np.ndarray) -> None:
        """Add rows: probabilities or margins (n, classes), class numbers (n,), weights (n,)."""
        self._weight += float(weight.sum())
        self._loss += float(weight @ row_losses(self._labels, prediction, y))
        self._right += float(weight @ (prediction.argmax(1) == y)) if self._labels.margins else 0.0
        self._predicted += weight @ prediction
        self._actual += np.bincount(y, weight, self._classes)
        for row, k in enumerate(self._judged):
            odds = prediction[:, k]
            if not self._labels.margins:
                p = np.clip(odds, _SMALLEST, 1 - _SMALLEST)
                odds = np.log(p / (1 - p))
            bins = (odds + _REACH) * (self._bins / (2 * _REACH))
            bins = np.clip(bins, 0, self._bins - 1).astype(np.int64)
            for side, rows in enumerate((y != k, y == k)):
                self._histogram[side, row] += np.bincount(bins[rows], weight[rows], self._bins)

    def reliability(self, groups: int = 20) -> list[list[float]]:
        """``[mean predicted, share that came true, weight]`` of rows in ``groups`` of about equal weight, by prediction.

        Of each class that is judged, together; a prediction counts as the middle of its bin. None for margins.
        """
        if self._labels.margins:
            return []
        odds = ((np.arange(self._bins) + 0.5) / self._bins * 2 - 1) * _REACH
        predicted = 1 / (1 + np.exp(-odds))
        against, true = self._histogram.sum(1)
        weight = against + true
        if not weight.sum():
            return []
        group = np.minimum((np.cumsum(weight) - 0.5 * weight) / weight.sum() * groups, groups - 1).astype(np.int64)
        sums = [np.bincount(group, values, groups) for values in (weight * predicted, true, weight)]
        return [[float(p / w), float(t / w), float(w)] for p, t, w in zip(*sums, strict=True) if w > 0]

    def table(self) -> Row:
        """``log_loss``, ``auc`` and ``calibration`` (mean predicted over mean actual); None where there is none.

        Of margins the loss by its name, ``auc`` and ``accuracy``.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = (self._predicted / self._actual)[self._judged]
            areas = [_area(self._histogram[0, row], self._histogram[1, row]) for row in range(len(self._judged))]
        known = [area for area in areas if area is not None]
        auc, loss = sum(known) / len(known) if known else None, self._loss / self._weight if self._weight else None
        if self._labels.margins:
            return {str(self._labels.loss): loss, "auc": auc, "accuracy": self._right / self._weight if self._weight else None}
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        worst = float(ratios[np.argmax(np.abs(np.log(ratios)))]) if len(ratios) else None
        return {
            "log_loss": loss,
            "auc": auc,
            "calibration": worst,
        }


def _area(negatives: np.ndarray, positives: np.ndarray) -> float | None:
    """The AUC of two histograms: the share of pairs in the right order, ties half."""
    pairs = negatives.sum() * positives.sum()
    below = np.cumsum(negatives) - 0.5 * negatives
    return float(positives @ below / pairs) if pairs else None


class RegressionScore:
    """RMSE, MAE and R2 of rows added chunk by chunk, and the loss that was minimized, if it is another one."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._weight = self._squares = self._absolute = self._sum = self._total = self._loss = 0.0

    def add(self, prediction: np.ndarray, y: np.ndarray, weight: np.ndarray) -> None:
        """Add rows: predictions, targets and weights, all (n,)."""
        # Centered near the targets' mean, so that the sum of squares around it loses nothing.
        error, centered = prediction - y, y - self._labels.mean
        self._weight += float(weight.sum())
        self._squares += float(weight @ np.square(error))
        self._absolute += float(weight @ np.abs(error))
        self._sum += float(weight @ centered)
        self._total += float(weight @ np.square(centered))
        if self._own:
            self._loss += float(weight @ self._losses(prediction, y))

    @property
    def _own(self) -> str | None:
        """The loss that was minimized, if it is not the squared error."""
        return None if self._labels.loss == "squared_error" else self._labels.loss

    def _losses(self, prediction: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The loss of each row in the target's units, so with ``loss_epsilon`` in them, too."""
        loss, result = LOSSES[str(self._own)], np.empty(len(y))
        parameter = self._labels.parameter * (self._labels.deviation if loss.parameter == "loss_epsilon" else 1.0)
        losses(prediction, True, y[:, None], 1, loss.number, parameter, result)
        return result

    def reliability(self, groups: int = 20) -> list[list[float]]:
        """None for numbers."""
        return []

    def table(self) -> Row:
        """``rmse``, ``mae``, ``r2``, and the loss that was minimized by its name; None where there is none."""
        own = {self._own: self._loss / self._weight if self._weight else None} if self._own else {}
        if not self._weight:
            return {"rmse": None, "mae": None, "r2": None, **own}
        variation = self._total - self._sum**2 / self._weight
        return {
            "rmse": (self._squares / self._weight) ** 0.5,
            "mae": self._absolute / self._weight,
            "r2": 1.0 - self._squares / variation if variation > 0 else None,
            **own,
        }


Score = ClassificationScore | RegressionScore


def loss_name(labels: Labels) -> str:
    """What the loss of `row_losses` is called; its root, of a number."""
    if labels.task != CLASSIFICATION:
        return HEADS["rmse"]
    return HEADS[str(labels.loss) if labels.margins else "log_loss"]


def loss_of(row: Row) -> float | None:
    """The loss among the figures of a row: log loss, a hinge loss, or RMSE."""
    return next(iter(row.values()))


def make_score(labels: Labels) -> Score:
    """An empty score for the task."""
    return ClassificationScore(labels) if labels.task == CLASSIFICATION else RegressionScore(labels)


class RunningMean:
    """Predicts, for each row, the mean of the labels before it: the shares of the classes, or the mean target.

    It starts as if one row had been seen: one that is a little of every class, or the mean of the first chunk's targets,
    which is all that the model itself knows at the start. Where margins are judged it votes: 1 for the class that was most
    frequent so far, -1 for the others.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self.sums = np.full(len(labels.classes), 1.0 / len(labels.classes)) if labels.classes else np.zeros(1)
        self.weight = 1.0

    def follow(self, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The predictions for the rows, each made before the row's label is taken in."""
        if self._labels.task == CLASSIFICATION:
            means = np.empty((len(y), len(self.sums)))
            self.weight = follow_classes(y, weight, self.sums, self.weight, means)
            return _votes(means) if self._labels.margins else means
        added = weight * (y - self._labels.mean)
        sums, weights = np.cumsum(added), np.cumsum(weight)
        means = (self.sums[0] + sums - added) / (self.weight + weights - weight)
        self.sums, self.weight = self.sums + sums[-1], self.weight + float(weights[-1])
        return means + self._labels.mean

    def constant(self, rows: int) -> np.ndarray:
        """The mean of all labels so far, for each of so many rows."""
        mean = self.sums / self.weight
        if self._labels.task == CLASSIFICATION:
            means = np.tile(mean, (rows, 1))
            return _votes(means) if self._labels.margins else means
        return np.full(rows, mean[0] + self._labels.mean)


def _votes(means: np.ndarray) -> np.ndarray:
    return np.where(np.arange(means.shape[1]) == means.argmax(1)[:, None], 1.0, -1.0)


class Baseline:
    """scikit-learn's SGDClassifier or SGDRegressor with its default settings, fed the same chunks as ours.

    The classifier minimizes log loss, or the hinge loss that is judged by.

    Where it overflows, which it does on some data, it is out of the game: ``diverged`` is true and it predicts nothing.
    """

    def __init__(self, labels: Labels) -> None:
        from sklearn.linear_model import SGDClassifier, SGDRegressor

        self._labels, self.diverged = labels, False
        self.name = "SGDClassifier" if labels.task == CLASSIFICATION else "SGDRegressor"
        classifier = labels.task == CLASSIFICATION
        loss = labels.loss if labels.margins else "log_loss"
        self._model: Any = SGDClassifier(loss=loss, random_state=0) if classifier else SGDRegressor(random_state=0)

    def learn(self, x: Any, y: np.ndarray, weight: np.ndarray | None) -> None:
        """One pass over the rows, ``y`` as `Labels.scaled` gives it."""
        if self.diverged:
            return
        classes = {"classes": np.arange(len(self._labels.classes))} if self._labels.classes else {}
        try:
            self._model.partial_fit(x, y, sample_weight=weight, **classes)
        except ValueError as error:
            if "overflow" not in str(error):
                raise
            self.diverged = True

    def predict(self, x: Any) -> np.ndarray:
        """Probabilities, margins, or values in the target's units."""
        if self._labels.margins:
            margins = self._model.decision_function(x)
            return np.column_stack([-margins, margins]) if margins.ndim == 1 else margins
        if self._labels.task == CLASSIFICATION:
            return self._model.predict_proba(x)
        return self._labels.restored(self._model.predict(x))

    def state(self) -> dict[str, np.ndarray]:
        """The arrays from which it goes on; empty before the first chunk."""
        if self.diverged or not hasattr(self._model, "coef_"):
            return {"diverged": np.array(self.diverged)}
        return {"coef": self._model.coef_, "intercept": self._model.intercept_, "t": np.array(self._model.t_)}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `state` gave."""
        self.diverged = bool(arrays.get("diverged", False))
        if "coef" in arrays:
            self._model.coef_, self._model.intercept_ = arrays["coef"], arrays["intercept"]
            self._model.t_ = float(arrays["t"])
            self._model.n_features_in_ = arrays["coef"].shape[-1]
            if self._labels.classes:
                self._model.classes_ = np.arange(len(self._labels.classes))
