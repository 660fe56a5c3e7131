"""Row gradients under jit: checked, their repeated ids summed at a fixed size, and made for the tables that a loss reads.

An id equal to the number of rows is padding, for batches of a fixed size: it touches nothing, and its row reads as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adagrad.gradients import IndexedSlices

__all__ = ["Rows", "checked_rows", "is_row_gradient", "summed", "value_and_row_grad"]

Array = jax.Array

jax.tree_util.register_pytree_with_keys(
    IndexedSlices,
    lambda g: (
        ((jax.tree_util.GetAttrKey("values"), g.values), (jax.tree_util.GetAttrKey("indices"), g.indices)),
        None,
    ),
    lambda _, children: IndexedSlices(*children),
    lambda g: ((g.values, g.indices), None),
)


class Rows(NamedTuple):
    """A row gradient of a table of ``count`` rows: wide ``values`` (n, ...), ``ids`` (n,) in [0, count]."""

    values: Array
    ids: Array


def is_row_gradient(x: Any) -> bool:
    """Whether ``x`` is a row gradient, for ``is_leaf``."""
    return isinstance(x, IndexedSlices)


def check_ids(name: str, ids: Any, count: int) -> Any:
    """``ids`` as an integer array; where they are known already, ``ValueError`` for one outside [0, count]."""
    if isinstance(ids, list | tuple) and any(isinstance(i, jax.Array) for i in ids):  # a list that went through jit
        ids = jnp.asarray(ids)
    ids = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        if ids.size:
            raise TypeError(f"{name} must be integers, got {ids.dtype}")
        ids = np.zeros(ids.shape, np.int32)  # an empty list
    unknown = isinstance(ids, jax.core.Tracer) or (isinstance(ids, jax.Array) and not ids.is_fully_addressable)
    if ids.size and not unknown:
        known = np.asarray(ids)  # NumPy's, since a trace that is under way would take over what JAX computes
        low, high = int(known.min()), int(known.max())
        if low < 0 or high > count:
            raise ValueError(f"{name} must be in [0, {count}), or {count} for padding, got {low if low < 0 else high}")
    return ids


def checked_rows(name: str, gradient: IndexedSlices, shape: tuple[int, ...]) -> IndexedSlices:
    """The row gradient of a variable of ``shape``, its arrays JAX's or NumPy's; raises where it doesn't fit."""
    values = gradient.values if isinstance(gradient.values, jax.Array) else np.asarray(gradient.values)
    if not shape:
        raise ValueError(f"a row gradient needs a variable with rows, but {name} has shape ()")
    ids = check_ids(f"the indices of the gradient of {name}", gradient.indices, shape[0])
    if ids.ndim != 1 or values.shape != (*ids.shape, *shape[1:]):
        raise ValueError(
            f"the row gradient of {name} must have indices of shape (n,) and values of shape (n, *{shape[1:]}), "
            f"got {ids.shape} and {values.shape}"
        )
    return IndexedSlices(values, ids)


def padded(ids: Array, count: int) -> Array:
    """``ids`` in a signed dtype; what is outside [0, count), which only a compiled step can meet, becomes padding."""
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)
    bound = min(count, int(jnp.iinfo(ids.dtype).max))
    inside = (ids >= 0) & (ids < bound)
    index = jnp.int32 if count + ids.size < 2**31 else jnp.int64
    return jnp.where(inside, ids.astype(index), count)


def summed(rows: Rows, count: int) -> tuple[Array, Array]:
    """``(ids, values)`` of the rows that occur, ascending, those of equal id summed in the order they came.

    There are n of them, as in ``rows``: behind the ids that occur come others beyond ``count``, no two alike, whose values
    are zero.
    """
    positions = jnp.arange(rows.ids.size, dtype=rows.ids.dtype)
    ascending, order = jax.lax.sort((rows.ids, positions), num_keys=1, is_stable=True)
    segments = jnp.cumsum(jnp.concatenate([positions[:1] * 0, (ascending[1:] != ascending[:-1]).astype(positions.dtype)]))
    segment_of = jnp.zeros_like(positions).at[order].set(segments, unique_indices=True)
    ids = (count + positions).at[segments].set(ascending, indices_are_sorted=True)
    values = jnp.zeros_like(rows.values).at[segment_of].add(rows.values)
    keep = (ids < count).reshape(-1, *(1,) * (values.ndim - 1))
    return ids, jnp.where(keep, values, 0)


