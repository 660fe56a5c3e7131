"""Gradients on a CUDA device, looked over before anything changes: how each comes and where it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from adagrad.arrays.torch import Kinds, real
from adagrad.torch.devices import check_gradient, check_ids
from adagrad.torch.distributed import local_gradients

__all__ = ["NONE", "ROWS", "STATE", "STORED", "Gradients", "Reader", "RowGradient", "Table", "block_of", "group_ids"]

# How a gradient comes: not at all; dense, of the parameter's dtype or of the state's; some rows of it.
NONE, STORED, STATE, ROWS = range(4)


def block_of(count: int) -> int:
    """The smallest power of two that is not below ``count``."""
    return 1 << max(0, count - 1).bit_length()


class Table(NamedTuple):
    """A parameter as the kernels see it: its real, contiguous memory, and the dtype of its state."""

    name: str
    memory: torch.Tensor
    state: torch.dtype
    row_wise: bool

    @property
    def height(self) -> int:
        """The number of rows."""
        return self.memory.shape[0] if self.memory.dim() else 1

    @property
    def width(self) -> int:
        """The elements of a row."""
        return math.prod(self.memory.shape[1:])


class RowGradient(NamedTuple):
    """Rows of a table of ``height`` rows of ``width``; ``values`` is None where the gradient buffer has them."""

    ids: torch.Tensor  # sorted, with an order that leaves equal ones as they came
    order: torch.Tensor
    values: torch.Tensor | None
    height: int
    width: int


class Gradients(NamedTuple):
    """The gradients of one call, by slot."""

    codes: list[int]
    addresses: list[int]  # 0 where there is none; for rows any other number
    rows: dict[int, RowGradient]
    keep: list[torch.Tensor]  # what the addresses point to


def group_ids(ids: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``(sorted, order)`` of the ids, on their device; those outside [0, count) become -1 or ``count``."""
    ids = ids.clamp(-1, count)
    return torch.sort(ids.to(torch.int32) if count < 2**31 else ids, stable=True)


class Reader:
    """Looks over the gradients of ``tables``; ``states`` is what a step writes beside them."""

    def __init__(self, tables: Sequence[Table], states: Sequence[torch.Tensor]) -> None:
        self._tables = tables
        memories = [table.memory for table in tables]
        self._lows, self._highs = _extents([*memories, *states])
        self._kinds = Kinds(memories)

    def read(self, gradients: Sequence[Any], parameters: Sequence[Any], check: bool) -> Gradients:
        """The gradients as the kernels take them; a copy is made only of what they can't take as it lies.

        ``check``: look whether all ids are in range, which waits for the device. Raises ``TypeError`` or ``ValueError``.
        """
        if self._kinds.surely_of(gradients):  # all there, dense, contiguous, of their parameter's dtype
            places = np.fromiter(map(torch.Tensor.data_ptr, gradients), np.int64, len(gradients))
            sizes = np.array([table.memory.nbytes for table in self._tables])
            if not self._shared(places, sizes).any():
                return Gradients([STORED] * len(places), np.maximum(places, 1).tolist(), {}, list(gradients))
        codes, addresses, rows, keep = [NONE] * len(self._tables), [0] * len(self._tables), {}, []
        dense: list[tuple[int, torch.Tensor]] = []
        for v, (table, gradient) in enumerate(zip(self._tables, gradients, strict=True)):
            if gradient is not None:
                check_gradient(gradient, table.name, parameters[v])
        given = local_gradients(gradients, parameters)
        for v, (table, gradient) in enumerate(zip(self._tables, given, strict=True)):
            if gradient is None:
                continue
            if gradient.layout is torch.sparse_coo:
                codes[v], addresses[v], rows[v] = ROWS, 1, _rows(gradient.detach(), table, check)
                continue
            values = _kernel_values(gradient.detach(), table)
            codes[v] = STORED if values.dtype == table.memory.dtype else STATE
            addresses[v] = values.data_ptr() or 1  # of an empty one
            dense.append((v, values))
        if dense:
            low = np.array([values.data_ptr() for _, values in dense], np.int64)
            for j in np.flatnonzero(self._shared(low, np.array([values.nbytes for _, values in dense]))).tolist():
                v, values = dense[j]
                dense[j] = v, values.clone()
                addresses[v] = dense[j][1].data_ptr()
        keep += [values for _, values in dense]
        return Gradients(codes, addresses, rows, keep)

    def _shared(self, low: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Which of some memory is part of what a step writes."""
        before = self._lows.searchsorted(low + sizes)
        found: np.ndarray = (sizes > 0) & (before > 0) & (np.append(self._highs, 0)[before - 1] > low)
        return found


def _extents(tensors: Sequence[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Where contiguous tensors begin and end, in the order of memory."""
    filled = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.numel())
    low, high = np.array(filled, np.int64).reshape(-1, 2).T
    return low, high


def _kernel_values(values: torch.Tensor, table: Table) -> torch.Tensor:
    """Real, contiguous, of the dtype of the parameter or of its state."""
    values = real(values.resolve_conj()).resolve_neg()
    if values.dtype not in (table.memory.dtype, table.state):
        values = values.to(table.state)
    return values.contiguous()


def _rows(gradient: torch.Tensor, table: Table, check: bool) -> RowGradient:
    """A sparse gradient, not coalesced; one of entries is that of a table whose rows are what an entry holds."""
    ids, values = gradient._indices(), _kernel_values(gradient._values(), table)
    sizes = table.memory.shape[: gradient.sparse_dim()]
    if check:
        for axis, count in zip(ids, sizes, strict=True):
            check_ids(axis, table.name, count)
    if len(sizes) == 1:
        return RowGradient(*group_ids(ids[0], sizes[0]), values, sizes[0], table.width)
    inside = torch.ones_like(ids[0], dtype=torch.bool)
    for axis, count in zip(ids, sizes, strict=True):
        inside &= (axis >= 0) & (axis < count)
    first = 1 if table.row_wise else 0
    place = torch.zeros_like(ids[0])
    for axis, count in zip(ids[first:], sizes[first:], strict=True):
        place = place * count + axis
    place = torch.where(inside, place, -1)
    if not table.row_wise:
        count = math.prod(sizes)
        return RowGradient(*group_ids(place, count), values, count, math.prod(table.memory.shape[len(sizes) :]))
    # Its mean square needs whole rows: each entry in a row of its own, zero beside it.
    whole = values.new_zeros(len(place), math.prod(sizes[1:]), math.prod(table.memory.shape[len(sizes) :]))
    whole.scatter_(1, place.clamp(min=0)[:, None, None].expand(-1, 1, whole.shape[2]), values.reshape(len(place), 1, -1))
    return RowGradient(*group_ids(torch.where(inside, ids[0], -1), sizes[0]), whole, sizes[0], table.width)
