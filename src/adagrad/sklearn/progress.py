"""What ``verbose`` shows of a pass: a bar on a terminal while it goes on, and a line at its end."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

__all__ = ["Progress"]

_WIDTH = 24


class Progress:
    """A pass over ``rows`` rows, number ``epoch`` of ``epochs``; shows nothing if ``verbose`` is 0.

    The bar goes to standard error, if that is a terminal; the line, with ``losses``, to standard output.
    """

    def __init__(self, verbose: int, epoch: int, epochs: int, rows: int) -> None:
        self.losses: dict[str, float] = {}
        self._name, self._rows, self._verbose = f"epoch {epoch + 1} of {epochs}", rows, bool(verbose)
        self._bar = self._verbose and sys.stderr.isatty()
        self._drawn = 0

    def watch(self, done: int) -> None:
        """Draw the bar with so many rows done."""
        if self._bar:
            full = _WIDTH * done // max(1, self._rows)
            rate = done / max(time.perf_counter() - self._start, 1e-9)
            line = f"{self._name} [{'#' * full}{'.' * (_WIDTH - full)}] {done:,} of {self._rows:,} rows, {rate:,.0f} a second"
            sys.stderr.write(f"\r{line.ljust(self._drawn)}")
            sys.stderr.flush()
            self._drawn = len(line)

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        self.watch(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            sys.stderr.write(f"\r{' ' * self._drawn}\r")
            sys.stderr.flush()
        if self._verbose and kind is None:
            print(f"{self._name}: {', '.join(f'{name} {loss:.6f}' for name, loss in self.losses.items())}")
