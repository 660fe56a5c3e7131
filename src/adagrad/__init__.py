"""Adagrad, done completely: right on repeated ids and half precision, at the speed of memory.

`Adagrad` and `LossScaleOptimizer` work on NumPy arrays, in place; `IndexedSlices` is a row gradient; `schedules` are the
learning-rate schedules.
"""

from adagrad import schedules
from adagrad.gradients import IndexedSlices
from adagrad.kernels.threads import get_num_threads, set_num_threads
from adagrad.loss_scaling import LossScaleOptimizer
from adagrad.optimizer import Adagrad
from adagrad.state import StateFileError

__all__ = [
    "Adagrad",
    "IndexedSlices",
    "LossScaleOptimizer",
    "StateFileError",
    "__version__",
    "get_num_threads",
    "schedules",
    "set_num_threads",
]

__version__ = "0.1.0"
