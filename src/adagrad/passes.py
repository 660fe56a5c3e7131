"""Passes of the kernels over the variables of one call: which kernel sees which memory.

Plain variables with plain gradients go in one call for each pair of dtypes, over a table of addresses. Row gradients go
one call each. What a kernel can't work on as it lies (strides, byte order, a foreign gradient dtype) passes through
small chunks that are copied in and out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from adagrad.arrays.numpy import BUFFERED, NONE, OTHER, STATE, STORED, address, chunks, is_plain, stored_view
from adagrad.kernels import dense, elements, norms, rows, rowwise, threads
from adagrad.kernels.compiling import at
from adagrad.settings import Settings
from adagrad.slots import Slot

__all__ = ["Call", "Rows", "Scalars", "Tables", "average_slot", "overwrite_slot", "static_scalars"]

_ALIGN = 1024  # slices of threads begin on lines of their own
_BLOCK = 1 << 15  # elements of a block that is copied out and in
_NO_IDS = np.empty(0, np.int64)


class Rows:
    """A row gradient with its ids grouped: flat ``values``, and the rows that it and the buffer have touched."""

    def __init__(self, values: np.ndarray, ids: np.ndarray, shape: tuple[int, ...]) -> None:
        self._source = values, ids  # whose memory the arrays below may lie in
        self.values = _writable(values)
        self.ids = _writable(ids)
        self.count = shape[0]
        self.width = math.prod(shape[1:])
        self.full_buffer = False
        self.rows, self.starts, self.order = _group(self.ids, self.count)

    def with_buffer(self, touched: bool | list[np.ndarray]) -> Rows:
        """The same gradient in a cycle whose buffer holds something in the rows ``touched``, True for any row."""
        if touched is True:
            self.full_buffer = True
        elif touched:
            ids = np.concatenate([self.ids, *touched])
            self.rows, self.starts, self.order = _group(ids, self.count)
        return self

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What the row kernels take."""
        return self.values, self.rows, self.starts, self.order


def _writable(array: np.ndarray) -> np.ndarray:
    """The same memory without the mark of being read-only, for which Numba would compile every kernel once more."""
    if array.flags.writeable:
        return array
    view = at(address(array), array.size, array)
    assert view is not None
    return view


