"""The PyTorch face on a GPU: ``python -m bench.cuda`` stores bench/results/cuda-DEVICE.json; without a GPU it says so.

Dense steps stand beside `torch.optim.Adagrad(fused=True)` and ``foreach``, and beside a copy of as many bytes as a step must
move; rows beside torch's sparse step. Everything is timed as in `bench.harness`: in turns, the waiting included. Ours comes
twice, called from Python and replayed from a CUDA graph, which shows what of a time is the host's.

    python -m bench.cuda --quick --out DIR      # small sizes, to see that it runs; measures nothing
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adagrad.torch import Adagrad
from bench import harness
from bench.harness import Candidate
from bench.rows import WIDTH, draw

ROOT = Path(__file__).parents[1]
STEPS, WARM = 20, 5
ARGUMENTS: dict[str, dict[str, Any]] = {
    "clipvalue": {"clipvalue": 1.0},
    "global_clipnorm": {"global_clipnorm": 1.0},
    "weight_decay": {"weight_decay": 0.01},
    "use_ema": {"use_ema": True},
    "gradient_accumulation_steps=4": {"gradient_accumulation_steps": 4},
}


def _parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.randn(shape, device="cuda", dtype=dtype)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


def _candidate(name: str, step: Callable[[], Any], against: str | None = "ours") -> Candidate:
    return Candidate(
        name, lambda _: step(), lambda: None, against=against, steps=STEPS, warm=WARM, finish=torch.cuda.synchronize
    )


def _in_graph(optimizer: Adagrad) -> Callable[[], Any]:
    for _ in range(3):
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return lambda: (graph.replay(), optimizer)  # which the graph works on


def _copy(size: float) -> Callable[[], Any]:
    """A copy that reads and writes ``size`` bytes altogether."""
    source = torch.empty(int(size) // 2, dtype=torch.uint8, device="cuda")
    return functools.partial(torch.empty_like(source).copy_, source)


def _agree(shapes: list[tuple[int, ...]], gradients: Callable[[list[torch.nn.Parameter]], None], **options: Any) -> float:
    """The largest relative distance of a parameter to torch's after three steps."""
    mine = _parameters(shapes)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    ours, peer = Adagrad.as_torch(mine, lr=0.1), torch.optim.Adagrad(theirs, lr=0.1, **options)
    for _ in range(3):
        gradients(mine)
        for p, q in zip(mine, theirs, strict=True):
            q.grad = p.grad
        ours.step()
        peer.step()
    distances = [((p - q).abs() / q.abs().clamp(min=1.0)).max().item() for p, q in zip(mine, theirs, strict=True)]
    if not max(distances) < 1e-4:
        raise AssertionError(f"ours and torch's differ by {max(distances)}: nothing is timed")
    return max(distances)


def _timed(title: str, candidates: list[Candidate], rounds: int, **about: Any) -> dict[str, Any]:
    times = harness.interleave(candidates, rounds=rounds, seconds=20)
    torch.cuda.empty_cache()
    return {"case": title, **about, "candidates": harness.results(candidates, times)}


