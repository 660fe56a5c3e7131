"""What the tests of the command line share: running it in this process or its own, and small tables to run it on."""

import contextlib
import csv
import dataclasses
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrad import state
from adagrad.cli import main


@pytest.fixture(autouse=True)
def fast_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no curve.png, which would be most of a small run's time; ``monkeypatch.undo()`` brings it back."""
    monkeypatch.setattr("adagrad.cli.curve._picture", lambda points, labels, held_out: b"no picture")
    monkeypatch.setattr("adagrad.cli.page._picture", lambda reliability: b"no picture")


@dataclasses.dataclass
class Result:
    """Exit status, standard output, standard error."""

    code: int
    out: str
    err: str


def run(*arguments: Any, stdin: bytes | None = None) -> Result:
    """Run a command line in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    before = sys.stdin
    try:
        if stdin is not None:
            sys.stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)))  # type: ignore[arg-type]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    finally:
        sys.stdin = before
    out.flush()
    return Result(code, out.buffer.getvalue().decode(), err.getvalue())  # type: ignore[attr-defined]


def succeed(*arguments: Any, stdin: bytes | None = None) -> Result:
    """`run`, for a command that must work."""
    result = run(*arguments, stdin=stdin)
    assert result.code == 0, result.err
    return result


def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command line in a process of its own."""
    command = [sys.executable, "-c", "import sys; from adagrad.cli import main; sys.exit(main())"]
    return subprocess.Popen([*command, *map(str, arguments)], stderr=subprocess.PIPE, env=os.environ.copy(), **options)


def clicks(rows: int, seed: int = 0) -> dict[str, list[Any]]:
    """A table with a category, an id, a number with gaps, a time and a label that hangs on all of them."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, 6, rows)
    user = rng.integers(100, 120, rows)
    price = np.round(rng.normal(3.0, 2.0, rows), 3)
    minute = rng.integers(0, 60 * 24 * 300, rows)
    z = 0.8 * (site - 2.5) + 0.3 * (price - 3) + 0.05 * (user - 110)
    label = rng.random(rows) < 1 / (1 + np.exp(-z))
    when = np.datetime64("2024-01-01T00:00:00") + minute.astype("timedelta64[m]")
    return {
        "click": label.astype(int).tolist(),
        "site": [f"site-{k}" for k in site],
        "user_id": user.tolist(),
        "price": [None if rng.random() < 0.1 else float(p) for p in price],
        "when": [str(w).replace("T", " ") for w in when],
    }


def write_csv(path: Path, table: dict[str, Sequence[Any]], **options: Any) -> Path:
    """Write a table as CSV; None becomes an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, **options)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


def read_csv(text: str) -> dict[str, list[str]]:
    """Columns of a CSV."""
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    return {name: [row[k] for row in rows] for k, name in enumerate(header)}


def model_state(folder: Path, *, but: Sequence[str] = ()) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Everything in a model file, arrays as bytes, for a comparison to the bit; without the entries ``but``."""
    arrays, metadata = state.read(folder / "model.safetensors")
    model = {key: value for key, value in metadata["model"].items() if key not in but}
    return {name: array.tobytes() for name, array in arrays.items()}, model
