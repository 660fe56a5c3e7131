"""State dicts: what is written, what is checked before it is loaded, and running optimizers taken over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from adagrad import schedules
from adagrad.arrays.torch import wide_dtype
from adagrad.schedules import LearningRateSchedule
from adagrad.torch.distributed import is_distributed, on_mesh_of
from adagrad.torch.groups import NUMBERS, PAGE, TorchGroup, check_group
from adagrad.torch.states import ARRAYS, check_parameter, is_row_wise

__all__ = ["from_torch", "load", "packed"]

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


def packed(state_dict: dict[str, Any], groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state dict with schedules as plain dicts, so that it loads with ``weights_only=True``.

    That of ``as_torch`` counts steps in floating point, as `torch.optim.Adagrad` needs it, and calls only for a schedule.
    """
    for group, own in zip(state_dict["param_groups"], groups, strict=True):
        if isinstance(group["lr"], LearningRateSchedule):
            group["lr"] = schedules.serialize(group["lr"])
            group["calls"] = own["calls"]
        for number in group["params"] if "lr_decay" in group else ():
            state = state_dict["state"].get(number, {})
            if "step" in state:
                exact = torch.float32 if state["step"] < 2**24 else torch.float64
                state_dict["state"][number] = {**state, "step": state["step"].to(exact)}
    return state_dict


def load(optimizer: Any, state_dict: dict[str, Any], load_plainly: Callable[[dict[str, Any]], None]) -> None:
    """Check a state dict as the user's hooks leave it, load it, and put back what the plain way narrows."""
    given: dict[str, Any] = {}

    def check(_: Any, found: dict[str, Any]) -> dict[str, Any]:
        groups = [dict(group) for group in found["param_groups"]]
        for group in groups:
            _check_origin(group, optimizer.defaults)
            if isinstance(group.get("lr"), Mapping):
                group["lr"] = schedules.deserialize(group["lr"], _own_schedules(optimizer))
            check_group(group, optimizer.defaults)
        _check_shapes(found["state"], groups, optimizer)
        given.update(found, param_groups=groups)
        return dict(given)

    def widen(_: Any) -> None:
        numbers = [number for group in given["param_groups"] for number in group["params"]]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in given["state"].get(number, {}).items():
                if name in ARRAYS:
                    value = value.detach().to(parameter.device, wide_dtype(parameter.dtype), copy=True)
                    optimizer.state[parameter][name] = on_mesh_of(parameter, value)
        optimizer._ensure_states()
        for group, loaded in zip(optimizer.param_groups, given["param_groups"], strict=True):
            if "calls" not in loaded:  # torch does not count them
                group["calls"] = max((int(optimizer.state[parameter]["step"]) for parameter in group["params"]), default=0)

    handles = [
        optimizer.register_load_state_dict_pre_hook(check),
        optimizer.register_load_state_dict_post_hook(widen, prepend=True),
    ]
    try:
        load_plainly(state_dict)
    finally:
        for handle in handles:
            handle.remove()


def _own_schedules(optimizer: Any) -> dict[str, type[LearningRateSchedule]]:
    """The classes of the schedules that the optimizer has now: of these alone a state dict may name more than the built-in."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return {type(rate).__name__: type(rate) for rate in rates if isinstance(rate, LearningRateSchedule)}


def _check_origin(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    missing = [name for name in ("lr", *NUMBERS) if name not in group and name not in PAGE]
    if missing:
        raise ValueError(f"the state dict is not one of Adagrad: a group has no {', '.join(missing)}")
    ours, theirs = "lr_decay" in defaults, "lr_decay" in group
    if theirs and not ours:
        raise ValueError(
            "the state dict is that of torch.optim.Adagrad, whose arguments mean something else (epsilon outside the root, "
            "weight decay as an L2 penalty); load it into Adagrad.as_torch(...)"
        )
    if ours and not theirs:
        raise ValueError("the state dict is that of adagrad.torch.Adagrad(...), but this optimizer was made by as_torch(...)")


def _check_shapes(states: Mapping[Any, Any], groups: list[dict[str, Any]], optimizer: Any) -> None:
    for group, own in zip(groups, optimizer.param_groups, strict=False):
        for number, parameter in zip(group["params"], own["params"], strict=False):
            state, whole = states.get(number, {}), {**PAGE, **group}
            check_parameter(parameter, whole)
            row_wise = is_row_wise(parameter, whole)
            kept = {
                "sum": True,
                "ema": whole["use_ema"],
                "gradient_accumulator": (whole["gradient_accumulation_steps"] or 1) > 1,
            }
            lost = [name for name, there in kept.items() if there and name not in state]
            if lost and float(state.get("step", 0)) > 0:
                raise ValueError(f"the state of parameter {number}, which has made steps, must have {', '.join(lost)}")
            for name in ARRAYS:
                shape = parameter.shape[:1] if name == "sum" and row_wise else parameter.shape
                if name in state and is_distributed(state[name]) != is_distributed(parameter):
                    kinds = ["a plain tensor", "a DTensor"]
                    kinds = kinds[::-1] if is_distributed(parameter) else kinds
                    raise ValueError(
                        f"{name!r} of parameter {number} must be {kinds[0]}, as its parameter is, got {kinds[1]}; "
                        "torch.distributed.checkpoint loads the one from the other"
                    )
                if name in state and state[name].shape != shape:
                    raise ValueError(
                        f"{name!r} of parameter {number} must have shape {tuple(shape)}, got {tuple(state[name].shape)}"
                    )


def from_torch(cls: type[Optimizer], optimizer: torch.optim.Adagrad) -> Optimizer:
    """See `Adagrad.from_torch`."""
    if type(optimizer) is not torch.optim.Adagrad:
        raise TypeError(f"optimizer must be a torch.optim.Adagrad, got {type(optimizer).__name__}")
    made: Any = cls.__new__(cls)
    defaults = TorchGroup.of(optimizer.defaults)
    for group in optimizer.param_groups:
        merged = check_group(group, defaults)
        for parameter in group["params"]:
            check_parameter(parameter, merged)
    torch.optim.Optimizer.__init__(made, [{"params": []}], defaults)
    optimizer.param_groups[:] = map(TorchGroup.of, optimizer.param_groups)
    made.param_groups = optimizer.param_groups
    for parameter, state in optimizer.state.items():
        made.state[parameter] = dict(state)
    made._ensure_states()
    optimizer._opt_called = True  # type: ignore[attr-defined]  # its schedulers wait for a step, which is made here now
    result: Optimizer = made
    return result
