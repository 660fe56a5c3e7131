"""What each argument adds to a plain step, beside the bytes that it must move, and the memory that it needs meanwhile.

Bytes count every read and write of an array once (and of the gradient once more where its norm must be known first); what
stays in a cache between two uses is not counted twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

import adagrad
from bench import harness
from bench.candidates import case
from bench.harness import THREADS, Candidate
from bench.rows import WIDTH, draw

__all__ = ["CYCLE", "VARIANTS", "Subject", "Variant", "run"]

CYCLE = 4  # calls of an accumulation cycle


Bytes = Callable[[int, int, int, int], float]


@dataclass(frozen=True)
class Variant:
    """An argument away from its default, and the bytes of a call: for an element in ``dense``, for a column in ``rows``.

    ``rows(n, u, c, V)`` takes the ids of a batch, the different ones of it and of a whole accumulation cycle, and the
    rows of the table.
    """

    name: str
    dense: float
    dense_why: str
    rows: Bytes
    rows_why: str
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: Any = np.float32
    constraint: Callable[[np.ndarray], np.ndarray] | None = None
    calls: int = 1


def _nonneg(p: np.ndarray) -> np.ndarray:
    return np.maximum(p, 0)


def _plain_rows(n: int, u: int, c: int, V: int) -> float:
    return 4 * n + 16 * u


def _twice_rows(n: int, u: int, c: int, V: int) -> float:
    return 8 * n + 16 * u


def _half_rows(n: int, u: int, c: int, V: int) -> float:
    return 2 * n + 12 * u


_PLAIN = ("read g, p, a; write p, a", _plain_rows, "g of n; p, a of u")
_SAME = ("as plain", _plain_rows, "as plain")
_TWICE = ("read g twice", _twice_rows, "g of n twice; p, a of u")
_HALF = ("g, p of 2 bytes, a of 4", _half_rows, "g, p of 2 bytes, a of 4")
VARIANTS = [
    Variant("plain", 20, *_PLAIN),
    Variant("clipvalue", 20, *_SAME, {"clipvalue": 0.5}),
    Variant("clipnorm", 24, *_TWICE, {"clipnorm": 1.0}),
    Variant("global_clipnorm", 24, *_TWICE, {"global_clipnorm": 1.0}),
    Variant(
        "weight_decay", 20, "as plain",
        lambda n, u, c, V: 4 * n + 8 * u + 8 * V, "g of n; a of u; p of V",
        {"weight_decay": 0.01},
    ),
    Variant(
        "weight_decay, l2", 20, "as plain",
        lambda n, u, c, V: 4 * n + 16 * V, "g of n; p, a of V",
        {"weight_decay": 0.01, "weight_decay_mode": "l2"},
    ),
    Variant(
        "use_ema", 28, "read and write m too",
        lambda n, u, c, V: 4 * n + 12 * u + 12 * V, "g of n; a of u, p of u written; p of V read, m of V",
        {"use_ema": True},
    ),
    Variant(
        f"gradient_accumulation_steps={CYCLE}", ((CYCLE - 1) * 12 + 28) / CYCLE,
        f"read g, b, write b; every {CYCLE}th call plain, read and write b",
        lambda n, u, c, V: 4 * n + ((CYCLE - 1) * 8 * u + 24 * c) / CYCLE,
        f"g of n; b of u; every {CYCLE}th call p, a, b of the c rows of the cycle",
        {"gradient_accumulation_steps": CYCLE}, calls=CYCLE,
    ),
    Variant("loss_scale_factor", 20, *_SAME, {"loss_scale_factor": 1024.0}),
    Variant("float16", 14, *_HALF, dtype=np.float16),
    Variant("bfloat16", 14, *_HALF, dtype=ml_dtypes.bfloat16),
    Variant(
        "constraint", 36, "plain; its function reads p and writes a result, which is copied back",
        lambda n, u, c, V: 4 * n + 16 * u + 16 * V, "plain; the same, of V",
        constraint=_nonneg,
    ),
]  # fmt: skip


class Subject:
    """One variable of ours with one argument."""

    suffix = ""

    def __init__(self, variant: Variant, parameter: np.ndarray, feed: Callable[[np.dtype], Any]) -> None:
        self.variant, self.feed = variant, feed
        self.parameter = parameter.astype(variant.dtype)
        self.optimizer = adagrad.Adagrad(0.01, **variant.settings)
        self.optimizer.build([self.parameter], [variant.constraint])

    def fed(self) -> Any:
        """A gradient as this face takes it."""
        return self.feed(np.dtype(self.variant.dtype))

    def step(self, gradient: Any) -> None:
        """One call."""
        self.optimizer.apply([gradient], [self.parameter])

    def candidate(self, steps: int, warm: int) -> Candidate:
        """To be timed a whole cycle at a time, against the plain step."""
        name, calls = self.variant.name, self.variant.calls
        return Candidate(
            name,
            self.step,
            self.fed,
            against="plain" if name != "plain" else None,
            steps=-(-steps // calls) * calls,
            warm=-(-warm // calls) * calls,
            turn=functools.partial(harness.own_threads, THREADS[-1]),
        )

    def memory(self) -> float | None:
        """The most that a cycle of calls needs beyond what is there before, in units of the parameter's bytes."""
        fed = [self.fed() for _ in range(self.variant.calls)]

        def cycle() -> None:
            for gradient in fed:
                self.step(gradient)

        with harness.own_threads(THREADS[-1]):
            extra = harness.extra_memory(cycle)
        return None if extra is None else extra / self.parameter.nbytes


