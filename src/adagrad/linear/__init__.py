"""What is behind `adagrad.sklearn` and the command line: a linear model and its Adagrad state, over sparse rows.

`OnlineLearner` takes one example a step, a whole chunk of rows in one compiled call; `BatchLearner` takes mini-batches
through the engine, as row gradients. Both keep ``features`` rows of weights, one a column of the data, and one more, the
intercept, which is a coordinate like any other; ``width`` weights a row, one an output. `LinearModel` holds the arguments
and what was learned. None of it needs scikit-learn.
"""

from adagrad.kernels.losses import LOGISTIC, SOFTMAX, SQUARED
from adagrad.linear.base import Learner
from adagrad.linear.batch import BatchLearner
from adagrad.linear.making import make_learner
from adagrad.linear.model import ClassifierModel, LinearModel, RegressorModel
from adagrad.linear.online import OnlineLearner
from adagrad.linear.penalty import Objective
from adagrad.linear.rows import Rows

__all__ = [
    "LOGISTIC",
    "SOFTMAX",
    "SQUARED",
    "BatchLearner",
    "ClassifierModel",
    "Learner",
    "LinearModel",
    "Objective",
    "OnlineLearner",
    "RegressorModel",
    "Rows",
    "make_learner",
]
