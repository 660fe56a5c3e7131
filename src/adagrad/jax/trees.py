"""Parameters, gradients and state as flat lists, each checked to fit the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adagrad.gradients import IndexedSlices
from adagrad.jax.rows import checked_rows
from adagrad.jax.stages import Slot, real_dtype, wide_dtype
from adagrad.settings import Settings

__all__ = ["AdagradState", "check_state", "flat_gradients", "flat_params", "flat_state", "names_of", "spread", "state_of"]

Array = jax.Array
Tree = Any


class AdagradState(NamedTuple):
    """The state, a pytree; each tree in it is shaped as the parameters, and None where the arguments need none.

    Attributes
    ----------
    count : calls so far, in two uint32 words, low and high, which do not wrap
    accumulator : the sums of squared gradients; float32 for half parameters, real for complex ones, a number a row with
        ``row_wise``
    average : moving averages of the parameters (``use_ema``)
    gradient_accumulator : what this accumulation cycle has gathered (``gradient_accumulation_steps``)
    in_cycle : for each parameter, whether it has had a gradient in this cycle; bool
    """

    count: Array  # type: ignore[assignment]  # as optax calls it; nobody counts in a state
    accumulator: Tree
    average: Tree = None
    gradient_accumulator: Tree = None
    in_cycle: Tree = None


def names_of(tree: Tree) -> list[str]:
    """The path of each leaf, ``dense/kernel``; ``params`` for a leaf alone."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path in paths]


def flat_params(params: Tree) -> tuple[list[Array], Any, list[str]]:
    """The parameters, their structure and their names."""
    leaves, structure = jax.tree.flatten(params)
    names = names_of(params)
    found = []
    for name, leaf in zip(names, leaves, strict=True):
        try:
            p = jnp.asarray(leaf)
        except TypeError:
            raise TypeError(f"parameter {name} must be a floating or complex array, got {leaf!r}") from None
        if not jnp.issubdtype(p.dtype, jnp.inexact) or p.dtype.itemsize < 2:
            raise TypeError(f"parameter {name} must be floating or complex, got {p.dtype}")
        found.append(p)
    return found, structure, names


def flat_gradients(grads: Tree, structure: Any, names: list[str], leaves: list[Array], like: str) -> list[Any]:
    """The gradient of each parameter, checked: an array, an `IndexedSlices` or None."""
    try:
        gradients = structure.flatten_up_to(grads)
    except (TypeError, ValueError) as error:
        raise ValueError(f"grads must have the structure of {like}: {error}") from None
    found: list[Any] = []
    for name, g, p in zip(names, gradients, leaves, strict=True):
        if isinstance(g, IndexedSlices):
            found.append(checked_rows(name, g, p.shape))
            dtype = found[-1].values.dtype
        elif g is None:
            found.append(None)
            continue
        else:
            if not isinstance(g, jax.Array | np.ndarray | np.generic | float | int | complex):
                raise TypeError(f"the gradient of {name} must be an array, IndexedSlices or None, got {type(g).__name__}")
            found.append(jnp.asarray(g))
            dtype = found[-1].dtype
            if found[-1].shape != p.shape:
                raise ValueError(f"the gradient of {name} must have its shape {p.shape}, got {found[-1].shape}")
        if not jnp.issubdtype(dtype, jnp.number):
            raise TypeError(f"the gradient of {name} must be numbers, got {dtype}")
        if like == "params" and jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.iscomplexobj(p):
            raise TypeError(f"the gradient of {name} must be real as its parameter is, got {dtype}")
    return found


def check_state(state: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` for what is no state."""
    if not isinstance(state, AdagradState):
        raise TypeError(f"state must be an AdagradState, as init makes it, got {type(state).__name__}")
    if jnp.shape(state.count) != (2,) or jnp.result_type(state.count) != jnp.uint32:
        raise ValueError(f"the count of a state must be two uint32 words, got {state.count!r}")


def flat_state(state: AdagradState, structure: Any, own: Settings, names: list[str], leaves: list[Array] | None) -> list[Slot]:
    """The state by parameter; ``ValueError`` where it is not one of these arguments and parameters."""
    check_state(state)
    wanted = {
        "accumulator": True,
        "average": own.use_ema,
        "gradient_accumulator": own.accumulation_steps > 1,
        "in_cycle": own.accumulation_steps > 1,
    }
    columns = []
    for field, on in wanted.items():
        tree = getattr(state, field)
        if (tree is not None) != on and structure.num_leaves:
            raise ValueError(f"the state was made for other arguments: it has {'no' if on else 'an'} {field}")
        if not on or not structure.num_leaves:
            columns.append([None] * structure.num_leaves)
            continue
        try:
            columns.append(structure.flatten_up_to(tree))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the state was made for other parameters: {error}") from None
    slots = [Slot(*values) for values in zip(*columns, strict=True)]
    for name, slot, p in zip(names, slots, leaves or [], strict=leaves is not None):
        rows = p.shape[:1] if own.row_wise and p.ndim >= 2 else p.shape
        expected = {
            "accumulator": (rows, real_dtype(p.dtype)),
            "average": (p.shape, wide_dtype(p.dtype)),
            "gradient_accumulator": (p.shape, wide_dtype(p.dtype)),
        }
        for (field, (shape, dtype)), x in zip(expected.items(), slot[:3], strict=True):
            if x is not None and (jnp.shape(x), found := jnp.result_type(x)) != (shape, dtype):
                raise ValueError(
                    f"the {field} of {name} must be {jnp.dtype(dtype).name} of shape {shape}, got {found} of {jnp.shape(x)}"
                )
    return slots


def state_of(count: Array, slots: list[Slot], before: AdagradState, structure: Any) -> AdagradState:
    """The state of the slots, whose fields are in its order; what ``before`` had not is None."""
    columns = zip(*slots, strict=True) if slots else [()] * 4
    trees = [
        None if had is None else jax.tree.unflatten(structure, column) for had, column in zip(before[1:], columns, strict=True)
    ]
    return AdagradState(count, *trees)


def spread(what: str, prefix: Tree, params: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """The leaf of ``prefix`` for each leaf of ``params``."""
    found: list[Any] = []
    try:
        jax.tree.map(lambda value, part: found.extend([value] * len(jax.tree.leaves(part))), prefix, params, is_leaf=is_leaf)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be a prefix of params: {error}") from None
    return found
