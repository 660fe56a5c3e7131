"""Write docs/capabilities.md: the capability table of the tests, each row measured as this runs; no number is typed.

python docs/scripts/capabilities.py           # a few minutes: the kernels are compiled
python docs/scripts/capabilities.py --face NAME    # prints the section of one face
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "capabilities.md"
sys.path.insert(0, str(ROOT / "tests"))

from capability import CASES, FACES, STEPS, Distances, NumpyFace, Place, measure, rows  # noqa: E402

INTRODUCTION = f"""# What works where, and how exactly

Every row here is a test: the optimizer runs {STEPS} calls beside two judges, is saved, loaded into another optimizer over
copies of the arrays half way, and after every call all parameters and all state are compared. The table, the tests and this
page come from one place, `tests/capability.py`; this page was written by `python docs/scripts/capabilities.py`, and a test
fails when it is not what the table gives.

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
    return "\n".join([INTRODUCTION, *map(_section_of, FACES)])


def section(face: type[NumpyFace]) -> str:
    """What the page says of a face."""
    present: dict[tuple[str, str], list[Distances]] = {}
    for dtype, case, kind in rows(face):
        present.setdefault((case.name, dtype), []).append(measure(face, dtype, case, kind).distances)
    lines = [
        [f"`{case.name}`" if "=" in case.name else case.name, *(_cell(present.get((case.name, d))) for d in face.dtypes)]
        for case in CASES
        if case.name not in face.lacks
    ]
    lacking = [f"- no `{name}`: {reason}" for name, reason in face.lacks.items()]
    allowed = [[dtype, _text(each.distances), each.cause] for dtype, each in face.tolerances.items()]
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


def _section_of(place: Place) -> str:
    """The section of a face, from a process of its own if it needs one."""
    if not place.environment:
        return section(place.load())
    command = [sys.executable, __file__, "--face", place.name]
    env = os.environ | dict(place.environment)
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


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
    """Write the page, or print a section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--face", choices=[place.name for place in FACES], help="print what the page says of one face")
    given = parser.parse_args()
    if given.face is not None:
        print(section(next(place for place in FACES if place.name == given.face).load()), end="")
        return
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
