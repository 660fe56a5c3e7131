"""From a text file to a model, the whole process, beside Vowpal Wabbit's."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.candidates import case
from bench.harness import Candidate, interleave

__all__ = ["run"]

_BITS = 18
_PIECE = 1 << 20  # bytes that are drawn; a file repeats them
_OURS = "import sys; from adagrad.cli import main; sys.exit(main())"


def run(process: str, *, megabytes: list[int], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Files of so many megabytes in Vowpal Wabbit's format: `adagrad train`, pictures and report included, and VW."""
    found = []
    absent = [name for name in ("sklearn", "pyarrow", "typer", "vowpalwabbit") if importlib.util.find_spec(name) is None]
    if absent:
        skipped = [{"name": "a text file to a model", "reason": f"{' and '.join(absent)} not installed"}]
        return [case("a text file", [], {}, {}, process=process, skipped=skipped)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = _draw(np.random.default_rng(0))
        for size in megabytes:
            text = folder / "t.vw"
            with text.open("wb") as file:
                for _ in range(size):
                    file.write(drawn)
            ours = ["-c", _OURS, "train", str(text), "--bits", str(_BITS), "--out", str(folder / "model")]
            theirs = ["-m", "vowpalwabbit", "-d", str(text), "-b", str(_BITS), "--loss_function", "logistic", "--quiet"]
            theirs += ["-f", str(folder / "vw")]
            candidates = [
                Candidate("adagrad train", functools.partial(_python, ours), _nothing),
                Candidate("Vowpal Wabbit", functools.partial(_python, theirs), _nothing, against="adagrad train"),
            ]
            times = interleave(candidates, rounds=rounds, seconds=seconds)
            found.append(case(f"{size} MB", candidates, times, {}, process=process, skipped=[], megabytes=size))
    return found


def _draw(rng: np.random.Generator) -> bytes:
    """A mebibyte of whole lines: a user, an item and words, zipf, with a label that hangs on them."""
    lines, size = [], 0
    while size < _PIECE:
        user, item, *words = (rng.zipf(1.3, 14) % 100_000).tolist()
        label = 1 if rng.random() < (0.7 if (user + item) % 3 else 0.3) else -1
        line = f"{label} |user u{user} |item i{item} |text {' '.join(f'word{word}' for word in words)}\n".encode()
        lines.append(line)
        size += len(line)
    return b"".join(lines)


def _nothing() -> None:
    return None


def _python(arguments: list[str], _: None) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:4])} failed: {done.stderr.strip()[-300:]}")
