"""``adagrad demo``: the main job on real data, New York's flights of 2013; will one arrive more than 15 minutes late?"""

import shlex
from pathlib import Path

from adagrad.cli.commands import run_train
from adagrad.cli.errors import CliError, explain
from adagrad.cli.flights import LATE_MINUTES, TARGET, FlightFiles, prepare
from adagrad.cli.heldout import judge
from adagrad.cli.judging import Row
from adagrad.cli.options import TrainOptions
from adagrad.cli.planning import train
from adagrad.cli.report import aligned

__all__ = ["run_demo"]

_RATES = (0.005, 0.01, 0.02, 0.05, 0.1)
_NOVEMBER, _DECEMBER = 11, 12
_ROLLING = range(7, 13)
_CATEGORICAL = ("flight", "hour")  # numbers that are names
_CROSSES = ("weekday:hour", "carrier:dest", "dest:hour")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def run_demo(folder: str) -> None:
    """Prepare the flights in ``folder``, choose the rate on November, judge six rolling months, train and show it all."""
    out = Path(folder)
    try:
        files = prepare(out, progress=lambda line: print(line, flush=True))
    except ModuleNotFoundError as error:
        raise CliError(str(error)) from error
    except OSError as error:
        raise CliError(explain(error, out)) from error
    print(
        f"{files.flights:,} flights; {files.cancelled:,} were cancelled and {files.diverted:,} diverted: those have no label.\n"
        f"Will a flight arrive more than {LATE_MINUTES} minutes late? Rows hold only what is known before it leaves, in the "
        "order of the schedule.\n"
    )
    rate = _choose_rate(files)
    _show_months(files, rate)
    options = TrainOptions(
        data=[str(files.train)],
        test=[str(files.test)],
        target=TARGET,
        categorical=[",".join(_CATEGORICAL)],
        cross=_CROSSES,
        settings={"learning_rate": rate},
        out=str(out / "model"),
    )
    words = ["adagrad", "train", *options.data, "--target", TARGET, "--categorical", *options.categorical]
    words += [word for cross in _CROSSES for word in ("--cross", cross)]
    words += ["--learning-rate", f"{rate:g}", "--test", *options.test, "--out", options.out]
    print(f"\nThe model for December, by one command:\n\n  {shlex.join(words)}\n", flush=True)
    run_train(options)


def _judged(files: FlightFiles, month: int, rate: float) -> dict[str, Row]:
    """The held-out table of a month, learned from the months before it."""
    before, test = files.split(month)
    options = TrainOptions(
        data=[str(path) for path in before],
        test=[str(test)],
        target=TARGET,
        categorical=_CATEGORICAL,
        cross=_CROSSES,
        settings={"learning_rate": rate},
        baseline=False,
        out="",
    )
    run, reader = train(options)
    judged = judge(run, reader)
    assert judged is not None
    table: dict[str, Row] = judged["table"]
    return table


def _choose_rate(files: FlightFiles) -> float:
    """The rate with the smallest log loss on November, learned from January to October."""
    rows = [("learning rate", "log loss", "AUC")]
    losses = {}
    for rate in _RATES:
        ours = _judged(files, _NOVEMBER, rate)["adagrad"]
        losses[rate] = _number(ours["log_loss"])
        rows.append((f"{rate:g}", f"{losses[rate]:.4f}", f"{_number(ours['auc']):.4f}"))
    best = min(losses, key=losses.__getitem__)
    print("The learning rate, chosen on November (learned from January to October):", *aligned(rows), sep="\n")
    print(f"  chosen: {best:g}\n", flush=True)
    return best


def _show_months(files: FlightFiles, rate: float) -> None:
    """December, and the mean of the months from July, each learned from the months before it."""
    rows: list[tuple[str, ...]] = [("month", "flights", "late", "log loss: constant", "ours", "AUC: ours")]
    sums = [0.0, 0.0, 0.0]
    for month in _ROLLING:
        table = _judged(files, month, rate)
        figures = [
            _number(table["constant"]["log_loss"]),
            _number(table["adagrad"]["log_loss"]),
            _number(table["adagrad"]["auc"]),
        ]
        sums = [total + figure for total, figure in zip(sums, figures, strict=True)]
        share = files.late_share(month)
        rows.append(
            (_MONTHS[month - 1], f"{files.rows[month - 1]:,}", f"{share:.1%}", *(f"{figure:.4f}" for figure in figures))
        )
    rows.append(("mean", "", "", *(f"{total / len(_ROLLING):.4f}" for total in sums)))
    print("Rolling months, each learned from all months before it, in one pass:", *aligned(rows), sep="\n")
    print(
        f"  December drifts: {files.late_share(1, _NOVEMBER):.0%} of flights were late from January to November, "
        f"{files.late_share(_DECEMBER):.0%} in December.\n  No model of the months before can know that, so all predict too "
        "few; the mean of the months is the fairer figure.",
        flush=True,
    )


def _number(value: float | None) -> float:
    assert value is not None
    return value
