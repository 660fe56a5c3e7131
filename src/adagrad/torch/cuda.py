"""Parameters on a CUDA device, stepped by the Triton kernels: nothing is copied to the host, nothing is waited for.

What a call is (a real step or one of a cycle, to be skipped or not), the counters and the scalars are found out on the
device, so that a call can be captured in a CUDA graph. The host keeps the count of calls too for as long as it can know it,
which is until a ``found_inf`` or a captured graph decides; then it is read back when someone asks for the state.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import math
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from adagrad.arrays.torch import local, real, wide_dtype
from adagrad.kernels import elements
from adagrad.passes import static_scalars
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import Settings
from adagrad.slots import check_apart
from adagrad.torch.cuda_gradients import NONE, ROWS, Gradients, Reader, RowGradient, Table, group_ids
from adagrad.torch.cuda_passes import BUFFERED, Listed, Passes
from adagrad.torch.cuda_schedules import rate_on_device
from adagrad.torch.current import MadeFor
from adagrad.torch.distributed import is_distributed
from adagrad.torch.groups import rate_of, settings_of
from adagrad.torch.states import ARRAYS, is_row_wise

__all__ = ["CudaEngine", "kernels_serve", "refuse_capture"]


def kernels_serve(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether all parameters are on one CUDA device, and Triton is there to make kernels for it."""
    devices = {parameter.device for parameter in parameters}
    if len(devices) != 1 or next(iter(devices)).type != "cuda" or torch.version.cuda is None:
        return False
    if importlib.util.find_spec("triton") is None:
        warnings.warn("without Triton, parameters on a CUDA device are stepped by slower array code", UserWarning, stacklevel=5)
        return False
    return True


def refuse_capture(parameters: Sequence[torch.Tensor]) -> None:
    """Raise ``RuntimeError`` if a CUDA graph is being captured where an engine would have to be made."""
    if any(parameter.is_cuda for parameter in parameters) and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the optimizer must have made a step before one is captured in a CUDA graph, with these parameters and "
            "arguments: its tables are made there"
        )


class _Slot(NamedTuple):
    """What `static_scalars` asks of a parameter."""

    settings: Settings
    sign: float
    decays: bool = True

    @property
    def staged(self) -> bool:
        """Whether a step does more than the rule; the loss scale and what moves all parameters are asked elsewhere."""
        own = self.settings
        return bool(self.sign < 0 or own.weight_decay or own.clipvalue or own.clipnorm or own.global_clipnorm)


def _placed(tensor: torch.Tensor) -> np.ndarray:
    """An array whose addresses are those of ``tensor``, wherever these are: to be compared, never to be read."""
    size = tensor.element_size()
    described = {
        "data": (tensor.data_ptr(), False),
        "shape": tuple(tensor.shape),
        "strides": tuple(size * step for step in tensor.stride()),
        "typestr": f"|V{size}",
        "version": 3,
    }
    found: np.ndarray = np.asarray(types.SimpleNamespace(__array_interface__=described))
    return found


