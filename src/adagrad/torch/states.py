"""What the optimizer keeps for each parameter: made, widened, and moved to where the parameter is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from adagrad.arrays.torch import DTYPES, local, wide_dtype

__all__ = ["ARRAYS", "check_parameter", "ensure_state", "is_row_wise"]

# The arrays of a parameter's state, by their names here and in a slot of the engine.
ARRAYS = {"sum": "accumulator", "ema": "average", "gradient_accumulator": "buffer"}


def is_row_wise(parameter: torch.Tensor, group: Mapping[str, Any]) -> bool:
    """Whether the parameter has one accumulator a row: asked for, and two dimensions or more."""
    return bool(group["row_wise"]) and parameter.dim() >= 2


def check_parameter(parameter: torch.Tensor, group: Mapping[str, Any]) -> None:
    """Raise ``TypeError``, or ``ValueError`` for the way it is sharded, for a parameter that can't be optimized."""
    if parameter.dtype not in DTYPES:
        raise TypeError(f"parameters must be one of {', '.join(map(str, DTYPES))}, got {parameter.dtype}")
    if parameter.layout is not torch.strided:
        raise TypeError(f"parameters must be dense, got {parameter.layout}")
    if is_row_wise(parameter, group) and parameter.is_complex():
        raise TypeError(f"row_wise needs real parameters, got {parameter.dtype}")
    if is_row_wise(parameter, group) and any(getattr(p, "dim", 0) != 0 for p in getattr(parameter, "placements", ())):
        raise ValueError("row_wise needs whole rows, but a parameter is sharded by another dimension than its first")


def ensure_state(state: dict[str, Any], parameter: torch.Tensor, group: Mapping[str, Any], *, begun: bool) -> None:
    """Make what is missing of a parameter's state, and make anew what no longer fits it.

    State that says something is moved and widened, and if its shape differs, ``ValueError`` is raised: the accumulator
    from the first step of the parameter on, average and gradient buffer from the first call of the group on. Before that,
    state of another device, shape or placement than the parameter is made anew. Once the group has made a real step
    (``begun``), an average that is missing begins at the parameter.
    """
    check_parameter(parameter, group)
    wide = wide_dtype(parameter.dtype)
    stepped = float(state.get("step", 0)) > 0
    state["step"] = torch.as_tensor(state.get("step", 0), dtype=torch.int64, device=_counting_device(parameter))
    start = group["initial_accumulator_value"]
    values = {"sum": complex(start, start) if parameter.is_complex() else start}
    if group["use_ema"]:
        values["ema"] = 0.0
    if (group["gradient_accumulation_steps"] or 1) > 1:
        values["gradient_accumulator"] = 0.0
        state["in_cycle"] = torch.as_tensor(state.get("in_cycle", False), dtype=torch.bool, device="cpu")
    for name, value in values.items():
        like: Any = _first_column(parameter) if name == "sum" and is_row_wise(parameter, group) else parameter.detach()
        found: Any = state.get(name)
        started = stepped or (name != "sum" and group["calls"] > 0)
        if started and found is not None and _laid(found) != _laid(like) and _mesh(found) == _mesh(like) is not None:
            found = state[name] = found.redistribute(placements=_laid(like)[1])
        fits = found is not None and found.shape == like.shape and type(local(found)) is type(local(like))
        fits = fits and _laid(found) == _laid(like)
        if started and found is not None and not fits:
            raise ValueError(f"the state {name!r} of a parameter must be {_described(like)}, got {_described(found)}")
        if not fits or not (started or found.device == parameter.device):
            state[name] = torch.full_like(like, value, dtype=wide, memory_format=torch.contiguous_format)
            if name == "ema" and begun:
                state[name].copy_(like)
        elif (found.device, found.dtype) != (parameter.device, wide) or not local(found).is_contiguous():
            # A DTensor's `contiguous` leaves its shard as it lies.
            state[name] = torch.empty_like(like, dtype=wide, memory_format=torch.contiguous_format).copy_(found.detach())


def _counting_device(parameter: torch.Tensor) -> torch.device:
    """Where the steps of a parameter are counted: on a CUDA device, where a step may be in a graph, else in main memory."""
    return parameter.device if parameter.is_cuda else torch.device("cpu")


def _mesh(tensor: Any) -> Any:
    """The processes that a tensor is laid out over; None for a plain one."""
    return getattr(tensor, "device_mesh", None)


def _laid(tensor: Any) -> tuple[Any, Any]:
    """How a tensor is laid out over processes."""
    return _mesh(tensor), getattr(tensor, "placements", None)


def _described(tensor: Any) -> str:
    kind = "a plain tensor" if _mesh(tensor) is None else f"a DTensor, {tensor.placements} over {tensor.device_mesh},"
    return f"{kind} of shape {tuple(tensor.shape)}"


def _first_column(parameter: torch.Tensor) -> torch.Tensor:
    """A tensor with an element for each row, laid out over processes as the rows are."""
    column = parameter.detach()
    while column.dim() > 1:
        column = column.select(-1, 0) if column.shape[-1] else column.sum(-1)
    return column
