"""The state of the Keras face out and in: as arrays in Keras's order, and as the one state file of all faces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import backend, ops

from adagrad import checkpoint
from adagrad.engine import Engine
from adagrad.keras.rows import value_of
from adagrad.keras.slots import STATES
from adagrad.settings import check_integer, check_rate

__all__ = ["load", "save", "set_variables", "store_variables", "stored_variables"]

_TRAINABLE = "trainable"  # in a store: which of its entries are not the state of variables that were frozen


def store_variables(optimizer: Any, own: Sequence[Any], store: MutableMapping[str, Any]) -> None:
    """Put copies of ``own`` and of the optimizer's variables into a store under "0", "1", ..., as Keras does.

    If some of the variables that the optimizer was built for are frozen by now, the store says so. A model that is opened
    from a file builds its optimizer for those that are trainable then.
    """
    everything = [*own, *optimizer.variables]
    for number, variable in enumerate(everything):
        store[str(number)] = np.array(ops.convert_to_numpy(value_of(variable)))
    states = [getattr(optimizer, name, ()) for name in STATES]
    frozen = {
        id(state)
        for those in states
        for variable, state in zip(optimizer._trainable_variables, those, strict=bool(those))
        if state is not None and not variable.trainable
    }
    if frozen:
        store[_TRAINABLE] = np.array([id(variable) not in frozen for variable in everything])


def stored_variables(store: Mapping[str, Any], count: int) -> list[np.ndarray]:
    """The arrays of a store; those of variables that were not frozen, if it takes that to have ``count`` of them."""
    names = set(store.keys())
    arrays = [np.asarray(store[str(number)]) for number in range(len(names - {_TRAINABLE}))]
    if _TRAINABLE in names and len(arrays) != count:
        arrays = [array for array, kept in zip(arrays, np.asarray(store[_TRAINABLE]), strict=True) if kept]
    return arrays


def set_variables(optimizer: Any, weights: Sequence[Any]) -> None:
    """Set the optimizer's variables, or the first of them if fewer are given; or nothing."""
    variables = optimizer.variables
    own = [backend.standardize_dtype(variable.dtype) for variable in variables]
    arrays = [np.asarray(ops.convert_to_numpy(weight)) for weight in weights]
    for number, (array, variable, dtype) in enumerate(zip(arrays, variables, own, strict=False)):
        if array.shape != tuple(variable.shape):
            raise ValueError(f"weight {number} must have shape {tuple(variable.shape)}, got {array.shape}")
        if array.dtype.kind not in "fiuV":
            raise ValueError(f"weight {number} must be castable to {dtype}, got {array.dtype}")
    calls = _count(optimizer, arrays[0].item())
    rate = _stored_rate(optimizer, arrays[1]) if _counters(optimizer) == 2 else None
    for slot in optimizer._slots:
        place = next(k for k, variable in enumerate(variables) if variable is slot.accumulator)
        if place < len(arrays) and (arrays[place] < 0).any():
            raise ValueError(f"the accumulator of {slot.name} must not be negative, got {arrays[place].min()}")
    for array, variable, dtype in zip(arrays, variables, own, strict=False):
        with np.errstate(over="ignore"):
            variable.assign(array.astype(dtype))
    _set_counters(optimizer, calls, rate)
    _forget_engine(optimizer, None)


def _count(optimizer: Any, value: Any) -> int:
    """A count of calls that the optimizer's counter has a place for."""
    calls, own = check_integer("the count of calls", value, low=0), backend.standardize_dtype(optimizer._iterations.dtype)
    if calls > np.iinfo(own).max:
        raise ValueError(f"the count of calls must be at most {np.iinfo(own).max}, as {own} has it here, got {calls}")
    return calls


def _stored_rate(optimizer: Any, array: np.ndarray) -> float:
    """The rate that an array holds; the number that is set here, if the array holds that in a narrower dtype."""
    number, wanted = check_rate(array.item()), optimizer._settings.learning_rate
    if array.dtype.kind == "f" and not callable(wanted):
        with np.errstate(over="ignore"):
            if array == np.asarray(wanted).astype(array.dtype):
                return wanted
    return number


def _forget_engine(optimizer: Any, touched: list[Any] | None) -> None:
    """Let the engine be made anew, of what the variables hold now."""
    object.__setattr__(optimizer, "_engine", None)
    object.__setattr__(optimizer, "_touched", touched)


def _counters(optimizer: Any) -> int:
    return 1 + isinstance(optimizer._learning_rate, keras.Variable)


def _set_counters(optimizer: Any, calls: int, rate: Any) -> None:
    optimizer._iterations.assign(calls)
    if rate is not None:
        optimizer.learning_rate = rate


def _host_engine(optimizer: Any) -> Engine:
    """An engine of NumPy arrays with what the optimizer has; its parameters have shapes only."""
    if not optimizer.built:
        raise ValueError("the optimizer must be built before it is saved or loaded; call build(variables)")
    if len(optimizer._slots) < len(optimizer._trainable_variables):
        raise ValueError("a state file has no place for variables that are overwritten with their gradients")
    kept = optimizer._engine.slots if optimizer._engine is not None else [None] * len(optimizer._slots)
    variables = []
    for slot, known in zip(optimizer._slots, kept, strict=True):
        state = [None if v is None else np.array(ops.convert_to_numpy(value_of(v))) for v in _state(slot)]
        touched = known.touched is not None if known is not None else state[2] is not None and state[2].any()
        variables.append((slot.name, slot.shape, slot.dtype, slot.decays, touched, *state))
    engine = checkpoint.engine_of(optimizer._settings, int(value_of(optimizer._iterations)), variables)
    engine.rate = optimizer._rate_number() if _counters(optimizer) == 2 else optimizer._learning_rate
    return engine


def _state(slot: Any) -> tuple[Any, Any, Any]:
    return slot.accumulator, slot.average, slot.buffer


def save(optimizer: Any, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
    """Write a state file; see `adagrad.checkpoint`."""
    checkpoint.save(_host_engine(optimizer), path, extra)


def load(
    optimizer: Any,
    path: str | os.PathLike[str],
    *,
    strict: bool,
    names: Mapping[str, str] | None = None,
    transpose: Iterable[str] = (),
    extra: Callable[[Mapping[str, Any]], Any] = lambda metadata: None,
) -> Any:
    """Load a state file, or raise and change nothing; returns what ``extra`` makes of its header."""
    engine = _host_engine(optimizer)
    found = checkpoint.load(engine, path, strict=strict, names=names, transpose=transpose, extra=extra)
    calls = _count(optimizer, engine.calls)
    for slot, loaded in zip(optimizer._slots, engine.slots, strict=True):
        for variable, array in zip(_state(slot), (loaded.accumulator, loaded.average, loaded.buffer), strict=True):
            if variable is not None:
                variable.assign(array)
    _set_counters(optimizer, calls, engine.rate if _counters(optimizer) == 2 else None)
    _forget_engine(optimizer, [loaded.touched for loaded in engine.slots])
    return found