def _group(ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if max(count, ids.size) < 2**31:
        return rows.group(ids, count)
    order = np.argsort(ids, kind="stable")
    unique, starts = np.unique(ids[order], return_index=True)
    return unique, np.append(starts, ids.size), order


class Scalars:
    """The rows of scalars of all slots (`kernels.elements`), in double precision; the kernels get them rounded once."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self._rounded: dict[np.dtype, np.ndarray] = {}

    def rounded(self, state: np.dtype) -> np.ndarray:
        """The table in the dtype of the arithmetic."""
        if state not in self._rounded:
            with np.errstate(over="ignore", invalid="ignore"):
                self._rounded[state] = self.table.astype(state)
        return self._rounded[state]


def static_scalars(slots: Sequence[Any], whole: Settings) -> np.ndarray:
    """The rows of scalars of ``slots``, each with its ``settings``, ``sign`` and ``decays``: what no call changes."""
    table = np.tile(elements.NEUTRAL, (len(slots), 1))
    for v, slot in enumerate(slots):
        own = slot.settings
        table[v, elements.INSIDE if own.epsilon_placement == "inside" else elements.OUTSIDE] = own.epsilon
        if own.clipvalue is not None:
            table[v, elements.CLIPVALUE] = own.clipvalue
        decay = elements.DECAY if own.weight_decay_mode == "decoupled" else elements.L2
        table[v, decay] = (own.weight_decay or 0.0) * slot.decays
    table[:, elements.SCALE] = [slot.sign for slot in slots]
    table[:, elements.STEPS] = whole.accumulation_steps
    table[:, elements.MOMENTUM], table[:, elements.COMPLEMENT] = whole.ema_momentum, 1 - whole.ema_momentum
    return table


class Batch(NamedTuple):
    """Slots that one call of a dense kernel serves: equal dtypes, and gradients that come alike."""

    code: int
    where: np.ndarray | slice
    slots: list[int]
    sizes: np.ndarray
    ends: np.ndarray
    param: np.ndarray  # empty, of the parameter's dtype
    grad: np.ndarray | None  # empty, of the gradient's dtype
    state: np.dtype


class Tables:
    """Where the arrays of the slots lie; made once, read by every call."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        arrays = [(s.view, s.accumulator, None, s.average, s.buffer) for s in slots]
        table = [[0 if a is None else address(a) for a in row] for row in arrays]
        self.addresses = np.array(table, np.int64).reshape(-1, 5)
        self.sizes = np.array([slot.view.size for slot in slots], np.int64)
        self.constrained = np.array([slot.constraint is not None for slot in slots], bool)
        # The slots that a table of addresses serves; the others go one by one.
        self.direct = np.array([slot.plain and not slot.row_wise for slot in slots], bool) & ~self.constrained
        self.indirect = np.flatnonzero(~self.direct)
        self.averaged = any(slot.average is not None for slot in slots)
        self.buffered = any(slot.buffer is not None for slot in slots)
        pairs = [(slot.view.dtype, slot.accumulator.dtype) for slot in slots]
        self._groups = [
            (stored, state, np.array([p == (stored, state) for p in pairs], bool) & self.direct)
            for stored, state in dict.fromkeys(pairs)
        ]
        self._batches: tuple[bytes, list[Batch]] = (b"", [])

    def batches(self, codes: np.ndarray) -> list[Batch]:
        """The batches for gradients that come as ``codes`` say; kept, since the next call's mostly come alike."""
        key = codes.tobytes()
        if key != self._batches[0]:
            self._batches = key, list(self._make_batches(codes))
        return self._batches[1]

    def _make_batches(self, codes: np.ndarray) -> Iterator[Batch]:
        for stored, state, members in self._groups:
            for code in sorted(set(codes[members].tolist()) - {OTHER}):
                index = np.flatnonzero(members & (codes == code))
                sizes = self.sizes[index]
                gradient = {STORED: stored, STATE: state}.get(code)
                like = None if gradient is None else np.empty(0, gradient)
                where = slice(None) if index.size == codes.size else index
                yield Batch(code, where, index.tolist(), sizes, np.cumsum(sizes), np.empty(0, stored), like, state)


class Call:
    """The gradients of one call, by slot: how each comes, and where it is. It keeps them alive."""

    def __init__(
        self, tables: Tables, slots: np.ndarray | slice, codes: np.ndarray, addresses: np.ndarray, keep: object
    ) -> None:
        self.tables = tables
        self.codes = np.zeros(len(tables.slots), np.int8)  # NONE
        self.codes[slots] = codes
        self.addresses = tables.addresses.copy()
        self.addresses[slots, dense.GRADIENT] = addresses
        self.rows: dict[int, Rows] = {}
        self.dense: dict[int, np.ndarray | None] = {}  # None: a gradient of zero, the buffer has it all
        self._kept = [keep]  # what the addresses point to

    def add_rows(self, v: int, gradient: Rows) -> None:
        """Give slot ``v`` a row gradient."""
        self.codes[v] = OTHER
        self.rows[v] = gradient

    def add_dense(self, v: int, gradient: np.ndarray) -> None:
        """Give slot ``v`` a dense gradient of its shape, of any real dtype and layout."""
        slot = self.tables.slots[v]
        view = stored_view(gradient)
        usable = view is not None and is_plain(view) and view.dtype in (slot.view.dtype, slot.accumulator.dtype)
        if view is not None and usable and self.tables.direct[v]:
            self.codes[v] = STORED if view.dtype == slot.view.dtype else STATE
            self.addresses[v, dense.GRADIENT] = address(view)
            self._kept.append(view)
        else:
            self.codes[v] = OTHER
            self.dense[v] = gradient

    def close_cycle(self) -> None:
        """On a real step under accumulation: what earlier calls of the cycle brought takes part."""
        if not self.tables.buffered:
            return
        for v, slot in enumerate(self.tables.slots):
            if slot.touched is None:
                continue
            if v in self.rows:
                self.rows[v].with_buffer(slot.touched)
            elif self.codes[v] == NONE and slot.touched is True:
                self.codes[v] = BUFFERED if self.tables.direct[v] else OTHER
                if self.codes[v] == OTHER:
                    self.dense[v] = None
            elif self.codes[v] == NONE:
                empty = np.empty(0, slot.accumulator.dtype)
                self.add_rows(v, Rows(empty, _NO_IDS, slot.array.shape).with_buffer(slot.touched))

    def constrained(self) -> list[int]:
        """The slots whose step needs their constraint: with a gradient, or with an average that may overwrite them."""
        if not self.tables.constrained.any():
            return []
        mask = self.tables.constrained & ((self.codes != NONE) | self.tables.averaged)
        return [int(v) for v in np.flatnonzero(mask)]

    # -- tables of addresses ---------------------------------------------------------------------------------------

    def _batches(self, *codes: int) -> list[Batch]:
        return [batch for batch in self.tables.batches(self.codes) if batch.code in codes]

    def _sweep(self, kernel: Callable[..., None], batch: Batch, scalars: Scalars, *rest: object) -> None:
        """Run a dense kernel over the slots of ``batch``, on as many threads as it is worth."""
        addresses, rounded, total = self.addresses[batch.where], scalars.rounded(batch.state)[batch.where], int(batch.ends[-1])
        threads.run(lambda lo, hi: kernel(addresses, batch.ends, rounded, lo, hi, *rest), total, total, _ALIGN)

    def step(self, scalars: Scalars, staged: bool, overwrite: bool) -> None:
        """Stages 3 to 10 of every slot without a constraint."""
        tables = self.tables
        averaged, buffered = _flag(tables.averaged), _flag(tables.buffered)
        for batch in self._batches(STORED, STATE, BUFFERED):
            self._sweep(dense.step, batch, scalars, batch.param, batch.grad, averaged, buffered, _flag(staged), overwrite)
        for v in (*self.dense, *self.rows):
            if not tables.constrained[v]:
                self.step_slot(tables.slots[v], v, scalars, staged, overwrite)
        if tables.averaged:
            self._average(scalars, overwrite)

    def _average(self, scalars: Scalars, overwrite: bool) -> None:
        """Stages 9 and 10 of slots without a gradient."""
        tables = self.tables
        for batch in self._batches(NONE):
            self._sweep(dense.ema, batch, scalars, batch.param, overwrite)
        for v in tables.indirect.tolist():
            if self.codes[v] == NONE and not tables.constrained[v]:
                average_slot(tables.slots[v], v, scalars, overwrite)

    def accumulate(self, scalars: Scalars) -> None:
        """Stages 3 and 4 on a call that is no real step."""
        tables = self.tables
        for batch in self._batches(STORED, STATE):
            self._sweep(dense.accumulate, batch, scalars, batch.grad)
            for v in batch.slots:
                tables.slots[v].touched = True
        for v, array in self.dense.items():
            slot = tables.slots[v]
            assert slot.buffer is not None
            assert array is not None
            slot.touched = True
            rounded = scalars.rounded(slot.buffer.dtype)[v : v + 1]
            for g, b in chunks((array, slot.buffer), (slot.buffer.dtype,) * 2, (False, True)):
                addresses = np.array([[0, 0, address(g), 0, address(b)]])
                dense.accumulate(addresses, np.array([g.size]), rounded, 0, g.size, g[:0])
        for v, gradient in self.rows.items():
            slot = tables.slots[v]
            assert slot.buffer is not None
            s = scalars.rounded(slot.buffer.dtype)[v]
            rows.accumulate(slot.buffer.reshape(-1), *gradient.arrays(), gradient.width, s, 0, gradient.rows.size)
            if slot.touched is not True:
                touched = [*(slot.touched or []), gradient.rows]
                slot.touched = touched if sum(map(len, touched)) < gradient.count else True

    # -- norms -----------------------------------------------------------------------------------------------------

    def totals(self, scalars: Scalars, *, buffered: bool, scale: float = 1.0) -> np.ndarray:
        """The sum of squares of each slot's gradient times ``scale``, after stage 3 and, if ``buffered``, stage 4."""
        tables = self.tables
        buffered = buffered and tables.buffered
        totals = np.zeros(len(tables.slots))
        for batch in self._batches(STORED, STATE, BUFFERED):
            ends = np.cumsum(-(-batch.sizes // norms.BLOCK))
            partials = np.empty(int(ends[-1]))
            table = self.addresses[batch.where], batch.sizes, ends, scalars.rounded(batch.state)[batch.where], scale
            blocks = functools.partial(norms.dense_blocks, *table)
            rest = partials, batch.grad, _flag(buffered)
            threads.run(lambda lo, hi: blocks(lo, hi, *rest), partials.size, int(batch.ends[-1]) // 2)  # noqa: B023
            totals[batch.where] = norms.sum_in_order(partials, np.append(0, ends[:-1]), ends)
        for v, dense_gradient in self.dense.items():
            totals[v] = self._stream_total(tables.slots[v], v, dense_gradient, scalars, scale, buffered)
        for v, gradient in self.rows.items():
            slot = tables.slots[v]
            buffer = slot.buffer.reshape(-1) if buffered and slot.buffer is not None else None
            s = scalars.rounded(slot.accumulator.dtype)[v]
            count = gradient.count if buffered and gradient.full_buffer else 0
            totals[v] = rows.squares(buffer, *gradient.arrays(), gradient.width, s, scale, count)
        return totals

    def _stream_total(
        self, slot: Slot, v: int, gradient: np.ndarray | None, scalars: Scalars, scale: float, buffered: bool
    ) -> float:
        state = slot.accumulator.dtype
        s = scalars.rounded(state)[v]
        lanes, running = np.zeros(norms.LANES), np.array([0.0, -1.0])
        given = [a for a in (gradient, slot.buffer if buffered else None) if a is not None]
        first = 0
        for arrays in chunks(given, [state] * len(given), [False] * len(given)):
            g, b = arrays[0] if gradient is not None else None, arrays[-1] if buffered else None
            norms.add_stream(lanes, running, first, arrays[0].size, g, b, s, scale)
            first += arrays[0].size
        return float(norms.end_stream(lanes, running))

    # -- one slot --------------------------------------------------------------------------------------------------

    def step_slot(self, slot: Slot, v: int, scalars: Scalars, staged: bool, overwrite: bool, *, average: bool = True) -> None:
        """Stages 3 to 10 of ``slot``, the one numbered ``v`` or a copy of it; 9 and 10 only with ``average``."""
        averages = slot.average if average else None
        state = slot.accumulator.dtype
        s = scalars.rounded(state)[v]
        if v in self.rows:
            _step_rows(slot, self.rows[v], averages, s, staged, overwrite)
            return
        gradient = self.dense[v]
        if slot.row_wise:
            _step_row_wise(slot, gradient, averages, s, staged, overwrite)
            return
        given = {dense.PARAMETER: slot.view, dense.ACCUMULATOR: slot.accumulator, dense.GRADIENT: gradient,
                 dense.AVERAGE: averages, dense.BUFFER: slot.buffer}  # fmt: skip
        present = {column: array for column, array in given.items() if array is not None}
        dtypes = [slot.view.dtype.newbyteorder("=")] + [state] * (len(present) - 1)
        addresses = np.zeros((1, 5), np.int64)
        like = None if gradient is None else np.empty(0, state)
        flags = _flag(averages is not None), _flag(slot.buffer is not None), _flag(staged)
        for arrays in chunks(list(present.values()), dtypes, [column != dense.GRADIENT for column in present]):
            addresses[0, list(present)] = [address(array) for array in arrays]
            size = arrays[0].size
            dense.step(addresses, np.array([size]), s[None], 0, size, arrays[0][:0], like, *flags, overwrite)


def average_slot(slot: Slot, v: int, scalars: Scalars, overwrite: bool) -> None:
    """Stages 9 and 10 of ``slot`` alone, the one numbered ``v`` or a copy of it."""
    assert slot.average is not None
    state = slot.average.dtype
    s = scalars.rounded(state)[v : v + 1]
    for p, m in chunks((slot.view, slot.average), (slot.view.dtype.newbyteorder("="), state), (True, True)):
        addresses = np.array([[address(p), 0, 0, address(m), 0]])
        dense.ema(addresses, np.array([p.size]), s, 0, p.size, p[:0], overwrite)


def overwrite_slot(slot: Slot) -> None:
    """``p = m``, rounded to the parameter's dtype."""
    assert slot.average is not None
    with np.errstate(over="ignore", invalid="ignore"):
        slot.array[...] = slot.average


def _step_rows(slot: Slot, gradient: Rows, averages: np.ndarray | None, s: np.ndarray, staged: bool, overwrite: bool) -> None:
    decays = s[elements.DECAY] != 0 or s[elements.L2] != 0
    every = bool(averages is not None or decays or gradient.full_buffer)
    state = [slot.accumulator, averages, slot.buffer]
    values, touched, starts, order = gradient.arrays()
    width = gradient.width
    kernel = rowwise.step if slot.row_wise else rows.step
    if slot.plain:
        flat = [None if array is None else array.reshape(-1) for array in (slot.view, *state)]

        def slice_of(lo: int, hi: int) -> None:
            args = (values, touched, starts, order, width, s, lo, hi, every, _flag(staged), overwrite)
            kernel(*flat, *args)

        if every:
            threads.run(slice_of, gradient.count, 4 * gradient.count * width)
        else:
            # Slices of equal work: a row costs about as much as two of the gradients that are summed for it.
            total = order.size + 2 * touched.size

            def share(lo: int, hi: int) -> None:
                if (lo, hi) == (0, total):
                    slice_of(0, touched.size)
                    return
                work = starts[:-1] + 2 * np.arange(touched.size)
                slice_of(*np.searchsorted(work, (lo, hi)).tolist())

            threads.run(share, total, total * width)
        return
    # The rows of a table that doesn't lie plainly are copied out and in, a block of them at a time.
    block = max(1, _BLOCK // max(1, width))
    for lo in range(0, gradient.count if every else touched.size, block):
        if every:
            hi = min(lo + block, gradient.count)
            begin, end = (int(j) for j in np.searchsorted(touched, (lo, hi)))
            selected: slice | np.ndarray = slice(lo, hi)
            local = touched[begin:end] - lo
        else:
            begin, end = lo, min(lo + block, touched.size)
            hi = end
            selected = touched[begin:end]
            local = np.arange(end - begin)
        p = np.array(slot.view[selected], slot.view.dtype.newbyteorder("="), order="C")
        pieces = [None if array is None else array[selected] for array in state]
        flat = [None if array is None else array.reshape(-1) for array in (p, *pieces)]
        args = (values, local, starts[begin : end + 1], order, width, s, 0, hi - lo, every, _flag(staged), overwrite)
        kernel(*flat, *args)
        slot.view[selected] = p
        if not every:
            for array, piece in zip(state, pieces, strict=True):
                if array is not None:
                    array[selected] = piece


def _step_row_wise(
    slot: Slot, gradient: np.ndarray | None, averages: np.ndarray | None, s: np.ndarray, staged: bool, overwrite: bool
) -> None:
    """Stages 3 to 10 of a table with an accumulator for each row, by a dense gradient (None: zero)."""
    count, width = slot.view.shape[0], slot.view[:1].size
    view = None if gradient is None else stored_view(gradient)
    usable = view is not None and is_plain(view) and view.dtype in (slot.view.dtype, slot.accumulator.dtype)
    if slot.plain and (gradient is None or usable):
        flat = [None if array is None else array.reshape(-1) for array in (view, averages, slot.buffer)]
        p, a = slot.view.reshape(-1), slot.accumulator
        threads.run(
            lambda lo, hi: rowwise.step_dense(p, a, *flat, width, s, lo, hi, _flag(staged), overwrite), count, count * width
        )
        return
    block = max(1, _BLOCK // max(1, width))
    for lo in range(0, count, block):
        rows_ = slice(lo, min(lo + block, count))
        p = np.array(slot.view[rows_], slot.view.dtype.newbyteorder("="), order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            g = None if gradient is None else np.array(gradient[rows_], s.dtype, order="C").reshape(-1)
        parts = [None if array is None else array[rows_].reshape(-1) for array in (averages, slot.buffer)]
        accumulator = slot.accumulator[rows_]
        rowwise.step_dense(p.reshape(-1), accumulator, g, *parts, width, s, 0, len(p), _flag(staged), overwrite)
        slot.view[rows_] = p


def _flag(on: bool) -> int | None:
    """What a kernel is compiled with or without: 1 or None."""
    return 1 if on else None
