"""Parameters that are not in main memory: the stages as array code, `adagrad.rule` on the tensors themselves.

It runs wherever PyTorch does. The numbers are within a rounding or two of the kernels' a step, not the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from adagrad import rule
from adagrad.arrays.torch import DTYPES, local, real, wide_dtype
from adagrad.settings import Settings
from adagrad.torch.distributed import local_gradients, sum_over_shards
from adagrad.torch.groups import rate_of, real_steps, settings_of
from adagrad.torch.states import is_row_wise

__all__ = ["TensorStages", "check_gradient", "check_ids"]


def check_gradient(gradient: torch.Tensor, name: str, parameter: torch.Tensor) -> None:
    """Raise ``ValueError`` or ``TypeError`` for a gradient that can't be one of ``parameter``; looks at no value of it."""
    if gradient.device != parameter.device:
        raise ValueError(f"the gradient of {name} must be on its device, {parameter.device}, got {gradient.device}")
    if gradient.dtype not in DTYPES:
        raise TypeError(f"the gradient of {name} must be one of {', '.join(map(str, DTYPES))}, got {gradient.dtype}")
    if gradient.is_complex() != parameter.is_complex():
        raise TypeError(
            f"the gradient of {name} must be {'complex' if parameter.is_complex() else 'real'}, got {gradient.dtype}"
        )
    if gradient.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(f"the gradient of {name} must be dense or sparse COO, got {gradient.layout}")
    if gradient.layout is torch.sparse_coo and gradient.sparse_dim() == 0:
        raise TypeError(f"the gradient of {name} must be dense, or sparse in its first dimension, got no sparse dimension")
    if gradient.shape != parameter.shape:
        raise ValueError(f"the gradient of {name} must have its shape {tuple(parameter.shape)}, got {tuple(gradient.shape)}")


def check_ids(ids: torch.Tensor, name: str, count: int) -> None:
    """Raise ``ValueError`` for an id outside [0, count); waits for the device."""
    wrong = ((ids < 0) | (ids >= count)).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(f"the indices of {name} must be in [0, {count}), got {int(ids[place])} at position {place}")


