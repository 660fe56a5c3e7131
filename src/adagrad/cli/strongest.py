"""The strongest features by name, ``|weight| x spread``, in flat memory.

A slot's name is not in the matrix, so names are gathered on the way, from the text of the rows: of each chunk up to 1,024
rows are looked at, and the most frequent of their slots that have no name yet get one. The names of the 4,096 most frequent
slots are kept: a strong feature is a frequent one, since a rare one has little spread. Of one that was missed, the report
shows the slot.
"""

import dataclasses

import numpy as np

from adagrad.cli.features import Features
from adagrad.cli.reading import Chunk

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

    def look(self, chunk: Chunk, starts: np.ndarray, indices: np.ndarray) -> None:
        """Name the most frequent slots in some rows of a chunk whose matrix has these ``indptr`` and ``indices``."""
        picked = np.unique(np.linspace(0, len(chunk) - 1, min(_ROWS, len(chunk))).astype(np.int64))
        lengths = (starts[picked + 1] - starts[picked]).astype(np.int64)
        row_of = np.repeat(picked, lengths)
        entry_of = np.arange(len(row_of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        slots, where = np.unique(indices[starts[row_of] + entry_of], return_index=True)
        fresh = ~np.isin(slots, self._known())
        slots, where = slots[fresh], where[fresh]
        for i in np.argsort(-self._features.counts(slots), kind="stable")[:_NEW]:
            row, entry = int(row_of[where[i]]), int(entry_of[where[i]])
            self.names[int(slots[i])] = self._features.describe(chunk, row, entry)
        if len(self.names) > _KEPT + _NEW:
            known = self._known()
            kept = known[np.argsort(-self._features.counts(known), kind="stable")[:_KEPT]]
            self.names = {int(slot): self.names[int(slot)] for slot in np.sort(kept)}

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
        spread = np.sqrt(np.where(is_number, share, share * (1.0 - share)))
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
