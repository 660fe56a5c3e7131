"""PyTorch's optimizer on CPU tensors: fused, foreach, a loop, and sparse gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from adagrad.torch import Adagrad
from bench import harness
from bench.arguments import Subject, Variant
from bench.peers import SETTINGS, Peer

__all__ = ["Face", "Foreach", "Fused", "Loop", "Sparse", "TorchSubject", "torch_threads"]


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set PyTorch's number of threads for the time of a turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Torch(Peer):
    epsilon_placement = "outside"
    options: dict[str, bool] = {}  # noqa: RUF012

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        self.parameters = [torch.nn.Parameter(torch.tensor(p)) for p in parameters]
        self.optimizer = torch.optim.Adagrad(
            self.parameters,
            lr=SETTINGS["learning_rate"],
            initial_accumulator_value=SETTINGS["initial_accumulator_value"],
            eps=SETTINGS["epsilon"],
            **self.options,
        )

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """Tensors on the same memory."""
        return [torch.from_numpy(g) for g in gradients]

    def step(self, gradient: Any) -> None:
        """``optimizer.step()`` with the gradients in ``.grad``."""
        for p, g in zip(self.parameters, gradient, strict=True):
            p.grad = g
        self.optimizer.step()

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """The tensor's memory, or some rows."""
        found: np.ndarray = self.parameters[number].detach().numpy()
        return found if rows is None else found[rows]

    def turn(self, threads: int) -> contextlib.AbstractContextManager[object]:
        """With ``torch.set_num_threads``."""
        return torch_threads(threads)


class Face(_Torch):
    """Ours: `adagrad.torch.Adagrad`."""

    epsilon_placement = "inside"
    row_form = "sparse, not coalesced"

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        self.parameters = [torch.nn.Parameter(torch.tensor(p)) for p in parameters]
        self.optimizer = Adagrad(
            self.parameters,
            lr=SETTINGS["learning_rate"],
            initial_accumulator_value=SETTINGS["initial_accumulator_value"],
            eps=SETTINGS["epsilon"],
        )

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """One sparse COO tensor."""
        return _coo(values, ids, self.parameters[0].shape)

    def turn(self, threads: int) -> contextlib.AbstractContextManager[object]:
        """On pinned threads."""
        return harness.own_threads(threads)


class Fused(_Torch):
    """``fused=True``: one kernel call for all parameters."""

    options = {"fused": True}  # noqa: RUF012


class Foreach(_Torch):
    """``foreach=True``."""

    options = {"foreach": True}  # noqa: RUF012


class Loop(_Torch):
    """``foreach=False``: what CPU tensors get by default."""

    options = {"foreach": False}  # noqa: RUF012


class Sparse(_Torch):
    """A sparse gradient, as ``nn.Embedding(sparse=True)`` makes it: ids as they came, not yet coalesced."""

    row_form = "sparse, not coalesced"

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """One sparse COO tensor."""
        return _coo(values, ids, self.parameters[0].shape)


def _coo(values: np.ndarray, ids: np.ndarray, shape: torch.Size) -> list[torch.Tensor]:
    return [torch.sparse_coo_tensor(torch.from_numpy(ids)[None], torch.from_numpy(values), shape, check_invariants=False)]


class TorchSubject(Subject):
    """One parameter of `adagrad.torch.Adagrad` with one argument."""

    suffix = ", in adagrad.torch"

    def __init__(self, variant: Variant, parameter: np.ndarray, feed: Callable[[np.dtype], Any]) -> None:
        self.variant, self.feed = variant, feed
        self.parameter = parameter.astype(variant.dtype)
        self.tensor = torch.nn.Parameter(_tensor(self.parameter))
        self.optimizer = Adagrad([self.tensor], 0.01, **variant.settings)

    def fed(self) -> Any:
        """A tensor, or a sparse one."""
        found = super().fed()
        if isinstance(found, np.ndarray):
            return _tensor(found)
        indices = torch.from_numpy(found.indices)[None]
        return torch.sparse_coo_tensor(indices, _tensor(found.values), self.tensor.shape, check_invariants=False)

    def step(self, gradient: Any) -> None:
        """``optimizer.step()`` with the gradient in ``.grad``."""
        self.tensor.grad = gradient
        self.optimizer.step()


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor on the memory of an array, which may be bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
