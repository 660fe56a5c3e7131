"""Stage 5's norms, and the factors of clipping by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adagrad import rule
from adagrad.jax.native import dispatched_norm
from adagrad.jax.rows import Rows, summed

__all__ = ["with_factors"]

Array = jax.Array


def with_factors(
    spec: Any, given: dict[str, Array], slots: Sequence[Any], closed: Sequence[Any], numbers: Sequence[Any]
) -> list[Any]:
    """The scalars with the factors of clipping by norm: ``c/n`` where n > c, else 1; NaN where n is not finite."""
    own = spec.settings
    name = "clipnorm" if own.clipnorm is not None else "global_clipnorm"
    if getattr(own, name) is None:
        return list(numbers)
    norms = [
        None
        if g is None
        else dispatched_norm(_norm_of_rows, spec.kernels, g, s.scale, len(slot.accumulator))
        if isinstance(g, Rows)
        else norm(g)
        for g, slot, s in zip(closed, slots, numbers, strict=True)
    ]
    if name == "global_clipnorm":
        present = [n.astype(jnp.result_type(float)) for n in norms if n is not None]
        whole = norm(jnp.stack(present)) if present else None  # of no parameters at all
        norms = [whole] * len(norms)
    found = []
    for s, n in zip(numbers, norms, strict=True):
        if n is not None:
            bound = jnp.asarray(given.get(name, getattr(own, name)), n.dtype)
            factor = jnp.where(jnp.isfinite(n), bound / jnp.where(n > bound, n, bound), math.nan)
            s = s._replace(factor=factor.astype(s.lr.dtype))
        found.append(s)
    return found


def norm(g: Array) -> Array:
    """The root of the sum of squares, which neither overflows nor vanishes while the norm itself is a number of its dtype.

    In float64 where JAX has it, else in float32; where the plain sum leaves the range, it is taken anew of ``g`` times a
    power of two.
    """
    real = jnp.result_type(float)
    wide = real == jnp.float64
    low, up, down = (2.0**-900, 2.0**600, 2.0**-600) if wide else (2.0**-80, 2.0**100, 2.0**-80)

    def root(scale: Any) -> Array:
        x = g.astype(jnp.promote_types(g.dtype, real)) * scale
        squares = jnp.sum(x.real * x.real + x.imag * x.imag if jnp.iscomplexobj(x) else x * x)
        some = squares != 0
        return jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), 0) / scale

    plain = root(jnp.ones((), real))
    scale = jnp.where(plain < math.sqrt(low), up, down).astype(real)
    again = (plain < math.sqrt(low)) | ~jnp.isfinite(plain)
    return jax.lax.cond(again, lambda: root(scale), lambda: plain)


def _norm_of_rows(rows: Rows, scale: Array | None, count: int) -> Array:
    g = summed(rows, count)[1]
    return norm(g if scale is None else rule.unscale(g, scale))
