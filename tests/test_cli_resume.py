"""Runs that stop and go on: from a checkpoint bit for bit, from a model with tomorrow's file, after Ctrl-C and a kill."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrad import state
from adagrad.cli import training
from cli_tools import clicks, fast_pictures, model_state, read_csv, run, start, succeed, write_csv  # noqa: F401

SMALL = ["--bits", "10"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 100 rows, so that a small file has many."""
    monkeypatch.setattr(training, "CHUNK", 100)


class Stopped(BaseException):
    """Stands for whatever ends a run: it is caught nowhere."""


def stop_after(monkeypatch: pytest.MonkeyPatch, checkpoints: int) -> None:
    """Let a run die right after so many checkpoints were written, with more rows learned since the last one."""
    write, learn = training.Run.save_checkpoint, training.Run._learn_window
    written = 0

    def save(self: training.Run) -> None:
        nonlocal written
        write(self)
        written += 1

    def learn_or_die(self: training.Run, window: Any) -> None:
        if written == checkpoints:
            learn(self, window)
            raise Stopped
        learn(self, window)

    monkeypatch.setattr(training.Run, "save_checkpoint", save)
    monkeypatch.setattr(training.Run, "_learn_window", learn_or_die)


FIGURES = ("rows", "dropped", "held_out", "online", "collisions", "strongest", "warnings")

RUNS: dict[str, list[str]] = {
    "plain": [],
    "judged": ["--holdout-last", "0.1"],
    "random": ["--holdout-random", "0.2", "--seed", "4"],
    "shuffled": ["--shuffle", "250"],
    "shuffled within": ["--shuffle", "33"],
    "passes": ["--epochs", "3", "--shuffle", "150"],
    "averaged": ["--use-ema", "--weight-decay", "0.001"],
    "batches": ["--batch-size", "16", "--use-ema", "--gradient-accumulation-steps", "3"],
    "weighted": ["--weight", "w", "--clipnorm", "0.5"],
    "dropping": ["--bad-rows", "skip"],
    "classes": ["--target", "site", "--categorical", "click"],
    "regression": ["--target", "w", "--holdout-random", "0.1"],
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("checkpoints", [1, 3])
def test_resuming_equals_never_having_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None, name: str, checkpoints: int
) -> None:
    table = clicks(1000)
    table["w"] = np.round(np.random.default_rng(1).gamma(2.0, 1.0, 1000), 3).tolist()
    data = write_csv(tmp_path / "t.csv", table)
    if name == "dropping":
        lines = data.read_text().splitlines()
        lines[40] += ",too many"
        lines[55] = "1,site-1,105,cheap,2024-01-01,1"
        lines[700] = "1"
        data.write_text("\n".join(lines) + "\n")
    arguments = ["train", data, "--target", "click", "--numeric", "price", *SMALL, *RUNS[name]]
    if "--target" in RUNS[name]:
        arguments = ["train", data, "--numeric", "price", *SMALL, *RUNS[name]]
    succeed(*arguments, "--out", tmp_path / "whole")
    checkpointing = [*arguments, "--checkpoint", tmp_path / "c.state", "--checkpoint-every", "150", "--resume"]
    with monkeypatch.context() as patch:
        stop_after(patch, checkpoints)
        with pytest.raises(Stopped):
            run(*checkpointing, "--out", tmp_path / "stopped")
    assert not list((tmp_path / "stopped").iterdir())
    resumed = succeed(*checkpointing, "--out", tmp_path / "resumed")
    assert f"Resuming {tmp_path / 'c.state'}: from row " in resumed.out
    assert model_state(tmp_path / "resumed") == model_state(tmp_path / "whole")
    one, other = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("resumed", "whole"))
    for key in FIGURES:
        assert one[key] == other[key], key
    assert (tmp_path / "resumed" / "curve.csv").read_bytes() == (tmp_path / "whole" / "curve.csv").read_bytes()
    # The last checkpoint of a run that came to its end gives the same once more.
    succeed(*checkpointing, "--out", tmp_path / "again")
    assert model_state(tmp_path / "again") == model_state(tmp_path / "whole")


