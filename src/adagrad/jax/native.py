"""Where the compiled row kernels take over from the array code: on CPU, on one device, for real parameters.

There a row gradient's step runs in place inside the compiled function, as one call of the engine's own kernel, with the
engine's bits. Differentiated, it is the array code.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["dispatched_norm", "dispatched_step", "has_kernels", "row_kernels"]

Array = jax.Array


def row_kernels() -> str:
    """How steps by row gradients run here: ``"compiled"``, or ``"array code: "`` and the reason.

    Compiled kernels need a CPU with one JAX device and the compiler (not ``NUMBA_DISABLE_JIT``); the environment variable
    ``ADAGRAD_JAX_KERNELS=0`` turns them off. Array code runs everywhere, several times slower on a CPU.
    """
    reason = _why_not()
    return "compiled" if reason is None else f"array code: {reason}"


def has_kernels() -> bool:
    """Whether a step that is traced now may call the kernels."""
    return _why_not() is None


def _why_not() -> str | None:
    if os.environ.get("ADAGRAD_JAX_KERNELS") == "0":
        return "ADAGRAD_JAX_KERNELS is 0"
    if jax.default_backend() != "cpu":
        return f"the default backend is {jax.default_backend()}"
    if jax.device_count() != 1:
        # A custom call is not split: XLA would gather a sharded table on every device.
        return f"there are {jax.device_count()} devices, and parameters may be sharded"
    from adagrad.jax import ffi

    return ffi.why_not()


def _differentiable(native: Callable[..., Any], pure: Callable[..., Any]) -> Callable[..., Any]:
    @jax.custom_jvp
    def run(*arrays: Any) -> Any:
        return jax.lax.platform_dependent(*arrays, cpu=native, default=pure)

    run.defjvp(functools.partial(jax.jvp, pure))
    return run


def _usable(values: Array, ids: Array, count: int) -> bool:
    return bool(values.size) and not jnp.iscomplexobj(values) and count < 2**31 - ids.size


def dispatched_step(
    pure: Callable[..., Any], flags: Any, p: Array, a: Array, m: Array | None, rows: Any, s: Any, overwrite: Array | None
) -> Any:
    """``pure(flags, p, a, m, rows, s, overwrite)``, stages 3 to 10 by a row gradient, or the kernel that does the same."""
    pure = functools.partial(pure, flags)
    arrays = p, a, m, rows, s, overwrite
    if not flags.kernels or flags.constraint is not None or jnp.iscomplexobj(p) or not _usable(rows.values, rows.ids, len(p)):
        return pure(*arrays)
    from adagrad.jax import ffi

    target = ffi.step_target(p.dtype.name, a.dtype.name, flags.row_wise, m is not None)

    def native(
        p: Array, a: Array, m: Array | None, rows: Any, s: Any, overwrite: Array | None
    ) -> tuple[Array, Array, Array | None]:
        every = m is not None or s.decay is not None or s.l2 is not None
        due = jnp.zeros((), jnp.int32) if overwrite is None else overwrite.astype(jnp.int32)
        inputs = [p, a] if m is None else [p, a, m]
        moved = jax.ffi.ffi_call(
            target,
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs],
            input_output_aliases={i: i for i in range(len(inputs))},
            vmap_method="sequential",
        )(*inputs, rows.values, rows.ids, _packed(s, a.dtype), jnp.stack([jnp.asarray(every, jnp.int32), due]))
        return moved[0], moved[1], None if m is None else moved[2]

    return _differentiable(native, pure)(*arrays)


def dispatched_norm(pure: Callable[..., Array], kernels: bool, rows: Any, scale: Array | None, count: int) -> Array:
    """``pure(rows, scale, count)``, the norm of an unscaled row gradient, or the kernel that does the same."""

    def array_code(rows: Any, scale: Array | None) -> Array:
        return pure(rows, scale, count)

    if not kernels or not _usable(rows.values, rows.ids, count):
        return array_code(rows, scale)
    from adagrad.jax import ffi

    result = jnp.result_type(float)
    target = ffi.norm_target(rows.values.dtype.name, result.name)

    def native(rows: Any, scale: Array | None) -> Array:
        one = jnp.ones((), rows.values.dtype)
        counts = jnp.array([count], jnp.int32)
        inputs = rows.values, rows.ids, (one if scale is None else scale)[None], counts
        found: Array = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((), result), vmap_method="sequential")(*inputs)
        return found

    return _differentiable(native, array_code)(rows, scale)


def _packed(s: Any, dtype: Any) -> Array:
    """The scalars as the kernels read them: what is off has its neutral value."""
    from adagrad.kernels.elements import NEUTRAL

    return jnp.stack(
        [jnp.asarray(neutral if value is None else value, dtype) for value, neutral in zip(s, NEUTRAL.tolist(), strict=True)]
    )
