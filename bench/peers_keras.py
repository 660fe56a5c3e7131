"""keras.optimizers.Adagrad on each backend, called as its training loop calls it.

A table's gradient comes as Keras gets it: dense and of the table's size on PyTorch and JAX (their sparse gradients raise
errors in Keras), ``tf.IndexedSlices`` on TensorFlow. Making the dense gradient is not timed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.peers import SETTINGS, Peer

__all__ = ["OnJax", "OnTensorFlow", "OnTensorFlowXla", "OnTorch"]


class _Keras(Peer):
    backend = ""

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        os.environ["KERAS_BACKEND"] = self.backend
        import keras

        assert keras.backend.backend() == self.backend
        self.variables = [keras.Variable(p) for p in parameters]
        self.optimizer = keras.optimizers.Adagrad(**SETTINGS)
        self.optimizer.build(self.variables)


class OnTorch(_Keras):
    """``optimizer.apply`` on tensors."""

    backend = "torch"
    row_form = "dense gradient"

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """Tensors on the same memory."""
        import torch

        return [torch.from_numpy(g) for g in gradients]

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """A table of zeros with the rows added, the same one at every call."""
        import torch

        if not hasattr(self, "_table"):
            self._table, self._filled = torch.zeros(tuple(self.variables[0].shape)), torch.empty(0, dtype=torch.int64)
        self._table[self._filled] = 0
        self._filled = torch.from_numpy(ids)
        self._table.index_add_(0, self._filled, torch.from_numpy(values))
        return [self._table]

    def step(self, gradient: Any) -> None:
        """One call."""
        self.optimizer.apply(gradient, self.variables)

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """The tensor's memory, or some rows."""
        found: np.ndarray = self.variables[number].value.detach().numpy()
        return found if rows is None else found[rows]

    def turn(self, threads: int) -> contextlib.AbstractContextManager[object]:
        """With ``torch.set_num_threads``."""
        from bench.peers_torch import torch_threads

        return torch_threads(threads)


class OnJax(_Keras):
    """``optimizer.stateless_apply``, jit-compiled, with variables and state donated."""

    backend = "jax"
    row_form = "dense gradient"

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        super().__init__(parameters)
        import jax

        self.values = [v.value for v in self.variables]
        self.state = [v.value for v in self.optimizer.variables]
        self.compiled = jax.jit(self.optimizer.stateless_apply, donate_argnums=(0, 2))
        self.scatter = jax.jit(lambda table, old, new, values: table.at[old].set(0).at[new].add(values), donate_argnums=0)

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """JAX arrays."""
        import jax.numpy as jnp

        return [jnp.array(g) for g in gradients]

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """A table of zeros with the rows added, the same memory at every call."""
        import jax.numpy as jnp

        if not hasattr(self, "_table"):
            self._table, self._filled = jnp.zeros(self.values[0].shape), jnp.array(ids)
        # One step at most may hold the table: the one before must be done with it.
        self.wait()
        self._table = self.scatter(self._table, self._filled, jnp.array(ids), jnp.array(values))
        self._filled = jnp.array(ids)
        return None

    def step(self, gradient: Any) -> None:
        """One call, which returns before it is done; None stands for the table of `rows`."""
        gradients = [self._table] if gradient is None else gradient
        self.values, self.state = self.compiled(self.state, gradients, self.values)

    def wait(self) -> None:
        """``block_until_ready``."""
        import jax

        jax.block_until_ready(self.values)
        if hasattr(self, "_table"):
            jax.block_until_ready(self._table)

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """A copy."""
        import jax.numpy as jnp

        found = self.values[number]
        return np.asarray(found if rows is None else found[jnp.asarray(rows)])


class OnTensorFlow(_Keras):
    """``optimizer.apply`` in a tf.function."""

    backend = "tensorflow"
    row_form = "tf.IndexedSlices"
    compiled: bool | None = None

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        super().__init__(parameters)
        import tensorflow as tf

        @tf.function(jit_compile=self.compiled)
        def dense(*gradients: Any) -> None:
            self.optimizer.apply(list(gradients), self.variables)

        @tf.function(jit_compile=self.compiled)
        def rows(values: Any, ids: Any) -> None:
            shape = tf.constant(tuple(self.variables[0].shape), tf.int64)
            self.optimizer.apply([tf.IndexedSlices(values, ids, dense_shape=shape)], self.variables)

        self._dense, self._rows = dense, rows

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """Tensors."""
        import tensorflow as tf

        return self._dense, [tf.constant(g) for g in gradients]

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """Two tensors, which the function makes into slices."""
        import tensorflow as tf

        return self._rows, [tf.constant(values), tf.constant(ids)]

    def step(self, gradient: Any) -> None:
        """One call, which returns when it is done."""
        function, arguments = gradient
        function(*arguments)

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """A copy."""
        import tensorflow as tf

        value = self.variables[number].value
        found: np.ndarray = (value if rows is None else tf.gather(value, rows)).numpy()
        return found


class OnTensorFlowXla(OnTensorFlow):
    """The same with ``jit_compile=True``, which ``model.compile`` chooses where it can."""

    compiled = True