def test_resuming_reads_a_pipe_again_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(600)).read_bytes()
    arguments = ["train", "-", "--target", "click", *SMALL]
    succeed(*arguments, "--out", tmp_path / "whole", stdin=data)
    arguments += ["--checkpoint", tmp_path / "c.state", "--checkpoint-every", "200", "--resume"]
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            run(*arguments, "--out", tmp_path / "a", stdin=data)
    succeed(*arguments, "--out", tmp_path / "a", stdin=data)
    assert model_state(tmp_path / "a") == model_state(tmp_path / "whole")


def test_resuming_something_else_is_refused(tmp_path: Path, small_chunks: None) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(500))
    checkpoint = ["--checkpoint", tmp_path / "c.state", "--checkpoint-every", "200"]
    base = ["train", data, "--target", "click", *SMALL, "--out", tmp_path / "m"]
    first = succeed(*base, *checkpoint, "--resume")
    assert f"Resuming {tmp_path / 'c.state'}: no such file yet, so from the first row" in first.out
    for changed, option in (
        (["--learning-rate", "0.1"], "--learning-rate"),
        (["--epochs", "2"], "--epochs"),
        (["--shuffle", "10"], "--shuffle"),
        (["--cross", "site:user_id"], "--cross"),
        (["--test", data], "--test"),
    ):
        result = run(*base, *changed, *checkpoint, "--resume")
        assert result.code == 1
        assert f"was made with another {option}; only --out, the files of --test, --checkpoint and --" in result.err
    result = run(*base, "--checkpoint", tmp_path / "m" / "model.safetensors", "--resume")
    assert "is a state file, but not a checkpoint of 'adagrad train'" in result.err
    (tmp_path / "c.state").write_bytes((tmp_path / "c.state").read_bytes()[:-1])
    result = run(*base, *checkpoint, "--resume")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "c.state can't be read as a state file" in result.err
    shorter = write_csv(tmp_path / "t.csv", clicks(100))
    (tmp_path / "c.state").unlink()
    succeed(*base, *checkpoint)
    assert shorter.exists()


def test_a_pipe_that_gives_less_is_noticed(tmp_path: Path, small_chunks: None) -> None:
    arguments = ["train", "-", "--target", "click", *SMALL, "--out", tmp_path / "m"]
    arguments += ["--checkpoint", tmp_path / "c.state", "--checkpoint-every", "200", "--resume"]
    succeed(*arguments, stdin=write_csv(tmp_path / "t.csv", clicks(500)).read_bytes())
    result = run(*arguments, stdin=write_csv(tmp_path / "t.csv", clicks(300)).read_bytes())
    assert (result.code, result.err) == (1, "adagrad: -: 100 rows fewer than had been read before\n")


def test_files_that_have_changed_are_refused(tmp_path: Path, small_chunks: None) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, seed in (("a.csv", 1), ("b.csv", 2)):
        write_csv(folder / name, clicks(250, seed))
    arguments = ["train", folder, "--target", "click", *SMALL, "--out", tmp_path / "m"]
    arguments += ["--checkpoint", tmp_path / "c.state", "--checkpoint-every", "200", "--resume"]
    succeed(*arguments)
    message = f"is not the file that {tmp_path / 'c.state'} had learned from\n"

    def check(name: str, changed: bytes | None) -> None:
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).unlink() if changed is None else (folder / name).write_bytes(changed)
        result = run(*arguments)
        assert (result.code, result.err) == (1, f"adagrad: --resume: {folder / name} {message}")
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)

    data = (folder / "b.csv").read_bytes()
    check("b.csv", data.replace(b"site-1", b"site-2", 1))
    check("b.csv", data + data.splitlines(keepends=True)[-1])
    check("b.csv", None)
    check("c.csv", data)
    os.utime(folder / "a.csv", (0, 0))
    succeed(*arguments)


