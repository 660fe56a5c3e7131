"""Rows as they are handed on: blocks as they were read, parts of them, and chunks of parts."""

from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from adagrad.cli.errors import CliError

__all__ = ["Block", "Chunk", "ParquetBlock", "Part"]

Rows = range | np.ndarray


class Block(Protocol):
    """Some rows of one file, as `adagrad.cli.csvfile.CsvBlock` and `ParquetBlock` hold them."""

    name: str
    rows: int
    dropped: int
    columns: list[str]
    position: int
    typed: bool

    def column(self, name: str) -> pa.Array:
        """The values of a column."""

    def where(self, row: int) -> str:
        """The place of a row, for a message."""


class ParquetBlock:
    """Some rows of a Parquet file, whose columns have types; nothing is ever dropped while reading them."""

    typed = True
    dropped = 0

    def __init__(self, name: str, batch: pa.RecordBatch, first: int, position: int) -> None:
        self.name, self.rows, self.position = name, batch.num_rows, position
        self.columns = list(batch.schema.names)
        self._batch, self._first = batch, first

    def column(self, name: str) -> pa.Array:
        """The values of a column, of whatever type the file gave it."""
        return self._batch.column(name)

    def where(self, row: int) -> str:
        """``"FILE, row N"``, counted from 1."""
        return f"{self.name}, row {self._first + row + 1}"


class Part(NamedTuple):
    """Some rows of one block."""

    block: Block
    rows: Rows

    def column(self, name: str) -> pa.Array:
        """The values of a column in these rows; raises `CliError` if the file has no such column."""
        if name not in self.block.columns:
            raise CliError(f"{self.block.name} has no column {name!r}; it has: {', '.join(self.block.columns)}")
        array = self.block.column(name)
        if isinstance(self.rows, range):
            return array.slice(self.rows.start, len(self.rows))
        return array.take(pa.array(self.rows))

    def where(self, row: int) -> str:
        """The place of one of these rows: ``"FILE, line N"`` or ``"FILE, row N"``."""
        return self.block.where(int(self.rows[row]))


class Chunk:
    """Rows that follow one another, from one file or several.

    Attributes
    ----------
    parts : list of Part
    first : int
        How many rows came before it.
    dropped : int
        How many ragged rows were left out in this pass, up to here.
    position : int
        Bytes of all files read so far.
    """

    def __init__(self, parts: list[Part], first: int = 0, dropped: int = 0, position: int = 0) -> None:
        self.parts, self.first, self.dropped, self.position = parts, first, dropped, position

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def where(self, row: int) -> str:
        """The place of a row: ``"FILE, line N"`` or ``"FILE, row N"``."""
        for part in self.parts:
            if row < len(part.rows):
                return part.where(row)
            row -= len(part.rows)
        raise IndexError(row)

    def select(self, keep: np.ndarray) -> "Chunk":
        """The rows where ``keep``, bool (n,), is true."""
        parts, start = [], 0
        for part in self.parts:
            rows = np.asarray(part.rows)[keep[start : start + len(part.rows)]]
            start += len(part.rows)
            if len(rows):
                parts.append(Part(part.block, rows))
        return Chunk(parts, self.first, self.dropped, self.position)

    def head(self, rows: int) -> "Chunk":
        """The first ``rows`` rows."""
        return self.select(np.arange(len(self)) < rows)
