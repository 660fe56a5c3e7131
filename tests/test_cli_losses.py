"""The command line's losses and penalties, its page and calibration, and ``adagrad inspect``."""

from __future__ import annotations

import base64
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import mean_pinball_loss

import adagrad
from adagrad import state
from adagrad.cli.judging import ClassificationScore
from adagrad.cli.labels import Labels
from adagrad.cli.model import Model
from adagrad.sklearn import AdagradRegressor
from cli_tools import clicks, fast_pictures, model_state, read_csv, run, succeed, write_csv

pytestmark = pytest.mark.slow  # on a cold machine: each loss and penalty is compiled

__all__ = ["fast_pictures"]

SMALL = ("--bits", 10)


def numbers(folder: Path, target: list[float]) -> Path:
    table = clicks(len(target)) | {"y": target}
    return write_csv(folder / "t.csv", {name: table[name] for name in ("y", "site", "user_id")})


@pytest.mark.parametrize(
    ("loss", "more", "name"),
    [
        ("huber", ("--loss-epsilon", 0.7), "huber loss, loss_epsilon 0.7"),
        ("quantile", ("--quantile", 0.9), "quantile loss, quantile 0.9"),
        ("epsilon_insensitive", (), "epsilon insensitive loss"),
        ("poisson", ("--penalty", "elasticnet", "--alpha", 0.01, "--l1-ratio", 0.5), "poisson loss, penalty elasticnet of"),
    ],
)
def test_a_loss_for_numbers(loss: str, more: tuple[Any, ...], name: str, tmp_path: Path) -> None:
    y = np.random.default_rng(0).poisson(3.0, 500).astype(float)
    data = numbers(tmp_path, y.tolist())
    out = tmp_path / "m"
    arguments = ("--target", "y", "--task", "regression", "--loss", loss, *more, "--test", data, *SMALL)
    made = succeed("train", data, *arguments, "--out", out)
    assert f"Task: regression, {name}" in made.out
    succeed("predict", out, data, "--out", tmp_path / "p.csv")
    found = np.array(read_csv((tmp_path / "p.csv").read_text())["prediction"], float)
    assert np.isfinite(found).all()
    if loss == "quantile":
        assert 0.8 < (y <= found).mean() < 1.0
    if loss == "poisson":
        assert (found > 0).all()
        assert abs(found.mean() - y.mean()) < 0.7
    model = Model.load(str(out))
    assert model.learner.loss == loss
    metrics = json.loads((out / "metrics.json").read_text())
    if loss == "quantile":
        judged = metrics["held_out"]["table"]
        assert judged["adagrad"]["quantile"] == pytest.approx(mean_pinball_loss(y, found, alpha=0.9))
        assert judged["adagrad"]["quantile"] < judged["constant"]["quantile"]
        assert " quantile loss\n" in made.out
    command = metrics["command"]
    again = succeed(*re.split(" ", command)[1:-1], tmp_path / "again")
    assert again.code == 0
    assert model_state(out, but=["task_reason", "columns"]) == model_state(tmp_path / "again", but=["task_reason", "columns"])


def test_penalties_make_zeros_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(800))
    arguments = (data, "--target", "click", *SMALL, "--penalty", "l1", "--alpha", 0.02, "--shuffle", 100)
    succeed("train", *arguments, "--epochs", 2, "--out", tmp_path / "two")
    coef = Model.load(str(tmp_path / "two")).coef
    plain = succeed("train", data, "--target", "click", *SMALL, "--out", tmp_path / "plain")
    used = Model.load(str(tmp_path / "plain")).coef != 0
    assert 0 < (coef != 0).sum() < 0.7 * used.sum()
    assert "penalty" not in plain.out
    succeed("train", data, "--start-from", tmp_path / "two", "--out", tmp_path / "more")
    more = Model.load(str(tmp_path / "more"))
    assert (more.learner.penalty, more.learner._learner.steps) == ("l1", 2400)
    refused = run("train", data, "--start-from", tmp_path / "two", "--penalty", "l2")
    assert "--penalty can't be given with --start-from" in refused.err


