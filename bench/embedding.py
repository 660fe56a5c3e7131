"""A training step of an embedding model, whole: forward, backward, optimizer; torch's optimizer and ours."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from adagrad.torch import Adagrad
from bench import harness, peers
from bench.candidates import Skipped, case
from bench.harness import THREADS, Candidate
from bench.peers_torch import torch_threads
from bench.rows import WIDTH, draw

__all__ = ["run"]

_STEPS = 3
# After two steps from the same start, at the size of the entry then; 12 were measured at the size that is timed.
_ULP = 16.0
_WHY = "repeated ids are summed in another order, and torch's kernels contract multiply and add"

OPTIMIZERS: dict[str, tuple[bool, Callable[..., torch.optim.Optimizer]]] = {
    "ours, sparse": (True, Adagrad.as_torch),
    "torch.optim sparse": (True, torch.optim.Adagrad),
    "torch.optim dense": (False, torch.optim.Adagrad),
    "torch.optim dense, fused": (False, functools.partial(torch.optim.Adagrad, fused=True)),
}


class _Model:
    """Ids to rows of a table, to a number each; the squared error against a target."""

    def __init__(self, rows: int, sparse: bool, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        torch.manual_seed(0)
        self.table = nn.Embedding(rows, WIDTH, sparse=sparse)
        self.head = nn.Linear(WIDTH, 1)
        self.optimizer = optimizer([*self.table.parameters(), *self.head.parameters()], lr=0.01, initial_accumulator_value=0.1)

    def step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Forward, backward, optimizer."""
        ids, target = batch
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.head(self.table(ids)).squeeze(1), target, reduction="sum").backward()
        self.optimizer.step()


@contextlib.contextmanager
def _turn(ours: bool) -> Any:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch_threads(THREADS[-1]))
        if ours:
            stack.enter_context(harness.own_threads(THREADS[-1]))
        yield


def run(process: str, *, rows: int, batch: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One case: a table of ``rows``, ``batch`` zipf ids a step; the models are compared after two steps before any is timed."""
    rng = np.random.default_rng(5)

    def feed() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(draw(rng, "zipf", rows, batch)), torch.from_numpy(rng.standard_normal(batch, np.float32))

    models = {name: _Model(rows, *made) for name, made in OPTIMIZERS.items()}
    first, *others = models
    start = models[first].table.weight.detach().numpy().copy()
    for given in (feed(), feed()):
        for name, model in models.items():
            with _turn(name == first):
                model.step(given)
    distances: dict[str, Any] = {}
    skipped: Skipped = []
    for name in others:
        weights = [models[each].table.weight.detach().numpy() for each in (first, name)]
        found = peers.distance(np.abs(start), *weights)
        distances[name] = {"allowed_ulp": _ULP, "why": _WHY, "found": {"timed": found}}
        if not found["ulp"] <= _ULP:
            skipped.append({"name": name, "reason": f"departs from ours by {found['ulp']:.3g} ULP, where {_ULP:g} are allowed"})
            del models[name]
    candidates = [
        Candidate(
            name,
            model.step,
            feed,
            against=first if name != first else None,
            steps=_STEPS,
            warm=1,
            turn=functools.partial(_turn, name == first),
        )
        for name, model in models.items()
    ]
    times = harness.interleave(candidates, rounds=rounds, seconds=seconds)
    about = {"process": process, "rows": rows, "width": WIDTH, "unique_ids": int(feed()[0].unique().numel())}
    title = f"a table of {rows:,} x {WIDTH}, {batch:,} zipf ids"
    return [case(title, candidates, times, distances, **about, skipped=skipped)]
