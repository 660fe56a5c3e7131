"""Write docs/capabilities.md: the capability table of the tests, each row measured as this runs; no number is typed.

python docs/scripts/capabilities.py                # half an hour: kernels are compiled, and programs for every row
python docs/scripts/capabilities.py --overview     # the first table only, after a benchmark
python docs/scripts/capabilities.py --face NAME    # prints the section of one face, or of several
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "capabilities.md"
BENCH = ROOT / "bench" / "results" / "arguments.json"
sys.path.insert(0, str(ROOT / "tests"))

from capability import CASES, STEPS, Case, Distances, Face, check, rows  # noqa: E402
from faces import FACES, Place  # noqa: E402

INTRODUCTION = f"""# What works where, and how exactly

In every row here the optimizer runs {STEPS} calls beside two judges, is saved, loaded into another optimizer over copies of
the arrays half way, and after every call all parameters and all state are compared. The table, the tests and this page come
from one place, `tests/capability.py`; this page was written by `python docs/scripts/capabilities.py`, which ran every row and
writes nothing when one is not what the tests allow. The tests run every row of NumPy and PyTorch; where each row takes seconds
to compile, in JAX and Keras, each argument, dtype and kind of gradient, but not each with each.

**Class.** A face is *bitwise* when it gives, bit for bit, what [`rule.py`](../src/adagrad/rule.py) gives as plain NumPy array
code (`tests/plain.py`), whatever the kind of gradient, the layout of the arrays and the number of threads. The sign and
payload of a NaN are no part of that. A face is *bounded* when it stays within so many ULP of the reference.

**Distance.** The reference (`tests/reference.py`) computes in float64 with plain loops and shares no code with the package.
Distances to it are in units in the last place (ULP) at the largest size that the entry has had: of parameters and moving
averages in the dtype of the parameter, of sums (accumulators and gradient buffers) in the dtype of the arithmetic, which is
float32 but for float64 parameters. A half-precision parameter is rounded once a call, in the reference too.
"""


OVERVIEW = """## All of it in one table

