"""Gradients as they come to the Keras face, made ready: dense tensors, or some rows of a table with its ids.

Row gradients are `adagrad.IndexedSlices` of tensors on every backend, ``tf.IndexedSlices`` on TensorFlow, ``BCOO`` on JAX
and sparse COO tensors on PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import backend, ops
from keras.src.backend.common.stateless_scope import in_stateless_scope  # which has no public name

from adagrad.gradients import IndexedSlices

__all__ = ["BACKEND", "Rows", "as_it_stands", "as_tensor", "in_stateless_scope", "is_known", "put", "read", "take", "value_of"]

Tensor = Any
Variable = Any

BACKEND = backend.backend()

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax
    import jax.numpy as jnp
elif BACKEND == "torch":
    import torch


def as_it_stands(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep compilers that rewrite Python out of a function: AutoGraph, which would change what is to be traced as it is,
    and Dynamo, which can't look into the kernels.
    """
    if BACKEND == "tensorflow":
        return tf.autograph.experimental.do_not_convert(function)
    return torch.compiler.disable(function) if BACKEND == "torch" else function


def is_known(tensor: Tensor) -> bool:
    """Whether a tensor has a value now, not only in the program that is being traced."""
    if BACKEND == "tensorflow":
        return bool(tf.executing_eagerly())
    return not (BACKEND == "jax" and isinstance(tensor, jax.core.Tracer))


class Rows(NamedTuple):
    """A gradient that is some rows of a table: ``table[ids[j]]`` has the gradient ``values[j]``.

    As they come ids may repeat; `grouped` ones don't, except for ids outside the table, which mark rows to be left out.
    """

    values: Tensor
    ids: Tensor

    def grouped(self, count: int, dtype: str) -> Rows:
        """The same with the rows of repeated ids summed, in the order they came, in ``dtype``."""
        values, ids = ops.cast(self.values, dtype), self.ids
        if BACKEND == "torch":
            ids, where = torch.unique(ids.to(torch.int64), return_inverse=True)  # index_copy takes no other
            return Rows(values.new_zeros((len(ids), *values.shape[1:])).index_add_(0, where, values), ids)
        if not is_known(ids):  # nor checked: a row outside of the table is left out of norms, too
            inside = ops.reshape((ids >= 0) & (ids < count), (-1, *[1] * (len(values.shape) - 1)))
            values = ops.where(inside, values, ops.zeros_like(values))
        if BACKEND == "tensorflow":
            ids, where = tf.unique(ids)
            return Rows(tf.math.unsorted_segment_sum(values, where, tf.size(ids)), ids)
        if not ids.shape[0]:
            return Rows(values, ids)
        ids = jnp.where((ids < 0) | (ids >= count), count, ids)
        # As many as came, so that the shape is known: unused places get the id that is out of the table.
        ids, where = jnp.unique(ids, return_inverse=True, size=ids.shape[0], fill_value=count)
        return Rows(jax.ops.segment_sum(values, where.reshape(-1), num_segments=ids.shape[0]), ids)


def read(gradient: Any, name: str, shape: tuple[int, ...]) -> Tensor | Rows:
    """A gradient as a tensor or as `Rows`; ``TypeError`` or ``ValueError`` where it doesn't fit its variable.

    Ids outside the table raise where their values can be looked at, which is not in compiled code: there JAX and XLA leave
    such rows out, and TensorFlow raises when it runs.
    """
    found = _read_rows(gradient)
    if found is None:
        tensor = ops.convert_to_tensor(gradient)
        _check_real(tensor, f"the gradient of {name}")
        if not _fits(tensor.shape, shape):
            raise ValueError(f"the gradient of {name} must have its shape {shape}, got {tuple(tensor.shape)}")
        return tensor
    values, ids = ops.convert_to_tensor(found.values), ops.convert_to_tensor(found.ids)
    if not shape:
        raise ValueError(f"{name} is a scalar and has no rows; its gradient must be dense, got {gradient!r}")
    if len(ids.shape) != 1 or not backend.is_int_dtype(ids.dtype):
        raise TypeError(f"the indices of {name} must be a 1-D tensor of integers, got {ids.dtype} of {tuple(ids.shape)}")
    _check_real(values, f"the gradient rows of {name}")
    if not _fits(values.shape, (ids.shape[0], *shape[1:])):
        expected = (ids.shape[0], *shape[1:])
        raise ValueError(f"the gradient rows of {name} must have shape {expected} (ids, row), got {tuple(values.shape)}")
    if BACKEND != "torch" and is_known(ids):
        given = np.asarray(ids)
        wrong = np.flatnonzero((given < 0) | (given >= shape[0]))
        if wrong.size:
            position = int(wrong[0])
            raise ValueError(f"the indices of {name} must be in [0, {shape[0]}), got {given[position]} at position {position}")
    return Rows(values, ids)


