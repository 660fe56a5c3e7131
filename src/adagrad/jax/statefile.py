"""The state file that all faces share, for the JAX face."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adagrad import checkpoint
from adagrad.engine import Engine
from adagrad.jax import counting, trees
from adagrad.jax.optimizer import Adagrad
from adagrad.jax.trees import AdagradState
from adagrad.state import StateFileError

__all__ = ["load", "save"]


def save(optimizer: Adagrad, path: str | os.PathLike[str], state: AdagradState, params: Any) -> None:
    """See `Adagrad.save`."""
    engine = _engine(optimizer, state, params, np.asarray)
    checkpoint.save(engine, path)


def load(
    optimizer: Adagrad,
    path: str | os.PathLike[str],
    params: Any,
    *,
    strict: bool,
    names: Mapping[str, str],
    transpose: set[str],
) -> AdagradState:
    """See `Adagrad.load`."""
    state = optimizer.init(params)
    engine = _engine(optimizer, state, params, lambda array: np.empty(array.shape, array.dtype))
    rate = engine.rate
    checkpoint.load(engine, path, strict=strict, names=names, transpose=transpose)
    if strict and engine.rate != rate:
        raise StateFileError(
            f"{os.fspath(path)} does not fit this optimizer: learning_rate is {engine.rate!r} there and {rate!r} here; make "
            "the optimizer with that rate, or load with strict=False to go on with this one"
        )
    structure = jax.tree.structure(params)

    def tree(attribute: str, like: Any) -> Any:
        if like is None:
            return None
        arrays = [getattr(slot, attribute) for slot in engine.slots]
        placed = [
            jax.device_put(array, now.sharding) if now.committed else jnp.asarray(array)
            for array, now in zip(arrays, jax.tree.leaves(like), strict=True)
        ]
        return jax.tree.unflatten(structure, placed)

    in_cycle = None
    if state.in_cycle is not None:
        in_cycle = jax.tree.unflatten(structure, [jnp.asarray(slot.touched is not None) for slot in engine.slots])
    return AdagradState(
        count=counting.of(engine.calls),
        accumulator=tree("accumulator", state.accumulator),
        average=tree("average", state.average),
        gradient_accumulator=tree("buffer", state.gradient_accumulator),
        in_cycle=in_cycle,
    )


def _engine(optimizer: Adagrad, state: AdagradState, params: Any, array_of: Callable[[Any], np.ndarray]) -> Engine:
    """An engine that holds ``array_of`` each array of the state, to be written out or read into."""

    def copied(array: Any) -> np.ndarray | None:
        return None if array is None else array_of(array)

    settings = optimizer.settings
    if optimizer.traced:
        raise ValueError(f"a state file describes arguments by their values, but {', '.join(optimizer.traced)} are traced")
    leaves, structure, names = trees.flat_params(params)
    slots = trees.flat_state(state, structure, settings, names, leaves)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"a state file needs a name of its own for each parameter, but {twice} comes twice")
    decays = optimizer.decays_of(params, len(names)) if settings.weight_decay is not None else (True,) * len(names)
    variables = [
        (name, p.shape, p.dtype.name, each, slot.in_cycle is not None and bool(slot.in_cycle), *map(copied, slot[:3]))
        for name, p, slot, each in zip(names, leaves, slots, decays, strict=True)
    ]
    return checkpoint.engine_of(settings, counting.to_int(state.count), variables)
