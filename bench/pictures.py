"""The pictures of docs/benchmarks.md: bars of ratios on a log scale, with the 10 % and 90 % quantiles."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from bench.stored import Case, Results, number, over_keras

__all__ = ["draw"]

_COLOURS = {"numpy": "#7a8793", "torch": "#d1603d", "fbgemm": "#5b8c5a", "jax": "#7b5ea7", "tensorflow": "#e0a030"}
_OURS, _INK, _GRID = "#1f6f8b", "#2b2f33", "#e3e6e8"


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Write the pictures that the stored sections allow; returns their file names by section."""
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.edgecolor": _INK, "text.color": _INK, "axes.labelcolor": _INK,
                         "xtick.color": _INK, "ytick.color": _INK, "font.family": "DejaVu Sans"})  # fmt: skip
    found = {}
    makers = {"dense": _flat, "many": _flat, "rows": _rows, "keras": _keras, "arguments": _arguments, "memmap": _memmap}
    for section, make in makers.items():
        cases = results.cases(section)
        figure = make(cases) if any(case["candidates"] for case in cases) else None
        if figure is not None:
            found[section] = f"bench-{section}.png"
            _save(figure, folder / found[section])
    front = _front(results.cases("rows"))
    if front is not None:
        _save(front, folder / "bench-front.png")
    return found


def _save(figure: Figure, path: Path) -> None:
    """Few colours are enough, and make a small file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(48).save(path, optimize=True)


def _bars(axes: Axes, bars: Sequence[tuple[str, dict[str, float] | None, str]]) -> None:
    """One bar from 1 to each ratio, the first on top, labelled with its median; None: not timed."""
    for place, (_, found, colour) in enumerate(bars):
        if found is None:
            axes.annotate("not timed", (1, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
            continue
        median = found["median"]
        axes.barh(place, median - 1, left=1, height=0.62, color=colour, zorder=2)
        spread = [[max(0, median - found["p10"])], [max(0, found["p90"] - median)]]
        axes.errorbar(median, place, xerr=spread, fmt="none", ecolor=_INK, elinewidth=1, capsize=2.5, zorder=3)
        end = max(found["p90"], median, 1)
        axes.annotate(f"{number(median)}×", (end, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.axvline(1, color=_OURS, linewidth=2, zorder=4)
    timed = [found for _, found, _ in bars if found is not None]
    low = min([1.0, *(found["p10"] for found in timed)])
    high = max([1.0, *(found["p90"] for found in timed)])
    axes.set_xlim(low * 0.85, max(high, 1.6) ** 1.22)
    _dress(axes)


def _dress(axes: Axes) -> None:
    wide = axes.get_xlim()[1] / axes.get_xlim()[0] > 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color=_GRID, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _flat(cases: Sequence[Case]) -> Figure:
    """Every candidate of every process, slowest last."""
    bars = {}
    for case in cases:
        for found in case["candidates"]:
            if "ratio" in found and (case["process"] == "numpy" or not found["name"].startswith("plain")):
                bars[found["name"]] = (found["name"], found["ratio"], _COLOURS[case["process"]])
    ordered = sorted(bars.values(), key=lambda bar: bar[1]["median"])
    figure, axes = plt.subplots(figsize=(7.2, 0.6 + 0.3 * len(ordered)))
    _bars(axes, ordered)
    axes.set_title(f"{cases[0]['case'].capitalize()} (float32): a step's time, times ours", loc="left", fontsize=10)
    axes.set_xlabel("times as long as ours with as many threads (line: ours); whiskers: 10 % and 90 % of rounds")
    return figure


def _rows(cases: Sequence[Case]) -> Figure | None:
    """A panel for each table size and kind of ids."""
    sizes = sorted({case["rows"] for case in cases if "rows" in case})
    names: dict[str, str] = {}
    for case in cases:
        if "rows" in case:
            names |= {c["name"]: _COLOURS[case["process"]] for c in case["candidates"] if "ratio" in c}
    if not sizes or not names:
        return None
    figure, panels = plt.subplots(
        len(sizes), 2, figsize=(9.6, len(sizes) * (0.7 + 0.2 * len(names))), sharex=True, sharey=True, squeeze=False
    )
    for row, size in enumerate(sizes):
        for column, ids in enumerate(("zipf", "uniform")):
            axes = panels[row][column]
            found = {
                c["name"]: c["ratio"]
                for case in cases
                if case.get("rows") == size and case.get("ids") == ids
                for c in case["candidates"]
                if "ratio" in c
            }
            _bars(axes, [(name, found.get(name), colour) for name, colour in names.items()])
            axes.set_title(f"{size:,} rows, {ids} ids", loc="left", fontsize=9.5)
    ratios = [c["ratio"] for case in cases if "rows" in case for c in case["candidates"] if "ratio" in c]
    low, high = min(ratio["p10"] for ratio in ratios), max(ratio["p90"] for ratio in ratios)
    for panel in panels.flat:
        panel.set_xlim(min(0.8, 0.8 * low), max(high, 1.6) ** 1.2)
        _dress(panel)
    for panel in panels[-1]:
        panel.set_xlabel("times ours (line); whiskers: 10 % and 90 %")
    figure.tight_layout()
    return figure


def _front(cases: Sequence[Case]) -> Figure | None:
    """What README shows: one table, ids that repeat, each peer once, as it is fastest; none where that was not timed."""
    bars: dict[str, tuple[str, dict[str, float], str]] = {}
    for case in cases:
        for each in case["candidates"] if (case.get("rows"), case.get("ids")) == (1_000_000, "zipf") else ():
            name = each["name"].partition(", 1 thread")[0].partition(", 2 threads")[0]
            other = "ratio" in each and not name.startswith("adagrad.") and not any(w in name for w in ("forward", "ROWWISE"))
            if other and each["ratio"]["median"] <= bars.get(name, ("", each["ratio"], ""))[1]["median"]:
                bars[name] = (name, each["ratio"], _COLOURS[case["process"]])
    if not bars:
        return None
    figure, axes = plt.subplots(figsize=(7.2, 0.7 + 0.27 * len(bars)))
    _bars(axes, sorted(bars.values(), key=lambda bar: bar[1]["median"]))
    axes.set_title("A step over 8,192 ids of a table of 1,000,000 x 64, times ours", loc="left", fontsize=10)
    axes.set_xlabel("times as long as adagrad.Adagrad (line); whiskers: 10 % and 90 % of rounds")
    return figure


def _keras(cases: Sequence[Case]) -> Figure:
    """A panel for each model: Keras's time over ours, for each backend and way."""
    titles = list(dict.fromkeys(case["case"] for case in cases if case["candidates"]))
    figure, panels = plt.subplots(len(titles), 1, figsize=(7.2, 3.1 * len(titles)), squeeze=False)
    for axes, title in zip(panels[:, 0], titles, strict=True):
        bars = [
            (
                f"{case['process']}, {way}" + ", by rows" * mine["name"].startswith("ours by rows"),
                times,
                _COLOURS[case["process"]],
            )
            for case in cases
            if case["case"] == title
            for way, mine, _, times in over_keras(case)
        ]
        _bars(axes, bars)
        axes.set_title(title, loc="left", fontsize=9.5)
    panels[-1, 0].set_xlabel("Keras's time, times ours (line); whiskers: 10 % and 90 % of rounds")
    figure.tight_layout()
    return figure


