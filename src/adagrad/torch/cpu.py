"""The engine over parameters in main memory: the kernels work on the memory of the tensors, no copy is made."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from adagrad.arrays.torch import TensorLayout, local, real, stored_view
from adagrad.engine import Engine
from adagrad.passes import Call
from adagrad.slots import Slot, check_apart, check_writable
from adagrad.torch.current import MadeFor
from adagrad.torch.distributed import is_distributed, local_gradients, sum_over_shards
from adagrad.torch.groups import rate_of, real_steps, settings_of
from adagrad.torch.states import ARRAYS

__all__ = ["TensorEngine"]


class TensorEngine(MadeFor, Engine):
    """The engine for the groups and states of an optimizer as they are now; made anew when they change.

    Raises ``TypeError`` or ``ValueError`` for a parameter that the kernels can't change.
    """

    _layout_type = TensorLayout
    _layout: TensorLayout

    def __init__(self, groups: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]], names: list[str]) -> None:
        super().__init__(settings_of(groups[0]))
        self.groups = list(groups)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.states = [states[parameter] for parameter in self.parameters]
        self.sharded = any(map(is_distributed, self.parameters))
        self._counts = [len(group["params"]) for group in groups]
        self._decays = [group.get("lr_decay", 0.0) for group in groups]
        # One array of counters, of which each state's step is an element.
        steps = [state["step"] for state in self.states]
        self._steps = torch.stack(steps) if steps else torch.empty(0, dtype=torch.int64, device="cpu")
        for state, step in zip(self.states, self._steps, strict=True):
            state["step"] = step
        self.remember(states)
        settings = self._each([settings_of(group) for group in groups])
        signs = self._each([-1.0 if group["maximize"] else 1.0 for group in groups])
        shapes = [real(local(parameter)) for parameter in self.parameters]
        for name, view, own, sign, state in zip(names, shapes, settings, signs, self.states, strict=True):
            arrays = {ours: stored_view(real(local(state[theirs]))) for theirs, ours in ARRAYS.items() if theirs in self._names}
            self.slots.append(Slot.over(name, stored_view(view), own, sign, **arrays))
            if "in_cycle" in state and bool(state["in_cycle"]):
                self.slots[-1].touched = True
        check_apart([slot.view for slot in self.slots], names)
        for slot in self.slots:
            check_writable(slot.name, slot.view)
        self.calls = max(group["calls"] for group in groups)
        self.built = True
        self.index()
        self._layout.set_tensors(shapes)

    def _each(self, values: list[Any]) -> list[Any]:
        """Values of groups as values of slots."""
        return list(itertools.chain.from_iterable(itertools.starmap(itertools.repeat, zip(values, self._counts, strict=True))))

    def steps_by_name(self) -> dict[str, int]:
        """The counts of steps."""
        return dict(zip((slot.name for slot in self.slots), self._steps.tolist(), strict=True))

    def set_steps(self, steps: list[int]) -> None:
        """Set the counts of steps, in the order of the slots."""
        self._steps.copy_(torch.tensor(steps, dtype=torch.int64, device="cpu"))

    def store_cycle(self) -> None:
        """Note in the states which parameters have had a gradient in this cycle of accumulation."""
        if self.settings.accumulation_steps > 1:
            for slot, state in zip(self.slots, self.states, strict=True):
                state["in_cycle"] = torch.tensor(slot.touched is not None, device="cpu")

    # -- a step ----------------------------------------------------------------------------------------------------

    def step(self, grad_scale: float | None) -> None:
        """One call with the gradients that the parameters have; nothing happens if none has one."""
        gradients: Sequence[Any] = list(map(operator.attrgetter("grad"), self.parameters))
        if self.sharded:
            gradients = local_gradients(gradients, self.parameters)
        if self.settings.accumulation_steps == 1 and all(g is None for g in gradients):
            return
        scale = self.settings.loss_scale_factor
        if grad_scale is not None:
            scale = grad_scale * (scale or 1.0)
        self.apply(self.all_slots(), gradients, loss_scale=scale)
        for group in self.groups:
            group["calls"] += 1

    def rate_now(self) -> Any:
        """The learning rates of the next call, one for each slot."""
        rates = self._each([rate_of(group, self.calls) for group in self.groups])
        if any(self._decays):
            decays, steps = self._each(self._decays), self._steps.tolist()
            rates = [rate / (1 + step * decay) for rate, step, decay in zip(rates, steps, decays, strict=True)]
        return tuple(rates)

    def _first(self) -> Any:
        return tuple(self._each([real_steps(group, self.calls) == 0 for group in self.groups]))

    def _stepped(self, call: Call) -> None:
        moved = call.codes != 0
        self._steps.numpy()[moved] += 1
        changed: Sequence[torch.Tensor] = self.parameters
        if not (self.settings.use_ema or moved.all()):
            changed = [parameter for parameter, m in zip(self.parameters, moved.tolist(), strict=True) if m]
        torch.autograd.graph.increment_version(changed)

    def _warn(self, names: list[str]) -> None:
        """A parameter without a gradient is no news here."""

    def _reduce(self, sums: np.ndarray) -> np.ndarray:
        """Sums over all shards: each parameter's over the processes that its shards are on."""
        if not self.sharded:
            return sums
        return torch.stack(sum_over_shards(list(torch.from_numpy(sums)), self.parameters)).numpy()
