"""Adagrad, done completely: right on repeated ids and half precision, at the speed of memory.

`Adagrad` and `LossScaleOptimizer` work on NumPy arrays, in place; `IndexedSlices` is a row gradient; `schedules` are the
learning-rate schedules. `adagrad.sklearn` has the estimators.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Names are fetched when they are first used, so that what doesn't need the compiler (`adagrad --help`) doesn't wait for it.
_HOMES = {
    "Adagrad": "optimizer",
    "IndexedSlices": "gradients",
    "LossScaleOptimizer": "loss_scaling",
    "StateFileError": "state",
    "get_num_threads": "kernels.threads",
    "set_num_threads": "kernels.threads",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "schedules":
        return importlib.import_module("adagrad.schedules")
    if name not in _HOMES:
        raise AttributeError(f"module 'adagrad' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"adagrad.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
