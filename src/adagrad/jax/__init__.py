"""Adagrad for JAX: ``from adagrad.jax import adagrad, Adagrad``."""

from adagrad.gradients import IndexedSlices
from adagrad.jax.native import row_kernels
from adagrad.jax.optimizer import Adagrad
from adagrad.jax.rates import optax_schedule
from adagrad.jax.rows import value_and_row_grad
from adagrad.jax.transformation import adagrad
from adagrad.jax.trees import AdagradState

__all__ = [
    "Adagrad",
    "AdagradState",
    "IndexedSlices",
    "adagrad",
    "optax_schedule",
    "row_kernels",
    "value_and_row_grad",
]
