"""What is stored, read again: cases found by their section, ratios between any two candidates, and the targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.arguments import VARIANTS
from bench.harness import quantiles
from bench.plan import SECTIONS

__all__ = ["Case", "Results", "judged", "number", "over_keras", "targets"]

Case = dict[str, Any]

# A time counts as explained by the bytes that must be moved if it is at most so much longer than they say.
_BYTES_SLACK = 1.1


def number(x: float) -> str:
    """Three digits, without an exponent."""
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


class Results:
    """The stored sections of a folder."""

    def __init__(self, folder: Path) -> None:
        paths = {name: folder / f"{name}.json" for name in SECTIONS}
        self.sections = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}

    def cases(self, section: str, **wanted: Any) -> list[Case]:
        """The cases of ``section`` whose fields are as ``wanted``."""
        found = self.sections.get(section, {"cases": []})["cases"]
        return [case for case in found if all(case.get(key) == value for key, value in wanted.items())]

    def failures(self, section: str) -> list[dict[str, Any]]:
        """The processes of ``section`` that came to nothing."""
        found: list[dict[str, Any]] = self.sections.get(section, {"failures": []})["failures"]
        return found


def entry(case: Case, name: str) -> dict[str, Any] | None:
    """A candidate of a case."""
    return next((found for found in case["candidates"] if found["name"] == name), None)


def ratio(case: Case, name: str, other: str) -> dict[str, float] | None:
    """The quantiles of the time of ``name`` over that of ``other``, round by round; None if one was not timed."""
    mine, theirs = entry(case, name), entry(case, other)
    if mine is None or theirs is None:
        return None
    return quantiles(np.array(mine["rounds_milliseconds"]) / np.array(theirs["rounds_milliseconds"]))


def over_keras(case: Case) -> list[tuple[str, dict[str, Any], dict[str, Any], dict[str, float]]]:
    """Of a case of the section keras: what is timed, ours, Keras's, and how many times as long Keras's takes."""
    found = []
    for mine in case["candidates"]:
        if "against" in mine:
            theirs, times = entry(case, mine["against"]), ratio(case, mine["against"], mine["name"])
            assert theirs is not None
            assert times is not None
            found.append((theirs["name"].removeprefix("Keras, "), mine, theirs, times))
    return found


def _ratios(cases: list[Case], match: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, float]]]:
    for case in cases:
        for found in case["candidates"]:
            if "ratio" in found and match(found["name"]):
                yield f"{found['name']}, {case['case']}", found["ratio"]


def judged(
    text: str, found: list[tuple[str, dict[str, float]]], bound: float, *, at_least: bool, reason: str = "was not timed"
) -> dict[str, str]:
    """A line of the table of targets: the worst of ``found`` against the bound."""
    if not found:
        return {"target": text, "measured": reason, "verdict": "not measured"}
    where, worst = (min if at_least else max)(found, key=lambda each: each[1]["median"])
    met = worst["median"] >= bound if at_least else worst["median"] <= bound
    short = bound / worst["median"] if at_least else worst["median"] / bound
    measured = f"{number(worst['median'])} [{number(worst['p10'])} to {number(worst['p90'])}]"
    if len(found) > 1:
        measured += f", the worst of {len(found)}: {where}"
    return {"target": text, "measured": measured, "verdict": "met" if met else f"missed by a factor of {short:.3f}"}


def _linear(results: Results) -> list[dict[str, str]]:
    cases = results.cases("linear")
    passes = [case for case in cases if "megabytes" not in case]
    lines = []
    for name, bound in (("scikit-learn SGDClassifier", 4.0), ("Vowpal Wabbit", 8.0)):
        found = list(_ratios(passes, lambda each, name=name: each == name))
        lines.append(judged(f"linear model: a pass at least {bound:g} times as fast as {name}'s", found, bound, at_least=True))
    over = []
    for case in passes:
        means = {name: float(np.mean(losses)) for name, losses in case.get("rolling", {}).items()}
        others = [mean for name, mean in means.items() if not name.startswith("ours")]
        if others:
            over.append((case["case"], dict.fromkeys(("p10", "median", "p90"), means["ours"] / min(others))))
    text = "linear model: the log loss of months to come, over the best of the others, at most 1"
    lines.append(judged(text, over, 1.0, at_least=False))
    files = [case for case in cases if "megabytes" in case]
    largest = list(_ratios(files[-1:], lambda name: name == "Vowpal Wabbit"))
    text = "from a text file to a model: the largest file faster than Vowpal Wabbit"
    return [*lines, judged(text, largest, 1.0, at_least=True)]


def targets(results: Results) -> list[dict[str, str]]:
    """What the project set out to reach, and what came out."""
    lines = []
    single = [
        (f"{own['name'].removeprefix('ours, ')}", found)
        for case in results.cases("dense", process="numpy")
        for own in case["candidates"]
        if own["name"].startswith("ours")
        and (found := ratio(case, own["name"], own["name"].replace("ours", "plain pass"))) is not None
    ]
    lines.append(judged("one large array: at most 1.15 times a plain pass over the same bytes", single, 1.15, at_least=False))
    fused = list(_ratios(results.cases("dense"), lambda name: "fused" in name))
    lines.append(judged("one large array: faster than torch.optim.Adagrad(fused=True)", fused, 1.0, at_least=True))
    many = list(_ratios(results.cases("many"), lambda name: "fused" in name))
    lines.append(judged("1,000 arrays of 1,000: at least 5 times as fast as torch fused", many, 5.0, at_least=True))

    clips = ("clipvalue", "clipnorm", "global_clipnorm", "weight_decay", "use_ema")
    added = [
        (found["name"], {key: value / found["bytes_ratio"] for key, value in found["ratio"].items()})
        for case in results.cases("arguments")
        if case["case"].startswith("dense")
        for found in case["candidates"]
        if found["name"] in clips
    ]
    text = f"clip, decay and average add the bytes they need: time over bytes, each relative to plain, at most {_BYTES_SLACK}"
    lines.append(judged(text, added, _BYTES_SLACK, at_least=False))

    rows = results.cases("rows")
    sparse = list(_ratios(rows, lambda name: "sparse" in name))
    lines.append(judged("rows: at least 6 times as fast as torch sparse", sparse, 6.0, at_least=True))
    kernel = list(_ratios(rows, lambda name: name.startswith("TensorFlow's kernel")))
    lines.append(judged("rows: at least 8 times TensorFlow's own kernel with tf.unique", kernel, 8.0, at_least=True))
    keras = list(_ratios(results.cases("rows", rows=1_000_000, ids="zipf"), lambda name: name.startswith("Keras")))
    lines.append(
        judged("rows: at least 200 times Keras on every backend, 1,000,000 rows, zipf ids", keras, 200.0, at_least=True)
    )
    by_hand = [
        (case["case"], found)
        for case in results.cases("rows", process="jax")
        if (found := ratio(case, "JAX by hand, jnp.unique", "adagrad.jax")) is not None
    ]
    lines.append(judged("rows in JAX, under jit: no slower than by hand with jnp.unique", by_hand, 1.0, at_least=True))
    grown = list(_ratios(results.cases("rows", scaling=True), lambda name: name.startswith("10,000,000 rows")))
    lines.append(judged("rows: 10,000,000 of them at most 2.5 times 100,000", grown, 2.5, at_least=False))

    lines += _linear(results)

    in_place = {variant.name for variant in VARIANTS if variant.constraint is None}
    memory = [
        (f"{found['name']}, {case['case']}", dict.fromkeys(("p10", "median", "p90"), found["extra_memory"]))
        for case in results.cases("arguments")
        for found in case["candidates"]
        if found["name"] in in_place and found.get("extra_memory") is not None
    ]
    text = "no temporary of a parameter's size without a constraint: extra memory in units of the parameter, below 0.1"
    lines.append(judged(text, memory, 0.1, at_least=False))
    return lines
