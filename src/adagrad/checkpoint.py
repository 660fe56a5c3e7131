"""The engine's state out and in: as a list of arrays in Keras's order, and as one state file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adagrad import state
from adagrad.engine import Engine
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import Settings, check_integer, check_rate
from adagrad.slots import Slot
from adagrad.state import StateFileError

__all__ = ["engine_of", "keras_variables", "load", "save", "set_keras_variables"]

_KIND = "optimizer"
# What a state array is called in the file, after its variable, and in a slot; in Keras's order.
_ARRAYS = {"average": "average", "gradient_accumulator": "buffer", "accumulator": "accumulator"}
# Settings that decide which state there is and how calls are counted.
_SHAPING = ("use_ema", "gradient_accumulation_steps")
# What the numbers of a variable are stored as, as the kernels see them.
_STORED = {"float64": np.float64, "float32": np.float32, "float16": np.uint16, "bfloat16": np.int16}


def keras_variables(engine: Engine) -> Iterator[np.ndarray]:
    """Count of calls (int64), learning rate if a number (float64), averages, gradient buffers, accumulators."""
    yield np.array(engine.calls, np.int64)
    if not callable(engine.rate):
        yield np.array(engine.rate)
    for attribute in _ARRAYS.values():
        for slot in engine.slots:
            if getattr(slot, attribute) is not None:
                yield getattr(slot, attribute)


def set_keras_variables(engine: Engine, weights: Sequence[Any]) -> None:
    """Set all of `keras_variables`, or nothing."""
    if not engine.built:
        raise ValueError("the optimizer must be built before its weights are set; call build(variables)")
    with engine._lock:
        current = list(keras_variables(engine))
        # Arrays of this very state, in another order, must not be written while they are still to be read.
        arrays = [array.copy() if engine._layout.overlaps(array) else array for array in map(np.asarray, weights)]
        if len(arrays) != len(current):
            raise ValueError(f"weights must be {len(current)} arrays, got {len(arrays)}")
        for number, (array, now) in enumerate(zip(arrays, current, strict=True)):
            if array.shape != now.shape:
                raise ValueError(f"weight {number} must have shape {now.shape}, got {array.shape}")
            if not np.can_cast(array.dtype, now.dtype, "same_kind") or array.dtype.kind not in "fiu":
                raise ValueError(f"weight {number} must be castable to {now.dtype}, got {array.dtype}")
        calls = check_integer("the count of calls", arrays[0].item(), low=0)
        rest = 1
        rate = engine.rate
        if not callable(rate):
            rate, rest = check_rate(arrays[1].item()), 2
        accumulators = arrays[len(arrays) - len(engine.slots) :]
        for slot, array in zip(engine.slots, accumulators, strict=True):
            if (array < 0).any():
                raise ValueError(f"the accumulator of {slot.name} must not be negative, got {array.min()}")
        with np.errstate(over="ignore"):
            for array, now in zip(arrays[rest:], current[rest:], strict=True):
                now[...] = array
        engine.calls, engine.rate = calls, rate
        for slot in engine.slots:
            # A buffer of zeros may have had gradients of zero, or none; if none come in the rest of the cycle, a variable
            # that has none at all (frozen, perhaps) must stay, and the other only misses one step of its decay.
            slot.touched = True if slot.buffer is not None and slot.buffer.any() else None


def engine_of(settings: Settings, calls: int, variables: Iterable[tuple[Any, ...]]) -> Engine:
    """An engine over copies of a face's state, only to be saved or loaded into.

    ``variables`` are tuples of name, shape, dtype (its name), whether weight decay applies, whether this cycle has brought a
    gradient, accumulator, average, buffer; the latter are arrays or None. Raises ``ValueError`` for another dtype than ours.
    """
    engine = Engine(settings)
    engine.calls, engine.built = calls, True
    for name, shape, dtype, decays, touched, *arrays in variables:
        if dtype not in _STORED:
            raise ValueError(f"a state file has no place for parameters of {dtype}, as {name} is")
        slot = Slot.over(name, np.broadcast_to(np.zeros((), _STORED[dtype]), shape), settings, 1.0, *arrays)
        slot.decays, slot.touched = decays, True if touched else None
        engine.slots.append(slot)
    return engine


def save(engine: Engine, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
    """Write a state file, with ``extra`` in its header; see `adagrad.state` for its layout."""
    if not engine.built:
        raise ValueError("the optimizer must be built before it is saved; call build(variables) or apply(grads, variables)")
    with engine._lock:  # no step changes what is being written
        state.write(path, _arrays(engine), {**_describe(engine), **(extra or {})})


def _arrays(engine: Engine) -> dict[str, np.ndarray]:
    return {
        f"{slot.name}/{name}": getattr(slot, attribute)
        for slot in engine.slots
        for name, attribute in _ARRAYS.items()
        if getattr(slot, attribute) is not None
    }


def _describe(engine: Engine) -> dict[str, Any]:
    settings = engine.current_settings()
    callable_rate = callable(settings.learning_rate) and not isinstance(settings.learning_rate, LearningRateSchedule)
    if callable_rate:
        settings = dataclasses.replace(settings, learning_rate=0.0)
    described = settings.to_dict()
    if callable_rate:
        described["learning_rate"] = "callable"  # code is not data: the caller brings it again
    return {
        "kind": _KIND,
        "settings": described,
        "calls": engine.calls,
        "variables": {
            slot.name: {
                "shape": list(slot.array.shape),
                "dtype": slot.dtype_name,
                "decays": slot.decays,
                "has_gradient_in_cycle": slot.touched is not None,
            }
            for slot in engine.slots
        },
    }


def load(
    engine: Engine,
    path: str | os.PathLike[str],
    *,
    strict: bool,
    names: Mapping[str, str] | None = None,
    transpose: Iterable[str] = (),
    extra: Callable[[Mapping[str, Any]], Any] = lambda metadata: None,
) -> Any:
    """Load a state file, or raise and change nothing; returns what ``extra``, which may raise, makes of the header.

    ``names`` maps names in the file to names here; the variables in ``transpose`` (names here) lie transposed in the file.
    """
    if not engine.built:
        raise ValueError("the optimizer must be built before it is loaded; call build(variables)")
    arrays, metadata = state.read(path)
    if metadata.get("kind") != _KIND:
        raise StateFileError(f"{os.fspath(path)} holds no optimizer, but {metadata.get('kind')!r}")
    arrays, metadata = _converted(arrays, metadata, names or {}, set(transpose))
    with engine._lock:
        problems = _differences(engine, arrays, metadata, strict=strict)
        if problems:
            raise StateFileError(f"{os.fspath(path)} does not fit this optimizer: {'; '.join(problems)}")
        result = extra(metadata)
        rate = metadata["settings"]["learning_rate"]
        if isinstance(rate, int | float) and not callable(engine.rate):
            engine.rate = check_rate(rate)
        engine.calls = metadata["calls"]
        for name, target in _arrays(engine).items():
            target[...] = arrays[name]
        for slot in engine.slots:
            slot.touched = True if metadata["variables"][slot.name]["has_gradient_in_cycle"] else None
        return result


def _converted(
    arrays: dict[str, np.ndarray], metadata: dict[str, Any], names: Mapping[str, str], transpose: set[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The content of a file under the names, and in the orientation, that the variables have here."""
    variables = metadata.get("variables")
    if not isinstance(variables, dict) or not (names or transpose):
        return arrays, metadata
    unknown = sorted(set(names) - set(variables)) or sorted(transpose - {names.get(name, name) for name in variables})
    if unknown:
        raise ValueError(f"names and transpose must name variables of the file, which has no {', '.join(unknown)}")
    renamed = {names.get(name, name): described for name, described in variables.items()}
    if len(renamed) < len(variables):
        raise ValueError(f"names must give every variable a name of its own, got {dict(names)}")
    settings = metadata.get("settings")
    if transpose and isinstance(settings, dict) and settings.get("row_wise"):
        raise ValueError(f"transpose must be empty for row-wise accumulators, which belong to rows, got {sorted(transpose)}")
    for name in transpose:
        renamed[name] = {**renamed[name], "shape": list(reversed(renamed[name].get("shape", [])))}
    moved = {}
    for key, array in arrays.items():
        name, _, kind = key.rpartition("/")
        name = names.get(name, name)
        moved[f"{name}/{kind}"] = array.T if name in transpose else array
    return moved, {**metadata, "variables": renamed}


