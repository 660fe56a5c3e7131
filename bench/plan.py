"""What is run, in which process and at which size; and how a process is set up so that it measures what it should."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.arguments import CYCLE
from bench.harness import CPUS
from bench.peers import PEERS, of

__all__ = ["PROCESSES", "SECTIONS", "TITLES", "Job", "environment", "plan"]

TITLES = {
    "dense": "One large array",
    "many": "A thousand small arrays",
    "rows": "Rows of a table",
    "embedding": "A training step of an embedding model",
    "keras": "Training with Keras",
    "arguments": "What each argument adds",
    "memmap": "A table in a memory-mapped file",
    "linear": "Linear models",
    "startup": "Start-up",
}
SECTIONS = list(TITLES)

PROCESSES = ("numpy", "torch", "fbgemm", "jax", "tensorflow")


@dataclass(frozen=True)
class Job:
    """One process: the function ``module:name`` is called with ``options``."""

    section: str
    process: str
    function: str
    options: dict[str, Any] = field(default_factory=dict)
    timeout: int = 240


def plan(quick: bool) -> list[Job]:
    """All jobs; ``quick`` ones are small enough for a test and measure nothing."""
    jobs = []
    seconds = 1 if quick else 14
    rounds = 3 if quick else 60
    flat = {"rounds": rounds, "seconds": seconds}
    size = 1_000_000 if quick else 50_000_000
    count = (20, 100) if quick else (1000, 1000)
    for process in _having("dense"):
        dense = {"section": "dense", "arrays": 1, "size": size, "steps": 1, "warm": 0}
        jobs.append(Job("dense", process, "bench.dense:run", dense | flat))
    for process in _having("many"):
        many = {"section": "many", "arrays": count[0], "size": count[1], "steps": 5, "warm": 2}
        jobs.append(Job("many", process, "bench.dense:run", many | flat))
    batch = 256 if quick else 8192
    sizes = [500, 2000] if quick else [100_000, 1_000_000, 10_000_000]
    jobs.append(Job("rows", "numpy", "bench.rows:scaling", {"rows": sizes, "batch": batch} | flat | {"seconds": seconds / 2}))
    for rows in sizes[-1:] if quick else sizes:
        for process in _having("rows"):
            specs = of("rows", process)
            groups = [[spec.name for spec in specs]]
            if rows >= 10_000_000:
                # Memory for one peer whose step walks the table, or for all of the others; NumPy's, which sorts, is no news.
                light = [spec.name for spec in specs if spec.tables == 2 and process != "numpy"]
                groups = [[spec.name] for spec in specs if spec.tables > 2] + [light] * bool(light)
            for only in groups:
                options = {"rows": rows, "batch": batch, "only": only, "rounds": rounds, "seconds": seconds / 3}
                jobs.append(Job("rows", process, "bench.rows:run", options, timeout=400))
    embedding = {"rows": 5000 if quick else 1_000_000, "batch": batch} | flat
    jobs.append(Job("embedding", "torch", "bench.embedding:run", embedding))
    training = {"width": 16 if quick else 1024, "batch": 32 if quick else 512, "ids": batch, "rows": embedding["rows"]} | flat
    jobs += [Job("keras", process, "bench.keras_fit:run", training, timeout=400) for process in _having("keras")]
    variants = ["plain", "clipnorm", "float16", f"gradient_accumulation_steps={CYCLE}"] if quick else []
    table = 2000 if quick else 100_000
    arguments = {
        "size": size * 2 // 5,
        "rows": table,
        "batch": batch,
        "only": variants,
        "rounds": rounds,
        "seconds": 1.5 * seconds,
    }
    jobs += [Job("arguments", process, "bench.arguments:run", arguments) for process in ("numpy", "torch")]
    jobs.append(Job("memmap", "numpy", "bench.memmap:run", {"rows": 10 * table, "batch": batch} | flat))
    sample = {"sample": 300 if quick else 20_000}
    jobs.append(Job("linear", "numpy", "bench.linear:texts", {"rows": 3000 if quick else 300_000} | sample | flat, timeout=400))
    jobs.append(Job("linear", "numpy", "bench.linear:flights", {"rows": 300 if quick else None} | sample | flat, timeout=400))
    files = {"megabytes": [1] if quick else [20, 160, 640], "rounds": 1 if quick else 4, "seconds": seconds}
    jobs.append(Job("linear", "numpy", "bench.text:run", files, timeout=500))
    kinds = ["dense float32"] if quick else []
    startup = {"kinds": kinds, "peers": not quick, "compiled": 1, "rounds": 1 if quick else 3}
    jobs.append(Job("startup", "numpy", "bench.startup:run", startup, timeout=600))
    return jobs


def _having(section: str) -> list[str]:
    """The processes that have a peer for ``section``."""
    return [process for process in PROCESSES if any(s.process == process and section in s.sections for s in PEERS)]


def environment(process: str) -> dict[str, str]:
    """The variables that a process is started with."""
    found = {
        # Every library gets its memory in huge pages, as NumPy asks for by itself; else pages decide the comparison.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "OMP_NUM_THREADS": str(len(CPUS)),
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": {"numpy": "torch", "fbgemm": "torch"}.get(process, process),
    }
    if process in ("torch", "fbgemm"):
        # OpenMP's threads otherwise share a processor now and then, and stall for milliseconds in every step.
        found["OMP_PROC_BIND"] = "true"
    return found
