"""What the options of the commands have in common: choices, panels of the help, and the arguments that several take."""

from enum import StrEnum
from typing import Annotated, Any, Optional

import typer

__all__ = [
    "DATA",
    "JUDGE",
    "LOSS",
    "OPTIMIZER",
    "RUN",
    "BadRowsChoice",
    "BadRowsOption",
    "Data",
    "DecayMode",
    "Delimiter",
    "EpsilonPlacement",
    "Format",
    "FormatOption",
    "Loss",
    "PenaltyChoice",
    "Task",
    "columns",
    "option",
]

DATA, JUDGE, OPTIMIZER, RUN, LOSS = "Data", "Judging", "Optimizer", "Running", "Loss and penalty"


class Task(StrEnum):
    """What to learn."""

    classification = "classification"
    regression = "regression"


class BadRowsChoice(StrEnum):
    """What to do with a row that can't be used."""

    fail = "fail"
    skip = "skip"


class EpsilonPlacement(StrEnum):
    """Where epsilon stands."""

    inside = "inside"
    outside = "outside"


class Loss(StrEnum):
    """What is minimized."""

    log_loss = "log_loss"
    hinge = "hinge"
    squared_hinge = "squared_hinge"
    modified_huber = "modified_huber"
    squared_error = "squared_error"
    huber = "huber"
    epsilon_insensitive = "epsilon_insensitive"
    squared_epsilon_insensitive = "squared_epsilon_insensitive"
    quantile = "quantile"
    poisson = "poisson"


class PenaltyChoice(StrEnum):
    """How weights are shrunk."""

    l2 = "l2"
    l1 = "l1"
    elasticnet = "elasticnet"


class DecayMode(StrEnum):
    """What weight decay does."""

    decoupled = "decoupled"
    l2 = "l2"


class Format(StrEnum):
    """How rows are written in a text file."""

    csv = "csv"
    svmlight = "svmlight"
    vw = "vw"


Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...",
        help="CSV, SVMlight or Vowpal Wabbit text (.gz too) or Parquet files, a folder, or - for standard input (text).",
    ),
]
FormatOption = Annotated[
    Optional[Format],  # noqa: UP045 - the form that every supported Typer reads
    typer.Option(
        "--format",
        help="How text files are written: a table with a header (csv), `label index:value ...` (svmlight), or "
        "`label importance |namespace feature:value ...` (vw). Parquet is recognized.",
        show_default="by the name: .svm, .svmlight, .libsvm, .vw; else csv",
        rich_help_panel=DATA,
    ),
]
Delimiter = Annotated[
    Optional[str],  # noqa: UP045 - the form that every supported Typer reads
    typer.Option(help="Between the fields of a CSV.", show_default="tab in .tsv files, else comma", rich_help_panel=DATA),
]
BadRowsOption = Annotated[
    BadRowsChoice,
    typer.Option(
        help="A row with a bad value or the wrong number of columns: stop, naming file, line and column, or leave it out "
        "and count it.",
        rich_help_panel=DATA,
    ),
]


def columns(help_: str, panel: str = DATA) -> Any:
    """An option that takes names of columns."""
    return typer.Option(metavar="COLUMNS", help=help_, show_default=False, rich_help_panel=panel)


def option(help_: str, default: str | bool = False, panel: str = OPTIMIZER, **more: Any) -> Any:
    """An option with what stands for its default in the help."""
    return typer.Option(help=help_, show_default=default, rich_help_panel=panel, **more)
