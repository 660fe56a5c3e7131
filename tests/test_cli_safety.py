"""What was learned is not lost to what comes after it, and what can't work is said before anything is learned."""

import json
from pathlib import Path
from typing import Any

import pytest

from adagrad.cli import commands, memory
from adagrad.cli.training import Run
from cli_tools import clicks, fast_pictures, run, succeed, write_csv  # noqa: F401

SMALL = ["--bits", "10"]


@pytest.fixture
def never_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row may be learned from."""

    def refuse(self: Run, *_: Any) -> None:
        raise AssertionError("a row was learned from")

    monkeypatch.setattr(Run, "_learn_window", refuse)


@pytest.mark.usefixtures("never_learn")
def test_the_file_to_judge_by_is_looked_at_before_training(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(50))
    few = write_csv(tmp_path / "few.csv", {"click": [0, 1], "site": ["a", "b"]})
    empty = tmp_path / "empty.csv"
    empty.write_text("click,site,user_id,price,when\n")
    for test, message in (
        ([tmp_path / "nope.csv"], f"{tmp_path / 'nope.csv'}: no such file or folder"),
        ([few], f"{few} has no column 'user_id'; it has: click, site"),
        ([data, few], f"{few} has no column 'user_id'; it has: click, site"),
        ([empty], "there is no held-out row to judge by"),
    ):
        tests = [word for path in test for word in ("--test", path)]
        result = run("train", data, "--target", "click", *tests, *SMALL, "--out", tmp_path / "m")
        assert (result.code, result.err) == (1, f"adagrad: {message}\n")


@pytest.mark.parametrize(("value", "message"), [("cheap", "'cheap' is not a number"), (None, "")])
def test_a_bad_row_to_judge_by_does_not_cost_the_model(tmp_path: Path, value: str | None, message: str) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(200))
    out = tmp_path / "m"
    succeed("train", data, "--target", "click", *SMALL, "--out", out)
    (out / "model.safetensors").unlink()
    table = clicks(80, seed=1)
    if value is None:
        table["click"][-1] = 2  # a class that is new
    else:
        table["price"][-1] = value
    test = write_csv(tmp_path / "test.csv", table)
    result = run("train", data, "--target", "click", "--test", test, *SMALL, "--out", out)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert f"{test}, line 81, column " in result.err
    assert message in result.err
    assert f"; the model is in {out}, but could not be judged" in result.err
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.safetensors"]
    assert "p_1" in succeed("predict", out, data).out


def test_ctrl_c_while_judging_keeps_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "judge", interrupted)
    data = write_csv(tmp_path / "t.csv", clicks(200))
    result = run("train", data, "--target", "click", "--test", data, *SMALL, "--out", tmp_path / "m")
    message = f"adagrad: stopped while judging; the model is in {tmp_path / 'm'}, without metrics.json\n"
    assert (result.code, result.err) == (130, message)
    assert json.loads((tmp_path / "m" / "model.json").read_text())["rows"] == 200


@pytest.mark.usefixtures("never_learn")
def test_a_model_that_does_not_fit_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2**29)
    data = write_csv(tmp_path / "t.csv", {"y": [f"c{i % 40}" for i in range(400)], "x": [1.5] * 400})
    train = ["train", data, "--target", "y", "--out", tmp_path / "m"]
    result = run(*train)
    need = "40 classes with 2**22 weights each need 1.3 GiB of memory, and 0.5 GiB are free: lower --bits"
    assert (result.code, result.err) == (1, f"adagrad: {need} or learn fewer classes\n")
    result = run(*train, "--test", data, "--use-ema")
    assert "need 2.6 GiB" in result.err
    assert "; --no-baseline would leave out scikit-learn's part" in result.err
    with pytest.raises(AssertionError, match="a row was learned from"):
        run(*train, "--bits", "20")


def test_memory_that_is_free() -> None:
    free = memory.available()
    assert free is None or 2**20 < free < 2**50
    assert memory.needed(0, 10, {}, False) == memory.needed(2, 10, {}, False) == 1024 * 16
    assert memory.needed(2, 10, {"weight_decay": 0.1}, False) == 1024 * (16 + 24)
    assert memory.needed(3, 10, {"use_ema": True, "gradient_accumulation_steps": 2}, True) == 1024 * (8 + 60)