def test_modified_huber_has_probabilities(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(500))
    out = tmp_path / "m"
    arguments = ("--target", "click", *SMALL, "--loss", "modified_huber", "--holdout-last", 0.2)
    succeed("train", data, *arguments, "--out", out)
    succeed("predict", out, data, "--out", tmp_path / "p.csv")
    table = read_csv((tmp_path / "p.csv").read_text())
    p = np.array([table["p_0"], table["p_1"]], float)
    np.testing.assert_allclose(p.sum(0), 1.0)
    assert 0 <= p.min() < p.max() <= 1
    assert json.loads((out / "metrics.json").read_text())["held_out"]["table"]["adagrad"]["auc"] > 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "huber"), "--loss huber is for regression, but the task is classification (the target is 0 or 1)"),
        (("--alpha", 0.1), "--alpha needs --penalty"),
        (("--penalty", "l2", "--l1-ratio", 0.1), "--l1-ratio needs --penalty elasticnet"),
        (("--penalty", "l2", "--alpha", -1), "--alpha must be a finite number of at least 0, got -1"),
        (("--penalty", "l2", "--alpha", "inf"), "--alpha must be a finite number of at least 0, got inf"),
        (("--loss", "huber", "--loss-epsilon", "inf"), "--loss-epsilon must be a finite number of at least 0, got inf"),
        (("--quantile", 0.3), "--quantile needs --loss quantile"),
        (("--loss", "quantile", "--quantile", 1.0), "--quantile must be between 0 and 1, got 1"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(50))
    refused = run("train", data, "--target", "click", *SMALL, *arguments, "--out", tmp_path / "m")
    assert refused.code > 0
    assert message in refused.err


def test_counts_are_not_negative(tmp_path: Path) -> None:
    data = numbers(tmp_path, [1.0, 2.5, -1.0] * 20)
    refused = run("train", data, "--target", "y", "--loss", "poisson", *SMALL, "--out", tmp_path / "m")
    assert "is no count (a finite number, not negative)" in refused.err


