"""Adagrad as a PyTorch optimizer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch.optim.optimizer import ParamsT

from adagrad.schedules import LearningRateSchedule
from adagrad.torch import loading, statefile
from adagrad.torch.cpu import TensorEngine
from adagrad.torch.cuda import CudaEngine, kernels_serve, refuse_capture
from adagrad.torch.devices import TensorStages
from adagrad.torch.groups import PAGE, TorchGroup, check_group, real_steps
from adagrad.torch.states import check_parameter, ensure_state

__all__ = ["Adagrad"]

Rate = float | torch.Tensor | LearningRateSchedule


class Adagrad(torch.optim.Optimizer):
    """Adagrad with the arguments and the meaning of the Keras page, as a `torch.optim.Optimizer`.

    ``a = a + g*g;  p = p - (lr*g) / sqrt(a + eps)``, with ``a`` starting at ``initial_accumulator_value``, as described at
    https://keras.io/api/optimizers/adagrad/ after Duchi, Hazan and Singer (2011). For the arguments, defaults and numbers
    of `torch.optim.Adagrad` see `as_torch`.

    Parameters
    ----------
    params : tensors, (name, tensor) pairs, or dicts that describe groups
        float64, float32, float16, bfloat16 or complex, of any layout. Complex ones count as pairs of real numbers.
    lr : float >= 0, tensor of one number, or a schedule of `adagrad.schedules`
        A schedule is asked with the number of calls of `step` so far, of which those without any gradient, and those that
        `GradScaler` skipped, do not count.
    initial_accumulator_value, eps : float >= 0
    weight_decay : float >= 0 or None
        Decoupled: ``p = p - (p * weight_decay) * lr`` before the rule; with ``weight_decay_mode="l2"``
        ``g = g + weight_decay * p``.
    clipnorm, clipvalue, global_clipnorm : float > 0 or None
        At most one. The norm of each gradient, each of its elements, or the norm of all gradients is kept within it.
    use_ema, ema_momentum, ema_overwrite_frequency
        Keep a moving average of every parameter; see `averaged` and `finalize`.
    loss_scale_factor : float > 0 or None
        Gradients are divided by it.
    gradient_accumulation_steps : int >= 1 or None
        Only every so many calls are a real step, with the mean of their gradients.
    maximize : bool
        Climb instead of descend: ``g = -g`` first.
    row_wise : bool
        Parameters of two dimensions or more keep one accumulator a row: ``a_row = a_row + mean(g*g)``.
    epsilon_placement : {"inside", "outside"}
        Outside: ``p = p - (lr*g) / (sqrt(a) + eps)``.

    A group may have its own lr, eps, weight_decay, clipnorm, clipvalue, initial_accumulator_value, row_wise and maximize.

    Gradients are dense or sparse COO, as ``nn.Embedding(sparse=True)`` gives them: ids may repeat, and a step costs what
    the batch touches, with the same numbers as the equal dense gradient. Parameters change in place. The state of a
    parameter is ``sum`` (the accumulator; float32 for half parameters) and ``step`` (int64), and ``ema`` and
    ``gradient_accumulator`` if asked for.

    On a CUDA device a step is a few Triton kernels and waits for nothing, so that it can be captured in a CUDA graph. These
    leave ids outside of a table out in silence; set the attribute ``check_ids = True`` to have them refused with a
    ``ValueError``, as they always are in main memory, at the price of waiting for the device in each step.

    Raises ``ValueError`` or ``TypeError`` for an argument, a parameter or a gradient that can't be, before anything changes.

    >>> import torch
    >>> from adagrad.torch import Adagrad
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = Adagrad([w], lr=0.5)
    >>> (w**2).sum().backward()
    >>> optimizer.step()
    >>> w.tolist()  # doctest: +ELLIPSIS
    [0.506..., 1.501...]
    """

    _step_supports_amp_scaling = True  # `GradScaler` then hands in found_inf and grad_scale
    _engine: TensorEngine | CudaEngine | TensorStages | None = None
    check_ids = False

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1e-3,
        *,
        initial_accumulator_value: float = 0.1,
        eps: float = 1e-7,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        maximize: bool = False,
        row_wise: bool = False,
        epsilon_placement: str = "inside",
        weight_decay_mode: str = "decoupled",
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        super().__init__(params, {**given, "calls": 0})

    @classmethod
    def as_torch(
        cls,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> Self:
        """Make an optimizer with the arguments, defaults, state and numbers of `torch.optim.Adagrad`.

        ``p = p - (lr / (1 + (t-1)*lr_decay) * g) / (sqrt(a) + eps)`` with ``g = g + weight_decay*p`` first, t counting the
        steps of the parameter. ``foreach`` and ``fused`` are taken and have no effect; ``differentiable=True`` raises
        ``ValueError``. Its state dicts and those of `torch.optim.Adagrad` load into each other.
        """
        given = {name: value for name, value in locals().items() if name not in ("cls", "params")}
        self = cls.__new__(cls)
        torch.optim.Optimizer.__init__(self, params, TorchGroup(given))
        return self

    @classmethod
    def from_torch(cls, optimizer: torch.optim.Adagrad) -> Self:
        """Take over a running `torch.optim.Adagrad`, its state and groups, and go on with the same numbers.

        The groups are shared, so that a scheduler of the old optimizer goes on to set the rate of the new one. The old
        optimizer must not step any more; hooks that were registered with it stay there.
        """
        return loading.from_torch(cls, optimizer)

    # -- parameters ------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in every PyTorch optimizer; its arguments are checked, its state is made."""
        merged = check_group(param_group, self.defaults)
        params = param_group["params"]
        params = [params] if isinstance(params, torch.Tensor) else params if isinstance(params, set) else list(params)
        for entry in params:
            parameter = entry[1] if isinstance(entry, tuple) else entry
            if isinstance(parameter, torch.Tensor):
                check_parameter(parameter, merged)
        group = {**param_group, "params": params}
        super().add_param_group(TorchGroup(group) if isinstance(self.defaults, TorchGroup) else group)
        self._ensure_states()

    def _ensure_states(self) -> None:
        if self._engine is not None:
            self._engine.store_cycle()
        calls = max((group["calls"] for group in self.param_groups), default=0)
        for group in self.param_groups:
            for parameter in group["params"]:
                ensure_state(self.state[parameter], parameter, group, begun=real_steps(group, calls) > 0)
        self._engine = None

    def _current(self) -> TensorEngine | CudaEngine | TensorStages:
        """What steps the parameters and states as they are now: the kernels, or array code where one is on a device."""
        if self._engine is None or not self._engine.is_current(self.param_groups, self.state):
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            refuse_capture(parameters)
            for group in self.param_groups:
                check_group(group, self.defaults)
            self._ensure_states()
            kind: type[TensorEngine | CudaEngine | TensorStages] = TensorStages
            if all(parameter.is_cpu for parameter in parameters):
                kind = TensorEngine
            elif kernels_serve(parameters):
                kind = CudaEngine
            self._engine = kind(self.param_groups, self.state, self._names())
        return self._engine

    def _names(self) -> list[str]:
        names: list[str] = []
        for group in self.param_groups:
            names += group.get("param_names") or [f"param_{len(names) + k}" for k in range(len(group["params"]))]
        return names

    # -- a step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients of the parameters; parameters without one are left as they are.

        ``closure`` computes the loss and its gradients, and its value is returned. Under `torch.amp.GradScaler` a step
        whose gradients are not finite is skipped whole.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @torch._disable_dynamo
    def _step(self) -> None:
        """What `torch.compile` must not look into: it calls kernels with addresses."""
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        engine = self._current()
        if isinstance(engine, CudaEngine):
            # Without any gradient `GradScaler` says a plain 0.
            engine.step(scale, found_inf if isinstance(found_inf, torch.Tensor) else None, self.check_ids)
        elif found_inf is None or not float(found_inf):
            scale = None if scale is None else float(scale)
            if isinstance(engine, TensorStages):
                engine.step(scale, self.check_ids)
            else:
                engine.step(scale)

    # -- averages --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def finalize(self) -> None:
        """Set every parameter to its moving average, after training with ``use_ema``; before the first step nothing changes."""
        for parameter, average in self._averages():
            parameter.copy_(average)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """``with optimizer.averaged():`` the parameters are their moving averages, and come back afterwards."""
        with torch.no_grad():
            kept = [(parameter, parameter.detach().clone()) for parameter, _ in self._averages()]
            self.finalize()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)

    def _averages(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._engine is not None:
            self._engine.store_cycle()
        calls = max(group["calls"] for group in self.param_groups)
        for group in self.param_groups:
            if group["use_ema"] and real_steps(group, calls) > 0:
                for parameter in group["params"]:
                    yield parameter, self.state[parameter]["ema"]

    # -- state -----------------------------------------------------------------------------------------------------

    def share_memory(self) -> None:
        """Move the state into shared memory, for training by several processes; each goes on to count its own steps."""
        for group in self.param_groups:
            for parameter in group["params"]:
                for value in self.state[parameter].values():
                    value.share_memory_()

    def state_dict(self) -> dict[str, Any]:
        """The state and the groups, as of every PyTorch optimizer; a schedule becomes a plain dict."""
        if self._engine is not None:
            self._engine.store_cycle()
        return loading.packed(super().state_dict(), self.param_groups)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; state stays float32 for half parameters.

        From `torch.optim.Adagrad` a state dict loads only into `as_torch`, since its arguments mean something else.
        Raises ``ValueError``, and nothing is loaded, if a group or an array doesn't fit.
        """
        shared = self.param_groups
        loading.load(self, state_dict, super().load_state_dict)
        shared[:] = self.param_groups  # the list may be that of an optimizer taken over, which schedulers go by
        self.param_groups = shared

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to one file that every face reads: arrays and JSON, nothing that could run code.

        For parameters in main memory, not sharded, in groups of equal arguments; `state_dict` serves all others.
        """
        statefile.save(self, path)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        names: Mapping[str, str] | None = None,
        transpose: Iterable[str] = (),
    ) -> None:
        """Restore what `save`, or that of another face, wrote; see `adagrad.Adagrad.load`.

        Variables are called as named parameters are, else ``param_0``, ``param_1``, ... in the order of the groups.
        """
        statefile.load(self, path, strict=strict, names=names, transpose=transpose)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self.defaults, TorchGroup):
            self.param_groups = list(map(TorchGroup.of, self.param_groups))
        for group in self.param_groups:
            for name in () if isinstance(group, TorchGroup) else PAGE:
                group.setdefault(name, self.defaults[name])
        self._engine = None

    def __getstate__(self) -> dict[str, Any]:
        if self._engine is not None:
            self._engine.store_cycle()
        return {**super().__getstate__(), "check_ids": self.check_ids}
