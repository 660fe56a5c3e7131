"""JAX, jit-compiled, with parameters and state donated so that they change in place: optax, our face, and rows by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adagrad.jax import Adagrad, IndexedSlices
from bench.peers import SETTINGS, Peer

__all__ = ["ArrayCode", "ByHand", "Face", "Optax"]


class Compiled(Peer):
    """What they share: one compiled function of parameters, state and gradient, the first two donated."""

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        self.parameters = [jnp.array(p) for p in parameters]
        self.state = self.initial()
        self.compiled = jax.jit(self.update, donate_argnums=(0, 1))

    def initial(self) -> Any:
        """The state before the first step."""
        raise NotImplementedError

    def update(self, parameters: Any, state: Any, gradient: Any) -> Any:
        """Parameters and state after a step; traced once."""
        raise NotImplementedError

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """JAX arrays."""
        return [jnp.array(g) for g in gradients]

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """Arrays of rows and of ids, which the compiled function makes of them what it needs."""
        return [IndexedSlices(jnp.array(values), jnp.array(ids, jnp.int32))]

    def step(self, gradient: Any) -> None:
        """One call, which returns before it is done."""
        self.parameters, self.state = self.compiled(self.parameters, self.state, gradient)

    def wait(self) -> None:
        """``block_until_ready``."""
        jax.block_until_ready(self.parameters)

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """A copy."""
        found = self.parameters[number]
        return np.asarray(found if rows is None else found[jnp.asarray(rows)])


class Optax(Compiled):
    """``optax.adagrad`` and ``optax.apply_updates``."""

    row_form = "dense gradient"

    def initial(self) -> Any:
        """Optax's."""
        self.optimizer = optax.adagrad(SETTINGS["learning_rate"], SETTINGS["initial_accumulator_value"], SETTINGS["epsilon"])
        return self.optimizer.init(self.parameters)

    def update(self, parameters: Any, state: Any, gradient: Any) -> Any:
        """Of rows, the table of mostly zeros that differentiating a lookup gives is made here, as in a training step."""
        if isinstance(gradient[0], IndexedSlices):
            rows = gradient[0]
            gradient = [jnp.zeros_like(parameters[0]).at[rows.indices].add(rows.values)]
        updates, state = self.optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state


class Face(Compiled):
    """`adagrad.jax.Adagrad`, whose rows go through the engine's kernel."""

    row_form = "IndexedSlices"

    def initial(self) -> Any:
        """Ours."""
        self.optimizer = Adagrad(**SETTINGS)
        return self.optimizer.init(self.parameters)

    def update(self, parameters: Any, state: Any, gradient: Any) -> Any:
        """`Adagrad.apply`."""
        return self.optimizer.apply(gradient, state, parameters)


class ArrayCode(Face):
    """The same without the kernel, as on other devices."""

    def update(self, parameters: Any, state: Any, gradient: Any) -> Any:
        """Traced while the kernels are off."""
        before = os.environ.get("ADAGRAD_JAX_KERNELS")
        os.environ["ADAGRAD_JAX_KERNELS"] = "0"
        try:
            return super().update(parameters, state, gradient)
        finally:
            if before is None:
                del os.environ["ADAGRAD_JAX_KERNELS"]
            else:
                os.environ["ADAGRAD_JAX_KERNELS"] = before


class ByHand(Compiled):
    """The row update as one writes it oneself: ``jnp.unique`` of a fixed size, a segment sum, two scatters."""

    row_form = "jnp.unique, segment sum"

    def initial(self) -> Any:
        """The accumulator."""
        return jnp.full_like(self.parameters[0], SETTINGS["initial_accumulator_value"])

    def update(self, parameters: Any, state: Any, gradient: Any) -> Any:
        """Padding lies beyond the table, where it is dropped."""
        table, (rows,) = parameters[0], gradient
        ids, inverse = jnp.unique(rows.indices, return_inverse=True, size=rows.indices.size, fill_value=len(table))
        g = jax.ops.segment_sum(rows.values, inverse, rows.indices.size)
        a = state[ids] + g * g
        step = SETTINGS["learning_rate"] * g / jnp.sqrt(a + SETTINGS["epsilon"])
        return [table.at[ids].add(-step, mode="drop")], state.at[ids].set(a, mode="drop")
