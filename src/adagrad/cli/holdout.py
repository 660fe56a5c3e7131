"""Which rows are held out: by their number alone, so that every pass, and a run taken up again, chooses the same ones."""

import numpy as np

from adagrad.cli.errors import CliError
from adagrad.cli.options import TrainOptions
from adagrad.cli.reading import Reader

__all__ = ["Holdout"]


class Holdout:
    """The last rows from ``boundary`` on, or a share of all rows at random; with neither, no row.

    A row is held out at random if the SplitMix64 hash of its number and the seed is below the share of 2**64.
    """

    def __init__(self, boundary: int | None = None, share: float | None = None, seed: int = 0) -> None:
        self.boundary, self._share, self._seed = boundary, share, seed

    @classmethod
    def plan(cls, options: TrainOptions, reader: Reader) -> "Holdout":
        """The held-out rows that the options ask for; counts the rows of the files if it must know how many there are."""
        if options.holdout_last is None:
            return cls(None, options.holdout_random, options.seed)
        rows = reader.count()
        held = round(rows * options.holdout_last)
        if held < 1 or held >= rows:
            raise CliError(f"--holdout-last {options.holdout_last:g} of {rows} rows leaves nothing to train on or to judge by")
        return cls(rows - held)

    @property
    def some(self) -> bool:
        """Whether any row may be held out."""
        return self.boundary is not None or self._share is not None

    def mask(self, first: int, rows: int) -> np.ndarray:
        """Which of so many rows, the first of which has the number ``first``, are held out: bool (rows,)."""
        numbers = np.arange(first, first + rows, dtype=np.uint64)
        if self.boundary is not None:
            return numbers >= self.boundary
        if self._share is None:
            return np.zeros(rows, bool)
        start = (self._seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) % 2**64
        x = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (x ^ (x >> np.uint64(31))) < np.uint64(int(self._share * 2**64))
