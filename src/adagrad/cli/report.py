"""What ``adagrad train`` prints: the roles before it starts, the report at its end, and ``metrics.json``."""

import math
import resource
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from adagrad.cli.judging import HEADS, loss_name, loss_of
from adagrad.cli.labels import CLASSIFICATION
from adagrad.cli.model import Model
from adagrad.cli.online import IN_RUNS
from adagrad.cli.options import command_line
from adagrad.cli.roles import IGNORED, TARGET, WEIGHT
from adagrad.cli.strongest import Feature
from adagrad.cli.training import Run

__all__ = ["aligned", "end_lines", "metrics", "peak_memory", "plan_lines", "warnings"]

_APART = 0.10  # online and held-out loss differ by more than this: said
_CROWDED = 0.05  # of the used slots are shared by more than this: said

_USES = {
    "sparse": "features with their values",
    "number": "number, scaled",
    "category": "category",
    "time": "hour, weekday and month",
    "list": "several categories",
    TARGET: "target",
    WEIGHT: "weight",
    IGNORED: "ignored",
}


def peak_memory() -> int:
    """Bytes of memory that the process held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of cells as aligned lines, the first ``left`` columns to the left, the others to the right."""
    rows = [["".join(c if c.isprintable() else repr(c)[1:-1] for c in cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def plan_lines(model: Model) -> list[str]:
    """The roles and the task, as they are printed before training."""
    rows = [("column", "role", "because")]
    rows += [(c.name or "(no name)", _USES[c.role] if c.kind != "date" or c.role != "time" else "weekday and month", c.reason)
             for c in model.features.columns]  # fmt: skip
    rows += [(cross, "cross", "--cross") for cross in model.features.crosses]
    lines = ["Roles (--categorical, --numeric, --timestamp and --ignore override):", *aligned(rows, 3)]
    labels = model.labels
    if labels.task == CLASSIFICATION:
        shown = ", ".join(labels.classes[:10]) + (", ..." if len(labels.classes) > 10 else "")
        return [*lines, f"Task: classification into {shown}, {_objective(model)} ({labels.reason})"]
    return [*lines, f"Task: regression, {_objective(model)} ({labels.reason})"]


def _objective(model: Model) -> str:
    """The loss and the penalty, in words."""
    given = model.objective
    loss = given.get("loss", "log_loss" if model.labels.task == CLASSIFICATION else "squared_error")
    words = {"log_loss": "log loss", "squared_error": "squared loss"}.get(loss, f"{loss.replace('_', ' ')} loss")
    numbers = [f"{name} {given[name]:g}" for name in ("loss_epsilon", "quantile") if name in given]
    if "penalty" in given:
        strength = [f"{name} {given[name]:g}" for name in ("alpha", "l1_ratio") if name in given]
        numbers.append(f"penalty {given['penalty']}{f' of {chr(44).join(strength)}' if strength else ''}")
    return ", ".join([words, *numbers])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def _held_out_lines(run: Run, judged: dict[str, Any] | None) -> list[str]:
    online = run.online.losses()
    name = loss_name(run.model.labels)
    lines = []
    if judged is None:
        lines.append("Judged: not held out (--test FILE, --holdout-last 0.1 or --holdout-random 0.1 would judge the model)")
    else:
        if run.options.test:
            source = ", ".join(run.options.test)
        elif run.holdout.boundary is not None:
            source = f"the last {run.options.holdout_last:g} of the rows"
        else:
            source = f"a random {run.options.holdout_random:g} of the rows, seed {run.options.seed}"
        dropped = f", {judged['dropped']:,} dropped" if judged["dropped"] else ""
        new = f"; {judged['unseen']:.1%} of their category values were never seen in training" if judged["unseen"] else ""
        lines.append(f"Held out: {judged['rows']:,} rows{dropped}, {source}{new}")
        keys = list(judged["table"]["adagrad"])
        if run.rows_before:
            lines.append(f"  {_unlike(run)}:")
        rows = [("", *(HEADS[key] for key in keys))]
        rows += [(_OURS.get(who, who), *(_figure(row[key]) for key in keys)) for who, row in judged["table"].items()]
        lines += aligned(rows)
    if online is not None:
        lines.append(
            f"Online loss: {online[0]:.4f} {name} over {run.online.rows:,} rows, a running mean's {online[1]:.4f} "
            f"(each row predicted before it was learned from{', first pass' if run.options.epochs > 1 else ''}; not held out)"
        )
    return lines


def _unlike(run: Run) -> str | None:
    """What a model that was trained before has over the predictors beside it; None for a new one."""
    if not run.rows_before:
        return None
    return (
        f"not like for like: by --start-from this model had learned from {run.rows_before:,} rows before; the others know "
        f"only the {run.rows:,} of this run"
    )


_OURS = {"adagrad": "adagrad (this model)"}


def _apart(run: Run, judged: dict[str, Any]) -> str | None:
    """What is to be said of a held-out loss that is far off the online loss; None if it is not, or either is missing."""
    online, recent = run.online.losses(), run.online.recent()
    held = loss_of(judged["table"]["adagrad"])
    if online is None or held is None or not online[0] > 0 or not math.isfinite(held):
        return None
    apart = held / online[0] - 1.0
    if abs(apart) <= _APART:
        return None
    first = " of the first pass" if run.options.epochs > 1 else ""
    last = f"; over the last {recent[0]:,} rows it was {recent[1]:.4f}" if recent else ""
    if apart > 0:
        why = "the held-out rows may be unlike the training rows, or a column may know what it should not"
        return f"the held-out loss is {apart:.0%} above the online loss{first}{last}: {why}"
    why = "that one counts every row by the prediction made when it came"
    why += "" if run.rows_before else ", the first rows' before much was learned"
    if recent and held < (1.0 - _APART) * recent[1]:
        why += "; but the last rows did worse too: the held-out rows may be easier, or among the training rows"
    return f"the held-out loss is {-apart:.0%} below the online loss{first}{last}: {why}"


def warnings(run: Run, judged: dict[str, Any] | None) -> list[str]:
    """What the user should know before believing the figures."""
    found: list[str] = []
    apart = _apart(run, judged) if judged is not None else None
    if apart is not None:
        found.append(apart)
    correlation = run.online.correlation()
    if correlation > IN_RUNS:
        found.append(
            f"labels come in runs (neighbours correlate by {correlation:.2f}): the online loss is too good, since the last "
            "labels give the next one away; --shuffle ROWS mixes rows"
        )
    collisions = run.model.features.collisions()
    if collisions["shared"] > _CROWDED * collisions["used"]:
        found.append(
            f"{collisions['shared'] / collisions['used']:.0%} of the used slots are shared: more --bits would part them"
        )
    return found


def _strongest_lines(run: Run, features: Sequence[Feature]) -> list[str]:
    if not features:
        return ["Strongest features: none has a weight"]
    labels = run.model.labels
    many = len(labels.classes) > 2
    if labels.task != CLASSIFICATION:
        toward = f"{labels.target.name}, in its standard deviations"
    else:
        toward = "the class named" if many else f"{labels.target.name}={labels.classes[1]}"
    rows = [("feature", *(["class"] if many else []), "weight", "spread", "|w| x spread", "rows")]
    for f in features:
        cells = [f.name + (" (and others: shared slot)" if f.shared else ""), *([labels.classes[f.label]] if many else [])]
        rows.append((*cells, f"{f.weight:+.4f}", f"{f.spread:.4f}", f"{f.strength:.4f}", f"{f.count:,}"))
    return [f"Strongest features (weights toward {toward}):", *aligned(rows, 2 if many else 1)]


def end_lines(run: Run, files: Sequence[str], judged: dict[str, Any] | None, strongest: Sequence[Feature]) -> Iterable[str]:
    """The report, in its order: files and rows; roles; the command; judgement; speed, memory, collisions; features."""
    model, options = run.model, run.options
    yield f"Files: {', '.join(files[:5])}{f' and {len(files) - 5} more' if len(files) > 5 else ''}"
    passes = f" in {options.epochs} passes" if options.epochs > 1 else ""
    unread = "not in the format" if model.features.valued else "with another number of columns"
    dropped = f"{run.bad + run.ragged:,} ({run.bad:,} with a bad value, {run.ragged:,} {unread})"
    yield f"Rows: {run.rows:,} learned from{passes}; dropped: {dropped}"
    yield from plan_lines(model)
    yield "The complete command:"
    yield "  " + full_command(run)
    yield from _held_out_lines(run, judged)
    for warning in warnings(run, judged):
        yield f"Warning: {warning}"
    collisions = model.features.collisions()
    rate = run.rows_a_second
    speed = "too few rows to time" if rate is None else f"{rate:,.0f} rows a second"
    yield (
        f"Speed: {speed}; peak memory: {peak_memory() / 2**20:,.0f} MiB; "
        f"collisions: {collisions['shared']:,} of {collisions['used']:,} used slots are shared ({collisions['slots']:,} slots)"
    )
    yield from _strongest_lines(run, strongest)


def full_command(run: Run) -> str:
    """The command line that leaves nothing to be guessed."""
    model = run.model
    return command_line(
        run.options,
        model.features.columns,
        model.labels.task,
        model.labels.classes,
        model.settings,
        model.objective,
        model.features.bits,
    )


def metrics(run: Run, files: Sequence[str], judged: dict[str, Any] | None, strongest: Sequence[Feature]) -> dict[str, Any]:
    """The same figures for a program."""
    online, model = run.online.losses(), run.model
    return {
        "files": list(files),
        "rows": run.rows,
        "dropped": {"bad_value": run.bad, "ragged": run.ragged},
        "command": full_command(run),
        "target": model.labels.target.name,
        "task": model.labels.task,
        "classes": model.labels.classes,
        "held_out": judged and {**judged, "note": _unlike(run)},
        "rows_before": run.rows_before,
        "online": None if online is None else {"rows": run.online.rows, "loss": online[0], "running_mean": online[1]},
        "warnings": warnings(run, judged),
        "rows_a_second": run.rows_a_second,
        "timed": {"rows": run.timed, "seconds": run.seconds},
        "peak_memory_bytes": peak_memory(),
        "collisions": model.features.collisions(),
        "strongest": [
            {
                "feature": f.name,
                "class": model.labels.classes[f.label] if len(model.labels.classes) > 2 else None,
                "weight": f.weight,
                "spread": f.spread,
                "strength": f.strength,
                "rows": f.count,
                "slot": f.slot,
                "shared": f.shared,
            }
            for f in strongest
        ],
    }