def test_models_of_the_first_format_are_read(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(200))
    succeed("train", data, "--target", "click", *SMALL, "--out", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    arrays, content = state.read(file)
    new = ("loss", "penalty", "alpha", "l1_ratio", "loss_epsilon", "quantile", "multi_class")
    model = content["model"] | {"format": 1}
    model["learner"] = model["learner"] | {
        "format": 1,
        "arguments": {key: value for key, value in model["learner"]["arguments"].items() if key not in new},
    }
    del model["objective"]
    expected = succeed("predict", tmp_path / "m", data).out
    state.write(file, arrays, content | {"model": model})
    assert succeed("predict", tmp_path / "m", data).out == expected
    state.write(file, arrays, content | {"model": model | {"format": 3}})
    assert "has model format 3; this version reads 1 and 2" in run("predict", tmp_path / "m", data).err


# -- the page and the picture ------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[bytes] = []
        self.cells: list[str] = []
        self.feed(text)
        assert not self.open, "tags that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            source = str(dict(attrs)["src"])
            assert source.startswith("data:image/png;base64,")
            self.pictures.append(base64.b64decode(source.partition(",")[2]))
        elif tag != "meta":
            self.open.append(tag)
        assert not {"href", "onload"} & {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_page_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    table = clicks(400)
    table["<b>site</b>"] = table.pop("site")
    data = write_csv(tmp_path / "t.csv", table)
    out = tmp_path / "m"
    succeed("train", data, "--target", "click", *SMALL, "--holdout-last", 0.3, "--out", out)
    text = (out / "report.html").read_text()
    page = Page(text)
    assert page.pictures == [(out / name).read_bytes() for name in ("curve.png", "calibration.png")]
    assert all(picture.startswith(b"\x89PNG") for picture in page.pictures)
    figures = json.loads((out / "metrics.json").read_text())
    for row in figures["held_out"]["table"].values():
        assert f"{row['log_loss']:.4f}" in page.cells
    assert "SGDClassifier" in page.cells
    assert "<b>site" not in text
    assert any(cell.startswith("<b>site</b>=") for cell in page.cells)
    groups = np.array(figures["held_out"]["reliability"])
    assert groups[:, 2].sum() == figures["held_out"]["rows"]
    succeed("train", data, "--target", "price", "--bad-rows", "skip", *SMALL, "--out", out)
    assert not (out / "calibration.png").exists()
    assert len(Page((out / "report.html").read_text()).pictures) == 1


def test_calibration_groups_predictions() -> None:
    rng = np.random.default_rng(0)
    labels = Labels(None, None, "classification", ["no", "yes"], "")  # type: ignore[arg-type]
    score = ClassificationScore(labels)
    p = rng.uniform(0.02, 0.98, 40_000)
    y = (rng.random(40_000) < p**2).astype(int)
    for part in (slice(10_000), slice(10_000, None)):
        score.add(np.column_stack([1 - p, p])[part], y[part], np.full(40_000, 0.5)[part])
    groups = np.array(score.reliability(10))
    edges = np.quantile(p, np.linspace(0, 1, 11))
    for k, (predicted, actual, weight) in enumerate(groups):
        rows = (p >= edges[k]) & (p < edges[k + 1])
        assert weight == pytest.approx(2000, abs=10)
        assert predicted == pytest.approx(p[rows].mean(), abs=2e-3)
        assert actual == pytest.approx(y[rows].mean(), abs=5e-3)
    assert ClassificationScore(labels).reliability() == []


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_inspect_shows_a_model(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(300))
    succeed("train", data, "--target", "click", *SMALL, "--learning-rate", 0.2, "--out", tmp_path / "m")
    picture = tmp_path / "rates.png"
    shown = succeed("inspect", tmp_path / "m", "--picture", picture).out
    assert picture.read_bytes().startswith(b"\x89PNG")
    accumulators = state.read(tmp_path / "m" / "model.safetensors")[0]["learner/coef/accumulator:used"].astype(float)
    rates = 0.2 / np.sqrt(accumulators + 1e-7)
    for values in (accumulators, rates):
        figures = [f"{value:.4g}" for value in np.quantile(values, (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0))]
        assert re.search("learner/coef/accumulator +" + " +".join(map(re.escape, figures)), shown)
    assert '"learning_rate": 0.2' in shown
    assert re.search(r"learner/coef +float32 +\d+ x 1 ", shown)
    assert sum(int(count.replace(",", "")) for count in re.findall(r"#* ([\d,]+)$", shown, re.M) if count) >= accumulators.size


def test_inspect_reads_every_face_s_files(tmp_path: Path) -> None:
    variable = np.ones(5, np.float32)
    optimizer = adagrad.Adagrad(0.3)
    optimizer.apply([np.arange(5, dtype=np.float32)], [variable])
    optimizer.save(tmp_path / "optimizer")
    shown = succeed("inspect", tmp_path / "optimizer").out
    assert "Effective learning rates" in shown
    assert f"{0.3 / np.sqrt(0.1 + 1e-7):.4g}" in shown
    AdagradRegressor().fit(np.eye(3), [1.0, 2.0, 3.0]).save(tmp_path / "estimator")
    assert "adagrad-estimator" in succeed("inspect", tmp_path / "estimator").out
    state.write(tmp_path / "bare", {"x": np.zeros((0, 2)), "y": np.ones(())}, {})
    shown = succeed("inspect", tmp_path / "bare").out
    assert "0 x 2" in shown
    assert "one number" in shown
    assert "there is nothing to draw" in run("inspect", tmp_path / "bare", "--picture", tmp_path / "p.png").err
    (tmp_path / "text").write_text("no state file")
    for path in ("text", "absent"):
        refused = run("inspect", tmp_path / path)
        assert refused.code == 1
        assert str(tmp_path / path) in refused.err
