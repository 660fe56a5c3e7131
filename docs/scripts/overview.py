"""The first table of docs/capabilities.md: every argument on every face by every kind of gradient. It runs no row.

python docs/scripts/overview.py                     # writes it into the page again
python docs/scripts/overview.py --times             # only what the benchmark has measured, without importing the faces
python docs/scripts/overview.py --face NAME ...     # prints the columns of some faces as JSON
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "capabilities.md"
BENCH = ROOT / "bench" / "results" / "arguments.json"
sys.path.insert(0, str(ROOT / "tests"))

from capability import CASES, Case, Face, rows  # noqa: E402
from faces import FACES  # noqa: E402

HEADING, TIMES = "## All of it in one table", "dense / rows, times plain"
INTRODUCTION = f"""{HEADING}

A letter is a kind of gradient, as the section of the face describes it: **D**ense, **R**ows, **S**parse, **M**ixed. Behind a
tick stand capitals for what `make test-all` runs, small letters for what ran only when this page was written. A dash: the
face can't have the argument; an asterisk: the combination runs without what the face does not have; the section says why. An
empty cell is no row of that face. Everything stands in float32 at least; the sections have the other dtypes.

The last column is a measurement, [the benchmark's](benchmarks.md#what-each-argument-adds): how many times as long as a plain
step one with the argument takes in `adagrad.Adagrad`, by dense gradients and by rows, the median; empty where it is not timed.
"""


def text() -> str:
    """The heading, the legend and the table."""
    columns: dict[str, list[str]] = {}
    for environment, places in itertools.groupby(FACES, key=lambda place: place.environment):
        names = [place.name for place in places]
        if environment:
            command = [sys.executable, __file__, "--face", *names]
            env = os.environ | dict(environment)
            columns |= json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)
        else:
            columns |= _columns(names)
    return _text(columns)


def _text(columns: dict[str, list[str]]) -> str:
    columns = {"arguments": [_name(case) for case in CASES], **columns, TIMES: _times()}
    lines = [list(columns), ["---"] * len(columns), *map(list, zip(*columns.values(), strict=True))]
    return "\n".join([INTRODUCTION, *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def _name(case: Case) -> str:
    return f"`{case.name}`" if "=" in case.name else case.name


def is_on_page(face: type[Face]) -> bool:
    """Whether the page's first table has the column of a face."""
    return _on_page().get(_head(face)) == _column(face)


def has_times() -> bool:
    """Whether the page's first table shows what the stored benchmark has measured."""
    return _on_page().get(TIMES) == _times()


def _on_page() -> dict[str, list[str]]:
    """The columns of the table as the page has it, by their heads; none if its legend is another."""
    found = PAGE.read_text().split(INTRODUCTION)
    if len(found) != 2:
        return {}
    lines = [line for line in found[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    return {column[0]: list(column[2:]) for column in zip(*map(_cells, lines), strict=True)}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _head(face: type[Face]) -> str:
    return f"{face.name.removeprefix('adagrad.')}<br>{'bitwise' if face.bitwise else 'bounded'}"


def _column(face: type[Face]) -> list[str]:
    """A cell for each case."""
    kinds: list[set[tuple[str, str]]] = [
        {(case.name, kind) for _, case, kind in rows(face, tested=tested)} for tested in (False, True)
    ]
    return [_cell(face, case, *({kind for name, kind in found if name == case.name} for found in kinds)) for case in CASES]


def _cell(face: type[Face], case: Case, present: set[str], tested: set[str]) -> str:
    if case.name in face.lacks:
        return "–"
    if not present:
        return ""
    letters = [kind[0].upper() if kind in tested else kind[0] for kind in face.kinds if kind in present]
    without = [] if face.adapted(case) is case else ["\\*"]
    return " ".join([*(["✓"] if tested else []), *letters, *without])


def _times() -> list[str]:
    """For each case its argument's time over a plain step's, by dense gradients and by rows, where the benchmark has it."""
    found: dict[str, list[str]] = {}
    for case in json.loads(BENCH.read_text())["cases"]:
        for entry in case["candidates"] if case["process"] == "numpy" else ():
            if "ratio" in entry:
                name = "weight_decay_mode" if entry["name"] == "weight_decay, l2" else entry["name"].partition("=")[0]
                found.setdefault(name, []).append(f"{entry['ratio']['median']:.2g}")
    return [" / ".join(found.get(case.name.partition("=")[0], [])) for case in CASES]


def _columns(names: list[str]) -> dict[str, list[str]]:
    faces = [place.load() for place in FACES if place.name in names]
    return {_head(face): _column(face) for face in faces}


def main() -> None:
    """Write the table into the page, or print columns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [place.name for place in FACES]
    parser.add_argument("--times", action="store_true", help="only write what the benchmark has measured again")
    parser.add_argument("--face", nargs="+", choices=names, help="print the columns of some faces", metavar="NAME")
    given = parser.parse_args()
    if given.face is not None:
        print(json.dumps(_columns(given.face)))
        return
    kept = {head: column for head, column in _on_page().items() if head not in ("arguments", TIMES)}
    if given.times and not kept:
        parser.error("--times keeps the page's columns, but its legend is not this script's: write the table without it")
    new = _text(kept) if given.times else text()
    start, rest = PAGE.read_text().split(HEADING, 1)
    _, sections = rest.split("\n## ", 1)
    PAGE.write_text(f"{start}{new}\n## {sections}")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
