"""The progress of a long read: a bar on a terminal, a line every ten seconds elsewhere, both on standard error."""

import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["Progress"]

_PAUSE = 10.0  # seconds between lines where there is no terminal


class Progress:
    """Shows rows, rows a second, a loss, and how far the bytes have come.

    Parameters
    ----------
    total : float or None
        Bytes to read in all, over all passes; None: unknown.
    """

    def __init__(self, total: float | None) -> None:
        self._total = total or None
        self._start = self._said = time.monotonic()
        self._rows_at_start: int | None = None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            columns = [progress.BarColumn(), progress.TaskProgressColumn(), progress.TextColumn("{task.description}"),
                       progress.TimeRemainingColumn()]  # fmt: skip
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("starting (the first run ever compiles its kernels)", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, rows: int, done: float, loss: float | None = None) -> None:
        """``rows`` so far, ``done`` bytes of the total, and the loss, if there is one."""
        now = time.monotonic()
        if self._rows_at_start is None:
            self._rows_at_start, self._start = rows, now  # the first chunk also paid for compiling the kernels
        speed = (rows - self._rows_at_start) / (now - self._start) if now > self._start and rows > self._rows_at_start else 0.0
        parts = [
            f"{rows:,} rows",
            *([f"{speed:,.0f} rows/s"] if speed else []),
            *([f"loss {loss:.4f}"] if loss is not None else []),
        ]
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=", ".join(parts))
        elif now - self._said >= _PAUSE:
            self._said = now
            share = [f"{done / self._total:.0%}"] if self._total else []
            print(", ".join([*share, *parts]), file=sys.stderr, flush=True)
