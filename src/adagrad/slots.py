"""A variable and the state that the optimizer keeps for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adagrad.arrays.numpy import extent, is_plain, state_dtype, stored_view
from adagrad.settings import Settings

__all__ = ["Constraint", "Slot", "check_apart", "check_writable", "make_slots"]

Constraint = Callable[[np.ndarray], Any]


class Slot:
    """One variable, its state, and what of the accumulation cycle has reached it.

    Attributes
    ----------
    array : the user's array, changed in place; ``view`` is the same memory as the kernels see it
    accumulator : the sum of squared gradients, in the state's dtype, C order
    average, buffer : the moving average and the gradient buffer, where the settings ask for them
    settings : the variable's own; those that move all variables at once are the engine's
    sign : what the gradient is divided by before anything else; -1 to climb instead of descending
    touched : what the gradient buffer holds in this cycle: None (nothing), True (any row), or a list of the row ids
    """

    __slots__ = (
        "accumulator",
        "array",
        "average",
        "buffer",
        "constraint",
        "decays",
        "name",
        "plain",
        "settings",
        "sign",
        "touched",
        "view",
    )

    def __init__(self, name: str, array: np.ndarray, settings: Settings, constraint: Constraint | None) -> None:
        state = state_dtype(array.dtype)
        self.name = name
        self.settings = settings
        self.sign = 1.0
        self.array = array
        self._look()
        row_wise = settings.row_wise and array.ndim >= 2
        self.accumulator = np.full(array.shape[:1] if row_wise else array.shape, settings.initial_accumulator_value, state)
        self.average = np.zeros(array.shape, state) if settings.use_ema else None
        self.buffer = np.zeros(array.shape, state) if settings.accumulation_steps > 1 else None
        self.constraint = constraint
        self.decays = True
        self.touched: None | bool | list[np.ndarray] = None

    def __getstate__(self) -> dict[str, Any]:
        # A view, pickled beside its array, would come back as another memory.
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("view", "plain")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._look()

    def _look(self) -> None:
        view = stored_view(self.array)
        assert view is not None
        self.view, self.plain = view, is_plain(view)

    @classmethod
    def over(
        cls,
        name: str,
        view: np.ndarray,
        settings: Settings,
        sign: float,
        accumulator: np.ndarray,
        average: np.ndarray | None = None,
        buffer: np.ndarray | None = None,
    ) -> Slot:
        """A slot over memory that someone else keeps: a variable's stored view, and its state."""
        slot: Slot = object.__new__(cls)
        slot.name, slot.array, slot.view, slot.settings, slot.sign = name, view, view, settings, sign
        slot.accumulator, slot.average, slot.buffer = accumulator, average, buffer
        slot.constraint, slot.decays, slot.touched = None, True, None
        slot.plain = is_plain(view)
        return slot

    @property
    def dtype_name(self) -> str:
        """What the variable's numbers are, in native byte order."""
        return {"uint16": "float16", "int16": "bfloat16"}.get(self.view.dtype.name, self.view.dtype.name)

    @property
    def row_wise(self) -> bool:
        """Whether the accumulator has one number a row."""
        return self.accumulator.ndim < self.view.ndim

    @property
    def has_scalar_stages(self) -> bool:
        """Whether a step does more than the rule: the sign, clipping or decay."""
        own = self.settings
        clips = (own.clipvalue, own.clipnorm, own.global_clipnorm)
        return bool(own.weight_decay) or self.sign != 1.0 or any(clip is not None for clip in clips)

    def state_arrays(self) -> list[np.ndarray]:
        """The arrays of state that there are."""
        return [array for array in (self.accumulator, self.average, self.buffer) if array is not None]

    def copy(self) -> Slot:
        """The same values in memory of their own."""
        other: Slot = object.__new__(Slot)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other.array = self.array.copy()
        other.array = other.array.astype(other.array.dtype.newbyteorder("="), copy=False)
        if self.array is self.view:  # bits of halves, of `over`
            other.view, other.plain = other.array, is_plain(other.array)
        else:
            other._look()
        for name in ("accumulator", "average", "buffer"):
            value = getattr(self, name)
            setattr(other, name, None if value is None else value.copy())
        return other

    def take(self, other: Slot) -> None:
        """Take over the values of ``other``, a copy that a step has moved on; nothing here can fail."""
        self.view[...] = other.view
        for name in ("accumulator", "average", "buffer"):
            value = getattr(other, name)
            if value is not None:
                getattr(self, name)[...] = value


def make_slots(
    variables: Sequence[Any], names: Sequence[str], constraints: Sequence[Constraint | None], settings: Settings
) -> list[Slot]:
    """Check every variable, then make their slots: dtype, writable, none twice and none that share memory."""
    for name, variable, constraint in zip(names, variables, constraints, strict=True):
        if not isinstance(variable, np.ndarray):
            raise TypeError(f"variable {name} must be a NumPy array, which can change in place, got {type(variable).__name__}")
        if stored_view(variable) is None:
            raise TypeError(f"variable {name} must be float64, float32, float16 or bfloat16, got {variable.dtype}")
        check_writable(name, variable)
        if constraint is not None and not callable(constraint):
            raise TypeError(f"the constraint of {name} must be a callable from array to array or None, got {constraint!r}")
    check_apart(variables, names)
    return [
        Slot(name, variable, settings, constraint)
        for name, variable, constraint in zip(names, variables, constraints, strict=True)
    ]


def check_writable(name: str, array: np.ndarray) -> None:
    """Raise ``ValueError`` for an array that can't be written, or whose elements share memory with each other."""
    if not array.flags.writeable:
        raise ValueError(f"variable {name} must be writable, got a read-only array")
    if array.size and _shares_elements(array):
        raise ValueError(
            f"variable {name} must not be a broadcast view, or another whose elements share memory, "
            f"got strides {array.strides} of {array.shape}"
        )


def _shares_elements(array: np.ndarray) -> bool:
    axes = sorted((abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True) if size > 1)
    extent = array.itemsize
    for stride, size in axes:
        if stride < extent:
            break
        extent += stride * (size - 1)
    else:
        return False
    if axes[0][0] == 0:
        return True
    # Axes that interlock, which needs a look at every element.
    offsets = np.zeros(1, np.int64)
    for stride, size in axes:
        offsets = np.add.outer(offsets, stride * np.arange(size)).reshape(-1)
    offsets.sort()
    return bool((np.diff(offsets) < array.itemsize).any())


def check_apart(variables: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Raise ``ValueError`` for a variable that comes twice, and for two that share memory."""
    seen: dict[int, str] = {}
    for name, variable in zip(names, variables, strict=True):
        if id(variable) in seen:
            raise ValueError(f"every variable may be given once, got {seen[id(variable)]} again as {name}")
        seen[id(variable)] = name
    order = sorted((extent(v), k) for k, v in enumerate(variables) if v.size)
    for i, ((_, high), k) in enumerate(order):
        for (low, _), other in order[i + 1 :]:
            if low >= high:
                break
            try:
                shared = np.shares_memory(variables[k], variables[other], max_work=10**6)  # type: ignore[arg-type]
            except np.exceptions.TooHardError:
                shared = True
            if shared:
                raise ValueError(f"variables must not share memory, got {names[k]} and {names[other]} that do")
