"""`make_learner`: which learner the settings can have."""

import numpy as np

from adagrad.linear.base import Learner
from adagrad.linear.batch import BatchLearner
from adagrad.linear.online import OnlineLearner
from adagrad.linear.penalty import Objective
from adagrad.settings import Settings

__all__ = ["make_learner"]


def make_learner(
    settings: Settings,
    features: int,
    width: int,
    objective: Objective,
    intercept: bool,
    dtype: np.dtype,
    batch_size: int | None,
) -> Learner:
    """An `OnlineLearner` without ``batch_size``, if the settings have a lazy equal, else a `BatchLearner`.

    Gradient accumulation has none, "l2" decay has none, since it moves every accumulator at every step, and a penalty
    beside decay or moving average has none: then an example is a batch of one.
    """
    whole = settings.accumulation_steps > 1 or (settings.weight_decay and settings.weight_decay_mode == "l2")
    whole = whole or (objective.penalized and (settings.use_ema or settings.weight_decay))
    if batch_size is None and not whole:
        return OnlineLearner(settings, features, width, objective, intercept, dtype)
    return BatchLearner(settings, features, width, objective, intercept, dtype, batch_size or 1)
