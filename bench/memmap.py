"""A table in a memory-mapped file, in the page cache and out of it, beside the same table in memory."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import adagrad
from bench import harness
from bench.candidates import case
from bench.harness import THREADS, Candidate
from bench.rows import WIDTH, draw

__all__ = ["run"]

_STEPS, _WARM = 5, 2


class _Mapped:
    """A file of float32, mapped; the optimizer's accumulators are in memory."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.table = np.memmap(path, np.float32, "w+", shape=(rows, WIDTH))
        self.table[:] = 1.0

    def drop(self) -> None:
        """Write what has changed, then ask the system to forget the file's pages."""
        self.table.flush()
        mapping: mmap.mmap = self.table._mmap  # type: ignore[attr-defined]
        mapping.madvise(mmap.MADV_DONTNEED)
        with self.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def resident(self) -> float:
        """The share of the file's pages that are in the page cache."""
        libc = ctypes.CDLL(None, use_errno=True)
        pages = -(-self.table.nbytes // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        address = ctypes.c_void_p(self.table.ctypes.data)
        if libc.mincore(address, ctypes.c_size_t(self.table.nbytes), found) != 0:
            raise OSError(ctypes.get_errno(), "mincore failed")
        return float(np.mean(np.array(found, np.uint8) & 1))


def run(process: str, *, rows: int, batch: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One case for each kind of ids; a step out of the cache is the first after all of the file's pages are dropped."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal((batch, WIDTH), np.float32)
    found = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DISK")) as folder:
        mapped = _Mapped(Path(folder) / "table", rows)
        memory = np.ones((rows, WIDTH), np.float32)
        optimizers = {name: adagrad.Adagrad(0.01) for name in ("memory", "mapped")}
        tables: dict[str, np.ndarray] = {"memory": memory, "mapped": mapped.table}
        shares: list[float] = []

        def step(name: str, gradient: Any) -> None:
            optimizers[name].apply([gradient], [tables[name]])

        for ids in ("zipf", "uniform"):

            def feed(drop: bool = False, ids: str = ids) -> adagrad.IndexedSlices:
                if drop:
                    mapped.drop()
                    shares.append(mapped.resident())
                return adagrad.IndexedSlices(values, draw(rng, ids, rows, batch))

            turn = functools.partial(harness.own_threads, THREADS[-1])
            candidates = [
                Candidate("in memory", functools.partial(step, "memory"), feed, None, _STEPS, _WARM, turn),
                Candidate("mapped, in the cache", functools.partial(step, "mapped"), feed, "in memory", _STEPS, _WARM, turn),
                Candidate(
                    "mapped, out of the cache", functools.partial(step, "mapped"), functools.partial(feed, True), "in memory",
                    turn=turn,
                ),
            ]  # fmt: skip
            # After a step out of the cache the pages come back first.
            mapped.table.sum()
            candidates[1].feed = functools.partial(_touched, mapped, feed)
            times = harness.interleave(candidates, rounds=rounds, seconds=seconds)
            found.append(
                case(
                    f"{rows:,} x {WIDTH} ({rows * WIDTH * 4 / 1e6:,.0f} MB), {ids} ids",
                    candidates, times, {}, process=process, ids=ids, skipped=[], resident_after_drop=max(shares),
                )
            )  # fmt: skip
    return found


def _touched(mapped: _Mapped, feed: Any) -> Any:
    if mapped.resident() < 1:
        mapped.table.sum()
    return feed()
