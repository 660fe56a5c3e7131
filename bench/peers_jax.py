"""optax on JAX, jit-compiled, with parameters and state donated so that they change in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench.peers import SETTINGS, Peer

__all__ = ["Optax"]


class Optax(Peer):
    """``optax.adagrad`` and ``optax.apply_updates`` in one compiled function."""

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        optimizer = optax.adagrad(SETTINGS["learning_rate"], SETTINGS["initial_accumulator_value"], SETTINGS["epsilon"])
        self.parameters = [jnp.array(p) for p in parameters]
        self.state = optimizer.init(self.parameters)

        def step(parameters: Any, state: Any, gradients: Any) -> Any:
            updates, state = optimizer.update(gradients, state, parameters)
            return optax.apply_updates(parameters, updates), state

        self.compiled = jax.jit(step, donate_argnums=(0, 1))

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """JAX arrays."""
        return [jnp.array(g) for g in gradients]

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