def run(
    process: str, *, size: int, rows: int, batch: int, rounds: int, seconds: float, only: list[str]
) -> list[dict[str, Any]]:
    """Two cases: a dense gradient of ``size`` elements, and zipf ids on a table of ``rows``; ``only`` some, if not empty.

    In the process "torch" it is the PyTorch face, which has no constraints.
    """
    variants = [v for v in VARIANTS if not only or v.name in only]
    subject: type[Subject] = Subject
    if process == "torch":
        from bench.peers_torch import TorchSubject

        subject, variants = TorchSubject, [v for v in variants if v.constraint is None]
    how = {"rounds": rounds, "seconds": seconds}
    found = [_dense(process, subject, variants, size, how), _rows(process, subject, variants, rows, batch, how)]
    return [each | {"case": f"{each['case']}{subject.suffix}"} for each in found]


def _dense(process: str, subject: type[Subject], variants: list[Variant], size: int, how: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    gradient = rng.standard_normal(size, np.float32)
    gradients = {np.dtype(v.dtype): gradient.astype(v.dtype) for v in variants}
    subjects = [subject(v, rng.standard_normal(size, np.float32), lambda dtype: gradients[dtype]) for v in variants]
    candidates = [each.candidate(1, 0) for each in subjects]
    times = harness.interleave(candidates, **how)
    found = case(f"dense, {size:,} elements", candidates, times, {}, process=process, skipped=[])
    for entry, each in zip(found["candidates"], subjects, strict=True):
        v = each.variant
        entry |= {"bytes_ratio": v.dense / VARIANTS[0].dense, "bytes_why": v.dense_why, "extra_memory": each.memory()}
    return found


def _rows(
    process: str, subject: type[Subject], variants: list[Variant], rows: int, batch: int, how: dict[str, Any]
) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((batch, WIDTH), np.float32)
    by_dtype = {np.dtype(v.dtype): values.astype(v.dtype) for v in variants}

    def feed(dtype: np.dtype) -> adagrad.IndexedSlices:
        return adagrad.IndexedSlices(by_dtype[dtype], draw(rng, "zipf", rows, batch))

    subjects = [subject(v, rng.standard_normal((rows, WIDTH), np.float32), feed) for v in variants]
    candidates = [each.candidate(3, 1) for each in subjects]
    times = harness.interleave(candidates, **how)
    cycle = [draw(rng, "zipf", rows, batch) for _ in range(CYCLE)]
    u, c = np.unique(cycle[0]).size, np.unique(np.concatenate(cycle)).size
    title = f"rows, {batch:,} zipf ids ({u:,} different, {c:,} in {CYCLE} batches), table of {rows:,} x {WIDTH}"
    found = case(title, candidates, times, {}, process=process, skipped=[])
    for entry, each in zip(found["candidates"], subjects, strict=True):
        v = each.variant
        weight = v.rows(batch, u, c, rows) / VARIANTS[0].rows(batch, u, c, rows)
        entry |= {"bytes_ratio": weight, "bytes_why": v.rows_why, "extra_memory": each.memory()}
    return found
