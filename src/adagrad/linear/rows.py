"""Rows of data as the kernels take them: checked, in chunks, sparse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from adagrad.kernels import linear

__all__ = ["PLAIN", "Rows", "check_rows", "chunks", "without_long_repeats"]

# Rows a compiled call, and elements of a dense chunk, which is turned into sparse rows; rounded to whole mini-batches.
_ROWS = 1 << 17
_ELEMENTS = 1 << 20
PLAIN: list[Literal["C", "A", "W"]] = ["C", "A", "W"]


class Rows(NamedTuple):
    """Sparse rows: row i has ``data[indptr[i]:indptr[i+1]]`` at the columns ``indices[indptr[i]:indptr[i+1]]``."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray


def check_rows(X: Any, features: int) -> None:
    """Raise ``ValueError`` for rows that a kernel would read or write out of bounds with."""
    if X.shape[1] != features:
        raise ValueError(f"X must have {features} columns, got {X.shape[1]}")
    if isinstance(X, np.ndarray):
        return
    lengths = np.diff(X.indptr)
    entries = min(X.data.size, X.indices.size)
    if X.indptr.size != X.shape[0] + 1 or X.indptr[0] != 0 or X.indptr[-1] > entries or (lengths < 0).any():
        raise ValueError(f"X.indptr must rise from 0 to at most the {entries} entries, in {X.shape[0]} rows")
    ids = X.indices[: X.indptr[-1]]
    if ids.size and ids.view(f"u{ids.itemsize}").max() >= features:  # a negative number is a large one there
        raise ValueError(f"X.indices must be in [0, {features}), got {ids.min()} to {ids.max()}")


def without_long_repeats(X: Any) -> Any:
    """X, or a copy whose repeated columns are summed if it has rows for which a kernel would take too long to do it."""
    if isinstance(X, np.ndarray) or np.diff(X.indptr).max(initial=0) <= linear.LONGEST or X.has_canonical_format:
        return X
    X = X.copy()
    X.sum_duplicates()
    return X


def chunks(X: Any, batch_size: int = 1) -> Iterator[tuple[int, int, Rows]]:
    """``(lo, hi, rows)`` for each chunk of X, of whole mini-batches (but for the last) of ``batch_size`` rows.

    The rows are of the types that the kernels are compiled for, and writable.
    (An array that is read-only is another type to Numba, and would have everything compiled anew.)
    """
    dense = isinstance(X, np.ndarray)
    size = _ELEMENTS // max(1, X.shape[1]) if dense else _ROWS
    size = max(1, size // batch_size) * batch_size
    for lo in range(0, X.shape[0], size):
        hi = min(lo + size, X.shape[0])
        if dense:
            block = np.require(X[lo:hi], requirements=PLAIN)
            data, indices = np.empty(block.size, X.dtype), np.empty(block.size, np.int32)
            indptr = np.zeros(hi - lo + 1, np.int64)
            linear.compress(block, data, indices, indptr)
        else:
            indptr = X.indptr[lo : hi + 1].astype(np.int64)
            begin, end = indptr[0], indptr[-1]
            indptr -= begin
            data = np.require(X.data[begin:end], requirements=PLAIN)
            indices = np.require(X.indices[begin:end], np.int32 if X.shape[1] <= 2**31 else np.int64, PLAIN)
        yield lo, hi, Rows(data, indices, indptr)