def dense(title: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """A list of parameters with dense gradients."""

    def randomly(parameters: list[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)

    distance = _agree([(1000, 10), (7,)], randomly, fused=True)
    # Read p, a, g and write p, a; a is float32.
    size = sum(int(np.prod(shape)) for shape in shapes) * (3 * dtype.itemsize + 2 * 4)
    ours = Adagrad.as_torch(_parameters(shapes, dtype), lr=0.1)
    candidates = [
        _candidate("ours", ours.step, None),
        _candidate("ours, in a graph", _in_graph(Adagrad.as_torch(_parameters(shapes, dtype), lr=0.1))),
        _candidate("copy of the same bytes", _copy(size)),
        _candidate("torch fused", torch.optim.Adagrad(_parameters(shapes, dtype), lr=0.1, fused=True).step),
        _candidate("torch foreach", torch.optim.Adagrad(_parameters(shapes, dtype), lr=0.1, foreach=True).step),
    ]
    return _timed(title, candidates, rounds, bytes=size, agreement={"torch fused": distance})


def arguments(size: int, rounds: int) -> dict[str, Any]:
    """What each argument adds to a dense step."""
    candidates = [_candidate("ours", Adagrad(_parameters([(size,)])).step, None)]
    candidates += [_candidate(name, Adagrad(_parameters([(size,)]), **own).step) for name, own in ARGUMENTS.items()]
    return _timed(f"what each argument adds, {size:,} elements", candidates, rounds)


def rows(count: int, batch: int, ids: str, rounds: int) -> dict[str, Any]:
    """A table and a batch of ids, other ones at every step."""
    rng = np.random.default_rng(3)
    values = torch.randn(batch, WIDTH, device="cuda")

    def gradient(height: int) -> torch.Tensor:
        found = torch.from_numpy(draw(rng, ids, height, batch))[None].cuda()
        return torch.sparse_coo_tensor(found, values, (height, WIDTH), check_invariants=False)

    def by_rows(parameters: list[torch.nn.Parameter]) -> None:
        parameters[0].grad = gradient(parameters[0].shape[0])

    distance = _agree([(1000, WIDTH)], by_rows)
    pool = [gradient(count) for _ in range(8)]

    def stepping(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
        (parameter,) = optimizer.param_groups[0]["params"]
        turns = iter(range(10**9))

        def step() -> None:
            parameter.grad = pool[next(turns) % len(pool)]
            optimizer.step()

        return step

    graphed = Adagrad.as_torch(_parameters([(count, WIDTH)]), lr=0.1)
    graphed.param_groups[0]["params"][0].grad = pool[0]
    candidates = [
        _candidate("ours", stepping(Adagrad.as_torch(_parameters([(count, WIDTH)]), lr=0.1)), None),
        _candidate("ours, in a graph, the same ids", _in_graph(graphed)),
        _candidate("ours, row-wise", stepping(Adagrad(_parameters([(count, WIDTH)]), row_wise=True))),
        _candidate("torch sparse", stepping(torch.optim.Adagrad(_parameters([(count, WIDTH)]), lr=0.1))),
    ]
    unique = int(pool[0]._indices().unique().numel())
    return _timed(
        f"{count:,} rows, {batch:,} {ids} ids", candidates, rounds, unique_ids=unique, agreement={"torch sparse": distance}
    )


def cases(quick: bool) -> Iterator[dict[str, Any]]:
    """All that is timed."""
    rounds, large = (3, 1_000_000) if quick else (30, 100_000_000)
    for dtype in (torch.float32, torch.bfloat16):
        yield dense(f"one array of {large:,}, {str(dtype).removeprefix('torch.')}", [(large,)], dtype, rounds)
    many = [(1000,)] * (20 if quick else 1000)
    yield dense(f"{len(many):,} arrays of 1,000", many, torch.float32, rounds)
    yield arguments(large, rounds)
    for count in (10_000,) if quick else (100_000, 1_000_000, 10_000_000):
        for ids in ("zipf", "uniform"):
            yield rows(count, 256 if quick else 8192, ids, rounds)


def main() -> None:
    """Time it all on the device that is there."""
    parser = argparse.ArgumentParser(prog="python -m bench.cuda", description="Time the PyTorch face on a GPU.")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; measures nothing")
    parser.add_argument("--out", type=Path, help="store the results there (required with --quick)")
    given = parser.parse_args()
    if given.quick and given.out is None:
        parser.error("--quick needs --out DIR: its figures must not stand where measured ones do")
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is timed")
        return
    name = torch.cuda.get_device_name()
    found = []
    for case in cases(given.quick):
        found.append(case)
        print(case["case"], flush=True)
        for entry in case["candidates"]:
            ratio = f"   {entry['ratio']['median']:.2f} x {entry['against']}" if "ratio" in entry else ""
            print(f"    {entry['name']:<34} {entry['milliseconds']['median']:>9.3f} ms{ratio}", flush=True)
    about = {"device": name, "cuda": torch.version.cuda, "date": datetime.date.today().isoformat(), "quick": given.quick}
    stored = {**about, "machine": harness.machine(), "versions": harness.versions(), "cases": found}
    folder = given.out or ROOT / "bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cuda-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    path.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
