"""Row gradients: a gradient that is some rows of a table."""

from __future__ import annotations

from typing import Any

__all__ = ["IndexedSlices"]


class IndexedSlices:
    """The gradient of a variable as some of its rows: ``dense[indices[j]] += values[j]`` for every j, in order.

    Ids may repeat and come in any order: repeated rows are summed first, in the order they came, so that a step gives the
    same bits as the equal dense gradient. A row that is not named has gradient zero.

    Parameters
    ----------
    values : array, shape (n, *variable.shape[1:])
        One row of gradient for each id. For a 1-D variable, shape (n,).
    indices : integer array, shape (n,)
        The row of the variable that each row of ``values`` belongs to, in [0, len(variable)).

    Nothing is copied or changed; dtypes, shapes and the range of the ids are checked when the gradient is applied, before
    anything moves.

    >>> import numpy as np, adagrad
    >>> table = np.zeros((3, 2))
    >>> optimizer = adagrad.Adagrad(learning_rate=1.0)
    >>> optimizer.apply([adagrad.IndexedSlices(np.ones((4, 2)), [1, 1, 1, 1])], [table])
    >>> table[:, 0].round(3).tolist()  # the row moves once, by its summed gradient of 4
    [0.0, -0.997, 0.0]
    """

    __slots__ = ("indices", "values")

    def __init__(self, values: Any, indices: Any) -> None:
        self.values = values
        self.indices = indices

    def __repr__(self) -> str:
        return f"IndexedSlices(values={self.values!r}, indices={self.indices!r})"
