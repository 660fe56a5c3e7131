"""The stages of a step in order, over slots of state, for arrays that change in place.

The order is the contract's: 1 check, 2 skip None, 3 unscale, 4 accumulate, 5 clip, 6 decay, 7 the rule, 8 constrain,
9 average, 10 overwrite, 11 count. Everything that can fail is done before anything changes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
import threading
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from adagrad.arrays.numpy import NONE, OTHER, Layout
from adagrad.kernels import elements
from adagrad.kernels.threads import give_lock
from adagrad.passes import Call, Rows, Scalars, Tables, average_slot, overwrite_slot, static_scalars
from adagrad.settings import Settings, rate_at
from adagrad.slots import Constraint, Slot, check_writable, make_slots

__all__ = ["Engine"]


class Engine:
    """The optimizer itself: settings, slots, and the count of calls.

    A face over arrays of another kind derives from it: how gradients are looked over (`_layout_type`), the learning rates
    (`rate_now`), whose average begins (`_first`), and sums over all shards (`_reduce`) are its to say.
    """

    _layout_type = Layout
    sharded = False  # whether other processes hold parts of the variables

    _lock: threading.RLock

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.slots: list[Slot] = []
        self.built = False
        self.calls = 0
        self.rate = settings.learning_rate  # a number, a schedule or a callable; a number may be set later
        self._excluded: list[tuple[Sequence[Any], Sequence[re.Pattern[str]]]] = []
        self._warned: set[str] = set()
        give_lock(self)

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def iterations(self) -> int:
        """Real steps so far: calls // gradient_accumulation_steps."""
        return self.calls // self.settings.accumulation_steps

    def build(
        self, variables: Sequence[Any], names: Sequence[str], constraints: Sequence[Constraint | None] | None = None
    ) -> None:
        """Make the state of ``variables``, once; raises before anything is made."""
        known = {id(variable) for variable in variables}
        if any(id(variable) not in known for excluded, _ in self._excluded for variable in excluded):
            raise ValueError(
                f"a variable excluded from weight decay is unknown to this optimizer, built for: {', '.join(names)}"
            )
        slots = make_slots(variables, names, constraints or [None] * len(variables), self.settings)
        self.slots = slots
        self.built = True
        self.index()
        for excluded in self._excluded:
            self.exclude(*excluded)

    def index(self) -> None:
        """Look up where the slots lie; to be called whenever an array of a slot has been replaced."""
        arrays = [slot.array for slot in self.slots]
        memory = [array for slot in self.slots for array in (slot.view, *slot.state_arrays())]
        self._layout = self._layout_type(arrays, [slot.view for slot in self.slots], memory)
        self._tables = Tables(self.slots)
        self._objects = list(map(id, arrays))
        self._positions = {number: v for v, number in enumerate(self._objects)}
        settings = [slot.settings for slot in self.slots]
        whole = self.settings
        bounds = [own.clipnorm or own.global_clipnorm or math.inf for own in settings]
        self._bounds = np.array(bounds) if min(bounds, default=math.inf) < math.inf else None
        # With more to move than the rule does, a pass waits for memory: the scalar stages come along for nothing, and
        # one kernel serves for two.
        self._staged = whole.use_ema or whole.accumulation_steps > 1 or any(slot.has_scalar_stages for slot in self.slots)
        self._table = static_scalars(self.slots, whole)
        self._scalars: tuple[Any, Scalars] = (None, Scalars(self._table))

    def rate_now(self) -> Any:
        """The learning rate of the next call: a number, or one for each slot."""
        return rate_at(self.rate, self.calls)

    def _first(self) -> Any:
        """Whether the next real step is the first."""
        return self.iterations == 0

    def _scalars_now(self, rate: Any, loss_scale: float) -> Scalars:
        """The scalars of a call but for the factors of clipping; mostly those of the call before."""
        key = rate, loss_scale, self._first()
        if key != self._scalars[0]:
            table = self._table.copy()
            table[:, elements.LR], table[:, elements.FIRST] = rate, self._first()
            table[:, elements.SCALE] *= loss_scale
            self._scalars = key, Scalars(table)
        return self._scalars[1]

    def current_settings(self) -> Settings:
        """The settings with the learning rate as it is now."""
        return dataclasses.replace(self.settings, learning_rate=self.rate)

    def all_slots(self) -> np.ndarray:
        """Every slot, in the order of `build`."""
        return np.arange(len(self.slots))

    def exclude(self, variables: Sequence[Any], patterns: Sequence[re.Pattern[str]]) -> None:
        """Exclude variables, by identity or name, from weight decay; also those that are built later."""
        if not self.built:
            self._excluded.append((variables, patterns))
            return
        positions = self.positions({id(variable): variable for variable in variables}.values()).tolist()
        for v, slot in enumerate(self.slots):
            if v in positions or any(pattern.search(slot.name) for pattern in patterns):
                slot.decays = False
        self.index()

    def positions(self, variables: Iterable[Any]) -> np.ndarray:
        """The slots of ``variables``, by identity; ``ValueError`` for one that is not built or comes twice."""
        objects = list(map(id, variables))
        if objects == self._objects:  # as built
            return self.all_slots()
        found = [self._positions.get(number, -1) for number in objects]
        if -1 in found:
            known = ", ".join(slot.name for slot in self.slots[:8]) + (", ..." if len(self.slots) > 8 else "")
            raise ValueError(
                f"variable number {found.index(-1)} is unknown to this optimizer, which was built for: {known}; "
                "variables are known by identity and must be built together"
            )
        if len(set(found)) != len(found):
            twice = next(v for k, v in enumerate(found) if v in found[:k])
            raise ValueError(f"every variable may be given once, got {self.slots[twice].name} twice")
        return np.array(found, np.int64)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_lock", "_layout", "_tables", "_objects", "_positions", "_table", "_scalars", "_bounds", "_staged"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        give_lock(self)
        if self.built:
            self.index()

    # -- a step ----------------------------------------------------------------------------------------------------

    def apply(self, slots: np.ndarray, gradients: Sequence[Any], loss_scale: float | None = None, skip: bool = False) -> bool:
        """One call: ``gradients[j]`` is that of slot ``slots[j]``. Returns whether it counted.

        ``loss_scale`` overrides the setting. With ``skip``, a gradient that is not finite after its repeated ids are
        summed and unscaled makes the call change nothing and return False.
        """
        with self._lock:
            return self._apply(slots, gradients, loss_scale or self.settings.loss_scale_factor, skip)

    def _apply(self, slots: np.ndarray, gradients: Sequence[Any], loss_scale: float | None, skip: bool) -> bool:
        steps = self.settings.accumulation_steps
        real = (self.calls + 1) % steps == 0
        call = self._check(slots, gradients)
        staged, loss_scale = self._staged or loss_scale is not None, loss_scale or 1.0
        if skip and not np.isfinite(self._sums(call, self._scalars_now(0.0, loss_scale), buffered=False)[0]).all():
            return False
        scalars = self._scalars_now(self.rate_now() if real else 0.0, loss_scale)
        if not real:
            call.accumulate(scalars)
            self.calls += 1
            return True

        call.close_cycle()
        if self._bounds is not None:
            scalars = self._clip(call, scalars, self._bounds)
        frequency = self.settings.ema_overwrite_frequency
        overwrite = frequency is not None and self.settings.use_ema and (self.iterations + 1) % frequency == 0
        constrained = [self._constrained(call, v, scalars, staged, overwrite) for v in call.constrained()]
        call.step(scalars, staged, overwrite)
        for v, moved in constrained:
            self.slots[v].take(moved)
        if steps > 1:
            for slot in self.slots:
                slot.touched = None
        self.calls += 1
        self._stepped(call)
        return True

    def _stepped(self, call: Call) -> None:
        """What a face does after a real step."""

    def _check(self, slots: np.ndarray, gradients: Sequence[Any]) -> Call:
        """Stages 1 and 2: everything about the gradients that can be wrong."""
        gradients = list(gradients)  # the caller's list may change, and the call keeps what its addresses point to
        codes, addresses = self._layout.look(slots, gradients)
        if self._tables.indirect.size:
            codes[~self._tables.direct[slots]] = OTHER
        call = Call(self._tables, slots, codes, addresses, gradients)
        missing = []
        for j in np.flatnonzero(codes == OTHER).tolist():
            v, gradient = int(slots[j]), gradients[j]
            slot = self.slots[v]
            if gradient is None:
                call.codes[v] = NONE
                missing.append(slot.name)
                continue
            found = self._layout.row_gradient(gradient, slot.name, slot.array.shape, slot.view.dtype, slot.accumulator.dtype)
            if found is not None:
                values, ids = found
                if self._layout.overlaps(values):
                    values = values.copy()
                call.add_rows(v, Rows(values, ids, slot.array.shape))
            else:
                array = self._layout.dense_gradient(gradient, slot.name, slot.array.shape)
                call.add_dense(v, array.copy() if self._layout.overlaps(array) else array)
        for v in self._layout.read_only():
            check_writable(self.slots[v].name, self.slots[v].array)
        if missing and self.settings.accumulation_steps == 1:
            if len(missing) == len(gradients):
                raise ValueError(f"no gradient is given for any variable, got None for {', '.join(missing)}")
            self._warn(missing)
        return call

    def _warn(self, names: list[str]) -> None:
        new = [name for name in names if name not in self._warned]
        if new:
            warnings.warn(f"no gradient for {', '.join(new)}: skipped (said once)", UserWarning, stacklevel=6)
            self._warned.update(new)

    def _clip(self, call: Call, scalars: Scalars, bounds: np.ndarray) -> Scalars:
        """Stage 5's factors: ``c/n`` where the norm n > c, in double precision; NaN where n is not finite."""
        sums, scale = self._sums(call, scalars, buffered=True, over_all=self.settings.global_clipnorm is not None)
        norms = np.sqrt(sums)
        with np.errstate(all="ignore"):
            factors = np.where(norms / scale > bounds, bounds / norms * scale, 1.0)
        table = scalars.table.copy()
        table[:, elements.FACTOR] = np.where(np.isfinite(norms) | np.isinf(bounds), factors, math.nan)
        return Scalars(table)

    def _sums(self, call: Call, scalars: Scalars, *, buffered: bool, over_all: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """For each slot the sum of ``(g * scale)**2`` and the scale, a power of two: not finite only if a gradient is not.

        With ``over_all``, the sum over all slots, in their order, stands for each.
        """

        def totals(scale: float) -> np.ndarray:
            each = self._reduce(call.totals(scalars, buffered=buffered, scale=scale))
            return np.full_like(each, functools.reduce(operator.add, each.tolist(), 0.0)) if over_all else each

        sums = totals(1.0)
        scales = np.ones_like(sums)
        if any(slot.accumulator.dtype == np.float64 for slot in self.slots):
            # The squares of float64 gradients can overflow, or vanish in part.
            small = (sums < 2.0**-900) & (call.codes != NONE)
            for scale, wrong in ((2.0**-600, ~np.isfinite(sums)), (2.0**600, small)):
                if wrong.any() or self.sharded:  # other processes wait for these sums
                    sums, scales = np.where(wrong, totals(scale), sums), np.where(wrong, scale, scales)
        return sums, scales

    def _reduce(self, sums: np.ndarray) -> np.ndarray:
        """The sums of whole variables from those of what is kept here of them."""
        return sums

    def _constrained(self, call: Call, v: int, scalars: Scalars, staged: bool, overwrite: bool) -> tuple[int, Slot]:
        """Stages 3 to 10 of a variable with a constraint, on a copy: the constraint may still raise."""
        copy = self.slots[v].copy()
        if call.codes[v] != NONE:
            call.step_slot(copy, v, scalars, staged, overwrite=False, average=False)
            constrain(copy, copy.array)
        if copy.average is not None:
            average_slot(copy, v, scalars, overwrite)
            if overwrite:
                constrain(copy, copy.array)
        return v, copy

    # -- after training --------------------------------------------------------------------------------------------

    def finalize(self, slots: np.ndarray) -> None:
        """With EMA, ``p = constraint(m)`` for each of ``slots``; before the first real step nothing changes."""
        with self._lock:
            if not self.settings.use_ema or self.iterations == 0:
                return
            chosen = [self.slots[v] for v in slots.tolist()]
            for slot in chosen:
                check_writable(slot.name, slot.array)
            constrained = [(slot, slot.copy()) for slot in chosen if slot.constraint is not None]
            for _, copy in constrained:  # the constraint may still raise
                overwrite_slot(copy)
                constrain(copy, copy.array)
            for slot in chosen:
                overwrite_slot(slot)
            for slot, copy in constrained:
                slot.view[...] = copy.view


def constrain(slot: Slot, array: np.ndarray) -> None:
    """Stage 8, in place on ``array``: ``p = constraint(p)``, whose result must have the same shape and be real."""
    assert slot.constraint is not None
    result = np.asarray(slot.constraint(array))
    if result.shape != array.shape or result.dtype.kind not in "fiuV":
        raise ValueError(
            f"the constraint of {slot.name} must return a real array of shape {array.shape}, "
            f"got {result.dtype} of {result.shape}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        array[...] = result
