"""Write docs/capabilities.md: the capability table of the tests, each row measured as this runs; no number is typed.

python docs/scripts/capabilities.py                # some ten minutes: kernels are compiled, and a program for many rows
python docs/scripts/capabilities.py --face NAME    # prints the section of one face, or of several

The first table is `overview.py`'s, which writes it alone without running a row.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "capabilities.md"
sys.path.insert(0, str(ROOT / "tests"))

import overview  # noqa: E402

from capability import STEPS, Case, Distances, Face, check, rows  # noqa: E402
from faces import FACES, Place  # noqa: E402

INTRODUCTION = f"""# What works where, and how exactly

In every row here the optimizer runs {STEPS} calls beside two judges, is saved, loaded into another optimizer over copies of
the arrays half way, and after every call all parameters and all state are compared. The table, the tests and this page come
from one place, `tests/capability.py`; this page was written by `python docs/scripts/capabilities.py`, which ran every row and
writes nothing when one is not what the tests allow. `make test` runs every row of NumPy and PyTorch; where each row takes
seconds to compile, in JAX and Keras, each argument, dtype and kind of gradient, but not each with each.

**Class.** A face is *bitwise* when it gives, bit for bit, what [`rule.py`](../src/adagrad/rule.py) gives as plain NumPy array
code (`tests/plain.py`), whatever the kind of gradient, the layout of the arrays and the number of threads. The sign and
payload of a NaN are no part of that. A face is *bounded* when it stays within so many ULP of the reference.

**Distance.** The reference (`tests/reference.py`) computes in float64 with plain loops and shares no code with the package.
Distances to it are in units in the last place (ULP) at the largest size that the entry has had: of parameters and moving
averages in the dtype of the parameter, of sums (accumulators and gradient buffers) in the dtype of the arithmetic, which is
float32 but for float64 parameters. A half-precision parameter is rounded once a call, in the reference too.
"""


def page() -> str:
    """The text of the page."""
    sections = []
    for environment, places in itertools.groupby(FACES, key=lambda place: place.environment):
        sections.append(_sections_of(list(places), dict(environment)))
    return "\n".join([INTRODUCTION, overview.text(), *sections])


def _sections_of(places: list[Place], environment: dict[str, str]) -> str:
    """The sections of faces, from a process of its own if they need one."""
    names = [place.name for place in places]
    print(f"running {', '.join(names)} ...", file=sys.stderr)
    if not environment:
        return "\n".join(section(place.load()) for place in places)
    command = [sys.executable, __file__, "--face", *names]
    return subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def section(face: type[Face], measured: Callable[[type[Face], str, Case, str], Distances] = check) -> str:
    """What the page says of a face, by what ``measured`` gives for a row."""
    present: dict[tuple[str, str], list[Distances]] = {}
    for dtype, case, kind in rows(face):
        present.setdefault((case.name, dtype), []).append(measured(face, dtype, case, kind))
    lines = [
        [f"`{case.name}`" if "=" in case.name else case.name, *(_cell(present.get((case.name, d))) for d in face.dtypes)]
        for case in face.cases
        if case.name not in face.lacks
    ]
    lacking = [f"- no `{name}`: {reason}" for name, reason in face.lacks.items()]
    allowed = [[dtype, _text(face.tolerances[dtype].distances), face.tolerances[dtype].cause] for dtype in face.dtypes]
    return "\n".join(
        [
            f"## {face.name}, {face.device}: {'bitwise' if face.bitwise else 'bounded'}\n",
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
    """Whether the page says what the table gives; the figures only of a bitwise face whose rows are all tested."""
    text = PAGE.read_text()
    if not overview.is_on_page(face):
        return False
    if face.bitwise and list(rows(face)) == list(rows(face, tested=True)):
        return section(face) in text
    any_figure = re.compile(r"[\d.e+-]*\d")
    skeleton = section(face, lambda *row: Distances(0.0, 0.0, 0.0))
    return any_figure.sub("#", skeleton) in any_figure.sub("#", text)


def _cell(found: list[Distances] | None) -> str:
    if found is None:
        return "–"
    return _text(Distances(*(max(getattr(d, name) for d in found) for name in Distances.__annotations__)))


def _text(distances: Distances) -> str:
    return " / ".join(f"{getattr(distances, name):.2g}" for name in Distances.__annotations__)


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def main() -> None:
    """Write the page, or print sections."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [place.name for place in FACES]
    parser.add_argument("--face", nargs="+", choices=names, help="print what the page says of some faces", metavar="NAME")
    given = parser.parse_args()
    if given.face is not None:
        print("\n".join(section(place.load()) for place in FACES if place.name in given.face), end="")
        return
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
