"""The state file that all faces share, for the PyTorch face."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from adagrad import checkpoint
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import check_integer
from adagrad.torch.cpu import TensorEngine
from adagrad.torch.groups import rate_of, settings_key

__all__ = ["load", "save"]


def save(optimizer: Any, path: str | os.PathLike[str]) -> None:
    """See `Adagrad.save`."""
    engine = _engine(optimizer)
    extra = {"steps": engine.steps_by_name(), "group_calls": [group["calls"] for group in optimizer.param_groups]}
    checkpoint.save(engine, path, {"torch": extra})


def load(
    optimizer: Any,
    path: str | os.PathLike[str],
    *,
    strict: bool,
    names: Mapping[str, str] | None,
    transpose: Iterable[str],
) -> None:
    """See `Adagrad.load`."""
    engine = _engine(optimizer)
    groups = optimizer.param_groups

    def counters(metadata: Mapping[str, Any]) -> tuple[dict[str, int], list[int]]:
        calls, own = metadata["calls"], metadata.get("torch") or {}
        given = {(names or {}).get(name, name): count for name, count in dict(own.get("steps") or {}).items()}
        real = calls // engine.settings.accumulation_steps
        steps = {name: check_integer("a count of steps", given.get(name, real), low=0) for name in metadata["variables"]}
        of_groups = own.get("group_calls") or []
        if len(of_groups) != len(groups):  # another face's file, or one group became several
            of_groups = [calls] * len(groups)
        return steps, [check_integer("a count of calls", count, low=0) for count in of_groups]

    steps, calls = checkpoint.load(engine, path, strict=strict, names=names, transpose=transpose, extra=counters)
    engine.set_steps([steps[slot.name] for slot in engine.slots])
    for group, count in zip(groups, calls, strict=True):
        group["calls"] = count
        if not callable(engine.rate):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(engine.rate)
            else:
                group["lr"] = engine.rate


def _engine(optimizer: Any) -> TensorEngine:
    """The engine, its learning rate that of the groups; ``ValueError`` where a state file can't describe them."""
    engine = optimizer._current()
    groups = optimizer.param_groups
    counts = collections.Counter(optimizer._names())
    if len(counts) < counts.total():
        twice = ", ".join(sorted(name for name, count in counts.items() if count > 1))
        raise ValueError(f"in a state file every parameter must have a name of its own, got {twice} more than once")
    if not isinstance(engine, TensorEngine) or engine.sharded:
        raise ValueError("a state file holds parameters that lie in main memory whole; use state_dict() for these")
    if any(group.get("lr_decay") for group in groups):
        raise ValueError("a state file has no place for lr_decay; use state_dict()")
    described = [(settings_key(group), _rate(group, engine.calls)) for group in groups]
    if any(each != described[0] for each in described):
        raise ValueError("a state file has one set of arguments, but the groups differ in theirs; use state_dict()")
    engine.rate = described[0][1]
    return engine


def _rate(group: Mapping[str, Any], calls: int) -> LearningRateSchedule | float:
    return group["lr"] if isinstance(group["lr"], LearningRateSchedule) else rate_of(group, calls)
