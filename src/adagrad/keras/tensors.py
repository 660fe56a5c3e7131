"""Keras on PyTorch, in main memory: the engine's kernels work on the memory of the variables, no copy is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from keras import ops

from adagrad import engine, gradients, slots
from adagrad.arrays.torch import TensorLayout, stored_view
from adagrad.keras.slots import Slot
from adagrad.passes import Call
from adagrad.settings import Settings

__all__ = ["TensorEngine", "as_tensor", "in_main_memory"]


def in_main_memory(found: Sequence[Slot]) -> bool:
    """Whether the kernels can work on the variables and their state."""
    return all(_tensor(variable).device.type == "cpu" for slot in found for variable in _variables(slot))


def as_tensor(gradient: Any, name: str) -> torch.Tensor | None:
    """A gradient as a tensor that the engine takes: dense, or sparse COO and not coalesced."""
    if gradient is None or isinstance(gradient, torch.Tensor):
        return gradient
    if not isinstance(gradient, gradients.IndexedSlices):
        return ops.convert_to_tensor(gradient)
    values, ids = ops.convert_to_tensor(gradient.values), ops.convert_to_tensor(gradient.indices)
    if ids.dim() != 1 or ids.is_floating_point() or values.shape[:1] != ids.shape:
        raise ValueError(
            f"the gradient rows of {name} need one id each, a 1-D tensor of integers, got {tuple(values.shape)} and "
            f"{ids.dtype} of {tuple(ids.shape)}"
        )
    return ids, values  # type: ignore[return-value]


def _variables(slot: Slot) -> list[Any]:
    found = (slot.variable, slot.accumulator, slot.average, slot.buffer)
    return [variable for variable in found if variable is not None]


def _tensor(variable: Any) -> torch.Tensor:
    return variable.value.detach()


class TensorEngine(engine.Engine):
    """The engine over the variables of a Keras optimizer as they lie now; made anew when they move.

    With ``copied``, over copies, for a call that is not to change what the caller gave: `store` assigns them.
    """

    _layout_type = TensorLayout
    _layout: TensorLayout

    def __init__(
        self, settings: Settings, found: Sequence[Slot], rate: Callable[[int], float], warned: set[str], *, copied: bool = False
    ) -> None:
        super().__init__(settings)
        self.found, self._rate, self._warned = list(found), rate, warned
        self._kept = [_variables(slot) for slot in found]
        self._tensors = [list(map(_tensor, variables)) for variables in self._kept]
        if copied:
            self._tensors = [[tensor.clone() for tensor in tensors] for tensors in self._tensors]
        for slot, tensors in zip(found, self._tensors, strict=True):
            variable, accumulator, *others = map(stored_view, tensors)
            average = others.pop(0) if slot.average is not None else None
            buffer = others.pop(0) if slot.buffer is not None else None
            made = slots.Slot.over(slot.name, variable, settings, 1.0, accumulator, average, buffer)
            made.decays = slot.decays
            if slot.constraint is not None:
                made.constraint = _constraint(slot)
            if buffer is not None and buffer.any():
                made.touched = True
            self.slots.append(made)
        slots.check_apart([made.view for made in self.slots], [slot.name for slot in found])
        self._made_of = self._memory()
        self.built = True
        self.index()
        self._layout.set_tensors([tensors[0] for tensors in self._tensors])

    def _memory(self) -> list[Any]:
        """Where the variables lie, and what decides how they are treated; a Keras variable's `value` takes long to ask for."""
        return [
            (
                slot.decays,
                slot.constraint is None,
                [(v._value.data_ptr(), v._value.dtype, v._value.stride()) for v in variables],
            )
            for slot, variables in zip(self.found, self._kept, strict=True)
        ]

    def is_current(self, settings: Settings) -> bool:
        """Whether settings (but for the rate), variables and their memory are still those that the engine was made for."""
        if settings is not self.settings:
            if dataclasses.replace(settings, learning_rate=self.settings.learning_rate) != self.settings:
                return False
            self.settings = settings  # a callback sets another rate before every batch; `rate_now` asks for it
        return self._memory() == self._made_of

    def store(self) -> None:
        """Assign the copies to the variables."""
        for slot, tensors in zip(self.found, self._tensors, strict=True):
            for variable, tensor in zip(_variables(slot), tensors, strict=True):
                variable.assign(tensor)

    def call(self, given: Sequence[Any], calls: int, loss_scale: float | None, *, skip: bool = False) -> bool:
        """One call, the one numbered ``calls``; returns whether it counted. See `adagrad.engine.Engine.apply`."""
        self.calls = calls
        there = [v for v, gradient in enumerate(given) if gradient is not None]
        gradients = [self._given(given[v], self.found[v]) for v in there]
        return self.apply(np.array(there, np.int64), gradients, loss_scale, skip)

    def _given(self, gradient: Any, slot: Slot) -> Any:
        found = as_tensor(gradient, slot.name)
        if isinstance(found, tuple):
            ids, values = found
            if values.shape[1:] != slot.shape[1:] or not slot.shape:
                raise ValueError(
                    f"the gradient rows of {slot.name} must be {slot.shape[1:]} each, got {tuple(values.shape[1:])}"
                )
            return torch.sparse_coo_tensor(ids[None].to(torch.int64), values, slot.shape, check_invariants=False)
        return found

    def rate_now(self) -> float:
        """The learning rate of the next call."""
        return self._rate(self.calls)

    def _stepped(self, call: Call) -> None:
        moved = (call.codes != 0) | self.settings.use_ema
        torch.autograd.graph.increment_version([t[0] for t, m in zip(self._tensors, moved.tolist(), strict=True) if m])


def _constraint(slot: Slot) -> Callable[[np.ndarray], np.ndarray]:
    """The variable's constraint on the bits of an array, whose memory its argument shares."""

    def apply(bits: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(bits)
        if slot.dtype in ("float16", "bfloat16"):
            tensor = tensor.view(getattr(torch, slot.dtype))
        with torch.no_grad():
            return stored_view(slot.constrained(tensor).detach())

    return apply
