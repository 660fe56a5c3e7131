"""What the linear learners are timed on: sparse rows as a matrix and, the same, as Vowpal Wabbit's text."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array, vstack

from adagrad.cli.bad import BadRows
from adagrad.cli.features import Features
from adagrad.cli.flights import TARGET, prepare
from adagrad.cli.reading import Reader
from adagrad.cli.roles import Overrides, assign_roles

__all__ = ["BITS", "CLASSES", "COLUMNS", "Rows", "flights", "joined", "texts"]

CLASSES = np.array([0, 1])
BITS = 18
COLUMNS = 1 << BITS
_ENTRIES = 18
_CATEGORICAL = ("flight", "hour")  # numbers that are names
_CROSSES = ("weekday:hour", "carrier:dest", "dest:hour")
_SCALED_BY = 6  # months, from which the numbers' mean and deviation are taken


@dataclass
class Rows:
    """Examples: X, float32 CSR with `COLUMNS` columns; y, 0 or 1; ``text``, where they lie as text for Vowpal Wabbit."""

    X: Any
    y: np.ndarray
    text: Path

    @classmethod
    def write(cls, X: Any, y: np.ndarray, text: Path) -> Rows:
        """The rows, and their text: the column itself for a name, which Vowpal Wabbit takes as it is; a value of 1 unsaid."""
        names, starts = X.indices.tolist(), X.indptr.tolist()
        words = [str(k) if value == 1 else f"{k}:{value:.9g}" for k, value in zip(names, X.data.tolist(), strict=True)]
        with text.open("w") as file:
            for label, lo, hi in zip(y.tolist(), starts[:-1], starts[1:], strict=True):
                file.write(f"{1 if label else -1} | {' '.join(words[lo:hi])}\n")
        return cls(X, y, text)

    def head(self, count: int) -> Rows:
        """The first rows; their text is not cut."""
        return Rows(self.X[:count], self.y[:count], self.text)

    def parts(self, count: int) -> list[Rows]:
        """So many parts of about equal size, without text."""
        edges = np.linspace(0, len(self.y), count + 1).astype(int).tolist()
        return [Rows(self.X[lo:hi], self.y[lo:hi], self.text) for lo, hi in itertools.pairwise(edges)]


def texts(folder: Path, counts: list[int], seed: int = 6) -> list[Rows]:
    """Rows like those of texts: 18 ones among 2**18 columns, zipf, once a row; labels drawn from a known model."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=COLUMNS) * 0.5
    found = []
    for number, count in enumerate(counts):
        columns = (rng.zipf(1.3, count * _ENTRIES) * 2654435761 % COLUMNS).astype(np.int32)
        indptr = np.arange(0, count * _ENTRIES + 1, _ENTRIES, dtype=np.int32)
        X = csr_array((np.ones(count * _ENTRIES, np.float32), columns, indptr), shape=(count, COLUMNS))
        X.sum_duplicates()
        X.data[:] = 1
        y = (rng.random(count) < 1 / (1 + np.exp(-X @ truth))).astype(np.int64)
        found.append(Rows.write(X, y, folder / f"texts-{number}.vw"))
    return found


def flights(folder: Path, rows: int | None = None) -> list[Rows]:
    """The twelve months of flights as `adagrad demo` learns them (at most ``rows`` of each): will one be late?

    Categories are hashed, numbers scaled by the mean and deviation of January to June.
    """
    with tempfile.TemporaryDirectory() as made:
        months = [_chunk(path, rows) for path in prepare(Path(made)).months]
    features = None
    found = []
    for number, (header, chunk) in enumerate(months):
        if features is None:
            overrides = Overrides(TARGET, categorical=_CATEGORICAL)
            features = Features(assign_roles(header, chunk, overrides), _CROSSES, BITS)
        bad = BadRows(chunk)
        values = features.values(chunk, bad)
        bad.refuse()
        if number < _SCALED_BY:
            features.observe(values)
        y = np.concatenate([part.column(TARGET).cast(pa.string()).cast(pa.int64()).to_numpy() for part in chunk.parts])
        found.append((values, y))
    assert features is not None
    return [Rows.write(csr_array(features.matrix(v)), y, folder / f"month-{m}.vw") for m, (v, y) in enumerate(found, 1)]


def _chunk(path: Path, rows: int | None) -> tuple[list[str], Any]:
    """The header, and all rows as one chunk."""
    reader = Reader([str(path)])
    (chunk,) = reader.chunks(10**9)
    return reader.header, chunk if rows is None else chunk.head(rows)


def joined(parts: list[Rows], text: Path) -> Rows:
    """The rows of all parts, their text copied end to end."""
    with text.open("wb") as file:
        for part in parts:
            file.write(part.text.read_bytes())
    return Rows(vstack([part.X for part in parts], format="csr"), np.concatenate([part.y for part in parts]), text)
