"""``adagrad train`` from its options to its last line: plan, learn, judge, write the results, print the report."""

import contextlib
import importlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from adagrad.cli.curve import write_curve
from adagrad.cli.errors import CliError, explain
from adagrad.cli.files import write_text
from adagrad.cli.heldout import judge
from adagrad.cli.judging import loss_of
from adagrad.cli.options import TrainOptions
from adagrad.cli.page import write_calibration, write_page
from adagrad.cli.planning import train
from adagrad.cli.progress import Progress
from adagrad.cli.reading import Reader
from adagrad.cli.report import end_lines, metrics, plan_lines
from adagrad.cli.training import Run

__all__ = ["run_train"]

_RESULTS = ("metrics.json", "curve.csv", "curve.png", "calibration.png", "report.html")


def run_train(options: TrainOptions) -> dict[str, Any]:
    """Train, judge, write the folder of results and print the report; returns what ``metrics.json`` holds."""
    if "" in (options.out, options.checkpoint):
        raise CliError(f"{'--checkpoint' if options.out else '--out'} must not be empty")
    if options.checkpoint and os.path.exists(options.checkpoint) and not os.path.isfile(options.checkpoint):
        raise CliError(f"--checkpoint {options.checkpoint}: this is not a regular file")
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(explain(error, out)) from error
    for folder in (out, *([Path(options.checkpoint).absolute().parent] if options.checkpoint else [])):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CliError(f"{folder}: {'this folder is read-only' if folder.is_dir() else 'there is no such folder'}")
    session = _Session(options)
    threading.Thread(target=_import_pictures, daemon=True).start()
    try:
        with session.stack:
            run, reader = train(options, session.planned, session.watch)
    except KeyboardInterrupt:
        raise CliError(session.stopped(), 130) from None
    run.model.save(out)
    for name in _RESULTS:  # those of a model that was here before
        (out / name).unlink(missing_ok=True)
    try:
        judged = judge(run, reader)
    except KeyboardInterrupt:
        raise CliError(f"stopped while judging; the model is in {out}, without metrics.json", 130) from None
    except CliError as error:
        raise CliError(f"{error}; the model is in {out}, but could not be judged", error.code) from error
    strongest = run.model.strongest.table(run.model.coef, run.model.counted)
    figures = metrics(run, reader.files, judged, strongest)
    write_text(out / "metrics.json", json.dumps(figures, indent=2) + "\n")
    held_out = loss_of(judged["table"]["adagrad"]) if judged else None
    write_curve(run.online, run.model.labels, held_out, out)
    if judged and judged["reliability"]:
        write_calibration(judged["reliability"], out)
    lines = list(end_lines(run, reader.files, judged, strongest))
    write_page(figures, lines, out)
    print("", *lines, sep="\n")
    names = ["model.safetensors", "model.json", *(name for name in _RESULTS if (out / name).exists())]
    print(f"Written to {out}: {', '.join(names)}", flush=True)
    return figures


def _import_pictures() -> None:
    """Import what the pictures need, which takes a second, while rows are read and learned from."""
    with contextlib.suppress(ImportError):  # raised again where it is needed
        importlib.import_module("matplotlib.figure")
        importlib.import_module("matplotlib.backends.backend_agg")


class _Session:
    """What is shown while a run goes on."""

    def __init__(self, options: TrainOptions) -> None:
        self.stack = contextlib.ExitStack()
        self._options = options
        self._run: Run | None = None
        self._bytes = 0

    def planned(self, run: Run, reader: Reader) -> None:
        """Print the roles before the first row is learned from, and start the progress bar."""
        self._run, self._bytes = run, reader.total_bytes or 0
        if self._options.resume:
            place = (
                f"from row {run.position:,} of pass {run.epoch + 1}"
                if run.resumed
                else "no such file yet, so from the first row"
            )
            print(f"Resuming {self._options.checkpoint}: {place}")
        print(*plan_lines(run.model), sep="\n", flush=True)
        self._progress = self.stack.enter_context(Progress(self._bytes * self._options.epochs))

    def watch(self, run: Run, position: int) -> None:
        """Move the progress bar."""
        losses = run.online.losses()
        self._progress.show(run.rows, position + run.epoch * self._bytes, losses[0] if losses else None)

    def stopped(self) -> str:
        """What Ctrl-C left behind."""
        rows = self._run.rows if self._run else 0
        if self._run is None or self._run.saved is None:
            hint = "" if self._options.checkpoint else " (--checkpoint FILE would keep what was learned)"
            return f"stopped after {rows:,} rows, nothing was written{hint}"
        epoch, position = self._run.saved
        place = f"row {position:,} of pass {epoch + 1}"
        return f"stopped after {rows:,} rows; {self._options.checkpoint} holds {place}: go on from there with --resume"
