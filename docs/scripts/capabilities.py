"""Write docs/capabilities.md: the capability table of the tests, each row measured as this runs; no number is typed.

python docs/scripts/capabilities.py        # seconds, a few minutes where the kernels are not compiled yet
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "capabilities.md"
sys.path.insert(0, str(ROOT / "tests"))

from capability import CASES, FACES, KINDS, STEPS, TOLERANCES, Distances, measure, rows  # noqa: E402

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
    parts = [INTRODUCTION, "## Kinds of gradient\n", table(["kind", "what it is"], [list(item) for item in KINDS.items()])]
    for face in FACES:
        present: dict[tuple[str, str], list[Distances]] = {}
        for dtype, case, kind in rows(face):
            present.setdefault((case.name, dtype), []).append(measure(face, dtype, case, kind).distances)
        parts.append(
            f"## {face.name}, {face.device}: {'bitwise' if face.bitwise else 'bounded'}\n\n"
            "Measured: the largest distance of parameters / averages / sums, over all kinds of gradients. Where the case says\n"
            "no rate, it is 0.3. A dash: in this dtype the argument is tested in the combinations below only.\n"
        )
        lines = [
            [f"`{case.name}`" if "=" in case.name else case.name, *(_cell(present.get((case.name, d))) for d in face.dtypes)]
            for case in CASES
        ]
        parts.append(table(["arguments", *face.dtypes], lines))
    parts.append("## Tolerances\n\nWhat the tests allow, in the same units.\n")
    lines = [[dtype, _text(allowed.distances), allowed.cause] for dtype, allowed in TOLERANCES.items()]
    parts.append(table(["dtype", "parameters / averages / sums", "cause of the distance"], lines))
    return "\n".join(parts)


def _cell(found: list[Distances] | None) -> str:
    if found is None:
        return "–"
    return _text(Distances(*(max(getattr(d, name) for d in found) for name in Distances.__annotations__)))


def _text(distances: Distances) -> str:
    return " / ".join(f"{getattr(distances, name):.2g}" for name in Distances.__annotations__)


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
