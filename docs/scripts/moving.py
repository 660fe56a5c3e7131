"""Run examples/moving.py, keep what it measured, draw its picture, and write its table into docs/moving.md.

python docs/scripts/moving.py           # a minute
python docs/scripts/moving.py --table   # the table alone, of what is kept
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "moving.md"
KEPT = Path(__file__).with_name("moving.json")
MARKS = "<!-- written by docs/scripts/moving.py: begin -->", "<!-- end -->"


def table(found: dict[str, Any]) -> str:
    """What the page says of the measured run."""
    head = ["calls", "in", "equal gradients: weights", "accumulators", "bound", "own gradients: weights"]
    lines = [head, ["---"] * len(head)]
    for leg in found["legs"]:
        first, last = leg["calls"]
        cells = [f"{leg[name]:.2g} ULP" if leg["bound"] else "the same bits" for name in ("weights", "accumulators", "bound")]
        lines.append([f"{first} to {last}", leg["framework"], *cells, f"{leg['difference']:.1e}"])
    off, without, size = (found[name] for name in ("difference", "difference_without_state", "largest_weight"))
    text = [
        f"The largest difference of any weight, at any call, from the run that stays: **{off:.1e}**, of weights up",
        f"to {size:.2f}. Moved without the optimizer's state it is {without:.2f}.",
    ]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *text])


def main() -> None:
    """Write the kept figures, the picture and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only write the table of what is kept into the page")
    if not parser.parse_args().table:
        picture = ROOT / "docs" / "images" / "moving.png"
        script = ROOT / "examples" / "moving.py"
        subprocess.run([sys.executable, script, "--results", KEPT, "--picture", picture], check=True)
    begin, end = MARKS
    text = f"{begin}\n{table(json.loads(KEPT.read_text()))}\n{end}"
    page, count = re.subn(f"{begin}.*?{end}", lambda _: text, PAGE.read_text(), flags=re.DOTALL)
    assert count == 1
    PAGE.write_text(page)
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