def _arguments(cases: Sequence[Case]) -> Figure:
    """The time of each argument beside its bytes, both relative to a plain step."""
    figure, panels = plt.subplots(-(-len(cases) // 2), 2, figsize=(9.6, 3.9 * -(-len(cases) // 2)), sharey="row", squeeze=False)
    for axes, case in zip(panels.flat, cases, strict=True):
        entries = [found for found in case["candidates"] if "ratio" in found]
        for place, found in enumerate(entries):
            ratio = found["ratio"]
            axes.barh(place, ratio["median"], height=0.6, color=_OURS, zorder=2)
            spread = [[max(0, ratio["median"] - ratio["p10"])], [max(0, ratio["p90"] - ratio["median"])]]
            axes.errorbar(ratio["median"], place, xerr=spread, fmt="none", ecolor=_INK, elinewidth=1, capsize=2.5, zorder=3)
            axes.plot([found["bytes_ratio"]] * 2, [place - 0.42, place + 0.42], color="#d1603d", linewidth=2.2, zorder=4)
        axes.set_yticks(range(len(entries)), [found["name"] for found in entries])
        if axes in panels[:, 0]:
            axes.invert_yaxis()
        high = max(max(found["ratio"]["p90"], found["bytes_ratio"]) for found in entries)
        if high > 10:
            axes.set_xscale("log")
            low = min(min(found["ratio"]["p10"], found["bytes_ratio"]) for found in entries)
            axes.set_xlim(min(0.5, low * 0.8), high * 1.3)
            _dress(axes)
        else:
            axes.set_xlim(0, high * 1.05)
            axes.grid(axis="x", color=_GRID, zorder=0)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
            axes.tick_params(axis="y", length=0)
        axes.axvline(1, color=_INK, linewidth=0.8, zorder=5)
        axes.set_title(
            ("dense" if case["case"].startswith("dense") else "zipf ids on a table")
            + (", in adagrad.torch" if case["process"] == "torch" else ""),
            loc="left",
            fontsize=9.5,
        )
        axes.set_xlabel("times a plain step; mark: bytes that must move")
    figure.tight_layout()
    return figure


def _memmap(cases: Sequence[Case]) -> Figure:
    bars = [
        (f"{found['name']}, {case['ids']} ids", found["ratio"], "#7a8793" if "in the" in found["name"] else "#d1603d")
        for case in cases
        for found in case["candidates"]
        if "ratio" in found
    ]
    figure, axes = plt.subplots(figsize=(7.2, 0.6 + 0.32 * len(bars)))
    _bars(axes, bars)
    axes.set_title("A step on a memory-mapped table", loc="left", fontsize=10)
    axes.set_xlabel("times as long as on the same table in memory (line); whiskers: 10 % and 90 % of rounds")
    return figure
