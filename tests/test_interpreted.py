"""The kernels as plain Python (NUMBA_DISABLE_JIT=1) and compiled: the same bytes, so that what is read is what runs.

This file is also the program that both run: ``python test_interpreted.py`` prints a digest of each case.
"""

import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import adagrad
from adagrad.kernels.compiling import kernel, narrow, widen
from plain import DTYPES

EVERYTHING = {
    "learning_rate": 0.3, "gradient_accumulation_steps": 2, "global_clipnorm": 0.8, "weight_decay": 0.05, "use_ema": True,
    "ema_momentum": 0.8, "ema_overwrite_frequency": 2, "loss_scale_factor": 3.0,
}  # fmt: skip
SETTINGS = {
    "paper": {"learning_rate": 1.0, "initial_accumulator_value": 0.0, "epsilon": 0.0},
    "staged": {
        "learning_rate": 0.3,
        "clipvalue": 0.5,
        "weight_decay": 0.1,
        "weight_decay_mode": "l2",
        "epsilon_placement": "outside",
    },
    "row-wise": {"learning_rate": 0.3, "row_wise": True, "clipnorm": 0.8, "weight_decay": 0.1},
    "everything": EVERYTHING,
}


def training(dtype, settings, kind, layout):
    """Bytes of all parameters and state after some calls: odd sizes, repeated ids, a call without gradient, odd numbers."""
    rng = np.random.default_rng(3)
    table, vector, scalar = (rng.normal(size=shape).astype(DTYPES[dtype]) for shape in [(70, 3), (17,), ()])
    if layout == "strided":
        table = np.repeat(table, 2, axis=1)[:, ::2]
    optimizer = adagrad.Adagrad(**settings)
    optimizer.build([table, vector, scalar])
    for step in range(4):
        values = (3 * rng.normal(size=(6, 3))).astype(DTYPES[dtype])
        values[1] = [0.0, -0.0, 1e-7]
        ids = np.array([69, 0, 5, 0, 69, 7])
        if kind == "dense":
            values, ids = np.concatenate([values] * 12)[:70], None
        g = values if ids is None else adagrad.IndexedSlices(values, ids)
        optimizer.apply([g, None if step == 1 else np.full(17, 2.0, DTYPES[dtype]), -1.5], [table, vector, scalar])
    if dtype == "float32":
        table[0, 0] = np.inf
        optimizer.apply([np.where(np.arange(210).reshape(70, 3) % 7, np.float32(1e30), np.float32(0)), vector, scalar])
    arrays = [table, vector, scalar, *optimizer.variables]
    return b"".join(np.where(np.isnan(a), np.nan, a).astype(a.dtype).tobytes() for a in arrays)


def scaled():
    """A loss scale over good and bad gradients."""
    w = np.ones(5, np.float16)
    optimizer = adagrad.LossScaleOptimizer(adagrad.Adagrad(0.1), 1024.0, 2)
    for bad in (1, 1, np.inf, 1):
        optimizer.apply([np.array([1, 2, 3, 4, bad], np.float16)], [w])
    return w.tobytes() + b"".join(array.tobytes() for array in optimizer.variables)


@kernel
def _widened(stored, result):
    for i in range(stored.size):
        result[i] = widen(stored[i])


@kernel
def _narrowed(numbers, result):
    for i in range(numbers.size):
        result[i] = narrow(numbers[i], result[i])


HALVES = {"float16": (np.float16, np.uint16), "bfloat16": (ml_dtypes.bfloat16, np.int16)}
ALL_BITS = np.arange(65536, dtype=np.uint16)


def widened(name):
    """Every half there is, as float32."""
    result = np.empty(ALL_BITS.size, np.float32)
    _widened(ALL_BITS.view(HALVES[name][1]), result)
    return result


def boundaries(name):
    """Around every half, the float32 that are half way to its neighbours, next to that, and others; as float32."""
    wide = ALL_BITS.view(HALVES[name][0]).astype(np.float32)
    half_way = 0x1000 if name == "float16" else 0x8000
    offsets = np.array([0, 1, -1, half_way, half_way - 1, half_way + 1, -half_way, 1 - half_way, -half_way - 1])
    bits = wide.view(np.uint32).astype(np.int64)[::7, None] + offsets
    random = np.random.default_rng(0).integers(0, 2**32, 20_000)
    tiny = np.random.default_rng(1).integers(0x33000000 - 99, 0x38800000 + 99, 20_000)  # float16's subnormals
    return np.concatenate([bits.reshape(-1) & 0xFFFFFFFF, random, tiny]).astype(np.uint32).view(np.float32)


def narrowed(name):
    """`boundaries`, rounded."""
    numbers = boundaries(name)
    result = np.empty(numbers.size, HALVES[name][1])
    _narrowed(numbers, result)
    return result


def _canonical(halves, name):
    halves = halves.view(HALVES[name][0])
    return np.where(np.isnan(halves), HALVES[name][0](np.nan), halves)


CASES = {
    **{
        f"{dtype} {name} {kind} {layout}": (training, (dtype, SETTINGS[name], kind, layout))
        for dtype in DTYPES
        for name in SETTINGS
        for kind in ("dense", "rows")
        for layout in (("C", "strided") if dtype == "float32" else ("C",))
    },
    "loss scale": (scaled, ()),
    **{f"widened {name}": (lambda name: widened(name).tobytes(), (name,)) for name in HALVES},
    **{f"narrowed {name}": (lambda name: _canonical(narrowed(name), name).tobytes(), (name,)) for name in HALVES},
}


def digests():
    """A digest of the bytes of each case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no gradient: skipped; and NumPy's own, which only plain Python gives
        return {name: hashlib.sha256(case(*arguments)).hexdigest() for name, (case, arguments) in CASES.items()}


@pytest.fixture(scope="module")
def interpreted():
    """The digests that an interpreter without the compiler gives."""
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, here],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="compares with compiled kernels")
def test_compiled_and_interpreted_give_the_same_bytes(interpreted):
    assert digests() == interpreted


@pytest.mark.parametrize("name", HALVES)
def test_every_half_is_widened_exactly(name):
    expected = ALL_BITS.view(HALVES[name][0]).astype(np.float32)
    found = widened(name)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("name", HALVES)
def test_halves_are_rounded_to_nearest_ties_to_even(name):
    numbers = boundaries(name)
    with np.errstate(all="ignore"):
        expected = numbers.astype(HALVES[name][0])  # NumPy and ml_dtypes round so
    np.testing.assert_array_equal(_canonical(narrowed(name), name).view(np.uint16), _canonical(expected, name).view(np.uint16))


if __name__ == "__main__":
    print(json.dumps(digests()))
