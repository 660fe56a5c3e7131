"""The JAX face as a row of the capability table, and what its tests share."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adagrad
from adagrad.jax import Adagrad, AdagradState, IndexedSlices
from adagrad.schedules import LearningRateSchedule
from capability import COMBINATIONS, SHAPES, Case, Face, nonneg, start_values, unit
from faces import BY_XLA

# What the constraints of the table are in array code that can be traced.
CONSTRAINTS: dict[Any, Callable[[jax.Array], jax.Array]] = {
    nonneg: lambda p: jnp.maximum(p, 0),
    unit: lambda p: jnp.clip(p, -1, 1),
}


def numpy_gradient(gradient: Any, dtype: np.dtype) -> Any:
    """A gradient as the judges take it (`plain`), for JAX."""
    if not isinstance(gradient, tuple):
        return gradient
    return IndexedSlices(np.asarray(gradient[1], dtype), np.asarray(gradient[2], np.int32))


class JaxFace(Face):
    """`adagrad.jax.Adagrad` under jit."""

    name = "adagrad.jax.Adagrad"
    bitwise = False  # XLA contracts and reorders
    lean = True
    tolerances = BY_XLA
    dtypes = ("float32", "float16", "bfloat16")
    kinds = {  # noqa: RUF012
        "dense": "arrays of the parameter's dtype",
        "rows": "`IndexedSlices`, ids repeated, in any order",
        "mixed": "dense, rows and None in turn",
    }
    remarks = (
        "Compiled by `jax.jit`; on a CPU a step by rows is the kernel of the engine, called from the compiled function.",
        "No float64: JAX has it with `jax_enable_x64` only, where it is computed in float64.",
        "`exclude_from_weight_decay` is `weight_decay_mask`; constraints are the argument `constraints`.",
    )

    @classmethod
    def tested(cls, dtype: str, case: Case, kind: str) -> bool:
        """A compilation takes about a second, and each pattern of gradients has its own: each case by rows, some by others.

        In "rows" one variable is a scalar, whose gradient is dense; "mixed" has None, too.
        """
        if dtype != "float32":
            return kind == "rows" and case.name in ("clipvalue, decay", "clipnorm, l2, loss scale")
        others = {"gradient_accumulation_steps=3": "mixed", "use_ema=True": "mixed", "clipnorm=0.7": "dense"}
        return kind == others.get(case.name, "rows")

    def __init__(self, case: Case, dtype: np.dtype) -> None:
        self.case, self.dtype = case, dtype
        self.params: dict[str, Any] = {name: jnp.asarray(array) for name, array in start_values(dtype).items()}
        self.optimizer = self._built()
        self.opt_state: AdagradState = self.optimizer.init(self.params)
        # Kept through save and load, since it holds arguments only: compiled once for each pattern of gradients.
        self._apply = jax.jit(self.optimizer.apply)

    def _built(self) -> Adagrad:
        arguments = dict(self.case.arguments)
        rate = arguments.get("learning_rate")
        if callable(rate) and not isinstance(rate, LearningRateSchedule):
            arguments["learning_rate"] = lambda count: rate()  # optax's take the count
        if "weight_decay" in arguments:
            arguments["weight_decay_mask"] = {
                name: not any(re.search(pattern, name) for pattern in self.case.excluded) for name in self.params
            }
        if self.case.constraints:
            arguments["constraints"] = {name: CONSTRAINTS.get(self.case.constraints.get(name)) for name in self.params}
        return Adagrad(**arguments)

    def apply(self, gradients: dict[str, Any]) -> None:
        found = {name: numpy_gradient(g, self.dtype) for name, g in gradients.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no gradient for table", UserWarning)
            self.params, self.opt_state = self._apply(found, self.opt_state, self.params)

    def save_and_load(self) -> None:
        """Go on with another optimizer and a state that is only what the file holds."""
        with tempfile.TemporaryDirectory() as folder:
            self.optimizer.save(Path(folder) / "state", self.opt_state, self.params)
            self.optimizer = self._built()
            self.opt_state = self.optimizer.load(Path(folder) / "state", self.params)

    def parameters(self) -> list[np.ndarray]:
        return [np.asarray(self.params[name]) for name in SHAPES]  # JAX sorts the keys of a dict

    def state(self) -> list[np.ndarray]:
        trees = (self.opt_state.average, self.opt_state.gradient_accumulator, self.opt_state.accumulator)
        return [np.asarray(tree[name]) for tree in trees if tree is not None for name in SHAPES]


class EagerJaxFace(JaxFace):
    """The same, called outside of jit."""

    name = "adagrad.jax.Adagrad, not jitted"
    cases = COMBINATIONS
    kinds = {"rows": JaxFace.kinds["rows"]}  # noqa: RUF012
    remarks = ("A step is compiled all the same, as one call. Every argument stands in one of the combinations.",)

    @classmethod
    def tested(cls, dtype: str, case: Case, kind: str) -> bool:
        """Two that have most arguments between them."""
        return (
            dtype == "float32"
            and kind == "rows"
            and case.name in ("clipvalue, decay", "accumulation, global_clipnorm, decay, EMA with overwrite, loss scale")
        )

    def __init__(self, case: Case, dtype: np.dtype) -> None:
        super().__init__(case, dtype)
        self._apply = self.optimizer.apply


def numpy_run(arguments: dict[str, Any], params: dict[str, Any], gradients: list[dict[str, Any]]) -> Any:
    """The same run on `adagrad.Adagrad`: the arrays and the optimizer after it."""
    arrays = {name: np.array(p) for name, p in params.items()}
    optimizer = adagrad.Adagrad(**arguments)
    optimizer.build(arrays)
    for each in gradients:
        optimizer.apply({name: _for_numpy(g) for name, g in each.items()}, arrays)
    return arrays, optimizer


def _for_numpy(gradient: Any) -> Any:
    if isinstance(gradient, IndexedSlices):
        return IndexedSlices(np.asarray(gradient.values), np.asarray(gradient.indices))
    return None if gradient is None else np.asarray(gradient)


def ulps(actual: Any, expected: Any) -> float:
    """The largest distance, in units in the last place of the larger of two numbers."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if not actual.size:
        return 0.0
    spacing = np.spacing(np.maximum(np.abs(actual), np.abs(expected)))
    return float(np.max(np.abs(actual.astype(np.float64) - expected.astype(np.float64)) / spacing))
