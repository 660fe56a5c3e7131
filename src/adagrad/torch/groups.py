"""Parameter groups: the dicts that a PyTorch optimizer keeps its arguments in, checked against `adagrad.settings`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from adagrad.schedules import LearningRateSchedule
from adagrad.settings import Settings, check_flag, check_number

__all__ = [
    "NUMBERS",
    "PAGE",
    "WHOLE",
    "TorchGroup",
    "check_group",
    "rate_of",
    "real_steps",
    "settings_key",
    "settings_of",
]

# Arguments that a group may have to itself, by their names in PyTorch and in `Settings`.
NUMBERS = {
    "eps": "epsilon",
    "initial_accumulator_value": "initial_accumulator_value",
    "weight_decay": "weight_decay",
    "clipnorm": "clipnorm",
    "clipvalue": "clipvalue",
    "row_wise": "row_wise",
}
# Arguments of the whole optimizer, which are equal in all groups.
WHOLE = (
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
    "epsilon_placement",
    "weight_decay_mode",
)
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}
# The page's defaults for what `torch.optim.Adagrad` lacks; `calls` counts the calls of `step` since the group was added.
PAGE: dict[str, Any] = {
    **{name: _DEFAULTS[name] for name in ("clipnorm", "clipvalue", "row_wise", *WHOLE)},
    "maximize": False,
    "calls": 0,
}
# What `torch.optim.Adagrad` keeps in a group beyond that: its decay of the rate, and how to execute.
TORCH: dict[str, Any] = {"lr_decay": 0.0, "foreach": None, "differentiable": False, "fused": None}
# What gives torch's numbers, in every group of `as_torch`.
_MEANING: dict[str, Any] = {**PAGE, "epsilon_placement": "outside", "weight_decay_mode": "l2"}


class TorchGroup(dict[str, Any]):
    """A group of `as_torch`: it holds the keys that a group of `torch.optim.Adagrad` has, and the page's others can be read.

    So what is saved from the one loads into the other, also where each key of a group is looked up in a checkpoint, as
    `torch.distributed.checkpoint` does.
    """

    calls = 0

    def __missing__(self, name: str) -> Any:
        return self.calls if name == "calls" else _MEANING[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "calls":
            self.calls = value
        else:
            super().__setitem__(name, value)

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> TorchGroup:
        """The group, with a default for each key of torch that it lacks, and without those that say nothing."""
        said = {name: value for name, value in group.items() if name not in _MEANING or value != _MEANING[name]}
        made = cls({**TORCH, "maximize": False, **said})
        made.calls = made.pop("calls", getattr(group, "calls", 0))
        return made


_KEYS = (*NUMBERS, *WHOLE, "maximize")


def settings_key(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What `settings_of` and the sign depend on, to see whether someone has changed it."""
    return tuple([group[name] for name in _KEYS])


def settings_of(group: Mapping[str, Any]) -> Settings:
    """The settings of a group but for the learning rate, checked; ``ValueError`` names the argument."""
    check_number("eps", group["eps"])  # by its name here
    whole = {name: group[name] for name in WHOLE}
    return Settings(0.0, **{ours: group[theirs] for theirs, ours in NUMBERS.items()}, **whole)


def rate_of(group: Mapping[str, Any], calls: int) -> float:
    """The learning rate of a group for the call numbered ``calls``: a number, a tensor of one, or a schedule."""
    rate = group["lr"]
    if isinstance(rate, LearningRateSchedule):
        rate = rate(calls)
    return check_number("lr", rate.item() if isinstance(rate, torch.Tensor) and rate.numel() == 1 else rate)


def real_steps(group: Mapping[str, Any], calls: int) -> int:
    """The real steps since ``group`` was added, of all ``calls`` so far."""
    steps = group["gradient_accumulation_steps"] or 1
    return int(calls // steps - (calls - group["calls"]) // steps)


def check_group(group: Mapping[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The group with the defaults for what it lacks.

    Raises ``ValueError`` if an argument is outside its range, or is the whole optimizer's and differs.
    """
    merged = copy.copy(defaults)
    merged.update(group)
    for name in WHOLE:
        if merged[name] != defaults[name]:
            raise ValueError(
                f"{name} is an argument of the whole optimizer, {defaults[name]!r}; a group can't have its own, "
                f"got {merged[name]!r}"
            )
    if "lr_decay" in group and "lr_decay" not in defaults:
        raise ValueError(f"lr_decay is an argument of Adagrad.as_torch(...) alone, got {group['lr_decay']!r} in a group")
    for name in NUMBERS:
        if isinstance(merged[name], torch.Tensor):  # filled in place, it would have no effect
            raise ValueError(f"{name} must be a plain number (only lr may be a tensor), got {merged[name]!r}")
    settings_of(merged)
    rate_of(merged, 0)
    check_flag("maximize", merged["maximize"])
    if "lr_decay" in merged:
        check_number("lr_decay", merged["lr_decay"])
        if merged["differentiable"]:
            raise ValueError("differentiable must be False: a step is made in place and not recorded, got True")
    return merged
