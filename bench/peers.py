"""The peers: every Adagrad that ours is set beside, in one table, and the check that it computes what ours does.

A peer is a class that takes the starting parameters and does one step at a time with `SETTINGS`, on gradients that have
been put into its library's own form beforehand. Each library runs in a process of its own, with ours beside it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import adagrad
from bench import harness

__all__ = ["PEERS", "SETTINGS", "Ours", "Peer", "Spec", "agreement", "distance", "judge", "missing", "of", "ulps"]

# Every candidate runs with these; where epsilon stands is the peer's own, and ours is set to it when they are compared.
SETTINGS = {"learning_rate": 0.01, "initial_accumulator_value": 0.1, "epsilon": 1e-7}


class Peer:
    """One library's optimizer over ``parameters``, float32 arrays that it copies.

    ``epsilon_placement`` is where the library puts epsilon; ``row_form`` is how it is given a gradient of a few rows.
    """

    epsilon_placement = "inside"
    row_wise = False
    row_form = ""

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What ours must be given besides `SETTINGS` to compute what this peer does."""
        return {"epsilon_placement": self.epsilon_placement, "row_wise": self.row_wise}

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """Dense gradients as the library wants them."""
        raise NotImplementedError

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """The gradient of the only parameter, in the form that this library's training loop would make."""
        raise NotImplementedError

    def step(self, gradient: Any) -> None:
        """One step: what is timed."""
        raise NotImplementedError

    def wait(self) -> None:
        """Return when every step so far is done."""

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Parameter ``number`` as it is now, or some of its rows."""
        raise NotImplementedError

    def turn(self, threads: int) -> contextlib.AbstractContextManager[object]:
        """Entered around timed steps: the library's number of threads."""
        return contextlib.nullcontext()


@dataclass(frozen=True)
class Spec:
    """A line of the table: what a peer is called, where it lives, what it is timed at, and how close it must come.

    ``ulp`` bounds the distance to ours after a step, in units in the last place of float32 at the largest of the
    parameter before, ours after and the peer's after; ``why`` says what it is made of. ``repeats`` False: the library
    does not sum repeated ids, so that it agrees on ids that occur once and departs on others, which is shown. ``tables``
    is how much memory rows need at most, in tables: parameter, accumulator, and what the library makes besides; more than
    2 says that a step walks the whole table. ``reordered`` is allowed besides on the timed rows, where an id repeats up
    to 1,500 times, to a library that sums them in another order: its sums and ours are as far from those in float64.
    """

    name: str
    process: str
    place: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    ulp: float
    why: str
    each_thread_count: bool = False
    repeats: bool = True
    tables: int = 2
    reordered: float = 0.0

    def allowed(self, kind: str) -> float:
        """The ULP allowed on data of ``kind``."""
        return self.ulp + (self.reordered if kind == "timed rows" else 0.0)

    def make(self, parameters: Sequence[np.ndarray]) -> Peer:
        """Import the library and build the peer."""
        module, name = self.place.split(":")
        found: Peer = getattr(importlib.import_module(module), name)(parameters)
        return found


_ALL = ("dense", "many", "rows")
_FLAT = ("dense", "many")
_TRAINED = (*_ALL, "keras")
_EXACT = "the same operations in the same order"
_ROUNDED = "a step is rounded in other places, up to six times, which shows where the parameter is close to 0"
_CONTRACTED = "XLA and Eigen contract multiply and add, and take reciprocal roots: two more roundings"
_CONTRACTED_C = "its compiler contracts multiply and add, and a row's squares are summed in float32"
_KERAS_TF = ("tensorflow", "keras")
PEERS = [
    Spec("NumPy formula", "numpy", "bench.peers_numpy:Formula", (), _ALL, 0.0, _EXACT),
    Spec("adagrad.torch", "torch", "bench.peers_torch:Face", ("torch",), _ALL, 0.0, _EXACT, each_thread_count=True),
    Spec("torch.optim fused", "torch", "bench.peers_torch:Fused", ("torch",), _FLAT, 6.0, _ROUNDED, each_thread_count=True),
    Spec("torch.optim foreach", "torch", "bench.peers_torch:Foreach", ("torch",), _FLAT, 6.0, _ROUNDED),
    Spec("torch.optim loop", "torch", "bench.peers_torch:Loop", ("torch",), _FLAT, 6.0, _ROUNDED),
    Spec("torch.optim sparse", "torch", "bench.peers_torch:Sparse", ("torch",), ("rows",), 6.0, _ROUNDED,
         each_thread_count=True, reordered=100.0),
    Spec("Keras on PyTorch", "torch", "bench.peers_keras:OnTorch", ("torch", "keras"), _TRAINED, 6.0, _ROUNDED, tables=6),
    Spec("FBGEMM EXACT_ADAGRAD", "fbgemm", "bench.peers_fbgemm:Exact", ("torch", "fbgemm_gpu"), ("rows",), 6.0,
         _CONTRACTED_C),
    Spec("FBGEMM EXACT_ROWWISE_ADAGRAD", "fbgemm", "bench.peers_fbgemm:ExactRowwise", ("torch", "fbgemm_gpu"), ("rows",),
         6.0, _CONTRACTED_C),
    Spec("adagrad.jax", "jax", "bench.peers_jax:Face", ("jax", "optax"), _ALL, 8.0, _CONTRACTED),
    Spec("adagrad.jax, array code", "jax", "bench.peers_jax:ArrayCode", ("jax", "optax"), ("rows",), 8.0, _CONTRACTED),
    Spec("JAX by hand, jnp.unique", "jax", "bench.peers_jax:ByHand", ("jax", "optax"), ("rows",), 8.0, _CONTRACTED),
    Spec("optax, jit, donated", "jax", "bench.peers_jax:Optax", ("jax", "optax"), _ALL, 8.0, _CONTRACTED, tables=5),
    Spec("Keras on JAX", "jax", "bench.peers_keras:OnJax", ("jax", "keras"), _TRAINED, 8.0, _CONTRACTED, tables=4),
    Spec("TensorFlow's kernel", "tensorflow", "bench.peers_tensorflow:Kernel", ("tensorflow",), _ALL, 6.0, _ROUNDED),
    Spec("Keras on TensorFlow", "tensorflow", "bench.peers_keras:OnTensorFlow", _KERAS_TF, _TRAINED, 8.0, _CONTRACTED,
         repeats=False, tables=4),
    Spec("Keras on TensorFlow, XLA", "tensorflow", "bench.peers_keras:OnTensorFlowXla", _KERAS_TF, _ALL, 8.0,
         _CONTRACTED, repeats=False, tables=5),
]  # fmt: skip


