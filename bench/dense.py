"""Dense gradients: one large array, and a thousand small ones."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from bench import harness, peers
from bench.candidates import case, checked, named, ours, theirs
from bench.harness import THREADS, Candidate
from bench.peers import Ours, Peer, Spec
from bench.peers_numpy import PlainPass

__all__ = ["run"]


def run(
    process: str, section: str, *, arrays: int, size: int, rounds: int, seconds: float, steps: int, warm: int
) -> list[dict[str, Any]]:
    """``arrays`` float32 arrays of ``size`` elements: ours and the peers of ``process``; one array: the plain pass too."""
    title = f"{arrays:,} arrays of {size:,}" if arrays > 1 else f"one array of {size:,}"
    rng = np.random.default_rng(1)
    start = [rng.standard_normal(size, np.float32) for _ in range(arrays)]
    gradients = [rng.standard_normal(size, np.float32) for _ in range(arrays)]

    def compare(spec: Spec, peer: Peer) -> dict[str, dict[str, float]]:
        mine = Ours(start, **peer.settings())
        mine.step(mine.dense(gradients))
        peer.step(peer.dense(gradients))
        peer.wait()
        found = [peers.distance(p, mine.read(k), peer.read(k)) for k, p in enumerate(start)]
        return {"timed": {key: max(each[key] for each in found) for key in found[0]}}

    ready, distances, skipped = checked(section, peers.of(section, process), start, compare)
    mine = Ours(start, copy=False)
    fed: dict[int, Any] = {id(peer): peer.dense(gradients) for peer in (mine, *(peer for _, peer in ready))}

    def feed(peer: Peer) -> Any:
        return fed[id(peer)]

    candidates = ours(mine, feed, steps, warm)
    if arrays == 1:
        plain = PlainPass(size)
        candidates += [
            Candidate(
                named("plain pass", count),
                plain.step,
                functools.partial(feed, mine),
                against=named("ours", count),
                steps=steps,
                warm=warm,
                turn=functools.partial(plain.turn, count),
            )
            for count in THREADS
        ]
    for spec, peer in ready:
        candidates += theirs(spec, peer, feed, steps, warm)
    times = harness.interleave(candidates, rounds=rounds, seconds=seconds)
    return [case(title, candidates, times, distances, process=process, skipped=skipped, arrays=arrays, size=size)]