class TensorStages:
    """The groups and states of an optimizer, stepped by array code; takes the place of `TensorEngine`."""

    def __init__(self, groups: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]], names: list[str]) -> None:
        self.whole = settings_of(groups[0])
        self._groups, self._states, self._names = groups, states, names

    def is_current(self, groups: list[dict[str, Any]], states: Mapping[Any, dict[str, Any]]) -> bool:
        """Nothing is kept from one step to the next."""
        return False

    def store_cycle(self) -> None:
        """Which parameters have had a gradient in this cycle stands in the states already."""

    def step(self, grad_scale: float | None, check_ids: bool = False) -> None:
        """One call with the gradients that the parameters have; nothing happens if none has one.

        With ``check_ids`` those of sparse gradients are looked at wherever they are; in main memory they always are.
        """
        steps = self.whole.accumulation_steps
        parameters = [parameter for group in self._groups for parameter in group["params"]]
        if steps == 1 and all(parameter.grad is None for parameter in parameters):
            return
        for parameter, name in zip(parameters, self._names, strict=True):
            if parameter.grad is not None:
                _check(parameter.grad, name, parameter, check_ids)
        calls = max(group["calls"] for group in self._groups)
        scale = (self.whole.loss_scale_factor or 1.0) * (1.0 if grad_scale is None else grad_scale)
        rates = [rate_of(group, calls) for group in self._groups]
        leaves = [
            _Leaf(parameter, self._states[parameter], group, settings_of(group), rate, scale)
            for group, rate in zip(self._groups, rates, strict=True)
            for parameter in group["params"]
        ]
        if (calls + 1) % steps:
            for leaf in leaves:
                leaf.accumulate()
        else:
            for leaf in leaves:
                leaf.close_cycle(steps)
            self._clip(leaves)
            for leaf in leaves:
                leaf.move()
            frequency = self.whole.ema_overwrite_frequency
            if self.whole.use_ema:
                overwrite = frequency is not None and (calls // steps + 1) % frequency == 0
                for leaf in leaves:
                    leaf.average(self.whole.ema_momentum, real_steps(leaf.group, calls) == 0, overwrite)
        for group in self._groups:
            group["calls"] += 1

    def _clip(self, leaves: list[_Leaf]) -> None:
        """Stage 5's norms, on the device: no value is waited for."""
        bounds = [leaf.settings.clipnorm or leaf.settings.global_clipnorm for leaf in leaves]
        if not any(bounds):
            return
        sums = sum_over_shards([leaf.square_sum() for leaf in leaves], [leaf.parameter for leaf in leaves])
        if self.whole.global_clipnorm is not None:
            device = next((s.device for s in sums if s.device.type != "cpu"), sums[0].device)
            total = torch.stack([s.to(device) for s in sums]).sum()
            sums = [total.to(s.device) for s in sums]
        for leaf, bound, square_sum in zip(leaves, bounds, sums, strict=True):
            if bound is not None and leaf.gradient is not None:
                norm = square_sum.sqrt()
                factor = torch.where(norm > bound, bound / norm, torch.ones_like(norm))
                factor = torch.where(norm.isfinite(), factor, math.nan)
                leaf.gradient = rule.clip_by_norm(leaf.gradient, factor.to(leaf.gradient.dtype), torch.where)


def _check(gradient: torch.Tensor, name: str, parameter: torch.Tensor, ids_too: bool) -> None:
    check_gradient(gradient, name, parameter)
    if gradient.layout is torch.sparse_coo and (ids_too or gradient.is_cpu) and not gradient.is_meta:
        for ids, count in zip(gradient._indices(), gradient.shape, strict=False):
            check_ids(ids, name, count)


class _Leaf:
    """One parameter in one call: its gradient on the way through the stages."""

    def __init__(
        self,
        parameter: torch.Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        settings: Settings,
        rate: float,
        scale: float,
    ) -> None:
        self.parameter, self.settings, self.group, self.state = parameter, settings, group, state
        self._p = real(local(parameter))
        self._wide = wide_dtype(self._p.dtype)
        decay = float(group.get("lr_decay", 0.0))
        self._rate = self._scalar(rate / (1 + int(state["step"]) * decay) if decay else rate)
        self._rows: torch.Tensor | None = None
        self.gradient = None if parameter.grad is None else self._taken(parameter.grad, -scale if group["maximize"] else scale)

    def _scalar(self, value: float) -> torch.Tensor:
        return torch.full((), value, dtype=self._wide, device=self._p.device)

    def _array(self, name: str) -> torch.Tensor:
        return real(local(self.state[name]))

    def _taken(self, gradient: torch.Tensor, scale: float) -> torch.Tensor:
        """The gradient, wide and unscaled; of a sparse one only the rows, where only they can move."""
        (gradient,) = local_gradients([gradient], [self.parameter])
        if gradient.layout is torch.sparse_coo:
            wide = torch.sparse_coo_tensor(
                gradient._indices(), gradient._values().to(wide_dtype(gradient.dtype)), gradient.shape, check_invariants=False
            ).coalesce()
            moves_all = self.settings.weight_decay or self.settings.use_ema or self.settings.accumulation_steps > 1
            if gradient.sparse_dim() == 1 and not moves_all:
                self._rows = wide._indices()[0]
                gradient = wide._values()
            else:
                gradient = wide.to_dense()
        gradient = real(gradient.resolve_conj()).resolve_neg()
        return rule.unscale(gradient.to(self._wide), self._scalar(scale))

    def square_sum(self) -> torch.Tensor:
        """The sum of squares of the gradient, in double precision where the device has it."""
        exact = torch.float32 if self._p.device.type == "mps" else torch.float64
        if self.gradient is None:
            return torch.zeros((), dtype=exact, device=self._p.device)
        return self.gradient.to(exact).square().sum()

    def accumulate(self) -> None:
        """Stage 4 on a call that is no real step."""
        if self.gradient is not None:
            buffer = self._array("gradient_accumulator")
            buffer.copy_(rule.accumulate(buffer, self.gradient))
            self.state["in_cycle"] = torch.tensor(True, device="cpu")

    def close_cycle(self, steps: int) -> None:
        """Stage 4 on the real step."""
        if steps > 1:
            if self.gradient is None and bool(self.state.get("in_cycle", False)):
                self.gradient = torch.zeros_like(self._p, dtype=self._wide)
            if self.gradient is not None:
                buffer = self._array("gradient_accumulator")
                self.gradient = rule.mean_gradient(self.gradient, buffer, steps)
                buffer.zero_()
            self.state["in_cycle"] = torch.tensor(False, device="cpu")

    def move(self) -> None:
        """Stages 5 to 7, where there is a gradient."""
        if self.gradient is None:
            return
        own, where = self.settings, torch.where
        take: Callable[[torch.Tensor], torch.Tensor] = lambda t: t if self._rows is None else t[self._rows]  # noqa: E731
        p, a, g = take(self._p).to(self._wide), take(self._array("sum")), self.gradient
        if own.clipvalue is not None:
            g = rule.clip_by_value(g, self._scalar(own.clipvalue), where)
        if own.weight_decay and own.weight_decay_mode == "decoupled":
            p = rule.decay_weights(p, self._scalar(own.weight_decay), self._rate)
        elif own.weight_decay:
            g = rule.l2_gradient(g, p, self._scalar(own.weight_decay))
        square = g * g
        if is_row_wise(self.parameter, self.group):
            dims = tuple(range(1, square.dim()))
            square = square.mean(dims, keepdim=True)
            a = a.reshape(square.shape)
        zero, epsilon = self._scalar(0.0), self._scalar(own.epsilon)
        inside, outside = (epsilon, zero) if own.epsilon_placement == "inside" else (zero, epsilon)
        p, a = rule.adagrad(p, a, g, square, self._rate, inside, outside, torch.sqrt, where)
        for name, value in (("sum", a), (None, p)):
            target = self._p if name is None else self._array(name)
            if self._rows is None:
                target.copy_(value.reshape(target.shape))
            else:
                target.index_copy_(0, self._rows, value.reshape(-1, *target.shape[1:]).to(target.dtype))
        self.state["step"] += 1

    def average(self, momentum: float, first: bool, overwrite: bool) -> None:
        """Stages 9 and 10."""
        ema = self._array("ema")
        p = self._p.to(self._wide)
        begins = torch.full((), first, device=p.device)
        ema.copy_(rule.average(ema, p, self._scalar(momentum), self._scalar(1 - momentum), begins, torch.where))
        if overwrite:
            self._p.copy_(ema)
