"""Every option of ``adagrad train``, checked together, and the command line that says all of them."""

import dataclasses
import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

from adagrad.cli.errors import CliError
from adagrad.cli.reading import names_in
from adagrad.cli.roles import CATEGORY, IGNORED, NUMBER, TIME, Column
from adagrad.cli.sources import header_of

__all__ = ["DEFAULT_BITS", "DEFAULT_RATE", "TrainOptions", "classes_in", "command_line", "spelled"]

DEFAULT_RATE = 0.05
DEFAULT_BITS = 22
DEFAULT_EVERY = 1_000_000


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """What ``adagrad train`` was asked; None (or nothing) where the user said nothing.

    ``settings`` holds the arguments of the optimizer that were given, under its own names, ``objective`` those of the loss
    and the penalty.
    """

    data: Sequence[str]
    out: str
    target: str | None = None
    task: str | None = None
    classes: Sequence[str] = ()
    weight: str | None = None
    categorical: Sequence[str] = ()
    numeric: Sequence[str] = ()
    timestamp: Sequence[str] = ()
    ignore: Sequence[str] = ()
    cross: Sequence[str] = ()
    bits: int | None = None
    format: str | None = None
    delimiter: str | None = None
    bad_rows: str = "fail"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    objective: dict[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int | None = None
    epochs: int = 1
    shuffle: int | None = None
    seed: int = 0
    test: Sequence[str] = ()
    holdout_last: float | None = None
    holdout_random: float | None = None
    baseline: bool = True
    checkpoint: str | None = None
    checkpoint_every: int | None = None
    resume: bool = False
    start_from: str | None = None

    def __post_init__(self) -> None:
        self._take_columns()
        _at_least("--epochs", self.epochs, 1)
        _at_least("--shuffle", self.shuffle, 2)
        _at_least("--batch-size", self.batch_size, 1)
        _at_least("--checkpoint-every", self.checkpoint_every, 1)
        _at_least("--seed", self.seed, 0)
        self._check_objective()
        if self.bits is not None and not 1 <= self.bits <= 30:
            raise CliError(f"--bits must be from 1 to 30, got {self.bits}")
        for option, share in (("--holdout-last", self.holdout_last), ("--holdout-random", self.holdout_random)):
            if share is not None and not 0.0 < share < 1.0:
                raise CliError(f"{option} must be a share between 0 and 1, got {share:g}")
        judged = [bool(self.test), self.holdout_last is not None, self.holdout_random is not None]
        if sum(judged) > 1:
            raise CliError("give at most one of --test, --holdout-last and --holdout-random")
        if "-" in self.data and "-" in self.test:
            raise CliError("'-', standard input, can't be both what to learn from and the file of --test")
        if self.checkpoint is None and (self.resume or self.checkpoint_every is not None):
            raise CliError(f"{'--resume' if self.resume else '--checkpoint-every'} needs --checkpoint FILE")
        if self.start_from is None:
            if self.target is None:
                raise CliError("--target COLUMN is needed: the column to learn (none with --format svmlight or vw)")
        else:
            said = {"--task": self.task, "--classes": self.classes, "--weight": self.weight, "--bits": self.bits}
            said |= {"--categorical": self.categorical, "--numeric": self.numeric, "--timestamp": self.timestamp}
            said |= {"--cross": self.cross, "--ignore": self.ignore, "--batch-size": self.batch_size}
            said |= {spelled(name): True for name in self.objective}
            fixed = [option for option, value in said.items() if value]
            if fixed:
                raise CliError(f"{fixed[0]} can't be given with --start-from: the model has it already")

    def _take_columns(self) -> None:
        """Where rows have no header, what their columns are for, unless the user said it."""
        header = header_of(self.data, self.format) if self.start_from is None else None
        if header is None:
            return
        named = names_in([*self.categorical, *self.numeric, *self.timestamp, *self.ignore], header)
        named += [str(self.target), str(self.weight)]
        changed: dict[str, Any] = {"target": self.target or "label"}
        if self.weight is None and "weight" in header and "weight" not in named:
            changed["weight"] = "weight"
        texts = [name for name in ("tag", "qid") if name in header and name not in named]
        changed["ignore"] = [*self.ignore, *texts]
        for name, value in changed.items():
            object.__setattr__(self, name, value)

    def _check_objective(self) -> None:
        given = self.objective
        for name, low, high in (("alpha", 0.0, math.inf), ("l1_ratio", 0.0, 1.0), ("loss_epsilon", 0.0, math.inf)):
            if name in given and not (low <= given[name] <= high and given[name] < math.inf):
                allowed = "in [0, 1]" if high == 1 else "a finite number of at least 0"
                raise CliError(f"{spelled(name)} must be {allowed}, got {given[name]:g}")
        if not 0.0 < given.get("quantile", 0.5) < 1.0:
            raise CliError(f"--quantile must be between 0 and 1, got {given['quantile']:g}")
        loss, penalty = given.get("loss"), given.get("penalty")
        if given.get("loss_epsilon") == 0 and loss == "huber":
            raise CliError("--loss-epsilon must be above 0 for --loss huber, got 0")
        needs = {
            "loss_epsilon": (
                loss in ("huber", "epsilon_insensitive", "squared_epsilon_insensitive"),
                "--loss huber or another",
            ),
            "quantile": (loss == "quantile", "--loss quantile"),
            "alpha": (penalty is not None, "--penalty"),
            "l1_ratio": (penalty == "elasticnet", "--penalty elasticnet"),
        }
        for name, (fits, what) in needs.items():
            if name in given and not fits:
                raise CliError(f"{spelled(name)} needs {what}")

    @property
    def judged(self) -> bool:
        """Whether there are rows to judge by."""
        return bool(self.test or self.holdout_last or self.holdout_random)

    @property
    def every(self) -> int:
        """Rows between checkpoints."""
        return self.checkpoint_every or DEFAULT_EVERY

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is taken up again: all that bears on the result, as JSON values."""
        beside = ("out", "test", "checkpoint", "checkpoint_every", "resume", "settings", "objective")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in beside}
        return json.loads(json.dumps({**values, **self.settings, **self.objective}))


def _at_least(option: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise CliError(f"{option} must be a whole number of at least {low}, got {value}")


def classes_in(values: Sequence[str]) -> list[str]:
    """The classes in ``--classes a,b,c``, or in ``--classes a --classes b``, which may hold commas."""
    return values[0].split(",") if len(values) == 1 else list(values)


def spelled(name: str) -> str:
    """The option of an argument: ``learning_rate`` is ``--learning-rate``."""
    return "--" + name.replace("_", "-")


def command_line(
    options: TrainOptions,
    columns: Sequence[Column],
    task: str,
    classes: Sequence[str],
    settings: dict[str, Any],
    objective: dict[str, Any],
    bits: int,
) -> str:
    """The command that asks for the same model and leaves nothing to be guessed or to a default."""
    words: list[str] = ["adagrad", "train", *options.data]

    def say(option: str, value: Any) -> None:
        if value is not None:
            words.extend([option, json.dumps(value) if isinstance(value, dict) else str(value)])

    def say_names(option: str, names: Sequence[str]) -> None:
        if names and not any("," in name for name in names):
            say(option, ",".join(names))
        else:
            for name in names:
                say(option, name)

    if options.start_from is None:
        say("--target", options.target)
        say("--task", task)
        say_names("--classes", classes)
        say("--weight", options.weight)
        for role, option in ((CATEGORY, "categorical"), (NUMBER, "numeric"), (TIME, "timestamp"), (IGNORED, "ignore")):
            say_names(f"--{option}", [column.name for column in columns if column.role == role and column.name])
        for cross in options.cross:
            say("--cross", cross)
        say("--bits", bits)
    else:
        say("--start-from", options.start_from)
    say("--format", options.format)
    say("--delimiter", options.delimiter)
    say("--bad-rows", options.bad_rows)
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(spelled(name) if value else spelled(name).replace("--", "--no-", 1))
        else:
            say(spelled(name), value)
    if options.start_from is None:
        for name, value in objective.items():
            say(spelled(name), value)
    say("--batch-size", options.batch_size)
    say("--epochs", options.epochs)
    say("--shuffle", options.shuffle)
    say("--seed", options.seed)
    for path in options.test:
        say("--test", path)
    say("--holdout-last", options.holdout_last)
    say("--holdout-random", options.holdout_random)
    if not options.baseline:
        words.append("--no-baseline")
    if options.checkpoint:
        say("--checkpoint", options.checkpoint)
        say("--checkpoint-every", options.every)
    say("--out", options.out)
    return " ".join(shlex.quote(word) for word in words)
