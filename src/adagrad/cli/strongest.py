"""The strongest features by name, ``|weight| x spread``, in flat memory.

A slot's name is not in the matrix, so names are gathered on the way, from the text of the rows: of each chunk up to 1,024
rows are looked at, and the most frequent of their slots that have no name yet get one. The names of the 4,096 most frequent
slots are kept: a strong feature is a frequent one, since a rare one has little spread. Of one that was missed, the report
shows the slot.

Where features come with values, what these are like is taken from the same rows.
"""

import dataclasses
from typing import Any

import numpy as np

from adagrad.cli.blocks import Chunk
from adagrad.cli.features import Features

__all__ = ["Feature", "Strongest"]

_ROWS = 1024  # looked at in each chunk
_NEW = 128  # names taken from each chunk, at most
_KEPT = 4096  # names kept


@dataclasses.dataclass(frozen=True)
class Feature:
    """One line of the table.

    Name, slot, weight and number of the class where it is largest in size, deviation of the feature's value, entries that
    were counted in the slot, and whether other features share it.
    """

    name: str
    slot: int
    weight: float
    label: int
    spread: float
    count: int
    shared: bool

    @property
    def strength(self) -> float:
        """``|weight| x spread``."""
        return abs(self.weight) * self.spread


class Strongest:
    """The names of frequent slots; ``names`` maps slots to names."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self.names: dict[int, str] = {}
        # Of slots, ascending: the entries looked at, the sum of their values, the sum of their squares.
        self._weighed: np.ndarray = np.empty(0, np.int64)
        self._sums: np.ndarray = np.empty((0, 3))

    def look(self, chunk: Chunk, x: Any) -> None:
        """Name the most frequent slots in some rows of a chunk whose matrix, CSR, is ``x``."""
        starts, indices = x.indptr, x.indices
        picked = np.unique(np.linspace(0, len(chunk) - 1, min(_ROWS, len(chunk))).astype(np.int64))
        lengths = (starts[picked + 1] - starts[picked]).astype(np.int64)
        row_of = np.repeat(picked, lengths)
        entry_of = np.arange(len(row_of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = starts[row_of] + entry_of
        slots, where, which = np.unique(indices[places], return_index=True, return_inverse=True)
        fresh = ~np.isin(slots, self._known())
        new = np.flatnonzero(fresh)
        for i in new[np.argsort(-self._features.counts(slots[new]), kind="stable")[:_NEW]]:
            row, entry = int(row_of[where[i]]), int(entry_of[where[i]])
            self.names[int(slots[i])] = self._features.describe(chunk, row, entry)
        if self._features.valued:
            self._weigh(slots, which, x.data[places].astype(np.float64))
        if len(self.names) > _KEPT + _NEW:
            known = self._known()
            kept = known[np.argsort(-self._features.counts(known), kind="stable")[:_KEPT]]
            self.names = {int(slot): self.names[int(slot)] for slot in np.sort(kept)}

    def _weigh(self, slots: np.ndarray, which: np.ndarray, values: np.ndarray) -> None:
        """Take values in, of slots that have a name; ``which`` are their places in ``slots``."""
        sums = np.stack([np.bincount(which, weights) for weights in (np.ones(len(values)), values, values * values)], 1)
        both, place = np.unique(np.concatenate([self._weighed, slots]), return_inverse=True)
        total = np.stack([np.bincount(place, column) for column in np.concatenate([self._sums, sums]).T], 1)
        named = np.isin(both, self._known())
        self._weighed, self._sums = both[named], total[named]

    @property
    def values(self) -> dict[int, list[float]]:
        """What was seen of the values in slots that have a name: entries, sum, sum of squares."""
        return dict(zip(self._weighed.tolist(), self._sums.tolist(), strict=True))

    @values.setter
    def values(self, values: dict[int, list[float]]) -> None:
        self._weighed = np.array(sorted(values), np.int64)
        self._sums = np.array([values[slot] for slot in sorted(values)]).reshape(-1, 3)

    def _known(self) -> np.ndarray:
        return np.fromiter(self.names, np.int64, len(self.names))

    def table(self, coef: np.ndarray, rows: int, most: int = 20) -> list[Feature]:
        """The strongest features of all, the strongest first.

        Parameters
        ----------
        coef : float array (1 or classes, 2**bits)
            The weights.
        rows : int
            Rows that were counted.
        most : int
            Features wanted.
        """
        features = self._features
        slots = np.flatnonzero(features.seen)
        label = np.argmax(np.abs(coef[:, slots]), axis=0)
        weight = coef[label, slots]
        counts = features.counts(slots)
        share = np.clip(counts / max(1, rows), 0.0, 1.0)
        # A number's value has a deviation of about 1 where it is not missing; an indicator's is sqrt(p * (1 - p)).
        is_number = (slots < features.first) & (slots % 2 == 0)
        variance = np.where(is_number, share, share * (1.0 - share))
        place = np.searchsorted(slots, self._weighed)
        mean, square = (self._sums[:, 1:] / self._sums[:, :1]).T
        variance[place] = np.maximum(0.0, share[place] * square - (share[place] * mean) ** 2)
        spread = np.sqrt(variance)
        shared = features.is_shared(slots)
        best = [i for i in np.argsort(-np.abs(weight) * spread, kind="stable")[:most].tolist() if weight[i] != 0]
        return [
            Feature(
                name=self.names.get(int(slots[i]), f"(slot {slots[i]}, name not kept)"),
                slot=int(slots[i]),
                weight=float(weight[i]),
                label=int(label[i]),
                spread=float(spread[i]),
                count=int(counts[i]),
                shared=bool(shared[i]),
            )
            for i in best
        ]
