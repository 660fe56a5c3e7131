"""Where the faces are that the capability table is run on, and the first of them, on NumPy arrays."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import adagrad
from capability import SHAPES, Case, Distances, Face, Tolerance, scipy_matrix, start_values

# On JAX. XLA contracts a*b + c into one rounding and divides by constants as it likes, and a factor of clipping is taken in
# float32, so it carries the rounding of its norm, on every later sum. Measured (jaxlib 0.10.2, x86-64): parameters 6.8,
# averages 7.6, sums 8.2 ULP after the table's seven calls, about one a call; sums of halves, which are float32, 7.9. A quarter
# more is allowed.
_CAUSE = "XLA contracts and reorders; clip factors in float32"
BY_XLA = {
    "float32": Tolerance(Distances(8.5, 9.5, 10.3), _CAUSE),
    "float16": Tolerance(Distances(1.0, 1.0, 9.9), f"{_CAUSE}; now and then a parameter rounds to the other neighbour"),
    "bfloat16": Tolerance(Distances(1.0, 1.0, 9.9), f"{_CAUSE}; now and then a parameter rounds to the other neighbour"),
}


class NumpyFace(Face):
    """`adagrad.Adagrad` on NumPy arrays."""

    name = "adagrad.Adagrad"
    bitwise = True
    kinds = {  # noqa: RUF012
        "dense": "arrays of the variable's dtype",
        "rows": "`IndexedSlices`, ids repeated, in any order",
        "sparse": "`scipy.sparse` matrices, CSR, CSC and COO, entries repeated",
        "mixed": "dense, rows, None and sparse in turn",
    }

    def __init__(self, case: Case, dtype: np.dtype) -> None:
        self.case = case
        self.variables = start_values(dtype)
        self.optimizer = self._built(self.variables)
        self.step = 0

    def _built(self, variables: dict[str, np.ndarray]) -> adagrad.Adagrad:
        optimizer = adagrad.Adagrad(**self.case.arguments)
        optimizer.exclude_from_weight_decay(var_names=self.case.excluded)
        optimizer.build(variables, self.case.constraints)
        return optimizer

    def apply(self, gradients: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no gradient for table", UserWarning)
            self.optimizer.apply({name: self._gradient(name, g) for name, g in gradients.items()}, self.variables)
        self.step += 1

    def _gradient(self, name: str, gradient: Any) -> Any:
        if not isinstance(gradient, tuple):
            return gradient
        kind, values, indices = gradient
        if kind == "rows":
            return adagrad.IndexedSlices(values, indices)
        return scipy_matrix(values, indices, SHAPES[name], self.step)

    def save_and_load(self) -> None:
        """Go on with other arrays and another optimizer, which has only what the file holds."""
        with tempfile.TemporaryDirectory() as folder:
            self.optimizer.save(Path(folder) / "state")
            self.variables = {name: array.copy() for name, array in self.variables.items()}
            self.optimizer = self._built(self.variables)
            self.optimizer.load(Path(folder) / "state")

    def parameters(self) -> list[np.ndarray]:
        return list(self.variables.values())

    def state(self) -> list[np.ndarray]:
        counters = 1 if callable(self.case.arguments.get("learning_rate")) else 2  # calls, and a rate that is a number
        return self.optimizer.variables[counters:]


@dataclass(frozen=True)
class Place:
    """Where a face is: ``module:class``, the library that it needs, the variables that its process must be started with.

    A face without variables is tested by tests/test_conformance.py; those of JAX by tests/test_jax_conformance.py, those of
    Keras by tests/keras_worker.py. The page is written by a process for each set of variables.
    """

    name: str
    place: str
    library: str = "numpy"
    environment: tuple[tuple[str, str], ...] = ()

    def load(self) -> type[Face]:
        """Import the face."""
        module, name = self.place.split(":")
        face: type[Face] = getattr(importlib.import_module(module), name)
        assert face.name == self.name
        return face


def _keras(backend: str) -> tuple[tuple[str, str], ...]:
    return (("KERAS_BACKEND", backend), ("TF_CPP_MIN_LOG_LEVEL", "3"), ("CUDA_VISIBLE_DEVICES", "-1"), *_JAX)


_JAX = (("JAX_PLATFORMS", "cpu"),)
FACES = [
    Place("adagrad.Adagrad", "faces:NumpyFace"),
    Place("adagrad.torch.Adagrad", "torch_tools:TorchFace", "torch"),
    Place("adagrad.jax.Adagrad", "jax_tools:JaxFace", "jax", _JAX),
    Place("adagrad.jax.Adagrad, not jitted", "jax_tools:EagerJaxFace", "jax", _JAX),
    Place("adagrad.keras.Adagrad on PyTorch", "keras_tools:KerasFace", "keras", _keras("torch")),
    Place("adagrad.keras.Adagrad on TensorFlow", "keras_tools:KerasFace", "keras", _keras("tensorflow")),
    Place("adagrad.keras.Adagrad on TensorFlow, tf.function", "keras_tools:CompiledFace", "keras", _keras("tensorflow")),
    Place("adagrad.keras.Adagrad on TensorFlow, XLA", "keras_tools:XlaFace", "keras", _keras("tensorflow")),
    Place("adagrad.keras.Adagrad on JAX", "keras_tools:KerasFace", "keras", _keras("jax")),
    Place("adagrad.keras.Adagrad on JAX, jax.jit", "keras_tools:CompiledFace", "keras", _keras("jax")),
]
