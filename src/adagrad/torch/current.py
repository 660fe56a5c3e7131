"""Whether what an engine was made for is still so: the groups, their arguments, the states, and where all tensors lie."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch

from adagrad.arrays.torch import Kinds, local
from adagrad.torch.groups import settings_key
from adagrad.torch.states import ARRAYS

__all__ = ["MadeFor"]


class MadeFor:
    """A part of an engine, which has ``groups``, ``parameters``, their ``states``, and whether any is ``sharded``."""

    groups: list[dict[str, Any]]
    parameters: list[Any]
    states: list[dict[str, Any]]
    sharded: bool

    def remember(self, states: Mapping[Any, dict[str, Any]]) -> None:
        """Take all for what it is now; ``states`` are those of the optimizer, who may have others beside."""
        self._names = [name for name in ARRAYS if all(name in state for state in self.states)]
        self._made_of, self._arguments = self._objects_of(self.groups, states), self._arguments_of()
        own, self._places = self._memory()
        self._kinds = Kinds(own)

    def is_current(self, groups: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]]) -> bool:
        """Whether groups, states and the memory of all tensors are still those that the engine was made for."""
        try:
            objects = self._objects_of(groups, states)
            return (
                len(objects) == len(self._made_of)
                and all(map(operator.is_, objects, self._made_of))
                and self._arguments_of() == self._arguments
                and self._lies_as_before()
            )
        except KeyError:  # a part of a state is gone
            return False

    def _objects_of(self, groups: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]]) -> list[Any]:
        found: list[Any] = [*groups, *states.values(), *map(operator.itemgetter("step"), self.states)]
        for group in groups:
            found += group["params"]
        return found

    def _arguments_of(self) -> list[tuple[Any, ...]]:
        # The length too: all parameters in a row say nothing of which group one is in.
        return [(settings_key(group), group.get("lr_decay", 0.0), len(group["params"])) for group in self.groups]

    def _memory(self) -> tuple[list[torch.Tensor], list[Any]]:
        """The memory of the parameters, and where it and the states lie. To fetch a tensor is what takes time here."""
        own = list(map(local, self.parameters)) if self.sharded else self.parameters
        fetched = [list(map(operator.itemgetter(name), self.states)) for name in self._names]
        if self.sharded:
            fetched = [list(map(local, arrays)) for arrays in fetched]
        return own, [list(map(torch.Tensor.data_ptr, arrays)) for arrays in (own, *fetched)]

    def _lies_as_before(self) -> bool:
        own, places = self._memory()
        return places == self._places and self._kinds.of(own)
