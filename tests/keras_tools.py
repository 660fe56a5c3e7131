"""The Keras face as a row of the capability table, on the backend of this process; see `capability.NumpyFace`."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np

import adagrad
from adagrad.keras import Adagrad
from capability import KINDS, Case, nonneg, start_values, unit
from plain import DTYPES

BACKEND = keras.backend.backend()

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax
    from jax.experimental.sparse import BCOO
else:
    import torch

    import torch_tools


def _nonneg(p: Any) -> Any:
    return keras.ops.where(p > 0, p, keras.ops.zeros_like(p))  # ops.maximum makes float32 of float64


def _unit(p: Any) -> Any:
    one = keras.ops.ones_like(p)
    return keras.ops.where(p > one, one, keras.ops.where(p < -one, -one, p))


CONSTRAINTS = {nonneg: _nonneg, unit: _unit}


def variable(values: Any, name: str | None = None, **others: Any) -> keras.Variable:
    """A Keras variable of these values and their dtype."""
    values = np.asarray(values)
    made = keras.Variable(np.zeros(values.shape), dtype=values.dtype.name, name=name, **others)
    made.assign(tensor(values))
    return made


def tensor(values: Any) -> Any:
    """The same numbers, in the same dtype, as a tensor of the backend."""
    values = np.asarray(values)
    if BACKEND == "torch":
        return torch_tools.tensor(values)
    return tf.constant(values) if BACKEND == "tensorflow" else jax.numpy.asarray(values)


def array(value: Any) -> np.ndarray:
    """The same numbers, in the same dtype, as an array with memory of its own."""
    value = value.value if isinstance(value, keras.Variable) else value
    if BACKEND == "torch":
        return torch_tools.array(value)
    return np.array(keras.ops.convert_to_numpy(value))


def rows(values: Any, ids: Any, shape: tuple[int, ...]) -> Any:
    """A row gradient as the backend has it."""
    values, ids = tensor(values), np.asarray(ids)
    if BACKEND == "tensorflow":
        return tf.IndexedSlices(values, tf.constant(ids), tf.constant(shape))
    if BACKEND == "jax":
        return BCOO((values, jax.numpy.asarray(ids)[:, None]), shape=shape)
    return torch.sparse_coo_tensor(torch.tensor(ids[None]), values, shape, check_invariants=False)


def gradient_of(gradient: Any, shape: tuple[int, ...]) -> Any:
    """A gradient as the judges take it, for this face: "rows" as the backend has them, "sparse" as `adagrad.IndexedSlices`."""
    if gradient is None:
        return None
    if not isinstance(gradient, tuple):
        return tensor(gradient)
    kind, values, ids = gradient
    return rows(values, ids, shape) if kind == "rows" else adagrad.IndexedSlices(tensor(values), tensor(ids))


class KerasFace:
    """`adagrad.keras.Adagrad`, eager."""

    name = f"adagrad.keras.Adagrad on {BACKEND}"
    device = "CPU"
    mode = "eager"
    bitwise = BACKEND == "torch"
    dtypes = tuple(name for name in DTYPES if name != "float64" or BACKEND != "jax" or jax.config.jax_enable_x64)
    kinds = tuple(KINDS)
    lacks: dict[str, str] = {}  # noqa: RUF012

    @staticmethod
    def adapted(case: Case) -> Case:
        """The case as it can be given here: as it is."""
        return case

    def __init__(self, case: Case, dtype: np.dtype) -> None:
        self.case = case
        self.step = 0
        self._start(start_values(dtype))

    def _start(self, values: dict[str, np.ndarray]) -> None:
        self.variables = {name: variable(array, name) for name, array in values.items()}
        for name, constraint in self.case.constraints.items():
            self.variables[name].constraint = CONSTRAINTS[constraint]
        self.optimizer = Adagrad(**self.case.arguments)
        self.optimizer.exclude_from_weight_decay(var_names=self.case.excluded)
        self.optimizer.build(list(self.variables.values()))
        self._compiled: dict[Any, Any] = {}

    def apply(self, gradients: dict[str, Any]) -> None:
        given = [gradient_of(gradients[name], tuple(v.shape)) for name, v in self.variables.items()]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no gradient for table", UserWarning)
            self._apply(given)
        self.step += 1

    def _apply(self, given: list[Any]) -> None:
        self.optimizer.apply(given, list(self.variables.values()))

    def save_and_load(self) -> None:
        """Go on with other variables and another optimizer, which has only what the file or the store holds."""
        before, store = self.optimizer, {}
        with tempfile.TemporaryDirectory() as folder:
            before.save(Path(folder) / "state")
            before.save_own_variables(store)
            self._start({name: array(v) for name, v in self.variables.items()})
            if self.step % 2:
                self.optimizer.load(Path(folder) / "state")
            else:
                self.optimizer.load_own_variables(store)

    def parameters(self) -> list[np.ndarray]:
        return [array(v) for v in self.variables.values()]

    def state(self) -> list[np.ndarray]:
        """Averages, gradient buffers, accumulators, as far as there are any."""
        counters = 1 if callable(self.case.arguments.get("learning_rate")) else 2
        return [array(v) for v in self.optimizer.variables[counters:]]


class CompiledFace(KerasFace):
    """The same in a compiled function: `tf.function`, or `jax.jit` of `stateless_apply`."""

    name = f"adagrad.keras.Adagrad on {BACKEND}, compiled"
    mode = "compiled"
    options: ClassVar[dict[str, Any]] = {}

    def _apply(self, given: list[Any]) -> None:
        key = tuple(map(type, given))
        if BACKEND == "tensorflow":
            if key not in self._compiled:
                self._compiled[key] = tf.function(
                    lambda *g: self.optimizer.apply(g, list(self.variables.values())), **self.options
                )
            self._compiled[key](*given)
            return
        if key not in self._compiled:

            def run(state: Any, g: Any, parameters: Any) -> Any:
                return self.optimizer.stateless_apply(state, g, parameters)

            self._compiled[key] = jax.jit(run)
        ours = [list(self.variables.values()), self.optimizer.variables]
        parameters, state = ([v.value for v in variables] for variables in ours)
        for variables, values in zip(ours, self._compiled[key](state, given, parameters), strict=True):
            for v, value in zip(variables, values, strict=True):
                v.assign(value)


class XlaFace(CompiledFace):
    """TensorFlow's functions compiled by XLA."""

    name = f"adagrad.keras.Adagrad on {BACKEND}, jit_compile"
    mode = "xla"
    options: ClassVar[dict[str, Any]] = {"jit_compile": True}
