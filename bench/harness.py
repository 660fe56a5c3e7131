"""Timing in turns: in every round each candidate runs once, in a new random order, and ratios are taken within the round.

The speed of a machine's memory swings by a factor of two over minutes, so a time says little and a ratio of times that
lie apart says nothing. What is kept is every round of every candidate; what is shown are the median and the 10 % and 90 %
quantiles of the ratios.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import os
import platform
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import adagrad
from adagrad.kernels import threads

__all__ = [
    "CPUS",
    "THREADS",
    "Candidate",
    "available_memory",
    "extra_memory",
    "interleave",
    "machine",
    "own_threads",
    "quantiles",
    "results",
    "versions",
]

# The processors of this process before any library has bound its main thread to one of them.
CPUS = sorted(os.sched_getaffinity(0))
# The numbers of threads at which everything is timed that has such a setting.
THREADS = sorted({1, len(CPUS)})

_LEAST_ROUNDS = 3
_PACKAGES = ("adagrad", "numpy", "numba", "llvmlite", "torch", "fbgemm_gpu-cpu", "keras", "jax", "jaxlib", "optax",
             "tensorflow-cpu", "tensorflow", "scikit-learn", "vowpalwabbit", "river", "scipy", "pyarrow",
             "ml_dtypes")  # fmt: skip


@dataclass
class Candidate:
    """Something to time: ``step(x)`` for x = ``feed()``, which is made beforehand.

    In each round ``warm`` steps go untimed and ``steps`` are timed in a row, ``finish`` (waiting for what runs in the
    background) included; a time is that of one step. ``turn`` is entered around them. ``against`` names the candidate
    that a round's time is divided by.
    """

    name: str
    step: Callable[[Any], object]
    feed: Callable[[], Any]
    against: str | None = None
    steps: int = 1
    warm: int = 0
    turn: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    finish: Callable[[], object] = lambda: None

    def run(self) -> float:
        """One turn: the seconds of one step."""
        fed = [self.feed() for _ in range(self.warm + self.steps)]
        with self.turn():
            for x in fed[: self.warm]:
                self.step(x)
            self.finish()
            start = time.perf_counter()
            for x in fed[self.warm :]:
                self.step(x)
            self.finish()
            return (time.perf_counter() - start) / self.steps


def interleave(candidates: Sequence[Candidate], *, rounds: int, seconds: float, seed: int = 0) -> dict[str, list[float]]:
    """The seconds of one step of each candidate in each round, after one round that is not counted (it compiles).

    Stops after ``rounds``, or when ``seconds`` have passed and at least three rounds are done.
    """
    order = random.Random(seed)
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for candidate in candidates:
        candidate.run()
    deadline = time.monotonic() + seconds
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= _LEAST_ROUNDS and time.monotonic() > deadline:
                break
            for candidate in order.sample(candidates, len(candidates)):
                times[candidate.name].append(candidate.run())
    finally:
        gc.enable()
    return times


def quantiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The 10 % quantile, median and 90 % quantile."""
    low, middle, high = np.quantile(np.asarray(values, float), [0.1, 0.5, 0.9]).tolist()
    return {"p10": low, "median": middle, "p90": high}


def results(candidates: Sequence[Candidate], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """For each candidate its rounds in milliseconds, their quantiles, and those of the ratio to what it is set against."""
    found = []
    for candidate in candidates:
        mine = np.array(times[candidate.name])
        entry: dict[str, Any] = {
            "name": candidate.name,
            "milliseconds": quantiles(mine * 1e3),
            "steps_a_round": candidate.steps,
            "rounds_milliseconds": [float(f"{1e3 * t:.5g}") for t in mine],
        }
        if candidate.against is not None:
            entry["against"] = candidate.against
            entry["ratio"] = quantiles(mine / np.array(times[candidate.against]))
        found.append(entry)
    return found


@contextlib.contextmanager
def own_threads(count: int) -> Iterator[None]:
    """Our kernels on ``count`` threads, each on a processor of its own, for the time of a turn.

    Without it two threads may share a processor: a library that binds its main thread (OpenMP does where it is told to)
    hands that binding down to every thread made later.
    """
    if adagrad.get_num_threads() != count:
        adagrad.set_num_threads(count)
    meeting = threading.Barrier(count)

    def place(lo: int, hi: int) -> None:
        os.sched_setaffinity(0, {CPUS[lo % len(CPUS)]})
        meeting.wait(10)

    before = os.sched_getaffinity(0)
    try:
        threads.run(place, count, 10**9)
        yield
    finally:
        os.sched_setaffinity(0, before)


# -- what it runs on ---------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, memory, kernel, C library, huge pages, load."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in cpu.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "processor": fields.get("model name", platform.processor()),
        "vector_extensions": [flag for flag in ("avx2", "avx512f") if flag in flags],
        "last_level_cache": fields.get("cache size", "unknown"),
        "processors": len(CPUS),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "c_library": " ".join(platform.libc_ver()),
        "huge_pages": pages.read_text().strip() if pages.exists() else "unknown",
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """The versions of this package, its dependencies and its peers, as installed."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _status(path: str, key: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def available_memory() -> int:
    """The bytes that this machine can still give."""
    return _status("/proc/meminfo", "MemAvailable")


def extra_memory(work: Callable[[], object]) -> int | None:
    """By how many bytes the process grew at most while ``work`` ran (its resident set's peak); None where unknown."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("/proc/self/status", "VmRSS")
    except OSError:
        work()
        return None
    work()
    return max(0, _status("/proc/self/status", "VmHWM") - before)
