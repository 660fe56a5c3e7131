"""``adagrad train`` before and around its run: which files, which model, pass after pass."""

import itertools
import os
from collections.abc import Callable
from contextlib import closing

from adagrad.cli import training
from adagrad.cli.blocks import Chunk
from adagrad.cli.errors import CliError
from adagrad.cli.features import Features
from adagrad.cli.heldout import NO_ROW
from adagrad.cli.holdout import Holdout
from adagrad.cli.labels import plan_labels
from adagrad.cli.memory import check_memory
from adagrad.cli.model import Model
from adagrad.cli.options import DEFAULT_BITS, DEFAULT_RATE, TrainOptions, classes_in
from adagrad.cli.reading import Reader, names_in
from adagrad.cli.roles import Overrides, assign_roles
from adagrad.cli.training import Run, Watch, open_reader
from adagrad.kernels.losses import LOSSES

__all__ = ["train"]


def _ignore(*_: object) -> None:
    pass


def train(
    options: TrainOptions, planned: Callable[[Run, Reader], None] = _ignore, watch: Watch = _ignore
) -> tuple[Run, Reader]:
    """Train as the options ask.

    ``planned`` is called once before the first row is learned from; ``watch`` after each window, with the run and the bytes
    of the files read so far in this pass.
    """
    reader = open_reader(options, options.data, ignore=options.ignore)
    if reader.once and (options.epochs > 1 or options.holdout_last is not None or options.holdout_random is not None):
        needing = "--epochs" if options.epochs > 1 else "--holdout-last" if options.holdout_last else "--holdout-random"
        raise CliError(f"{needing} reads the rows more than once, which standard input and pipes can't: give a file")
    size = training.chunk_rows(options.shuffle, options.batch_size)
    test = open_reader(options, options.test) if options.test else None
    if options.resume and os.path.exists(str(options.checkpoint)):
        run = Run.resume(options, reader)
        _ready(run, reader, test)
        planned(run, reader)
    else:
        with closing(reader.chunks(size)) as chunks:
            first = next(chunks, None)
            if first is None or not len(first):
                raise CliError(f"{', '.join(options.data)}: there is no row of data")
            holdout = Holdout.plan(options, reader)
            run = Run(options, _plan(options, reader, first, first.select(~holdout.mask(0, len(first)))), holdout)
            run.files = reader.fingerprints()
            _ready(run, reader, test)
            planned(run, reader)
            run.learn(itertools.chain([first], chunks), watch)
    while run.epoch < options.epochs:
        with closing(reader.chunks(size, skip=run.position)) as chunks:
            run.learn(chunks, watch)
    if not run.rows:
        raise CliError(f"{', '.join(options.data)}: no row is left to learn from")
    run.model.learner.finalize()
    return run, reader


def _ready(run: Run, reader: Reader, test: Reader | None) -> None:
    """Read only what the model needs; raise now, not when all is learned, if there is nothing to judge it by."""
    reader.needed = run.model.names
    if test is not None:
        test.needed = run.model.names
        if not test.check():
            raise CliError(NO_ROW)


def _plan(options: TrainOptions, reader: Reader, first: Chunk, learned: Chunk) -> Model:
    """The model to train: a new one, or that of ``--start-from``."""
    if options.start_from is not None:
        model = Model.load(options.start_from, options.settings)
        if options.target not in (None, model.labels.target.name):
            raise CliError(f"--target {options.target}: the model of --start-from learned {model.labels.target.name!r}")
        return model
    header = reader.header
    overrides = Overrides(
        str(options.target),
        options.weight,
        names_in(options.categorical, header),
        names_in(options.numeric, header),
        names_in(options.timestamp, header),
        names_in(options.ignore, header),
        "classification" if options.classes else options.task,
        options.bad_rows == "skip",
    )
    columns = assign_roles(header, first, overrides)
    target = next(column for column in columns if column.role == "target")
    again = None if reader.once else lambda: open_reader(options, options.data, needed=[target.name]).chunks(training.CHUNK)
    labels = plan_labels(first, learned, target, options.weight, options.task, classes_in(options.classes), again)
    loss = options.objective.get("loss")
    if loss is not None and LOSSES[loss].task != labels.task:
        raise CliError(f"--loss {loss} is for {LOSSES[loss].task}, but the task is {labels.task} ({labels.reason})")
    if loss == "poisson":
        labels.mean, labels.deviation = 0.0, 1.0  # counts are learned as they are
    bits = options.bits or DEFAULT_BITS
    given = {**options.settings, **options.objective}
    check_memory(len(labels.classes), bits, given, options.baseline and options.judged)
    features = Features(columns, options.cross, bits)
    return Model(features, labels, {"learning_rate": DEFAULT_RATE, **options.settings}, options.batch_size, options.objective)
