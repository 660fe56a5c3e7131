"""The Keras face as a row of the capability table, on the backend of this process."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

import adagrad
from adagrad.keras import Adagrad
from capability import CASES, COMBINATIONS, TOLERANCES, Case, Face, as_rows, nonneg, start_values, unit
from faces import BY_XLA
from plain import DTYPES

BACKEND = keras.backend.backend()
TITLE = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}[BACKEND]

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


class KerasFace(Face):
    """`adagrad.keras.Adagrad`, eager."""

    name = f"adagrad.keras.Adagrad on {TITLE}"
    bitwise = BACKEND == "torch"
    tolerances = BY_XLA if BACKEND == "jax" else TOLERANCES
    lean = True
    dtypes = tuple(name for name in DTYPES if name != "float64" or BACKEND != "jax")
    kinds = {  # noqa: RUF012
        "dense": "tensors of the variable's dtype",
        "rows": {
            "tensorflow": "`tf.IndexedSlices`", "jax": "`BCOO` arrays of rows", "torch": "sparse COO tensors of rows"
        }[BACKEND] + ", ids repeated, in any order",
        "sparse": "`adagrad.IndexedSlices` of tensors, ids repeated, in any order",
        "mixed": "dense, rows, None and sparse in turn",
    }  # fmt: skip
    remarks = {
        "tensorflow": ("Called eagerly.",),
        "jax": ("Called eagerly.", "No float64: JAX has it with `jax_enable_x64` only."),
        "torch": ("In main memory; on other devices array code runs, as on the other backends.",),
    }[BACKEND]

    @classmethod
    def tested(cls, dtype: str, case: Case, kind: str) -> bool:
        """Each argument by one kind of gradient in turn, the combinations by mixed ones, in the other dtypes by rows."""
        number = CASES.index(case)
        if BACKEND == "torch" and case.costly and case not in COMBINATIONS:
            return False  # kernels of its own
        if dtype != "float32":
            return case in COMBINATIONS and kind == "rows" and (dtype == "float64" or number % 2 == (dtype == "float16"))
        return kind == ("mixed" if case in COMBINATIONS else tuple(cls.kinds)[number % 3])

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

    def apply(self, gradients: dict[str, Any]) -> None:
        given = [self._gradient(gradients[name], tuple(v.shape)) for name, v in self.variables.items()]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no gradient for table", UserWarning)
            self._apply(given)
        self.step += 1

    def _gradient(self, gradient: Any, shape: tuple[int, ...]) -> Any:
        return gradient_of(gradient, shape)

    def _apply(self, given: list[Any]) -> None:
        self.optimizer.apply(given, list(self.variables.values()))

    def save_and_load(self) -> None:
        """Go on with other variables and another optimizer, which has only what the file or the store holds."""
        before, store = self.optimizer, {}
        with tempfile.TemporaryDirectory() as folder:
            before.save(Path(folder) / "state")
            before.save_own_variables(store)
            self._start({name: array(v) for name, v in self.variables.items()})
            if CASES.index(self.case) % 2:
                self.optimizer.load(Path(folder) / "state")
            else:
                self.optimizer.load_own_variables(store)

    def parameters(self) -> list[np.ndarray]:
        return [array(v) for v in self.variables.values()]

    def state(self) -> list[np.ndarray]:
        counters = 1 if callable(self.case.arguments.get("learning_rate")) else 2
        return [array(v) for v in self.optimizer.variables[counters:]]


class CompiledFace(KerasFace):
    """The same in a compiled function: `tf.function`, or `jax.jit` of `stateless_apply`."""

    name = f"adagrad.keras.Adagrad on {TITLE}, {'jax.jit' if BACKEND == 'jax' else 'tf.function'}"
    cases = COMBINATIONS
    dtypes = ("float32", "float16")
    kinds = {"rows": KerasFace.kinds["rows"]}  # noqa: RUF012
    remarks = ("Every argument stands in one of the combinations; other dtypes and gradients run eagerly (above).",)
    jit_compile = False

    @classmethod
    def tested(cls, dtype: str, case: Case, kind: str) -> bool:
        """Some combinations by rows, since a compilation takes seconds: on TensorFlow half of them by XLA."""
        number = COMBINATIONS.index(case)
        mine = number in (2, 3, 4, 6) if BACKEND == "jax" else number % 2 == cls.jit_compile
        return mine and kind == "rows" and dtype == ("float16" if number == 4 else "float32")

    def _gradient(self, gradient: Any, shape: tuple[int, ...]) -> Any:
        return gradient_of(as_rows(gradient), shape)  # other slices are no arguments of a compiled function

    def _start(self, values: dict[str, np.ndarray]) -> None:
        super()._start(values)
        if BACKEND == "tensorflow":
            parameters, optimizer = list(self.variables.values()), self.optimizer
            self._function = tf.function(lambda *g: optimizer.apply(g, parameters), jit_compile=self.jit_compile)
        elif not self.step:  # a function of the state, the same after a load
            self._function = jax.jit(self.optimizer.stateless_apply)

    def _apply(self, given: list[Any]) -> None:
        if BACKEND == "tensorflow":
            self._function(*given)
            return
        parameters, state = list(self.variables.values()), self.optimizer.variables
        new = self._function([v.value for v in state], given, [v.value for v in parameters])
        for v, value in zip([*parameters, *state], [*new[0], *new[1]], strict=True):
            v.assign(value)


class XlaFace(CompiledFace):
    """TensorFlow's functions compiled by XLA."""

    name = f"adagrad.keras.Adagrad on {TITLE}, XLA"
    jit_compile = True
