"""PyTorch tensors in main memory for the engine: their memory as NumPy arrays, and gradients made ready for the kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from adagrad.arrays.numpy import OTHER, STORED, Layout, check_ids, entry_rows

TensorGuards: Any = None  # compares a thousand tensors in the time that Python takes to look at fifty
with contextlib.suppress(ImportError):  # no promised interface of PyTorch
    from torch._C._dynamo.guards import TensorGuards

__all__ = ["DTYPES", "Kinds", "TensorLayout", "local", "real", "stored_view", "wide_dtype"]

# The bits of halves as the kernels take them.
_BITS = {torch.float16: torch.uint16, torch.bfloat16: torch.int16}
_REAL = (torch.float64, torch.float32, *_BITS)
DTYPES = (*_REAL, torch.complex64, torch.complex128)


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return tensor.dtype, tensor.device, tensor.shape, strides, tensor.is_neg()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic and of all state of a parameter: that of the parameter, float32 for halves."""
    return torch.float32 if dtype in _BITS else dtype


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process keeps of ``tensor``: its shard if it is a DTensor, else itself; detached."""
    inner = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return inner.detach()


def real(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor as a real one with a last dimension of two, in the same memory; others as they are."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def stored_view(tensor: torch.Tensor) -> np.ndarray:
    """A real tensor in main memory as the kernels see it, sharing its memory."""
    bits = _BITS.get(tensor.dtype)
    array: np.ndarray = (tensor if bits is None else tensor.view(bits)).numpy()
    return array


def _values(gradient: torch.Tensor, name: str) -> torch.Tensor:
    """The numbers of a gradient, dense or of a sparse one, as a plain real tensor in main memory."""
    if gradient.device.type != "cpu":
        raise ValueError(f"the gradient of {name} must be on its device, cpu, got {gradient.device}")
    if gradient.dtype not in DTYPES:
        raise TypeError(f"the gradient of {name} must be one of {', '.join(map(str, DTYPES))}, got {gradient.dtype}")
    return real(gradient.detach().resolve_conj()).resolve_neg()


def _dense(gradient: torch.Tensor, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if gradient.layout is not torch.strided:
        raise TypeError(f"the gradient of {name} must be dense or sparse COO, got {gradient.layout}")
    values = _values(gradient, name)
    if tuple(values.shape) != shape:
        raise ValueError(f"the gradient of {name} must have its shape {shape}, got {tuple(values.shape)}")
    if values.dtype == torch.bfloat16:  # which NumPy doesn't know
        values = values.float()
    array: np.ndarray = values.numpy()
    return array


def _rows(
    gradient: torch.Tensor, name: str, shape: tuple[int, ...], stored: np.dtype, state: np.dtype
) -> tuple[np.ndarray, np.ndarray] | None:
    """A sparse COO gradient as ``(flat values, ids)``, uncoalesced as it came; None for a dense one."""
    if gradient.layout is not torch.sparse_coo:
        return None
    if gradient.sparse_dim() == 0:
        raise TypeError(f"the gradient of {name} must be dense, or sparse in its first dimension, got no sparse dimension")
    values, indices = _values(gradient._values(), name), gradient._indices().numpy()
    whole = (*gradient.shape, 2) if gradient.is_complex() else tuple(gradient.shape)
    if whole != shape:
        raise ValueError(f"the gradient of {name} must have its shape {shape}, got {whole}")
    if gradient.sparse_dim() > 1 or stored_view(values).dtype not in (stored, state):
        values = values.to(torch.float64 if state == np.float64 else torch.float32)
    if gradient.sparse_dim() > 1:  # entries, not rows
        summed, ids = entry_rows(list(indices), values.numpy(), name, shape)
        return summed.reshape(-1), ids
    check_ids(indices[0], name, shape[0])
    return stored_view(values.contiguous()).reshape(-1), np.ascontiguousarray(indices[0], np.int64)


class Kinds:
    """What some tensors are: dtype, device, layout, shape and strides of each."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._each = list(map(_kind, tensors))
        self._all: Any = None
        if TensorGuards is not None and tensors:
            self._all = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)

    def surely_of(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """A quick look: True if ``tensors``, as many, are alike. False says nothing: it may be the mode of autograd."""
        return self._all is not None and bool(self._all.check(*tensors))

    def of(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether ``tensors``, as many, are alike."""
        return self.surely_of(tensors) or list(map(_kind, tensors)) == self._each


class TensorLayout(Layout):
    """`Layout` for gradients that are tensors, in a face whose tensors can always be written."""

    row_gradient = staticmethod(_rows)
    dense_gradient = staticmethod(_dense)

    def set_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        """Tell the tensors whose `stored_view` the layout was made of."""
        self._expected = [(tensor.dtype, tensor.is_cpu, tensor.shape) for tensor in tensors]
        # Slots whose gradients could all be read where they lie, and what these were: the next ones mostly are the same.
        self._usual: tuple[np.ndarray, Kinds] = np.empty(0, np.int64), Kinds([])

    def read_only(self) -> list[int]:
        """None can't be written."""
        return []

    def look(self, slots: np.ndarray, gradients: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """See `Layout.look`."""
        codes, addresses = np.full(len(gradients), OTHER, np.int8), np.zeros(len(gradients), np.int64)
        usual, kinds = self._usual
        if np.array_equal(slots, usual) and kinds.surely_of(gradients):
            there = np.arange(len(gradients))
        else:
            there = np.flatnonzero(list(map(self._lies_ready, slots.tolist(), gradients)))
            if there.size == len(gradients):
                self._usual = slots, Kinds(gradients)
        addresses[there] = list(map(torch.Tensor.data_ptr, [gradients[j] for j in there.tolist()]))
        ends = addresses[there] + self._sizes[slots[there]]
        before = self._lows.searchsorted(ends)
        apart = (before == 0) | (self._highs[before - 1] <= addresses[there]) if self._highs.size else before == 0
        codes[there] = np.where(apart, STORED, OTHER)
        return codes, addresses

    def _lies_ready(self, v: int, gradient: torch.Tensor | None) -> bool:
        """Whether the kernels can read the gradient of slot ``v`` where it lies."""
        if gradient is None or gradient.layout is not torch.strided:
            return False
        alike = (gradient.dtype, gradient.is_cpu, gradient.shape) == self._expected[v]
        return alike and gradient.is_contiguous() and not gradient.is_neg()
