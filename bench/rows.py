"""Row gradients: tables of embeddings, a batch of 8,192 ids, other ids at every step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import harness, peers
from bench.candidates import Skipped, case, checked, named, ours, theirs
from bench.harness import THREADS, Candidate
from bench.peers import Ours, Peer, Spec

__all__ = ["WIDTH", "draw", "run", "scaling"]

WIDTH = 64
_BLOCK = 4096  # rows of which a table is a repetition
_STEPS, _WARM = 5, 2
_ROW_WISE = "ours row-wise"
# Another 8 MB of gradients than the step before: they come from a cache, as after a backward pass, but not from the first.
_VALUES = 4


def draw(rng: np.random.Generator, ids: str, rows: int, count: int) -> np.ndarray:
    """``count`` ids in [0, rows): ``uniform``, or ``zipf`` with exponent 1.2, the popular ones strewn over the table."""
    if ids == "uniform":
        return rng.integers(0, rows, count)
    found = np.empty(0, np.int64)
    while found.size < count:
        more = rng.zipf(1.2, 2 * count)
        found = np.concatenate([found, more[more <= rows]])
    return found[:count] * 2654435761 % rows


def _table(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A table of normal numbers, and the block that it repeats."""
    block = np.random.default_rng(2).standard_normal((_BLOCK, WIDTH), np.float32)
    table = np.empty((rows, WIDTH), np.float32)
    for lo in range(0, rows, _BLOCK):
        table[lo : lo + _BLOCK] = block[: rows - lo]
    return table, block


class _Feed:
    """The gradients of a step: the next values, new ids."""

    def __init__(self, ids: str, rows: int, batch: int) -> None:
        self.rng = np.random.default_rng(3)
        self.ids, self.rows, self.batch, self.calls = ids, rows, batch, 0
        self.values = [self.rng.standard_normal((batch, WIDTH), np.float32) for _ in range(_VALUES)]

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and ids."""
        self.calls += 1
        return self.values[self.calls % _VALUES], draw(self.rng, self.ids, self.rows, self.batch)

    def __call__(self, peer: Peer) -> Any:
        """The same, as ``peer`` wants them."""
        return peer.rows(*self.draw())


def _compare(spec: Spec, peer: Peer, block: np.ndarray, feed: _Feed) -> dict[str, dict[str, float]]:
    """One step on the table that will be timed: the rows of the batch against ours, a sample of the others unmoved."""
    values, ids = feed.draw()
    peer.step(peer.rows(values, ids))
    peer.wait()
    rows, position = np.unique(ids, return_inverse=True)
    before = block[rows % _BLOCK]
    mine = Ours([before], **peer.settings())
    mine.step(mine.rows(values, position))
    found = {"timed rows": peers.distance(before, mine.read(0), peer.read(0, rows))}
    others = np.setdiff1d(feed.rng.integers(0, feed.rows, 10_000), rows)
    if others.size:
        still = block[others % _BLOCK]
        found["timed, untouched rows"] = peers.distance(still, still, peer.read(0, others))
    return found


def run(process: str, *, rows: int, batch: int, only: list[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Ours and the peers ``only`` (all of the process, if empty) on a table of ``rows``; a case for each kind of ids."""
    specs = [spec for spec in peers.of("rows", process) if not only or spec.name in only]
    tables = sum(spec.tables for spec in specs if not peers.missing(spec)) + 2
    needed, given = tables * rows * WIDTH * 4 + 1_500_000_000 * (rows >= 1_000_000), harness.available_memory()
    if needed > given:
        reason = f"needs {needed / 1e9:.1f} GB of memory, {given / 1e9:.1f} GB are free"
        skipped: Skipped = [{"name": spec.name, "reason": peers.missing(spec) or reason} for spec in specs]
        abouts = [_about(process, rows, ids) for ids in ("zipf", "uniform")]
        return [case(_title(rows, about["ids"]), [], {}, {}, **about, skipped=skipped) for about in abouts]
    table, block = _table(rows)
    first = _Feed("zipf", rows, batch)
    ready, distances, skipped = checked("rows", specs, [table], lambda spec, peer: _compare(spec, peer, block, first))
    mine = Ours([table], copy=False)
    row_wise = Ours([table], copy=False, row_wise=True) if any(peer.row_wise for _, peer in ready) else None
    found = []
    for ids in ("zipf", "uniform"):
        feed = _Feed(ids, rows, batch)
        candidates = ours(mine, feed, _STEPS, _WARM)
        if row_wise is not None:
            candidates += ours(row_wise, feed, _STEPS, _WARM, _ROW_WISE)
        for spec, peer in ready:
            # A step over the whole table finds nothing in a cache, and takes long.
            whole = spec.tables > 2
            against = _ROW_WISE if peer.row_wise else "ours"
            candidates += theirs(spec, peer, feed, 1 if whole else _STEPS, 0 if whole else _WARM, against)
            forward = getattr(peer, "forward", None)
            if forward is not None:  # its step is a backward pass
                candidates.append(_forward(spec, peer, forward, feed, against))
        times = harness.interleave(candidates, rounds=rounds, seconds=seconds)
        about = _about(process, rows, ids) | {"unique_ids": int(np.unique(feed.draw()[1]).size)}
        found.append(case(_title(rows, ids), candidates, times, distances, **about, skipped=skipped))
    return found


def _forward(spec: Spec, peer: Peer, forward: Callable[[np.ndarray], object], feed: _Feed, against: str) -> Candidate:
    """The forward pass of a library whose optimizer is a part of its backward pass."""
    turn = functools.partial(peer.turn, THREADS[-1])

    def ids() -> np.ndarray:
        return feed.draw()[1]

    return Candidate(f"{spec.name}: forward", forward, ids, named(against, THREADS[-1]), _STEPS, _WARM, turn)


def _title(rows: int, ids: str) -> str:
    return f"{rows:,} rows, {ids} ids"


def _about(process: str, rows: int, ids: str) -> dict[str, Any]:
    return {"process": process, "rows": rows, "width": WIDTH, "ids": ids}


def scaling(process: str, *, rows: list[int], batch: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Ours alone on tables of several sizes, in turns: what grows with the table."""
    found = []
    mine = {count: Ours([_table(count)[0]], copy=False) for count in rows}
    for ids in ("zipf", "uniform"):
        candidates = []
        for count in rows:
            feed: Callable[[Peer], Any] = _Feed(ids, count, batch)
            candidates += [
                Candidate(
                    named(f"{count:,} rows", threads),
                    mine[count].step,
                    functools.partial(feed, mine[count]),
                    against=named(f"{rows[0]:,} rows", threads) if count != rows[0] else None,
                    steps=_STEPS,
                    warm=_WARM,
                    turn=functools.partial(mine[count].turn, threads),
                )
                for threads in THREADS
            ]
        times = harness.interleave(candidates, rounds=rounds, seconds=seconds)
        found.append(case(f"ours, {ids} ids", candidates, times, {}, process=process, ids=ids, scaling=True, skipped=[]))
    return found