def missing(spec: Spec) -> str | None:
    """Why ``spec`` can't run here, or None."""
    absent = [name for name in spec.needs if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


def of(section: str, process: str) -> list[Spec]:
    """The lines of the table for ``section`` that run in ``process``."""
    return [spec for spec in PEERS if section in spec.sections and spec.process == process]


class Ours(Peer):
    """Ours, as the peers are: `adagrad.Adagrad` on NumPy arrays."""

    def __init__(self, parameters: Sequence[np.ndarray], *, copy: bool = True, **settings: Any) -> None:
        self.parameters = [p.copy() if copy else p for p in parameters]
        self.optimizer = adagrad.Adagrad(**{**SETTINGS, **settings})
        self.optimizer.build(self.parameters)

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """The list itself."""
        return list(gradients)

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """`adagrad.IndexedSlices`."""
        return [adagrad.IndexedSlices(values, ids)]

    def step(self, gradient: Any) -> None:
        """`adagrad.Adagrad.apply`."""
        self.optimizer.apply(gradient, self.parameters)

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """The array, or a copy of its rows."""
        return self.parameters[number] if rows is None else self.parameters[number][rows]

    def turn(self, threads: int) -> contextlib.AbstractContextManager[object]:
        """On pinned threads."""
        return harness.own_threads(threads)


# -- agreement ---------------------------------------------------------------------------------------------------------


def ulps(size: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest distance in units in the last place of float32, at the largest of the three; NaN counts as infinity."""
    worst = 0.0
    flat = [np.asarray(x).reshape(-1) for x in (size, ours, theirs)]
    for lo in range(0, flat[0].size, 1 << 20):
        p, a, b = (x[lo : lo + (1 << 20)] for x in flat)
        unit = np.spacing(np.maximum(np.maximum(np.abs(p), np.abs(a)), np.abs(b)))
        distance = np.abs(a.astype(np.float64) - b) / unit
        worst = max(worst, float(np.where(np.isnan(distance), np.inf, distance).max()))
    return worst


def distance(size: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """How far the peer is from ours: in `ulps`, and the largest difference."""
    return {"ulp": ulps(size, ours, theirs), "off": float(np.abs(ours - theirs).max())}


def agreement(spec: Spec, section: str) -> dict[str, dict[str, float]]:
    """The distance to ours on small data, the worst of five steps: ``dense``; or ``rows`` (no id twice) and ``repeated``."""
    if section == "rows":
        return {"rows": _walk(spec, [(40, 8)], False), "repeated": _walk(spec, [(40, 8)], True)}
    return {"dense": _walk(spec, [(17,), (5, 3), (1,)], None)}


def _walk(spec: Spec, shapes: Sequence[tuple[int, ...]], repeat: bool | None) -> dict[str, float]:
    """Five steps of the peer and of ours side by side; ``repeat`` None: dense gradients, else whether ids repeat."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    start = [normal(*shape) for shape in shapes]
    # The largest that each element has been: an error made there does not shrink when the parameter comes near 0.
    largest = [np.abs(p) for p in start]
    peer = spec.make(start)
    ours = Ours(start, **peer.settings())
    found: list[dict[str, float]] = []
    for _ in range(5):
        if repeat is None:
            gradients = [normal(*shape) for shape in shapes]
            ours.step(ours.dense(gradients))
            peer.step(peer.dense(gradients))
        else:
            ids = rng.integers(0, 10, 16) if repeat else rng.permutation(40)[:16]
            values = normal(16, 8)
            ours.step(ours.rows(values, ids))
            peer.step(peer.rows(values, ids))
        peer.wait()
        for k, size in enumerate(largest):
            found.append(distance(size, ours.read(k), peer.read(k)))
            np.maximum(size, np.abs(ours.read(k)), out=size)
    return {key: max(each[key] for each in found) for key in found[0]}


def judge(spec: Spec, found: dict[str, dict[str, float]]) -> str | None:
    """Why a peer at these distances must not be timed, or None; repeated ids count only where the library sums them."""
    for kind, each in found.items():
        if not each["ulp"] <= spec.allowed(kind) and (spec.repeats or kind not in ("repeated", "timed rows")):
            return f"departs from ours on {kind} data by {each['ulp']:.3g} ULP, where {spec.allowed(kind):g} are allowed"
    return None
