"""``adagrad train`` and ``adagrad predict`` from end to end: what is written, printed, and the same whatever holds the rows."""

import csv
import gzip
import io
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import parquet
from sklearn import metrics

from adagrad import state
from adagrad.cli import progress, training
from adagrad.cli.model import Model, pack, unpack
from cli_tools import clicks, fast_pictures, model_state, read_csv, run, succeed, write_csv  # noqa: F401

SMALL = ["--bits", "10"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 100 rows, so that a small file has many."""
    monkeypatch.setattr(training, "CHUNK", 100)


def typed(table: dict[str, Any]) -> pa.Table:
    """The table with the types that its columns would have in Parquet."""
    columns = dict(table)
    columns["when"] = pa.array(np.array(table["when"], "datetime64[s]"))
    return pa.table(columns)


def test_the_same_rows_give_the_same_model(tmp_path: Path, small_chunks: None) -> None:
    table = clicks(950)
    plain = write_csv(tmp_path / "plain.csv", table)
    arguments = ["--target", "click", "--cross", "site:when.hour", *SMALL]
    expected: Any = None

    def check(name: str, *data: Any, stdin: bytes | None = None) -> None:
        nonlocal expected
        out = tmp_path / f"model-{name}"
        succeed("train", *data, *arguments, "--out", out, stdin=stdin)
        arrays, model = model_state(out, but=["columns"])
        expected = expected or (arrays, model)
        assert arrays == expected[0]
        assert model == expected[1]

    check("csv", plain)
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    check("gz", packed)
    check("stdin", "-", stdin=plain.read_bytes())
    check("stdin-gz", "-", stdin=packed.read_bytes())
    parquet.write_table(typed(table), tmp_path / "t.parquet", row_group_size=130)
    check("parquet", tmp_path / "t.parquet")
    quoted = write_csv(tmp_path / "quoted.csv", table, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    quoted.write_bytes(b"\xef\xbb\xbf" + quoted.read_bytes())
    check("quoted", quoted)
    turned = write_csv(tmp_path / "turned.tsv", dict(reversed(table.items())), delimiter="\t")
    numbers = tmp_path / "model-turned"
    succeed("train", turned, *arguments, "--out", numbers)  # another order of columns: another order of summation, no more
    parts = tmp_path / "parts"
    parts.mkdir()
    for k, (start, stop) in enumerate([(0, 3), (3, 420), (420, 950)]):
        part = {name: values[start:stop] for name, values in table.items()}
        if k == 1:
            parquet.write_table(typed(part), parts / "part-1.parquet")
        else:
            write_csv(parts / f"part-{k}.csv", part)
    check("folder", parts)
    check("files", *sorted(parts.iterdir()))


def test_the_report_says_everything_in_its_order(tmp_path: Path) -> None:
    table = clicks(600)
    table["junk"] = list(range(600))
    train = write_csv(tmp_path / "train.csv", table)
    with train.open("a") as file:
        file.write("1,site-0\n1,site-0,101,cheap,2024-01-01,0\n")
    test = write_csv(tmp_path / "test.csv", clicks(300, seed=1))
    out = tmp_path / "model"
    result = succeed(
        "train", train, "--target", "click", "--test", test, "--ignore", "junk", "--numeric", "price",
        "--cross", "site:user_id", "--bad-rows", "skip", "--out", out, *SMALL,
    )  # fmt: skip
    before, _, report = result.out.partition("\n\n")
    assert before.startswith("Roles (--categorical, --numeric, --timestamp and --ignore override):")
    order = [
        f"Files: {train}",
        "Rows: 600 learned from; dropped: 2 (1 with a bad value, 1 with another number of columns)",
        "Roles (",
        "Task: classification into 0, 1, log loss (the target is 0 or 1)",
        "The complete command:",
        f"Held out: 300 rows, {test}",
        "  constant ",
        "  running mean ",
        "  SGDClassifier ",
        "  adagrad (this model) ",
        "Online loss: ",
        "Speed: ",
        "Strongest features (weights toward click=1):",
        f"Written to {out}: model.safetensors, model.json, metrics.json, curve.csv, curve.png, calibration.png, report.html",
    ]
    positions = [report.find(line) for line in order]
    assert -1 not in positions, order[positions.index(-1)]
    assert positions == sorted(positions)
    rows = {line.split("  ")[1].strip(): line for line in before.splitlines()[2:-1]}
    assert rows["site"].split() == ["site", "category", "text"]
    assert rows["price"].split(maxsplit=3) == ["price", "number,", "scaled", "--numeric; though 531 of 532 values are numbers"]
    assert "hour, weekday and month" in rows["when"]
    assert rows["junk"].split() == ["junk", "ignored", "--ignore"]
    assert rows["site:user_id"].split() == ["site:user_id", "cross", "--cross"]
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["rows"] == 600
    assert figures["dropped"] == {"bad_value": 1, "ragged": 1}
    assert figures["held_out"]["rows"] == 300
    ours, sgd = figures["held_out"]["table"]["adagrad"], figures["held_out"]["table"]["SGDClassifier"]
    assert ours["log_loss"] < figures["held_out"]["table"]["constant"]["log_loss"]
    assert 0.5 < sgd["auc"] <= 1.0
    assert figures["online"]["rows"] == 600
    assert f"{figures['online']['loss']:.4f}" in report
    assert figures["peak_memory_bytes"] > 2**20
    assert figures["collisions"]["slots"] == 1024
    assert len(figures["strongest"]) == 20
    strengths = [feature["strength"] for feature in figures["strongest"]]
    assert strengths == sorted(strengths, reverse=True)
    for feature in figures["strongest"]:
        share = feature["rows"] / 600
        spread = share if feature["feature"] == "price" else share * (1 - share)
        assert feature["spread"] == pytest.approx(spread**0.5, rel=1e-12)
        assert feature["strength"] == pytest.approx(abs(feature["weight"]) * feature["spread"], rel=1e-12)
    assert figures["strongest"][0]["feature"] in report
    curve = read_csv((out / "curve.csv").read_text())
    assert curve["rows"][-1] == "600"
    assert float(curve["online_loss"][-1]) == figures["online"]["loss"]
    assert sorted(path.name for path in out.iterdir()) == [
        "calibration.png", "curve.csv", "curve.png", "metrics.json", "model.json", "model.safetensors", "report.html",
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["click", "price"])
def test_the_curve_is_drawn(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data = write_csv(tmp_path / "t.csv", clicks(300))
    succeed("train", data, "--target", target, "--bad-rows", "skip", "--test", data, "--out", tmp_path / "m", *SMALL)
    assert (tmp_path / "m" / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_complete_command_gives_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = clicks(500)
    table["a weight, with a comma"] = [0.5, 1.5] * 250
    write_csv(tmp_path / "a file.csv", table, delimiter=";")
    succeed(
        "train", "a file.csv", "--target", "click", "--delimiter", ";", "--weight", "a weight, with a comma", "--out", "one",
        "--cross", "site:user_id", "--learning-rate", "0.1", "--epochs", "2", "--shuffle", "64", "--seed", "3", "--use-ema",
        "--holdout-random", "0.2", "--bits", "12", "--epsilon", "0.001", "--no-baseline",
    )  # fmt: skip
    command = json.loads((tmp_path / "one" / "metrics.json").read_text())["command"]
    words = shlex.split(command)
    assert words[:3] == ["adagrad", "train", "a file.csv"]
    for option in ("--categorical", "--numeric", "--timestamp", "--classes", "--task", "--initial-accumulator-value"):
        assert option in words
    words[words.index("--out") + 1] = "two"
    succeed(*words[1:])
    (arrays, model), (arrays_again, model_again) = (
        model_state(tmp_path / name, but=["columns", "task_reason"]) for name in ("one", "two")
    )
    assert arrays == arrays_again
    assert model == model_again


def test_classification_figures_are_those_of_the_predictions(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", clicks(3000))
    table = clicks(1000, seed=1)
    table["w"] = np.linspace(0.1, 2.0, 1000).tolist()
    weighted = {**clicks(3000), "w": [1.0] * 3000}
    write_csv(train, weighted)
    test = write_csv(tmp_path / "test.csv", table)
    out = tmp_path / "model"
    succeed("train", train, "--target", "click", "--weight", "w", "--test", test, "--out", out, *SMALL)
    predictions = read_csv(succeed("predict", out, test, "--keep", "click,w").out)
    p = np.array(predictions["p_1"], float)
    np.testing.assert_allclose(np.array(predictions["p_0"], float), 1 - p, atol=1e-15)
    y, w = np.array(predictions["click"], int), np.array(predictions["w"], float)
    figures = json.loads((out / "metrics.json").read_text())["held_out"]["table"]["adagrad"]
    assert figures["log_loss"] == pytest.approx(metrics.log_loss(y, p, sample_weight=w), rel=1e-9)
    assert figures["auc"] == pytest.approx(metrics.roc_auc_score(y, p, sample_weight=w), abs=1e-5)
    assert figures["calibration"] == pytest.approx((w @ p) / (w @ y), rel=1e-9)


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c"], [True, False], [3, 7, 11]])
def test_classes_of_any_kind_get_their_column(tmp_path: Path, labels: list[Any]) -> None:
    rng = np.random.default_rng(0)
    k = rng.integers(0, len(labels), 900)
    table = {"y": [labels[i] for i in k], "hint": [f"h{i}" if rng.random() < 0.8 else "h?" for i in k]}
    train = write_csv(tmp_path / "train.csv", table)
    out = tmp_path / "model"
    result = succeed("train", train, "--target", "y", "--holdout-last", "0.1", "--out", out, *SMALL)
    names = sorted(str(label).lower() if isinstance(label, bool) else label for label in labels)
    assert f"classification into {', '.join(map(str, names))}, log loss" in result.out
    predictions = read_csv(succeed("predict", out, train).out)
    assert list(predictions) == [f"p_{name}" for name in names]
    p = np.array([predictions[f"p_{name}"] for name in names], float)
    np.testing.assert_allclose(p.sum(axis=0), 1.0, atol=1e-6)
    chosen = np.array(names)[p.argmax(axis=0)]
    actual = np.array([str(v).lower() if isinstance(v, bool) else v for v in table["y"]])
    assert (chosen == actual).mean() > 0.75
    table_of_figures = json.loads((out / "metrics.json").read_text())["held_out"]["table"]
    assert table_of_figures["adagrad"]["auc"] > 0.8
    assert table_of_figures["adagrad"]["log_loss"] < table_of_figures["constant"]["log_loss"]
    if len(labels) > 2:
        assert "weights toward the class named" in result.out


def test_classes_may_hold_commas_and_come_late(tmp_path: Path, small_chunks: None) -> None:
    labels = ["a", "b, c"] * 60 + ["d"] * 30
    data = write_csv(tmp_path / "t.csv", {"y": labels, "x": [len(label) for label in labels]})
    late = run("train", data, "--target", "y", "--out", tmp_path / "m", *SMALL)
    known = "known are a, b, c: give all of them by --classes (--bad-rows skip leaves such rows out)"
    assert (late.code, late.err) == (1, f"adagrad: {data}, line 122, column 'y': 'd' is a new class; {known}\n")
    skipped = succeed("train", data, "--target", "y", "--bad-rows", "skip", "--out", tmp_path / "m", *SMALL)
    assert "Rows: 120 learned from; dropped: 30 (30 with a bad value" in skipped.out
    classes = ["--classes", "d", "--classes", "a", "--classes", "b, c"]
    result = succeed("train", data, "--target", "y", *classes, "--out", tmp_path / "m", *SMALL)
    assert "--classes a --classes 'b, c' --classes d" in result.out
    assert list(read_csv(succeed("predict", tmp_path / "m", data).out)) == ["p_a", "p_b, c", "p_d"]


@pytest.mark.parametrize(("values", "task"), [(["0", "1"], "classification into 0, 1"), (["0.5", "1.5", "2.5"], "regression")])
def test_a_bad_target_value_is_skipped_and_counted(tmp_path: Path, small_chunks: None, values: list[str], task: str) -> None:
    """Whether it comes in the first chunk, which decides the task, or later."""
    table: dict[str, list[Any]] = {"y": (values * 150)[:300], "x": list(range(300))}
    for row in (40, 250):
        table["y"][row] = "?"
    data = write_csv(tmp_path / "t.csv", table)
    result = succeed("train", data, "--target", "y", "--bad-rows", "skip", "--out", tmp_path / "m", *SMALL)
    assert f"Task: {task}" in result.out
    assert "Rows: 298 learned from; dropped: 2 (2 with a bad value" in result.out
    stopped = run("train", data, "--target", "y", "--out", tmp_path / "m", *SMALL)
    assert stopped.err.startswith(f"adagrad: {data}, line 42, column 'y': '?' is not a number, but 99 of 100 values are")


def test_numbers_whose_squares_have_no_sum_are_bad_rows(tmp_path: Path, small_chunks: None) -> None:
    table: dict[str, list[Any]] = {"y": [0.5 * (i % 9) for i in range(300)], "x": list(range(300))}
    table["y"][50], table["y"][250] = "-1e200", "1e150"
    data = write_csv(tmp_path / "t.csv", table)
    command = ["train", data, "--target", "y", "--checkpoint", tmp_path / "c", "--checkpoint-every", "100", *SMALL]
    stopped = run(*command, "--out", tmp_path / "m")
    assert f"{data}, line 52, column 'y': '-1e200' is not a finite number, smaller than 1e+140" in stopped.err
    succeed(*command, "--bad-rows", "skip", "--out", tmp_path / "m")
    assert json.loads((tmp_path / "m" / "metrics.json").read_text())["online"]["rows"] == 298


def test_batches_are_as_large_as_asked(tmp_path: Path, small_chunks: None) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(500))
    for batch, steps in ((30, 17), (100, 5), (240, 3), (500, 1), (1000, 1)):
        succeed("train", data, "--target", "click", "--batch-size", batch, *SMALL, "--out", tmp_path / "m")
        _, content = state.read(tmp_path / "m" / "model.safetensors")
        assert content["model"]["learner"]["counters"]["steps"] == steps
    refused = run(
        "train", data, "--target", "click", "--batch-size", "240", "--shuffle", "120", *SMALL, "--out", tmp_path / "m"
    )
    assert refused.err == "adagrad: --batch-size 240 needs a --shuffle of as many rows or more, got 120\n"


def test_regression_learns_a_line_in_its_own_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, site = rng.normal(20.0, 5.0, 8000), rng.integers(0, 4, 8000)
    y = 250_000 + 9_000 * x + 20_000 * site + rng.normal(0.0, 1_000.0, 8000)
    table = {"price": np.round(y, 2).tolist(), "x": np.round(x, 4).tolist(), "site": [f"s{k}" for k in site]}
    train = write_csv(tmp_path / "train.csv", table)
    out = tmp_path / "model"
    result = succeed("train", train, "--target", "price", "--holdout-random", "0.1", "--seed", "1", "--out", out, *SMALL)
    assert "Task: regression, squared loss (the target is a number (float))" in result.out
    figures = json.loads((out / "metrics.json").read_text())["held_out"]
    ours = figures["table"]["adagrad"]
    assert ours["r2"] > 0.98
    assert ours["rmse"] < 0.2 * figures["table"]["constant"]["rmse"]
    assert figures["table"]["SGDRegressor"]["r2"] > 0.9
    assert figures["rows"] == pytest.approx(800, abs=100)
    predictions = read_csv(succeed("predict", out, train, "--keep", "price").out)
    error = np.array(predictions["prediction"], float) - np.array(predictions["price"], float)
    assert np.sqrt(np.mean(error**2)) < 0.2 * y.std()


def test_held_out_rows_are_not_learned_from(tmp_path: Path, small_chunks: None) -> None:
    table = clicks(1000)
    whole = write_csv(tmp_path / "whole.csv", table)
    head = write_csv(tmp_path / "head.csv", {name: values[:850] for name, values in table.items()})
    tail = write_csv(tmp_path / "tail.csv", {name: values[850:] for name, values in table.items()})
    succeed("train", whole, "--target", "click", "--holdout-last", "0.15", "--out", tmp_path / "a", *SMALL)
    succeed("train", head, "--target", "click", "--test", tail, "--out", tmp_path / "b", *SMALL)
    assert model_state(tmp_path / "a") == model_state(tmp_path / "b")
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert one["held_out"]["rows"] == other["held_out"]["rows"] == 150
    for who, row in one["held_out"]["table"].items():  # summed in other chunks
        assert row == pytest.approx(other["held_out"]["table"][who], rel=1e-9)
    assert one["online"] == other["online"]
    succeed("train", whole, "--target", "click", "--holdout-random", "0.15", "--out", tmp_path / "c", *SMALL)
    random = json.loads((tmp_path / "c" / "metrics.json").read_text())
    assert random["rows"] + random["held_out"]["rows"] == 1000
    assert 100 < random["held_out"]["rows"] < 200


def test_nothing_held_out_is_said(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", clicks(300))
    result = succeed("train", train, "--target", "click", "--out", tmp_path / "model", *SMALL)
    assert "Judged: not held out (--test FILE, --holdout-last 0.1 or --holdout-random 0.1 would judge the model)" in result.out
    assert "Held out:" not in result.out
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["held_out"] is None


def test_the_online_loss_is_that_of_predictions_made_before(tmp_path: Path, small_chunks: None) -> None:
    table = clicks(400)
    train = write_csv(tmp_path / "train.csv", table)
    succeed("train", train, "--target", "click", "--out", tmp_path / "model", *SMALL)
    figures = json.loads((tmp_path / "model" / "metrics.json").read_text())
    y = np.array(table["click"])
    shares = (np.concatenate([[0], np.cumsum(y)[:-1]]) + 0.5) / (np.arange(400) + 1)
    running = -np.log(np.where(y == 1, shares, 1 - shares)).mean()
    assert figures["online"]["running_mean"] == pytest.approx(running, rel=1e-9)
    # A row's own label has no part in its prediction: with the other label the last row costs -log(1 - p), not -log p.
    sums = {}
    for name, label, weight in (("as it is", y[-1], 1), ("turned", 1 - y[-1], 1), ("without", 0, 0)):
        changed = {**table, "click": [*table["click"][:-1], int(label)], "w": [1] * 399 + [weight]}
        path = write_csv(tmp_path / "changed.csv", changed)
        succeed("train", path, "--target", "click", "--weight", "w", "--out", tmp_path / "model", *SMALL)
        sums[name] = (399 + weight) * json.loads((tmp_path / "model" / "metrics.json").read_text())["online"]["loss"]
    shares = [np.exp(sums["without"] - sums[name]) for name in ("as it is", "turned")]
    assert sum(shares) == pytest.approx(1.0, abs=1e-9)
    assert 0.01 < shares[0] < 0.99


def test_warnings_of_the_judge(tmp_path: Path) -> None:
    calm = succeed("train", write_csv(tmp_path / "calm.csv", clicks(2000)), "--target", "click", "--holdout-last", "0.2",
                   "--out", tmp_path / "m", "--bits", "16")  # fmt: skip
    assert "Warning" not in calm.out
    table = clicks(2000)
    order = np.argsort(table["click"], kind="stable")
    in_runs = {name: [values[i] for i in order] for name, values in table.items()}
    path = write_csv(tmp_path / "runs.csv", in_runs)
    test = write_csv(tmp_path / "test.csv", clicks(500, seed=1))
    result = succeed("train", path, "--target", "click", "--test", test, "--out", tmp_path / "m", "--bits", "16")
    assert "Warning: labels come in runs (neighbours correlate by 1.00)" in result.out
    assert "above the online loss: the held-out rows may be unlike the training rows" in result.out
    mixed = succeed(
        "train", path, "--target", "click", "--test", test, "--shuffle", "2000", "--out", tmp_path / "m", "--bits", "16"
    )
    assert "labels come in runs" not in mixed.out
    crowded = succeed("train", path, "--target", "click", "--bits", "5", "--out", tmp_path / "m")
    assert "of the used slots are shared: more --bits would part them" in crowded.out


def line(rows: int, noise: float, seed: int = 0) -> dict[str, list[float]]:
    """A number that hangs on another one, which takes some rows to learn."""
    rng = np.random.default_rng(seed)
    x = rng.normal(20.0, 5.0, rows)
    return {"y": (9.0 * x + rng.normal(0.0, noise, rows)).tolist(), "x": x.tolist()}


def test_a_held_out_loss_below_the_online_loss_is_explained(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", line(8000, 3.0))
    train = ["train", data, "--target", "y", "--learning-rate", "0.02", "--out", tmp_path / "m", *SMALL]
    counted = "that one counts every row by the prediction made when it came"
    for noise, arguments, easier in ((3.0, [], False), (0.5, ["--epochs", "2"], True)):
        test = write_csv(tmp_path / "test.csv", line(1000, noise, seed=1))
        succeed(*train, "--test", test, *arguments)
        figures = json.loads((tmp_path / "m" / "metrics.json").read_text())
        (warning,) = figures["warnings"]
        below = 1 - figures["held_out"]["table"]["adagrad"]["rmse"] / figures["online"]["loss"]
        of = " of the first pass" if arguments else ""
        assert warning.startswith(
            f"the held-out loss is {below:.0%} below the online loss{of}; over the last 1,856 rows it was"
        )
        assert f": {counted}, the first rows' before much was learned" in warning
        assert ("the held-out rows may be easier" in warning) == easier
    result = succeed("train", data, "--start-from", tmp_path / "m", "--test", test, "--out", tmp_path / "n")
    note = "by --start-from this model had learned from 16,000 rows before; the others know only the 8,000 of this run"
    assert f"  not like for like: {note}:\n" in result.out
    figures = json.loads((tmp_path / "n" / "metrics.json").read_text())
    assert figures["held_out"]["note"] == f"not like for like: {note}"
    assert figures["rows_before"] == 16_000
    assert "before much was learned" not in result.out


def test_speed_leaves_out_the_window_that_may_compile(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, wait = training.Run._learn_window, list[float]()

    def slow_at_first(self: training.Run, window: Any) -> None:
        time.sleep(wait.pop() if wait else 0.0)
        learn(self, window)

    monkeypatch.setattr(training.Run, "_learn_window", slow_at_first)
    data = write_csv(tmp_path / "t.csv", clicks(350))
    succeed("train", data, "--target", "click", "--out", tmp_path / "m", *SMALL)
    wait.append(0.5)
    succeed("train", data, "--target", "click", "--out", tmp_path / "m", *SMALL)
    figures = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert figures["timed"]["rows"] == 250
    assert figures["timed"]["seconds"] < 0.5
    assert figures["rows_a_second"] == figures["timed"]["rows"] / figures["timed"]["seconds"]
    few = write_csv(tmp_path / "few.csv", clicks(90))
    assert "Speed: too few rows to time; " in succeed("train", few, "--target", "click", "--out", tmp_path / "m", *SMALL).out
    assert json.loads((tmp_path / "m" / "metrics.json").read_text())["rows_a_second"] is None


def test_passes_and_shuffling_change_the_model_and_are_repeatable(tmp_path: Path, small_chunks: None) -> None:
    train = write_csv(tmp_path / "train.csv", clicks(730))
    states = {}
    for name, arguments in {
        "plain": [],
        "twice": ["--epochs", "2"],
        "mixed": ["--shuffle", "30"],
        "mixed-wide": ["--shuffle", "250"],
        "mixed-again": ["--shuffle", "250"],
        "mixed-other": ["--shuffle", "250", "--seed", "1"],
        "batches": ["--batch-size", "32"],
    }.items():
        out = tmp_path / name
        succeed("train", train, "--target", "click", "--out", out, *SMALL, *arguments)
        states[name] = model_state(out)[0]
    assert states["mixed-wide"] == states["mixed-again"]
    different = ["plain", "twice", "mixed", "mixed-wide", "mixed-other", "batches"]
    assert len({json.dumps({k: v.hex() for k, v in states[name].items()}) for name in different}) == len(different)


def test_shuffling_keeps_every_row_once() -> None:
    for rows, buffer in ((1000, 30), (1000, 100_000), (7, 2), (130_000, 65_536)):
        order = training._order(rows, buffer, [1, 2, 3])
        assert sorted(order.tolist()) == list(range(rows))
        if buffer < 65_536:
            assert (order // buffer == np.arange(rows) // buffer).all()


def test_every_pass_is_shuffled_anew(tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    shuffle = training._order

    def watched(rows: int, buffer: int, seed: Any) -> np.ndarray:
        seeds.append(tuple(seed))
        return shuffle(rows, buffer, seed)

    monkeypatch.setattr(training, "_order", watched)
    train = write_csv(tmp_path / "train.csv", clicks(450))
    succeed("train", train, "--target", "click", "--out", tmp_path / "m", "--shuffle", "150", "--epochs", "2", *SMALL)
    assert len(seeds) == len(set(seeds)) == 6


def test_weights_stay_with_their_rows(tmp_path: Path) -> None:
    """Half of the labels are lies, of weight 0; the model sees through them, however the rows are mixed."""
    rng = np.random.default_rng(0)
    true, lie = rng.integers(0, 2, 2000), rng.random(2000) < 0.5
    table = {"y": np.where(lie, 1 - true, true).tolist(), "x": [f"x{t}" for t in true], "w": (1.0 - lie).tolist()}
    data = write_csv(tmp_path / "t.csv", table)
    succeed("train", data, "--target", "y", "--weight", "w", "--shuffle", "500", "--out", tmp_path / "m", *SMALL)
    p = np.array(read_csv(succeed("predict", tmp_path / "m", data).out)["p_1"], float)
    assert ((p > 0.5) == true).all()
    assert np.abs(p - 0.5).min() > 0.3


@pytest.mark.parametrize(
    ("option", "value", "key", "stored"),
    [
        ("--learning-rate", "0.2", "learning_rate", 0.2),
        ("--initial-accumulator-value", "0.5", "initial_accumulator_value", 0.5),
        ("--epsilon", "0.01", "epsilon", 0.01),
        ("--weight-decay", "0.001", "weight_decay", 0.001),
        ("--clipnorm", "0.3", "clipnorm", 0.3),
        ("--clipvalue", "0.2", "clipvalue", 0.2),
        ("--global-clipnorm", "0.3", "global_clipnorm", 0.3),
        ("--loss-scale-factor", "1e9", "loss_scale_factor", 1e9),
        ("--gradient-accumulation-steps", "3", "gradient_accumulation_steps", 3),
        ("--epsilon-placement", "outside", "epsilon_placement", "outside"),
    ],
)
def test_every_argument_of_the_optimizer_arrives(tmp_path: Path, option: str, value: str, key: str, stored: Any) -> None:
    train = write_csv(tmp_path / "train.csv", clicks(200))
    base = ["--epsilon", "0.1"] if key == "epsilon_placement" else []
    succeed("train", train, "--target", "click", "--out", tmp_path / "a", *SMALL, *base)
    succeed("train", train, "--target", "click", "--out", tmp_path / "b", *SMALL, *base, option, value)
    assert json.loads((tmp_path / "b" / "model.json").read_text())["settings"][key] == stored
    if key != "loss_scale_factor":  # which moves nothing but roundings
        assert model_state(tmp_path / "a")[0] != model_state(tmp_path / "b")[0]


def test_arguments_that_go_together(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", clicks(200))
    states = {}
    for name, arguments in {
        "plain": [],
        "ema": ["--use-ema"],
        "momentum": ["--use-ema", "--ema-momentum", "0.5"],
        "overwrite": ["--use-ema", "--ema-overwrite-frequency", "7"],
        "decay": ["--weight-decay", "0.1"],
        "l2": ["--weight-decay", "0.1", "--weight-decay-mode", "l2"],
        "schedule": ["--learning-rate", '{"class_name": "ExponentialDecay", "config": {"initial_learning_rate": 0.05, '
                     '"decay_steps": 50, "decay_rate": 0.5, "staircase": false, "name": "ExponentialDecay"}}'],
    }.items():  # fmt: skip
        succeed("train", train, "--target", "click", "--out", tmp_path / name, "--name", "mine", *SMALL, *arguments)
        states[name] = model_state(tmp_path / name)[0]["learner/coef:used"]
    assert len(set(states.values())) == len(states)
    settings = json.loads((tmp_path / "schedule" / "model.json").read_text())["settings"]
    assert settings["learning_rate"]["class_name"] == "ExponentialDecay"
    assert settings["name"] == "mine"
    assert read_csv(succeed("predict", tmp_path / "schedule", train).out)["p_1"]


def test_a_model_that_runs_away_is_an_error(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", {"y": [0.5, 1.5] * 50, "x": [1.0, 2.0] * 50})
    result = run(
        "train", data, "--target", "y", "--task", "regression", "--learning-rate", "1e30", "--out", tmp_path / "m", *SMALL
    )
    message = "adagrad: the model ran away, its predictions are no longer finite numbers; try a smaller --learning-rate\n"
    assert (result.code, result.err) == (1, message)


def test_progress_on_a_terminal_and_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for file in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", file)
        monkeypatch.setattr(progress, "_PAUSE", 0.0)
        with progress.Progress(200.0) as shown:
            shown.show(10, 50.0)
            shown.show(1010, 100.0, 0.5)
        lines = file.getvalue()
        assert "1,010 rows, " in lines
        assert " rows/s, loss 0.5000" in lines
        assert "50%" in lines
    with progress.Progress(None) as shown:
        shown.show(7, 100.0)
    assert file.getvalue().endswith("\n7 rows\n")


def test_packed_arrays_come_back() -> None:
    rng = np.random.default_rng(0)
    seen = np.zeros(64, np.uint64)
    seen[[0, 3, 9, 40]] = 7
    weights = np.zeros((64, 2), np.float32)
    weights[[0, 3, 9]] = rng.normal(size=(3, 2))
    touched = np.tile([0.0, 1.0, 0.0], (65, 1))
    touched[[40, 64]] = 5.0
    arrays = {
        "weights": weights,
        "negative zero": np.where(np.arange(64) == 50, -0.0, 0.0),
        "touched": touched,
        "full": rng.normal(size=64),
        "seen": seen,
        "scalar": np.array(3.0),
        "other": np.arange(5),
    }
    packed = pack(arrays, seen)
    assert {name for name in packed if name.endswith(":used")} == {"weights:used", "touched:used", "seen:used"}
    back = unpack(packed, 64)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()
    assert pack(arrays, np.ones(64, np.uint64)).keys() == arrays.keys()


def test_nobody_waits_for_scikit_learn(tmp_path: Path) -> None:
    """It takes longer to import than all else; only a baseline, beside which a model is judged, needs it."""
    data = write_csv(tmp_path / "t.csv", clicks(200))
    code = "import sys; from adagrad.cli import main; code = main(); assert 'sklearn' not in sys.modules; sys.exit(code)"
    for arguments in (
        ["train", data, "--target", "click", "--out", tmp_path / "m", *SMALL],
        ["predict", tmp_path / "m", data, "--out", tmp_path / "p.csv"],
    ):
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True)


def test_the_model_file_explains_itself(tmp_path: Path) -> None:
    table = clicks(500)
    succeed("train", write_csv(tmp_path / "t.csv", table), "--target", "click", "--out", tmp_path / "m", *SMALL)
    described = json.loads((tmp_path / "m" / "model.json").read_text())
    prices = np.array([p for p in table["price"] if p is not None])
    number = described["scaling"]["numbers"]["price"]
    assert number["values"] == len(prices)
    assert number["mean"] == pytest.approx(prices.mean(), rel=1e-9)
    assert number["deviation"] == pytest.approx(prices.std(), rel=1e-9)
    assert described["hash"]["function"] == "XXH64"
    assert described["fields"] == ["price", "site", "user_id", "when.hour", "when.weekday", "when.month"]
    assert set(described["versions"]) == {"python", "adagrad", "numpy", "numba", "pyarrow", "scipy"}
    # The formulas in the file are enough to find a feature's weight.
    from adagrad.cli.hashing import hash_bytes

    model = Model.load(str(tmp_path / "m"))
    h = hash_bytes(b"site-5", hash_bytes(b"site"))
    slot = eval(described["hash"]["slot"], {"hash": h})
    strongest = {f.name: f for f in model.strongest.table(model.coef, model.counted, 200)}
    assert strongest["site=site-5"].slot == slot
    assert strongest["site=site-5"].count == table["site"].count("site-5")
    assert strongest["price"].slot == number["slot"] == 0


# ---- predict ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the file that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    train = write_csv(folder / "train.csv", clicks(2000))
    succeed("train", train, "--target", "click", "--out", folder / "model", *SMALL)
    return folder / "model", train


def test_predictions_are_those_of_the_model_in_memory(trained: tuple[Path, Path], small_chunks: None) -> None:
    folder, train = trained
    written = np.array(read_csv(succeed("predict", folder, train).out)["p_1"], float)
    from adagrad.cli.reading import Reader

    model = Model.load(str(folder / "model.safetensors"))
    expected = []
    for chunk in Reader([str(train)]).chunks(333):
        part = training.encode(model, chunk, False)
        expected.append(model.predict(part.x)[:, 1])
    np.testing.assert_array_equal(written, np.concatenate(expected))


def test_predicting_needs_no_target_and_no_order(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, train = trained
    table = clicks(2000)
    expected = read_csv(succeed("predict", folder, train).out)
    del table["click"]
    table = {"new": ["?"] * 2000, **dict(reversed(table.items()))}
    turned = write_csv(tmp_path / "turned.csv", table)
    assert read_csv(succeed("predict", folder, turned).out) == expected
    del table["new"]
    parquet.write_table(typed(table), tmp_path / "t.parquet")
    assert read_csv(succeed("predict", folder, tmp_path / "t.parquet").out) == expected
    assert read_csv(succeed("predict", folder, "-", stdin=turned.read_bytes()).out) == expected


def test_kept_columns_are_copied_to_csv_and_parquet(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = trained
    table = clicks(50, seed=2)
    table["note"] = ['comma, "quote"\nand line', "ü", *[""] * 48]
    data = write_csv(tmp_path / "t.csv", table)
    result = succeed("predict", folder, data, "--keep", "note,user_id", "--out", tmp_path / "p.csv")
    assert result.out == ""
    assert result.err == "50 rows predicted\n"
    with (tmp_path / "p.csv").open(newline="") as file:
        found = read_csv(file.read())
    assert list(found) == ["note", "user_id", "p_0", "p_1"]
    assert found["note"] == table["note"]
    assert found["user_id"] == [str(user) for user in table["user_id"]]
    succeed("predict", folder, data, "--keep", "note", "--keep", "user_id", "--out", tmp_path / "p.parquet")
    again = parquet.read_table(tmp_path / "p.parquet")
    assert again.column_names == list(found)
    np.testing.assert_array_equal(again["p_1"], np.array(found["p_1"], float))
    arrow = arrow_csv.read_csv(data, convert_options=arrow_csv.ConvertOptions(column_types={"user_id": pa.int32()}))
    parquet.write_table(arrow, tmp_path / "t.parquet")
    succeed("predict", folder, tmp_path / "t.parquet", "--keep", "user_id", "--out", tmp_path / "q.parquet")
    assert parquet.read_table(tmp_path / "q.parquet").schema.field("user_id").type == pa.int32()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.parquet", "q.parquet", "t.csv", "t.parquet"]


def test_predictions_are_packed_by_their_ending(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, train = trained
    succeed("predict", folder, train, "--out", tmp_path / "p.csv")
    succeed("predict", folder, train, "--out", tmp_path / "p.CSV.gz")
    assert gzip.decompress((tmp_path / "p.CSV.gz").read_bytes()) == (tmp_path / "p.csv").read_bytes()


def test_a_kept_column_may_hold_a_comma(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = trained
    table = {"a,b": list(range(40)), **clicks(40)}
    data = write_csv(tmp_path / "t.csv", table)
    found = read_csv(succeed("predict", folder, data, "--keep", "a,b", "--keep", "site,click").out)
    assert list(found) == ["a,b", "site", "click", "p_0", "p_1"]
    assert found["a,b"] == [str(i) for i in range(40)]


def test_bad_rows_while_predicting(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = trained
    data = tmp_path / "t.csv"
    rows = ["site-1,101,2.5,2024-01-01", "site-1,101,cheap,2024-01-01", "site-1", "site-2,102,,soon", "site-2,102,,"]
    data.write_text("site,user_id,price,when\n" + "\n".join(rows) + "\n")
    result = run("predict", folder, data)
    assert result.code == 1
    assert "line 4: 1 columns where the header has 4" in result.err
    result = succeed("predict", folder, data, "--bad-rows", "skip", "--keep", "site")
    new = "; 40.0% of their category values were never seen in training"
    assert result.err == f"2 rows predicted, 3 dropped{new}\n"
    assert read_csv(result.out)["site"] == ["site-1", "site-2"]


def test_a_chunk_of_bad_rows_alone_is_left_out(trained: tuple[Path, Path], tmp_path: Path, small_chunks: None) -> None:
    folder, _ = trained
    table = clicks(300)
    table["price"][:200] = ["cheap"] * 200
    data = write_csv(tmp_path / "t.csv", table)
    result = succeed("predict", folder, data, "--bad-rows", "skip")
    assert result.err == "100 rows predicted, 200 dropped\n"
    assert len(read_csv(result.out)["p_1"]) == 100
    table["price"] = ["cheap"] * 300
    result = run("predict", folder, write_csv(data, table), "--bad-rows", "skip")
    assert (result.code, result.err) == (1, f"adagrad: {data}: no row is left to predict\n")


def test_bytes_that_are_no_text_are_categories_like_others(tmp_path: Path) -> None:
    data = tmp_path / "t.csv"
    data.write_bytes(b"y,name\n" + b"1,caf\xe9\n0,th\xe9\n" * 200)
    succeed("train", data, "--target", "y", "--out", tmp_path / "m", *SMALL)
    found = read_csv(succeed("predict", tmp_path / "m", data, "--keep", "y").out)
    kept = run("predict", tmp_path / "m", data, "--keep", "name")
    message = f"adagrad: {data}, line 2, column 'name': the text is not UTF-8, so --keep can't copy it\n"
    assert (kept.code, kept.err) == (1, message)
    assert float(found["p_1"][0]) > 0.7 > 0.3 > float(found["p_1"][1])
