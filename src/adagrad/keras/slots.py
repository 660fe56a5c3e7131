"""A Keras variable and the variables of state that the optimizer keeps for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import backend, ops

__all__ = ["STATES", "Full", "Slot", "path_of", "wide_dtype"]

# What Keras calls the lists of state, one for each variable, in the order of the optimizer's variables.
STATES = ("_model_variables_moving_average", "_accumulated_gradients", "_accumulators")

Tensor = Any
Variable = Any


def wide_dtype(dtype: Any) -> str:
    """The dtype of the arithmetic and of all state of a variable: float64 for float64, else float32."""
    return "float64" if backend.standardize_dtype(dtype) == "float64" else "float32"


def path_of(variable: Variable) -> str:
    """The variable's path in its model; a plain ``tf.Variable`` has a name only."""
    return str(getattr(variable, "path", None) or variable.name)


class Full:
    """An initializer of one value, rounded once to the variable's dtype; Keras's own rounds to float32 on the way."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        """A tensor of ``shape`` and ``dtype`` with the value everywhere."""
        dtype = backend.standardize_dtype(dtype)
        return ops.full(shape, ops.convert_to_tensor(np.asarray(self.value, dtype), dtype), dtype)


@dataclass(eq=False)
class Slot:
    """One variable, its state, and how it is treated."""

    variable: Variable
    accumulator: Variable
    average: Any  # a variable, or None where there is no such state
    buffer: Any
    decays: bool = True
    moved: Any = True  # whether this cycle has brought a gradient: True, or a scalar that the program knows

    def __post_init__(self) -> None:
        self.name = path_of(self.variable)
        self.shape = tuple(self.variable.shape)
        self.dtype = backend.standardize_dtype(self.variable.dtype)
        self.wide = wide_dtype(self.dtype)
        self.row_wise = len(self.accumulator.shape) < len(self.shape)

    @property
    def constraint(self) -> Any:
        """The variable's own, as it is now."""
        return getattr(self.variable, "constraint", None)

    def constrained(self, p: Tensor) -> Tensor:
        """``constraint(p)`` in the variable's dtype and shape, or ``p`` if there is none."""
        if self.constraint is None:
            return p
        result = ops.convert_to_tensor(self.constraint(p))
        if tuple(result.shape) != self.shape:
            raise ValueError(
                f"the constraint of {self.name} must return a tensor of shape {self.shape}, got {tuple(result.shape)}"
            )
        return ops.cast(result, self.dtype)