def test_checkpoints_count_rows_over_passes(tmp_path: Path, small_chunks: None) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(250))
    arguments = ["--checkpoint", tmp_path / "c.state", "--checkpoint-every", "400"]
    succeed("train", data, "--target", "click", "--epochs", "3", *arguments, *SMALL, "--out", tmp_path / "m")
    _, content = state.read(tmp_path / "c.state")
    assert content["progress"][:2] == [1, 200]


def test_tomorrows_file_goes_on_with_the_accumulators(tmp_path: Path, small_chunks: None) -> None:
    """Where chunks are the same rows, two files one after the other are one file."""
    table = clicks(1000)
    for name, part in (("today", slice(400)), ("tomorrow", slice(400, None)), ("both", slice(None))):
        write_csv(tmp_path / f"{name}.csv", {column: values[part] for column, values in table.items()})
    base = ["--target", "click", "--cross", "site:user_id", "--learning-rate", "0.1", "--use-ema", "--weight-decay", "0.01"]
    succeed("train", tmp_path / "both.csv", *base, *SMALL, "--out", tmp_path / "both")
    succeed("train", tmp_path / "today.csv", *base, *SMALL, "--out", tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    more = ["--start-from", tmp_path / "model", "--target", "click", "--out", tmp_path / "next"]
    result = succeed("train", tmp_path / "tomorrow.csv", *more)
    arrays, model = model_state(tmp_path / "next")
    assert "Rows: 600 learned from" in result.out
    assert f"--start-from {tmp_path / 'model'}" in result.out
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert model["rows"] == 1000
    # A moving average takes the weights' place when training ends, so only the rest is as in one go.
    arrays_both, _ = model_state(tmp_path / "both")
    assert arrays["features/seen:used"] == arrays_both["features/seen:used"]
    assert arrays["learner/coef:used"] != arrays_both["learner/coef:used"]
    del base[-3:]
    succeed("train", tmp_path / "both.csv", *base, *SMALL, "--out", tmp_path / "both")
    succeed("train", tmp_path / "today.csv", *base, *SMALL, "--out", tmp_path / "model")
    succeed("train", tmp_path / "tomorrow.csv", *more)
    assert model_state(tmp_path / "next") == model_state(tmp_path / "both")


def test_what_can_change_with_start_from(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(300))
    succeed("train", data, "--target", "click", *SMALL, "--out", tmp_path / "m")
    base = ["train", data, "--start-from", tmp_path / "m", "--out", tmp_path / "n"]
    succeed(*base)
    slower = succeed(*base, "--learning-rate", "0.01")
    assert "--learning-rate 0.01" in slower.out
    for arguments, message in (
        (["--epsilon", "0.1"], "--epsilon can't change while a model is learned: it was 1e-07"),
        (["--bits", "12"], "--bits can't be given with --start-from: the model has it already"),
        (["--cross", "site:user_id"], "--cross can't be given with --start-from: the model has it already"),
        (["--target", "site"], "--target site: the model of --start-from learned 'click'"),
    ):
        result = run(*base, *arguments)
        assert (result.code, result.err) == (1, f"adagrad: {message}\n")
    other = write_csv(tmp_path / "other.csv", {"click": [0, 1], "site": ["a", "b"]})
    result = run("train", other, "--start-from", tmp_path / "m", "--out", tmp_path / "n")
    assert (result.code, result.err) == (1, f"adagrad: {other} has no column 'price'; it has: click, site\n")
    strange = clicks(50)
    strange["click"][7] = 2
    write_csv(other, strange)
    result = run("train", other, "--start-from", tmp_path / "m", "--out", tmp_path / "n")
    assert result.code == 1
    assert (
        f"{other}, line 9, column 'click': '2' is a new class; known are 0, 1: give all of them by --classes, or" in result.err
    )


def endless(process: subprocess.Popen[bytes], lines: list[bytes]) -> None:
    """Feed rows until the process is gone."""
    assert process.stdin is not None
    try:
        while process.poll() is None:
            process.stdin.writelines(lines)
            process.stdin.flush()
    except BrokenPipeError:
        pass


def test_ctrl_c_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "t.csv", clicks(3000))
    header, *lines = data.read_bytes().splitlines(keepends=True)
    checkpoint = tmp_path / "c.state"
    command = ["train", "-", "--target", "click", *SMALL, "--out", tmp_path / "m"]
    command += ["--checkpoint", checkpoint, "--checkpoint-every", "1"]
    with start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        err = interrupted(process, header, lines, checkpoint)
    assert err.startswith("adagrad: stopped after ")
    assert f"; {checkpoint} holds row " in err
    assert err.endswith(" of pass 1: go on from there with --resume")
    _, content = state.read(checkpoint)
    assert content["progress"][1] > 0
    assert not list((tmp_path / "m").iterdir())
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "stopped after 200 rows, nothing was written (--checkpoint FILE would keep what was learned)"),
        (["--checkpoint", "c.state"], "stopped after 200 rows, nothing was written"),
        (
            ["--checkpoint", "c.state", "--checkpoint-every", "100", "--epochs", "2"],
            "stopped after 200 rows; c.state holds row 200 of pass 1: go on from there with --resume",
        ),
    ],
)
def test_what_ctrl_c_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "t.csv", clicks(500))
    learn = training.Run._learn_window

    def interrupted_third(self: training.Run, window: Any) -> None:
        if self.rows == 200:
            raise KeyboardInterrupt
        learn(self, window)

    monkeypatch.setattr(training.Run, "_learn_window", interrupted_third)
    result = run("train", "t.csv", "--target", "click", *SMALL, "--out", "m", *arguments)
    assert (result.code, result.err) == (130, f"adagrad: {message}\n")
    assert not list((tmp_path / "m").iterdir())