class CudaEngine(MadeFor):
    """The groups and states of an optimizer whose parameters are on one CUDA device; made anew when they change.

    Raises ``ValueError`` for a parameter that the kernels can't change, since its memory is another's too.
    """

    def __init__(self, groups: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]], names: list[str]) -> None:
        self.groups = list(groups)
        self.whole = settings_of(groups[0])
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.states = [states[parameter] for parameter in self.parameters]
        self.device = local(self.parameters[0]).device
        self.sharded = any(map(is_distributed, self.parameters))
        numbers = [g for g, group in enumerate(groups) for _ in group["params"]]
        settings = [settings_of(group) for group in groups]
        slots = [_Slot(settings[g], -1.0 if groups[g]["maximize"] else 1.0) for g in numbers]

        # A parameter that does not lie plainly is stepped in memory of its own, and copied in and out.
        views = [real(local(parameter)) for parameter in self.parameters]
        for name, view in zip(names, views, strict=True):
            if any(size > 1 and step == 0 for size, step in zip(view.shape, view.stride(), strict=True)):
                raise ValueError(f"parameter {name} must not be an expanded view, whose elements share memory")
        check_apart([_placed(view) for view in views], names)
        memories = [view if view.is_contiguous() else torch.empty_like(view).contiguous() for view in views]
        self._strided = [(view, memory) for view, memory in zip(views, memories, strict=True) if memory is not view]
        arrays = [[real(local(state[name])) if name in state else None for name in ARRAYS] for state in self.states]
        self._tables = [
            Table(name, memory, wide_dtype(memory.dtype), row_wise=is_row_wise(parameter, groups[g]))
            for name, memory, parameter, g in zip(names, memories, self.parameters, numbers, strict=True)
        ]
        self._reader = Reader(self._tables, [array for row in arrays for array in row if array is not None])
        rows = [
            [memory.data_ptr(), *(0 if a is None else a.data_ptr() for a in state), memory.numel(), g]
            for memory, state, g in zip(memories, arrays, numbers, strict=True)
        ]
        steps = torch.stack([state["step"] for state in self.states]).to(self.device)
        in_cycle = [bool(state.get("in_cycle", False)) for state in self.states]
        calls = [group["calls"] for group in groups]
        self.passes = Passes(self.whole, self._tables, rows, self._scalars(slots, numbers), steps, calls, in_cycle)
        for state, step in zip(self.states, steps, strict=True):
            state["step"] = step
        for group in groups:
            if isinstance(group["lr"], LearningRateSchedule):
                rate_on_device(group["lr"], self.passes.calls, capturing=False)  # what it needs there is there from now on

        self._clips = any(own.clipnorm or own.global_clipnorm for own in settings)
        self._decays = [bool(slot.settings.weight_decay) for slot in slots]
        self._staged = self.whole.loss_scale_factor is not None or any(slot.staged for slot in slots)
        self._touched: list[Any] = [True if on else None for on in in_cycle]  # by the cycle: all rows, lists of ids, or nothing
        self._known = True  # whether the groups have the count of calls
        self.remember(states)

    def _scalars(self, slots: list[_Slot], numbers: list[int]) -> np.ndarray:
        from adagrad.kernels import cuda_elements  # imports Triton

        table = np.zeros((len(slots), cuda_elements.COLUMNS.value))
        static = static_scalars(slots, self.whole)
        table[:, : static.shape[1]] = static
        table[:, cuda_elements.GIVEN_SCALE] = static[:, elements.SCALE] * (self.whole.loss_scale_factor or 1.0)
        table[:, cuda_elements.RATE_DECAY] = [self.groups[g].get("lr_decay", 0.0) for g in numbers]
        bounds = [slot.settings.clipnorm or slot.settings.global_clipnorm or math.inf for slot in slots]
        table[:, cuda_elements.BOUND] = bounds
        return table

    def store_cycle(self) -> None:
        """Bring the counters of the groups and the cycle of accumulation into groups and states; waits for the device."""
        if not self._known:
            for group, calls in zip(self.groups, self.passes.calls.tolist(), strict=True):
                group["calls"] = calls
            self._known = not self.passes.captured
        if self.whole.accumulation_steps > 1:
            for state, on in zip(self.states, self.passes.cycle.tolist(), strict=True):
                state["in_cycle"] = torch.tensor(bool(on), device="cpu")

    # -- a step ----------------------------------------------------------------------------------------------------

    def step(self, grad_scale: torch.Tensor | None, found_inf: torch.Tensor | None, check_ids: bool = False) -> None:
        """One call with the gradients that the parameters have; nothing happens if none has one.

        Gradients are divided by ``grad_scale``; a ``found_inf`` that is not 0 makes the device change nothing.
        """
        on_it: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.device.type == "cuda":
            on_it = torch.cuda.device(self.device)
        with on_it:
            self._step(grad_scale, found_inf, check_ids)

    def _step(self, grad_scale: torch.Tensor | None, found_inf: torch.Tensor | None, check_ids: bool) -> None:
        steps, passes = self.whole.accumulation_steps, self.passes
        gradients = [parameter.grad for parameter in self.parameters]
        if steps == 1 and all(gradient is None for gradient in gradients):
            return
        capturing = passes.capturing()
        grad_scale, found_inf = (
            None if given is None else given.to(self.device, non_blocking=True) for given in (grad_scale, found_inf)
        )
        found = self._reader.read(gradients, self.parameters, check_ids)
        rates, tensors = self._rates_now(capturing)
        # From here on nothing is refused.
        passes.captured = passes.captured or capturing
        self._known = self._known and not capturing and found_inf is None
        real = not self._known or (max(group["calls"] for group in self.groups) + 1) % steps == 0
        for view, memory in self._strided:
            memory.copy_(view)
        passes.prepare(found, rates, tensors, grad_scale, found_inf)
        staged = self._staged or grad_scale is not None
        listed = {v: passes.gathered(v, rows, mapped=steps == 1 and self._moves_all(v)) for v, rows in found.rows.items()}
        if capturing:
            passes.kept.append((found, listed))
        codes = found.codes
        if steps > 1:
            passes.accumulate(found, listed)
            self._note(found, listed)
            codes, listed = self._close_cycle() if real else ([], {})
        if real:
            if self._clips:
                passes.clip(codes, listed, staged, self.parameters)
            passes.move(codes, found.addresses, listed, staged)
        passes.count()
        for view, memory in self._strided:
            view.copy_(memory)
        if self._known:
            for group in self.groups:
                group["calls"] += 1
        if real:
            moved = [steps > 1 or self.whole.use_ema or code != NONE for code in found.codes]
            torch.autograd.graph.increment_version(list(itertools.compress(self.parameters, moved)))

    def _note(self, found: Gradients, listed: dict[int, Listed]) -> None:
        """What the buffers of gradients hold of this cycle."""
        for v, code in enumerate(found.codes):
            touched = self._touched[v]
            if code == ROWS and touched is not True:
                rows = listed[v]
                touched = [*(touched or []), (rows.ids, rows.height, rows.width)]
                self._touched[v] = touched if sum(len(ids) for ids, *_ in touched) < rows.height else True
            elif code != NONE:
                self._touched[v] = True

    def _rates_now(self, capturing: bool) -> tuple[list[float], dict[int, torch.Tensor]]:
        """The rates that the host can say, and by group those that are tensors on the device."""
        tensors: dict[int, torch.Tensor] = {}
        for g, group in enumerate(self.groups):
            rate = group["lr"]
            if isinstance(rate, torch.Tensor) and rate.device == self.device:
                tensors[g] = rate
            elif isinstance(rate, LearningRateSchedule) and (capturing or not self._known):
                evaluated = rate_on_device(rate, self.passes.calls, capturing)
                if evaluated is None:  # a schedule of the user's own, which asks for the number
                    self.store_cycle()
                else:
                    tensors[g] = evaluated
        calls = max(group["calls"] for group in self.groups)
        return [0.0 if g in tensors else rate_of(group, calls) for g, group in enumerate(self.groups)], tensors

    def _close_cycle(self) -> tuple[list[int], dict[int, Listed]]:
        """How the gradients of the cycle come, now that the buffers have them: dense, or in some rows.

        Where the host can't know what the cycle was, all buffers are looked at, and the device knows which are active.
        """
        codes, listed = [], {}
        for v, touched in enumerate(self._touched):
            shapes = {(count, width) for _, count, width in touched} if isinstance(touched, list) else set()
            if self._known and touched is None:
                codes.append(NONE)
            elif not self._known or touched is True or len(shapes) > 1 or self._moves_all(v):
                codes.append(BUFFERED)
            else:
                codes.append(ROWS)
                _, count, width = touched[0]
                ids, order = group_ids(torch.cat([ids for ids, *_ in touched]), count)
                listed[v] = self.passes.gathered(v, RowGradient(ids, order, None, count, width), mapped=False)
        self._touched = [None if self._known else True] * len(self._touched)
        return codes, listed

    # -- rows ------------------------------------------------------------------------------------------------------

    def _moves_all(self, v: int) -> bool:
        """Whether rows without a gradient move too."""
        return self._decays[v] or self.whole.use_ema
