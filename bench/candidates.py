"""Candidates that several sections share: ours at each number of threads, and the peers of a process, checked first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench import harness, peers
from bench.harness import THREADS, Candidate
from bench.peers import Ours, Peer, Spec

__all__ = ["Skipped", "case", "checked", "named", "ours", "theirs"]

Skipped = list[dict[str, str]]


def named(name: str, threads: int) -> str:
    """``name, n threads``."""
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def ours(mine: Ours, feed: Callable[[Peer], Any], steps: int, warm: int, name: str = "ours") -> list[Candidate]:
    """Ours, at each number of threads."""
    return [
        Candidate(
            named(name, count),
            mine.step,
            functools.partial(feed, mine),
            steps=steps,
            warm=warm,
            turn=functools.partial(mine.turn, count),
        )
        for count in THREADS
    ]


def theirs(
    spec: Spec, peer: Peer, feed: Callable[[Peer], Any], steps: int, warm: int, against: str = "ours"
) -> list[Candidate]:
    """A peer, at each number of threads where it has such a setting, set against ours at as many."""
    counts = THREADS if spec.each_thread_count else THREADS[-1:]
    return [
        Candidate(
            named(spec.name, count) if spec.each_thread_count else spec.name,
            peer.step,
            functools.partial(feed, peer),
            against=named(against, count),
            steps=steps,
            warm=warm,
            turn=functools.partial(peer.turn, count),
            finish=peer.wait,
        )
        for count in counts
    ]


def checked(
    section: str,
    specs: Sequence[Spec],
    start: Sequence[np.ndarray],
    compare: Callable[[Spec, Peer], dict[str, dict[str, float]]],
) -> tuple[list[tuple[Spec, Peer]], dict[str, Any], Skipped]:
    """The peers that can run here and agree with ours, on small data and, by ``compare``, on what will be timed.

    Returns them with the distances that were found, and for each of the others the reason why it is not timed.
    """
    ready, distances, skipped = [], {}, []
    for spec in specs:
        reason = peers.missing(spec)
        if reason is None:
            try:
                found = peers.agreement(spec, section)
                peer = spec.make(start)
                found |= compare(spec, peer)
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"
            else:
                reason = peers.judge(spec, found)
                distances[spec.name] = {
                    "allowed_ulp": spec.ulp,
                    "why": spec.why,
                    "sums_repeated_ids": spec.repeats,
                    "epsilon": peer.epsilon_placement,
                    "found": found,
                }
        if reason is None:
            ready.append((spec, peer))
        else:
            skipped.append({"name": spec.name, "reason": reason})
    return ready, distances, skipped


def case(
    name: str, candidates: Sequence[Candidate], times: dict[str, list[float]], distances: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """What is stored of one comparison."""
    return {"case": name, **more, "agreement": distances, "candidates": harness.results(candidates, times)}