@pytest.mark.parametrize("written", [True, False])
def test_ctrl_c_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None, written: bool
) -> None:
    """What is said of the file is what it holds: before or after it was put in its place."""
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "t.csv", clicks(500))
    write = state.write
    count = 0

    def interrupted_second(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 1 or written:
            write(*arguments)
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(state, "write", interrupted_second)
    command = ["train", "t.csv", "--target", "click", *SMALL, "--out", "m", "--checkpoint", "c.state"]
    result = run(*command, "--checkpoint-every", "100")
    _, content = state.read("c.state")
    assert content["progress"][1] == (200 if written else 100)
    said = f"adagrad: stopped after 200 rows; c.state holds row {content['progress'][1]} of pass 1: "
    assert (result.code, result.err) == (130, f"{said}go on from there with --resume\n")


def test_ctrl_c_while_a_pipe_gives_nothing(tmp_path: Path) -> None:
    lines = write_csv(tmp_path / "t.csv", clicks(5000)).read_bytes().splitlines(keepends=True)
    command = ["train", "-", "--target", "click", *SMALL, "--out", tmp_path / "m"]
    with start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.writelines([lines[0], *lines[1:] * 20])
            process.stdin.flush()
            assert process.stdout.readline().startswith(b"Roles")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert process.stderr.read().startswith(b"adagrad: stopped after ")
        finally:
            process.kill()


def interrupted(process: subprocess.Popen[bytes], header: bytes, lines: list[bytes], checkpoint: Path) -> str:
    """Feed rows, press Ctrl-C once there is a checkpoint; the last line on standard error."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(header)
    feeder = threading.Thread(target=endless, args=(process, lines))
    feeder.start()
    try:
        assert process.stdout.readline().startswith(b"Roles")  # what follows is learning
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        err = process.stderr.read().decode().strip().splitlines()[-1]
        assert process.wait(30) == 130
    finally:
        process.kill()
        feeder.join()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    return err
