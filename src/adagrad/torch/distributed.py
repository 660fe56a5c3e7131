"""Distributed parameters: what of a gradient is here, and sums over the shards.

A DTensor is known by its ``placements``; `torch.distributed.tensor`, which takes long to import, is imported when there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from adagrad.arrays.torch import local

__all__ = ["is_distributed", "local_gradients", "on_mesh_of", "sum_over_shards"]


def is_distributed(tensor: Any) -> bool:
    """Whether ``tensor`` is a DTensor."""
    return hasattr(tensor, "placements")


def local_gradients(gradients: Sequence[Any], parameters: Sequence[Any]) -> list[Any]:
    """What this process keeps of each gradient, laid out as its parameter: others, as partial sums, are made so."""
    found = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if is_distributed(gradient) and is_distributed(parameter) and gradient.placements != parameter.placements:
            gradient = gradient.redistribute(parameter.device_mesh, parameter.placements)
        found.append(None if gradient is None else local(gradient))
    return found


def on_mesh_of(parameter: Any, tensor: Any) -> Any:
    """``tensor`` on the mesh of ``parameter``, if it is on a mesh of the same processes that another program had made."""
    if is_distributed(tensor) and is_distributed(parameter) and tensor.device_mesh != parameter.device_mesh:
        mesh, theirs = parameter.device_mesh, tensor.device_mesh
        if torch.equal(mesh.mesh, theirs.mesh):
            from torch.distributed.tensor import DTensor

            whole = {"shape": tensor.shape, "stride": tensor.stride()}
            tensor = DTensor.from_local(tensor.to_local(), mesh, tensor.placements, run_check=False, **whole)
    return tensor


def sum_over_shards(sums: Sequence[torch.Tensor], parameters: Sequence[Any]) -> list[torch.Tensor]:
    """``sums[k]``, a number of the shard of ``parameters[k]`` that is here, added up over the processes that hold the others.

    A parameter that is no DTensor, or is replicated, keeps its own. One reduction for each mesh and dimension of it.
    """
    totals = list(sums)
    groups: dict[tuple[Any, int], list[int]] = {}
    for k, parameter in enumerate(parameters):
        for dimension, placement in enumerate(getattr(parameter, "placements", ())):
            if not placement.is_replicate():  # the strided shards of two-dimensional meshes aren't `Shard`
                groups.setdefault((parameter.device_mesh, dimension), []).append(k)
    for (mesh, dimension), members in groups.items():
        part = torch.stack([totals[k] for k in members])
        torch.distributed.all_reduce(part, group=mesh.get_group(dimension))
        for k, total in zip(members, part, strict=True):
            totals[k] = total
    return totals
