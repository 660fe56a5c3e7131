"""The held-out table: the model beside a constant, a running mean and scikit-learn's, on rows that it never learned from."""

from contextlib import closing
from typing import Any

import numpy as np

from adagrad.cli.errors import CliError
from adagrad.cli.judging import Row, make_score
from adagrad.cli.reading import Reader
from adagrad.cli.training import CHUNK, Run, encode, open_reader

__all__ = ["NO_ROW", "judge"]

NO_ROW = "there is no held-out row to judge by"


def judge(run: Run, reader: Reader) -> dict[str, Any] | None:
    """The held-out table: ``{"rows", "dropped", "unseen", "table": {name: figures}, "reliability"}``; None if there is none.

    ``unseen`` is the share of the category values that training never saw.
    """
    options, model = run.options, run.model
    if not run.judged:
        return None
    if options.test:
        reader = open_reader(options, options.test, needed=model.names)
    sgd = run.baseline if run.baseline and not run.baseline.diverged else None
    others = [run.baseline.name] if run.baseline else []
    scores = {name: make_score(model.labels) for name in ("constant", "running mean", *others, "adagrad")}
    mean = run.online.mean
    constant = mean.constant(1)
    rows = dropped = unseen = entries = 0
    with closing(reader.chunks(CHUNK)) as chunks:
        for chunk in chunks:
            held = chunk if options.test else chunk.select(run.holdout.mask(chunk.first, len(chunk)))
            if not len(held):
                continue
            part = encode(model, held, options.bad_rows == "skip")
            dropped += part.bad
            if not len(part.y):
                continue
            rows += len(part.y)
            new, total = model.features.unseen(part.x)
            unseen, entries = unseen + new, entries + total
            made = {
                "constant": np.repeat(constant, len(part.y), axis=0),
                "running mean": mean.follow(part.y, part.weights),
                **({sgd.name: sgd.predict(part.x)} if sgd else {}),
                "adagrad": model.predict(part.x),
            }
            for name, prediction in made.items():
                scores[name].add(prediction, part.y, part.weights)
    if not rows:
        raise CliError(NO_ROW)
    table: dict[str, Row] = {name: score.table() for name, score in scores.items()}
    return {
        "rows": rows,
        "dropped": dropped,
        "unseen": unseen / max(1, entries),
        "table": table,
        "reliability": scores["adagrad"].reliability(),
    }