def _read_rows(gradient: Any) -> Rows | None:
    if isinstance(gradient, IndexedSlices):
        return Rows(gradient.values, gradient.indices)
    if BACKEND == "tensorflow" and isinstance(gradient, tf.IndexedSlices):
        return Rows(gradient.values, gradient.indices)
    if BACKEND == "jax" and type(gradient).__name__ == "BCOO":
        if (gradient.n_batch, gradient.n_sparse) != (0, 1):
            raise TypeError(f"a BCOO gradient must be sparse in its first dimension alone, got {gradient!r}")
        return Rows(gradient.data, gradient.indices[:, 0])
    if BACKEND == "torch" and isinstance(gradient, torch.Tensor) and gradient.layout is torch.sparse_coo:
        if gradient.sparse_dim() != 1:
            raise TypeError(f"a sparse gradient must be sparse in its first dimension alone, got {gradient.sparse_dim()}")
        return Rows(gradient._values(), gradient._indices()[0])
    return None


def _check_real(tensor: Tensor, what: str) -> None:
    dtype = backend.standardize_dtype(tensor.dtype)
    if not (backend.is_float_dtype(dtype) or backend.is_int_dtype(dtype)):
        raise TypeError(f"{what} must have a real dtype, got {dtype}")


def _fits(found: Any, shape: tuple[Any, ...]) -> bool:
    """Whether a shape, of which TensorFlow may not know all, can be ``shape``."""
    if BACKEND == "tensorflow":
        return bool(tf.TensorShape(found).is_compatible_with(tf.TensorShape(shape)))
    return tuple(found) == tuple(shape)


# ---- variables -------------------------------------------------------------------------------------------------------


def value_of(variable: Variable) -> Tensor:
    """What a Keras variable holds, or the ``tf.Variable`` itself; in a stateless scope, the scope's tensor."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def as_tensor(value: Tensor) -> Tensor:
    """The tensor that a value is; of a ``tf.Variable``, what it holds now."""
    return tf.convert_to_tensor(value) if BACKEND == "tensorflow" else value


def take(variable: Variable, ids: Tensor) -> Tensor:
    """Some rows of a variable; anything for an id outside."""
    value = value_of(variable)
    if BACKEND == "tensorflow":
        return tf.gather(value, ids)  # of a tf.Variable, without reading the rest
    if BACKEND == "torch":
        return value[ids]
    return value.at[ids].get(mode="clip")


def put(variable: Variable, rows: Rows) -> None:
    """Set some rows of a variable, in place where the backend can."""
    value = value_of(variable)
    rows = Rows(ops.cast(rows.values, variable.dtype), rows.ids)
    if BACKEND == "tensorflow":
        if isinstance(value, tf.Variable) and not in_stateless_scope():
            value.scatter_update(tf.IndexedSlices(rows.values, rows.ids))
        else:
            variable.assign(tf.tensor_scatter_nd_update(value, rows.ids[:, None], rows.values))
    elif BACKEND == "torch":
        variable.assign(value.index_copy(0, rows.ids, rows.values))
    else:
        variable.assign(value.at[rows.ids].set(rows.values, mode="drop"))