A tick says that each kind of gradient whose letter follows it is a row of the face's table: **D**ense, **R**ows, **S**parse,
**M**ixed, as its section below describes them. All rows are checked when this page is written; the tests run all of NumPy's and
PyTorch's, and of those faces whose rows compile a program each a part that has every argument, dtype and kind. An asterisk: the
combination runs without what the face does not have. A dash: the face can't have it. The section says why, for both, and in
which dtypes; float32 always.
The last column is a measurement: how many times as long as a plain step one with the argument takes in `adagrad.Adagrad`, by
dense gradients and by rows, the median in [the benchmark](benchmarks.md#what-each-argument-adds); empty where it is not timed.
"""


def page() -> str:
    """The text of the page."""
    sections = [_from(list(places), "section") for _, places in itertools.groupby(FACES, key=lambda place: place.environment)]
    return "\n".join([INTRODUCTION, overview(), *sections])


def overview() -> str:
    """Every argument on every face by every kind of gradient, as far as a row of the table tests it."""
    columns = [json.loads(_from([place], "ticks")) for place in FACES]
    timed = measured_times()
    heads = [f"{place.name}: {column['class']}" for place, column in zip(FACES, columns, strict=True)]
    lines = [
        [_name(case.name), *(column["ticks"][case.name] for column in columns), timed.get(case.name.partition("=")[0], "")]
        for case in CASES
    ]
    return f"{OVERVIEW}\n{table(['arguments', *heads, 'dense / rows, times plain'], lines)}"


def ticks(face: type[Face]) -> str:
    """The column of a face, as JSON: its class, and for each case the kinds of gradients in the table's rows."""
    present = {(case.name, kind) for _, case, kind in rows(face)}
    found = {}
    for case in CASES:
        letters = [kind[0].upper() for kind in face.kinds if (case.name, kind) in present]
        whole = [] if face.adapted(case) is case else ["\\*"]
        found[case.name] = " ".join(["✓", *letters, *whole]) if letters else "–"
    return json.dumps({"class": _class(face), "ticks": found})


def measured_times() -> dict[str, str]:
    """For each argument that the benchmark has timed, its step's time over a plain one's, by dense gradients and by rows."""
    found: dict[str, list[str]] = {}
    for case in json.loads(BENCH.read_text())["cases"]:
        for entry in case["candidates"] if case["process"] == "numpy" else ():
            if "ratio" in entry:
                name = "weight_decay_mode" if entry["name"] == "weight_decay, l2" else entry["name"].partition("=")[0]
                found.setdefault(name, []).append(f"{entry['ratio']['median']:.2g}")
    return {name: " / ".join(ratios) for name, ratios in found.items()}


def _class(face: type[Face]) -> str:
    return "bitwise" if face.bitwise else "bounded"


def _name(case: str) -> str:
    return f"`{case}`" if "=" in case else case


def section(face: type[Face], measured: Callable[[type[Face], str, Case, str], Distances] = check) -> str:
    """What the page says of a face, by what ``measured`` gives for a row."""
    present: dict[tuple[str, str], list[Distances]] = {}
    for dtype, case, kind in rows(face):
        present.setdefault((case.name, dtype), []).append(measured(face, dtype, case, kind))
    lines = [
        [_name(case.name), *(_cell(present.get((case.name, d))) for d in face.dtypes)]
        for case in face.cases
        if case.name not in face.lacks
    ]
    lacking = [f"- no `{name}`: {reason}" for name, reason in face.lacks.items()]
    allowed = [[dtype, _text(face.tolerances[dtype].distances), face.tolerances[dtype].cause] for dtype in face.dtypes]
    return "\n".join(
        [
            f"## {face.name}, {face.device}: {_class(face)}\n",
            table(["kind of gradient", "what it is"], [list(item) for item in face.kinds.items()]),
            "Measured: the largest distance of parameters / averages / sums, over all kinds of gradients. Where the case says",
            "no rate, it is 0.3. A dash: in this dtype the argument is tested in the combinations below only.\n",
            table(["arguments", *face.dtypes], lines),
            *([*lacking, *(f"- {remark}" for remark in face.remarks), ""] if lacking or face.remarks else []),
            "What the tests allow, in the same units:\n",
            table(["dtype", "parameters / averages / sums", "cause of the distance"], allowed),
        ]
    )


def is_on_page(face: type[Face]) -> bool:
    """Whether the page says what the table gives; without figures that depend on the processor, or on rows not tested."""
    text = PAGE.read_text()
    if face.bitwise and list(rows(face)) == list(rows(face, tested=True)):
        return section(face) in text
    any_figure = re.compile(r"[\d.e+-]*\d")
    skeleton = section(face, lambda *row: Distances(0.0, 0.0, 0.0))
    return any_figure.sub("#", skeleton) in any_figure.sub("#", text)


def _from(places: list[Place], part: str) -> str:
    """The sections, or the ticks, of faces that share a process; one of its own if they need it."""
    names, environment = [place.name for place in places], dict(places[0].environment)
    print(f"{part} of {', '.join(names)} ...", file=sys.stderr)
    if not environment:
        return "\n".join(PARTS[part](place.load()) for place in places)
    command = [sys.executable, __file__, "--face", *names, "--part", part]
    return subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def _cell(found: list[Distances] | None) -> str:
    if found is None:
        return "–"
    return _text(Distances(*(max(getattr(d, name) for d in found) for name in Distances.__annotations__)))


def _text(distances: Distances) -> str:
    return " / ".join(f"{getattr(distances, name):.2g}" for name in Distances.__annotations__)


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]) + "\n"


PARTS = {"section": section, "ticks": ticks}


def main() -> None:
    """Write the page, or the part of it that needs no measuring, or print what it says of some faces."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [place.name for place in FACES]
    parser.add_argument("--overview", action="store_true", help="only write the first table again, as after a benchmark")
    parser.add_argument("--face", nargs="+", choices=names, help="print what the page says of some faces", metavar="NAME")
    parser.add_argument("--part", choices=list(PARTS), default="section", help="their sections, or columns of the first table")
    given = parser.parse_args()
    if given.face is not None:
        print("\n".join(PARTS[given.part](place.load()) for place in FACES if place.name in given.face), end="")
        return
    text = page() if not given.overview else with_overview(PAGE.read_text(), overview())
    PAGE.write_text(text)
    print(f"wrote {PAGE.relative_to(ROOT)}")


def with_overview(text: str, new: str) -> str:
    """The page with its first table replaced."""
    start, rest = text.split(OVERVIEW.splitlines()[0], 1)
    _, sections = rest.split("\n## ", 1)
    return f"{start}{new}\n## {sections}"


if __name__ == "__main__":
    main()
