"""The online loss: each row's, taken from the prediction made before the row was learned from, beside a running mean's.

It is summed over the first pass only; later passes predict rows that they have seen.
"""

from typing import Any, NamedTuple

import numpy as np

from adagrad.cli.judging import RunningMean, row_losses
from adagrad.cli.labels import CLASSIFICATION, Labels

__all__ = ["IN_RUNS", "CurvePoint", "Online"]

IN_RUNS = 0.3  # neighbours' labels correlate by more than this: they come in runs
_MOST_POINTS = 1000
_STRETCH = 2048  # rows between the points of the curve, at first


class CurvePoint(NamedTuple):
    """Sums over the rows up to a point: rows, their weight, the model's loss, the running mean's loss."""

    rows: int
    weight: float
    loss: float
    mean_loss: float


class Online:
    """The sums behind the online loss, its curve, and whether labels come in runs.

    Attributes
    ----------
    mean : RunningMean
        The running mean, fed with every training row of the first pass.
    points : list of CurvePoint
        At most 1,000: when there would be more, every second one is dropped.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self.mean = RunningMean(labels)
        self.points: list[CurvePoint] = []
        self._stride, self._stretches = 1, 0
        self._now = CurvePoint(0, 0.0, 0.0, 0.0)
        # Of the labels in the order learned: pairs of neighbours, and sums over them (see `correlation`).
        self._pairs, self._products, self._last = 0, 0.0, 0.0
        self._sums, self._squares = np.zeros_like(self.mean.sums), 0.0

    def add(self, prediction: np.ndarray, y: np.ndarray, weight: np.ndarray) -> None:
        """Take in rows in the order in which they were learned, with the predictions made before."""
        starts = np.arange(0, len(y), _STRETCH)
        losses = (weight * row_losses(self._labels, made, y) for made in (prediction, self.mean.follow(y, weight)))
        sums = [np.add.reduceat(values, starts).tolist() for values in (np.ones(len(y), np.int64), weight, *losses)]
        for added in zip(*sums, strict=True):
            self._now = CurvePoint(*(before + more for before, more in zip(self._now, added, strict=True)))
            self._stretches += 1
            if self._stretches % self._stride == 0:
                self.points.append(self._now)
            if len(self.points) >= _MOST_POINTS:
                self.points, self._stride = self.points[1::2], 2 * self._stride
        self._watch_order(y)

    def _watch_order(self, y: np.ndarray) -> None:
        if self._labels.task == CLASSIFICATION:
            agree = float(np.count_nonzero(y[1:] == y[:-1])) + (self._pairs > 0 and self._last == y[0])
            self._sums += np.bincount(y, minlength=len(self._sums))
        else:
            y = self._labels.scaled(y)
            agree = float(y[1:] @ y[:-1]) + (self._last * float(y[0]) if self._pairs else 0.0)
            self._sums += y.sum()
            self._squares += float(y @ y)
        self._products += agree
        self._pairs += len(y)
        self._last = float(y[-1])

    @property
    def rows(self) -> int:
        """Rows taken in."""
        return self._now.rows

    def losses(self) -> tuple[float, float] | None:
        """``(model, running mean)``: mean log loss in nats, or RMSE; None before the first row that has a weight."""
        return _means(self._labels, CurvePoint(0, 0.0, 0.0, 0.0), self._now)

    def curve(self, most: int = _MOST_POINTS) -> list[tuple[int, float, float, float]]:
        """``(rows, loss so far, loss since the point before, running mean's loss so far)`` for about ``most`` points."""
        zero = before = CurvePoint(0, 0.0, 0.0, 0.0)
        every = 1 + (len(self.points) - 1) // most
        points = self.points[every - 1 :: every]
        points = points if points and points[-1] == self._now else [*points, self._now]
        out = []
        for point in points:
            so_far, since = _means(self._labels, zero, point), _means(self._labels, before, point)
            if so_far is not None and since is not None:
                out.append((point.rows, so_far[0], since[0], so_far[1]))
            before = point
        return out

    def recent(self) -> tuple[int, float] | None:
        """``(rows, loss)`` of the last tenth of the rows or a little more; None where they are too few to tell."""
        before = [point for point in self.points if point.rows <= 0.9 * self._now.rows]
        means = _means(self._labels, before[-1], self._now) if before else None
        return None if means is None else (self._now.rows - before[-1].rows, means[0])

    def correlation(self) -> float:
        """How far neighbouring labels agree beyond chance: 0 in random order, 1 in sorted order.

        For numbers the correlation of each with the next; for classes ``(s - c) / (1 - c)``, where s is the share of
        neighbours with the same class and c the share that chance would give.
        """
        if self._pairs < 2:
            return 0.0
        rows = self._pairs
        if self._labels.task == CLASSIFICATION:
            chance = float(np.square(self._sums / rows).sum())
            spread, together = 1.0 - chance, self._products / (rows - 1) - chance
        else:
            mean = float(self._sums[0]) / rows
            spread, together = self._squares / rows - mean * mean, self._products / (rows - 1) - mean * mean
        return together / spread if spread > 0 else 0.0

    def state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "points": [list(point) for point in self.points],
            "now": list(self._now),
            "stride": self._stride,
            "stretches": self._stretches,
            "order": [self._pairs, self._products, self._last, self._squares, self._sums.tolist()],
            "mean": [self.mean.sums.tolist(), self.mean.weight],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.points = [CurvePoint(*point) for point in state["points"]]
        self._now = CurvePoint(*state["now"])
        self._stride, self._stretches = state["stride"], state["stretches"]
        self._pairs, self._products, self._last, self._squares, sums = state["order"]
        self._sums = np.array(sums)
        self.mean.sums, self.mean.weight = np.array(state["mean"][0]), state["mean"][1]


def _means(labels: Labels, start: CurvePoint, stop: CurvePoint) -> tuple[float, float] | None:
    weight = stop.weight - start.weight
    if not weight > 0:
        return None
    loss, mean_loss = (stop.loss - start.loss) / weight, (stop.mean_loss - start.mean_loss) / weight
    if labels.task == CLASSIFICATION:
        return loss, mean_loss
    return max(0.0, loss) ** 0.5, max(0.0, mean_loss) ** 0.5
