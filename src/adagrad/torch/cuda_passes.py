"""Passes of the Triton kernels over the parameters of one call: which launch sees which memory.

Dense gradients go in one launch for each pair of dtypes, and for what is aligned to 16 bytes and what is not, over a table of
addresses; row gradients, and tables with row-wise accumulators, go one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from adagrad.arrays.torch import wide_dtype
from adagrad.settings import Settings
from adagrad.torch.cuda_gradients import NONE, ROWS, STATE, STORED, Gradients, RowGradient, Table, block_of
from adagrad.torch.distributed import is_distributed, sum_over_shards

__all__ = ["BUFFERED", "Listed", "Passes"]

BUFFERED = -1  # a code of a gradient beside those of `cuda_gradients`: that of the cycle, in the buffer
_PATTERNS = 32  # so many sets of parameters with a gradient are kept ready
_SLOTS = 256  # of a program that works on scalars


class _Batch(NamedTuple):
    """Slots that one launch serves: equal dtypes, and gradients that come alike."""

    code: int
    stored: torch.dtype
    slots: list[int]
    chunks: torch.Tensor  # (slot, first element) of each program
    members: torch.Tensor  # (slot, first, after the last) partial sum of each


class Listed(NamedTuple):
    """A row gradient whose repeated ids are summed (`kernels.cuda_rows.gather`); ``buffered``: it is in the buffer."""

    ids: torch.Tensor
    sums: torch.Tensor
    ends: torch.Tensor
    positions: torch.Tensor | None  # by row, where all rows must move
    height: int
    width: int
    buffered: bool


class Passes:
    """What the kernels work on beside the parameters and states themselves, and their launches.

    ``rows`` are those of the table of addresses, ``scalars`` those of `kernels.cuda_elements`.
    """

    def __init__(
        self,
        whole: Settings,
        tables: list[Table],
        rows: list[list[int]],
        scalars: np.ndarray,
        steps: torch.Tensor,
        calls: list[int],
        in_cycle: list[bool],
    ) -> None:
        from adagrad.kernels import cuda, cuda_elements, cuda_norms, cuda_rows, cuda_scalars  # imports Triton

        self._cuda, self._rows, self._norms, self._scalar_kernels = cuda, cuda_rows, cuda_norms, cuda_scalars
        self._exact = cuda_elements.EXACT
        self._whole, self._tables = whole, tables
        self.device = steps.device
        self.captured = False  # into a graph, which may run at any time
        self.kept: list[Any] = []  # what graphs read
        self._sent: dict[str, list[Any]] = {}
        self._spare: dict[str, torch.Tensor] = {}
        self._batches: dict[Any, list[_Batch]] = {}
        self._aligned = np.array([all(number % 16 == 0 for number in row[:5]) for row in rows])
        self._rescued = any(table.state is torch.float64 for table in tables)
        self._slots, self._scalars, self._steps = self._new(rows, torch.int64), self._new(scalars, torch.float64), steps
        self.calls = self._new(calls, torch.int64)
        self.rates = self._new([0.0] * len(calls), torch.float64)
        self.cycle = self._new([int(on) for on in in_cycle], torch.int32)
        self._flags = self._new([0, 0, 0], torch.int32)
        self._active = self._new([0] * len(tables), torch.int32)
        self._grads = self._new([0] * len(tables), torch.int64)

    # -- memory on the device --------------------------------------------------------------------------------------

    def capturing(self) -> bool:
        """Whether what is launched now goes into a CUDA graph."""
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _on_host(self, values: Any, dtype: torch.dtype) -> torch.Tensor:
        host = torch.as_tensor(values, dtype=dtype, device="cpu")  # whatever the default device is
        return host.pin_memory() if self.device.type == "cuda" else host.clone()

    def _new(self, values: Any, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of these numbers on the device, which it does not wait for."""
        host = self._on_host(values, dtype)
        if self.capturing():
            self.kept.append(host)
        return torch.empty(host.shape, dtype=dtype, device=self.device).copy_(host, non_blocking=True)

    def _send(self, name: str, target: torch.Tensor, values: list[Any]) -> None:
        """Make ``target`` hold these numbers, unless it does; a captured graph that sets others may run at any time.

        A graph reads them from host memory that stays its own. It is made before: pinned memory is best not asked for
        while a stream is captured.
        """
        if self.capturing():
            host = self._spare.pop(name, None)
            if host is None:
                host = self._on_host(values, target.dtype)
            self.kept.append(host)
            target.copy_(host.copy_(torch.tensor(values, dtype=target.dtype, device="cpu")), non_blocking=True)
        elif self.captured or self._sent.get(name) != values:
            target.copy_(self._on_host(values, target.dtype), non_blocking=True)
            self._sent[name] = values
        if name not in self._spare and not self.capturing():
            self._spare[name] = self._on_host(values, target.dtype)

    def prepare(
        self, given: Gradients, rates: list[float], tensors: dict[int, torch.Tensor], grad_scale: Any, found_inf: Any
    ) -> None:
        """What this call is and its scalars, found out on the device; ``tensors`` are rates by group that are there already."""
        self._send("rates", self.rates, rates)
        for g, rate in tensors.items():
            self.rates[g : g + 1].copy_(rate.detach().reshape(1))
            self._sent.pop("rates", None)  # they are no longer what was sent
        self._send("grads", self._grads, given.addresses)
        self._scalar_kernels.prepare[(-(-len(self._tables) // _SLOTS),)](
            self._slots, self._grads, self._scalars, self._active, self.cycle, self._flags, self.calls, self._steps,
            self.rates, grad_scale, found_inf, len(self._tables), len(self.calls), self._whole.accumulation_steps,
            (self._whole.ema_overwrite_frequency or 0) if self._whole.use_ema else 0,
            SCALED=grad_scale is not None, CHECKED=found_inf is not None, GROUPS=block_of(len(self.calls)), BLOCK=_SLOTS,
            **self._exact,
        )  # fmt: skip

    def count(self) -> None:
        """Stage 11."""
        blocks = -(-max(len(self._tables), len(self.calls)) // _SLOTS)
        self._scalar_kernels.count[(blocks,)](
            self._flags, self._active, self.calls, self._steps, len(self._tables), len(self.calls), BLOCK=_SLOTS, **self._exact
        )

    # -- dense gradients -------------------------------------------------------------------------------------------

    def _batches_of(self, codes: Sequence[int]) -> list[_Batch]:
        """The batches for dense gradients that come as ``codes`` say; kept, since the next call's mostly come alike."""
        key = tuple(codes)
        found = self._batches.get(key)
        if found is None:
            kinds: dict[tuple[torch.dtype, int, bool], list[int]] = {}
            for v, (code, table) in enumerate(zip(codes, self._tables, strict=True)):
                if code != ROWS and table.memory.numel():
                    kinds.setdefault((table.memory.dtype, code, bool(self._aligned[v])), []).append(v)
            found = [self._batch(code, stored, slots) for (stored, code, _), slots in kinds.items()]
            if self.capturing():
                self.kept.append(found)  # its tables are filled when the graph runs: it is of use to that graph alone
            else:
                if len(self._batches) >= _PATTERNS and not self.captured:
                    self._batches.clear()
                self._batches[key] = found
        return found

    def _batch(self, code: int, stored: torch.dtype, slots: list[int]) -> _Batch:
        chunk = self._cuda.CHUNK
        counts = np.array([-(-self._tables[v].memory.numel() // chunk) for v in slots])
        ends = np.cumsum(counts)
        first = (np.arange(ends[-1]) - np.repeat(ends - counts, counts)) * chunk
        chunks = np.stack([np.repeat(slots, counts), first], axis=1)
        members = np.stack([slots, ends - counts, ends], axis=1) * [1, self._norms.BLOCKS, self._norms.BLOCKS]
        return _Batch(code, stored, slots, self._new(chunks, torch.int64), self._new(members, torch.int64))

    def _types(self, code: int, stored: torch.dtype) -> dict[str, Any]:
        """What a kernel is compiled for."""
        types = self._cuda.TYPES
        state = wide_dtype(stored)
        return {"GRAD": {STORED: types[stored], STATE: types[state]}.get(code), "STATE": types[state]}

    def _is_aligned(self, code: int, slots: list[int], addresses: list[int]) -> bool:
        """Whether all that a launch works on is a multiple of 16, addresses and sizes."""
        return bool(self._aligned[slots].all()) and (code not in (STORED, STATE) or all(addresses[v] % 16 == 0 for v in slots))

    def accumulate(self, given: Gradients, listed: dict[int, Listed]) -> None:
        """Stages 3 and 4: every gradient of the call into its buffer, on a real step too."""
        kernel, sizes = self._cuda.accumulate, {"CHUNK": self._cuda.CHUNK, "BLOCK": self._cuda.BLOCK}
        for batch in self._batches_of([ROWS if code == NONE else code for code in given.codes]):
            aligned = self._is_aligned(batch.code, batch.slots, given.addresses)
            kernel[(len(batch.chunks),)](
                self._slots, self._grads, batch.chunks, self._scalars, self._flags,
                **self._types(batch.code, batch.stored), ALIGNED=aligned, **sizes, **self._exact,
            )  # fmt: skip
        for v, rows in listed.items():
            tile = self._tile(rows.width)
            self._rows.accumulate[(-(-len(rows.ids) // tile["ROWS"]),)](
                self._slots, self._scalars, self._flags, rows.ids, rows.sums, v, len(rows.ids), rows.height, rows.width,
                STATE=self._cuda.TYPES[self._tables[v].state], **tile, **self._exact,
            )  # fmt: skip

    def _tile(self, width: int) -> dict[str, int]:
        """The rows and columns of a program."""
        columns = min(block_of(width), self._rows.TILE)
        return {"ROWS": self._rows.TILE // columns, "COLUMNS": columns}

    def gathered(self, v: int, rows: RowGradient, *, mapped: bool) -> Listed:
        """The rows with their repeated ids summed."""
        n, state = len(rows.ids), self._tables[v].state
        width = rows.width if rows.values is not None else 0
        sums = torch.empty(n * width, dtype=state, device=self.device)
        ends = torch.empty(n, dtype=torch.int64, device=self.device)
        positions = torch.zeros(rows.height, dtype=torch.int32, device=self.device) if mapped else None
        values = sums if rows.values is None else rows.values
        if values.dtype is torch.bfloat16:
            values = values.view(torch.uint16)
        columns = min(block_of(width), self._rows.TILE)
        if n:
            self._rows.gather[(n, max(1, -(-width // columns)))](
                values, rows.ids, rows.order, sums, ends, ends if positions is None else positions, n, rows.height, width,
                STATE=self._cuda.TYPES[state], MAPPED=mapped, COLUMNS=columns, UNROLL=self._rows.UNROLL, **self._exact,
            )  # fmt: skip
        return Listed(rows.ids, sums, ends, positions, rows.height, rows.width, rows.values is None)

    # -- stages 5 to 10 --------------------------------------------------------------------------------------------

    def clip(self, codes: list[int], listed: dict[int, Listed], staged: bool, parameters: Sequence[Any]) -> None:
        """Stage 5's factors, from norms that never leave the device; over all shards of ``parameters``."""
        norms, rescued = self._norms, self._rescued
        sums = norms.SUMS.value
        found = torch.zeros(len(self._tables), sums, dtype=torch.float64, device=self.device)
        for batch in self._batches_of(codes):
            if batch.code == NONE:
                continue
            partials = torch.empty(len(batch.chunks) * norms.BLOCKS * sums, dtype=torch.float64, device=self.device)
            norms.dense_squares[(len(batch.chunks),)](
                self._slots, self._grads, batch.chunks, self._scalars, partials, **self._types(batch.code, batch.stored),
                STAGED=staged, RESCUED=rescued, BLOCKS=norms.BLOCKS, **self._exact,
            )  # fmt: skip
            norms.totals[(len(batch.members),)](batch.members, partials, found, RESCUED=rescued, **self._exact)
        for v, rows in listed.items():
            if not len(rows.ids) or not rows.width:
                continue
            n = len(rows.ids)
            blocks = n * ((rows.width - 1) // norms.BLOCK + 2)
            partials = torch.zeros(blocks * sums, dtype=torch.float64, device=self.device)
            norms.row_squares[(n,)](
                self._slots, self._scalars, rows.ids, rows.sums, rows.ends, partials, v, n, rows.height, rows.width,
                STATE=self._cuda.TYPES[self._tables[v].state], BUFFERED=rows.buffered, RESCUED=rescued, **self._exact,
            )  # fmt: skip
            norms.total[(1,)](partials, found, v, blocks, RESCUED=rescued, **self._exact)
        if any(map(is_distributed, parameters)):
            found = torch.stack(sum_over_shards(list(found), parameters))
        over_all = self._whole.global_clipnorm is not None
        norms.factors[(-(-len(found) // _SLOTS),)](
            found, self._scalars, len(found), OVER_ALL=over_all, RESCUED=rescued, SLOTS=_SLOTS, **self._exact
        )

    def move(self, codes: list[int], addresses: list[int], listed: dict[int, Listed], staged: bool) -> None:
        """Stages 5 to 10."""
        averaged = self._whole.use_ema
        alone = [v for v, code in enumerate(codes) if code not in (NONE, ROWS) and self._tables[v].row_wise]
        for batch in self._batches_of([ROWS if v in alone else code for v, code in enumerate(codes)]):
            if batch.code != NONE or averaged:
                self._cuda.step[(len(batch.chunks),)](
                    self._slots, self._grads, batch.chunks, self._scalars, self._active, self._flags,
                    STORED=self._cuda.TYPES[batch.stored], **self._types(batch.code, batch.stored), AVERAGED=averaged,
                    STAGED=staged, ALIGNED=self._is_aligned(batch.code, batch.slots, addresses), CHUNK=self._cuda.CHUNK,
                    BLOCK=self._cuda.BLOCK, **self._exact,
                )  # fmt: skip
        for v in alone:
            self._step_rows(v, codes[v], None, staged, self._is_aligned(codes[v], [v], addresses))
        for v, rows in listed.items():
            self._step_rows(v, BUFFERED if rows.buffered else STATE, rows, staged, bool(self._aligned[v]))

    def _step_rows(self, v: int, code: int, rows: Listed | None, staged: bool, aligned: bool) -> None:
        """The rows of a table that ``rows`` lists; all of them with a dense gradient, or where all must move."""
        table = self._tables[v]
        height, width = (table.height, table.width) if rows is None else (rows.height, rows.width)
        # What a launch does not have stands there as any tensor, which it does not look at.
        ids = sums = positions = self._flags
        mapped = listed = False
        if rows is not None:
            ids, sums, mapped, listed = rows.ids, rows.sums, rows.positions is not None, rows.positions is None
            positions = self._flags if rows.positions is None else rows.positions
        n = len(ids) if listed else height
        if not n or not width:
            return
        tile = self._tile(width)
        self._rows.step[(-(-n // tile["ROWS"]),)](
            self._slots, self._grads, self._scalars, self._active, self._flags, ids, sums, positions, v, n, height, width,
            STORED=self._cuda.TYPES[table.memory.dtype], **self._types(code, table.memory.dtype), LISTED=listed,
            MAPPED=mapped, ROW_WISE=table.row_wise, AVERAGED=self._whole.use_ema, STAGED=staged, ALIGNED=aligned,
            **tile, **self._exact,
        )  # fmt: skip