def _differences(engine: Engine, arrays: dict[str, np.ndarray], metadata: dict[str, Any], *, strict: bool) -> list[str]:
    """What keeps the file from being loaded, each as a clause for the message."""
    try:
        calls, settings, variables = metadata["calls"], dict(metadata["settings"]), dict(metadata["variables"])
        check_integer("calls", calls, low=0)
        for described in variables.values():
            [described[key] for key in ("shape", "dtype", "decays", "has_gradient_in_cycle")]
    except (KeyError, TypeError, ValueError) as error:
        return [f"its header lacks what a state file has ({error})"]
    own = _describe(engine)
    problems = []
    for name in own["settings"]:
        theirs, ours = settings.get(name), own["settings"][name]
        if name == "learning_rate" and isinstance(theirs, float) and isinstance(ours, float):
            continue
        if name != "name" and theirs != ours and (strict or name in _SHAPING):
            problems.append(f"{name} is {theirs!r} there and {ours!r} here")
    for name, described in own["variables"].items():
        if name not in variables:
            problems.append(f"it has no variable {name}")
            continue
        theirs = variables[name]
        problems += [
            f"{key} of {name} is {theirs[key]} there and {described[key]} here"
            for key in ("shape", "dtype", "decays")
            if theirs[key] != described[key] and (strict or key != "decays")
        ]
    problems += [f"it has a variable {name} that is unknown here" for name in variables if name not in own["variables"]]
    if problems:
        return problems
    expected = _arrays(engine)
    problems += [f"it has no array {name}" for name in expected if name not in arrays]
    problems += [f"it has an array {name} that is unknown here" for name in arrays if name not in expected]
    for name, now in expected.items():
        if name in arrays and (arrays[name].shape != now.shape or arrays[name].dtype != now.dtype):
            found = f"{arrays[name].dtype} of {arrays[name].shape}"
            problems.append(f"{name} is {found} there and {now.dtype} of {now.shape} here")
    return problems