def take(array: Array, ids: Array) -> Array:
    """The rows at ``ids`` as `summed` gives them; zeros for those beyond the array."""
    if not array.size:  # which `at` refuses
        return jnp.zeros((*ids.shape, *array.shape[1:]), array.dtype)
    found: Array = array.at[ids].get(mode="fill", fill_value=0, indices_are_sorted=True, unique_indices=True)
    return found


def _read(table: Array, ids: Array) -> Array:
    """The rows at ``ids``, of any shape and in any order; zeros for padding."""
    if not table.size:
        return jnp.zeros((*ids.shape, *table.shape[1:]), table.dtype)
    found: Array = table.at[ids].get(mode="fill", fill_value=0)
    return found


def put(array: Array, ids: Array, values: Array) -> Array:
    """``array`` with ``values`` at ``ids`` as `summed` gives them; those beyond the array go nowhere."""
    if not array.size:
        return array
    new: Array = array.at[ids].set(values, mode="drop", indices_are_sorted=True, unique_indices=True)
    return new


def value_and_row_grad(loss: Callable[..., Any], has_aux: bool = False) -> Callable[..., Any]:
    """A function that evaluates a loss over rows of tables, its gradient, and the rows' gradients.

    ``loss(params, rows, *batch)`` returns a scalar (with ``has_aux`` a pair of it and anything). The function that comes
    back is called as ``(params, tables, ids, *batch)``, with dicts ``tables`` and ``ids`` of equal keys, and calls
    ``loss`` with ``rows[k] = tables[k][ids[k]]``, shape ``ids[k].shape + tables[k].shape[1:]``. It returns ``(value,
    param_grads, row_grads)``, where ``row_grads[k]`` is an `IndexedSlices` that `Adagrad.apply` takes as the gradient of
    ``tables[k]``. No array of a table's size is made.

    An id equal to the number of rows is padding: its row is zeros, and it gets no gradient. Other ids outside the table
    raise ``ValueError`` where their values are known, and are padding inside jit, where they are not.

    >>> import jax.numpy as jnp
    >>> f = value_and_row_grad(lambda w, rows, y: jnp.mean((rows["word"] @ w - y) ** 2))
    >>> value, grad, row_grads = f(jnp.ones(2), {"word": jnp.ones((9, 2))}, {"word": jnp.array([3, 3])}, jnp.zeros(2))
    >>> float(value), row_grads["word"].values.shape, row_grads["word"].indices.tolist()
    (4.0, (2, 2), [3, 3])
    """

    def evaluate(params: Any, tables: Mapping[Any, Any], ids: Mapping[Any, Any], *batch: Any) -> Any:
        if set(tables) != set(ids):
            raise ValueError(f"tables and ids must have the same keys, got {list(tables)} and {list(ids)}")
        rows, found = {}, {}
        for name, table in tables.items():
            if not jnp.ndim(table):
                raise ValueError(f"tables[{name!r}] must have rows, got shape ()")
            count = jnp.shape(table)[0]
            found[name] = padded(jnp.asarray(check_ids(f"ids[{name!r}]", ids[name], count)), count)
            rows[name] = _read(jnp.asarray(table), found[name])
        result, (gradients, of_rows) = jax.value_and_grad(loss, (0, 1), has_aux=has_aux)(params, rows, *batch)
        slices = {
            name: IndexedSlices(g.reshape(-1, *g.shape[found[name].ndim :]), found[name].reshape(-1))
            for name, g in of_rows.items()
        }
        return result, gradients, slices

    return evaluate
