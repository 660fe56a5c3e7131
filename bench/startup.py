"""Start-up: what an import takes, and a first step, with kernels compiled or read from the cache on disk."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from typing import Any

from bench import harness
from bench.candidates import case
from bench.harness import Candidate

__all__ = ["KINDS", "run"]

_SETUP = "p, g = np.ones((100, 8), '{dtype}'), np.ones((100, 8), '{dtype}')"
_DENSE = _SETUP + "; o = adagrad.Adagrad({arguments}); step = lambda: o.apply([g], [p])"
_ROWS = _SETUP + "; o = adagrad.Adagrad({arguments}); step = lambda: o.apply([adagrad.IndexedSlices(g[:3], [5, 1, 5])], [p])"
_LINEAR = (
    "import adagrad.sklearn as s; from scipy.sparse import csr_array; X = csr_array(np.eye(4, dtype=np.float32)); "
    "m = s.AdagradClassifier(); step = lambda: m.partial_fit(X, [0, 1, 0, 1], classes=[0, 1])"
)


_ONLINE = "linear model, online"


def _float32(code: str, arguments: str = "") -> str:
    return code.format(dtype="float32", arguments=arguments)


# What makes another kernel, and the code that defines ``step``.
KINDS = {
    "dense float32": _float32(_DENSE),
    "dense, weight_decay or clipvalue": _float32(_DENSE, "weight_decay=0.1"),
    "dense, clipnorm": _float32(_DENSE, "clipnorm=1.0"),
    "dense, use_ema": _float32(_DENSE, "use_ema=True"),
    "dense, accumulation (second call steps)": _float32(_DENSE, "gradient_accumulation_steps=2"),
    "dense float16": _DENSE.format(dtype="float16", arguments=""),
    "rows float32": _float32(_ROWS),
    "rows, clipnorm": _float32(_ROWS, "clipnorm=1.0"),
    "rows, use_ema": _float32(_ROWS, "use_ema=True"),
    _ONLINE: _LINEAR,
}

_MEASURE = """
import time, json, numpy as np, adagrad
{code}
begin = time.perf_counter(); step(); first = time.perf_counter(); step(); second = time.perf_counter()
print(json.dumps([first - begin, second - first]))
"""
# Ours fetches a name, and the compiler with it, when it is first used.
_OURS = "from adagrad import Adagrad"
_OWN = {"a bare interpreter": "pass", "import numpy": "import numpy", "import adagrad": "import adagrad", _OURS: _OURS}
_PEERS = ("torch", "jax", "tensorflow")


def run(process: str, *, kinds: list[str], peers: bool, compiled: int, rounds: int) -> list[dict[str, Any]]:
    """Two cases: imports in new processes, and the first call of each of ``kinds`` (all, if empty), cold and cached."""
    return [_imports(process, peers, rounds), _first_calls(process, kinds or list(KINDS), compiled)]


def _imports(process: str, peers: bool, rounds: int) -> dict[str, Any]:
    codes, skipped = dict(_OWN), []
    for module in _PEERS if peers else ():
        if importlib.util.find_spec(module) is None:
            skipped.append({"name": f"import {module}", "reason": f"{module} not installed"})
        else:
            codes[f"import {module}"] = f"import {module}"
    candidates = [
        Candidate(name, lambda _, code=code: _python(code), lambda: None, None if name == _OURS else _OURS)
        for name, code in codes.items()
    ]
    times = harness.interleave(candidates, rounds=rounds, seconds=60)
    return case("a new process", candidates, times, {}, process=process, skipped=skipped)


def _first_calls(process: str, kinds: list[str], compiled: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {}
    skipped = []
    if importlib.util.find_spec("sklearn") is None and _ONLINE in kinds:
        kinds = [kind for kind in kinds if kind != _ONLINE]
        skipped.append({"name": _ONLINE, "reason": "scikit-learn not installed"})
    order = random.Random(0)
    for _ in range(compiled):
        for kind in order.sample(kinds, len(kinds)):
            with tempfile.TemporaryDirectory() as folder:
                for state in ("compiled", "cached", "cached"):
                    out = _python(_MEASURE.format(code=KINDS[kind]), {"NUMBA_CACHE_DIR": folder})
                    first, second = json.loads(out.splitlines()[-1])
                    times.setdefault(f"{kind}: {state}", []).append(first)
                    times.setdefault(f"{kind}: second call", []).append(second)
    names = [f"{kind}: {state}" for kind in kinds for state in ("compiled", "cached", "second call")]
    candidates = [Candidate(name, lambda _: None, lambda: None) for name in names]
    return case("the first call in a process", candidates, times, {}, process=process, skipped=skipped)


def _python(code: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | (environment or {}), capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"{code.strip()[:200]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
