"""What hypothesis draws for the tests of the core: settings, arrays of every layout, and gradients of every kind.

Values come from a seeded generator with special numbers mixed in, so that an example is small and still nasty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

import adagrad
from plain import DTYPES, state_dtype

# Each dtype and each set of (averaged, accumulated, staged) is compiled apart: the others draw from fewer sets.
EVERY_STAGE = [(ema, cycle, staged) for ema in (False, True) for cycle in (False, True) for staged in (False, True)]
FEW_STAGES = [(False, False, False), (False, False, True), (True, True, True)]

SHAPES = [(), (0,), (1,), (15,), (17,), (0, 3), (3, 0), (1, 1), (7, 1), (5, 3), (4, 16), (3, 64), (2, 65), (4, 2, 3), (70, 65)]
LAYOUTS = ["C", "F", "strided", "reversed", "swapped", "misaligned"]


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The values of ``array`` in memory of another layout: Fortran order, gaps, backwards, foreign byte order, odd address."""
    if layout == "F":
        return np.asfortranarray(array) if array.ndim else array.copy()
    if layout == "strided" and array.ndim:
        gaps = np.zeros((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype)
        result = gaps[..., 1::2]
    elif layout == "reversed" and array.ndim:
        result = np.zeros_like(array, order="C")[::-1]
    elif layout == "swapped" and array.dtype.kind == "f":
        result = np.zeros(array.shape, array.dtype.newbyteorder())
    elif layout == "misaligned":
        raw = np.zeros(array.nbytes + 1, np.uint8)
        result = raw[1:].view(array.dtype).reshape(array.shape)
    else:
        result = np.zeros_like(array, order="C")
    result[...] = array
    return result


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, special: float) -> np.ndarray:
    """Normal numbers; the part ``special`` of them infinities, NaN, zeros, subnormal, tiny or huge."""
    values = 3 * rng.normal(size=shape)
    exponent = {"float16": (1e-7, 6e4), "float64": (1e-320, 1e200)}.get(dtype.name, (1e-42, 1e20))
    pool = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, exponent[0], -exponent[0], exponent[1], -exponent[1], 1e-30, 0.0, 0.0])
    with np.errstate(over="ignore", under="ignore"):
        return np.where(rng.random(shape) < special, rng.choice(pool, shape), values).astype(dtype)


@st.composite
def arguments(draw: Any, stages: Sequence[tuple[bool, bool, bool]] = EVERY_STAGE) -> dict[str, Any]:
    """Arguments of the optimizer; only what is not its default stands in the dict."""
    ema, cycle, staged = draw(st.sampled_from(list(stages)))
    result: dict[str, Any] = {
        "learning_rate": draw(st.sampled_from([0.3, 1.0, 1e-3, 0.0])),
        "initial_accumulator_value": draw(st.sampled_from([0.1, 0.0, 0.7])),
        "epsilon": draw(st.sampled_from([1e-7, 0.0, 0.01])),
        "epsilon_placement": draw(st.sampled_from(["inside", "outside"])),
    }
    if ema:
        result["use_ema"] = True
        result["ema_momentum"] = draw(st.sampled_from([0.8, 0.99, 0.0, 1.0]))
        result["ema_overwrite_frequency"] = draw(st.sampled_from([None, 1, 2]))
    if cycle:
        result["gradient_accumulation_steps"] = draw(st.sampled_from([2, 3]))
    if staged:
        decay = draw(st.sampled_from([None, 0.1, 0.5]))
        clip = draw(st.sampled_from([None, "clipnorm", "clipvalue", "global_clipnorm"]))
        result["weight_decay"] = decay
        result["weight_decay_mode"] = draw(st.sampled_from(["decoupled", "l2"]))
        if clip:
            result[clip] = draw(st.sampled_from([0.5, 1e-30, 10.0, 1e300]))
        if not (decay and clip):
            result["loss_scale_factor"] = draw(st.sampled_from([3.0, 0.5]))
    return result


def gradient(
    rng: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: np.dtype, special: float
) -> tuple[Any, np.ndarray | tuple[str, np.ndarray, np.ndarray] | None]:
    """A gradient as the optimizer takes it, and the same as the judges do. Kinds: dense, rows, other, none.

    "other" is a dense gradient that the kernels can't read as it lies.
    """
    if kind == "none":
        return None, None
    if kind == "rows" and shape:
        count = int(rng.integers(0, 13)) if shape[0] else 0
        indices = rng.integers(0, max(1, min(shape[0], 9)), count).astype(rng.choice([np.int32, np.int64, np.uint8]))
        values = numbers(rng, (count, *shape[1:]), dtype, special)
        return adagrad.IndexedSlices(laid_out(values, str(rng.choice(LAYOUTS[:4]))), indices), ("rows", values, indices)
    values = numbers(rng, shape, dtype, special)
    if kind == "other":
        return laid_out(values, str(rng.choice(LAYOUTS))), values
    return values, values


def dtypes_with_stages() -> list[tuple[str, list[tuple[bool, bool, bool]]]]:
    """The dtypes with the sets of stages that tests draw for them."""
    return [(name, EVERY_STAGE if name == "float32" else FEW_STAGES) for name in DTYPES]


__all__ = ["LAYOUTS", "SHAPES", "arguments", "dtypes_with_stages", "gradient", "laid_out", "numbers", "state_dtype"]
