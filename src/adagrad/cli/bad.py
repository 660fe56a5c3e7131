"""The rows of a chunk that can't be used: gathered column by column, then refused with their place, or left out."""

import numpy as np

from adagrad.cli import columns as read
from adagrad.cli.blocks import Chunk
from adagrad.cli.errors import CliError
from adagrad.cli.sparsefile import FEATURES, SparseBlock

__all__ = ["BadRows"]


class BadRows:
    """Which rows of a chunk are bad, and why."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._found: list[tuple[int, str, str]] = []
        self.mask: np.ndarray = np.zeros(len(chunk), bool)

    def add(self, column: str, start: int, wrong: np.ndarray, what: str) -> None:
        """Mark the rows from ``start`` on where ``wrong`` is true; ``what`` ends the sentence "'value' ..."."""
        if wrong.any():
            self.mask[start : start + len(wrong)] |= wrong
            self._found.append((start + int(np.argmax(wrong)), column, what))

    def message(self) -> str:
        """The first bad row: ``"FILE, line N, column 'x': 'abc' is not a number"``."""
        row, column, what = min(self._found, key=lambda found: found[0])
        start = row
        for part in self._chunk.parts:
            if start < len(part.rows):
                break
            start -= len(part.rows)
        if isinstance(part.block, SparseBlock) and column == FEATURES:
            value = part.block.text(int(part.rows[start]))
        else:
            value = read.shown(part.column(column), "text", start)
        shown = f"{value[:60]!r} {what}" if value else "the value is missing"
        return f"{self._chunk.where(row)}, column {column!r}: {shown}"

    def refuse(self) -> None:
        """Raise `CliError` if any row is bad."""
        if self._found:
            raise CliError(f"{self.message()} (--bad-rows skip leaves such rows out)")
