"""Training with Keras: `fit` and the optimizer alone, `adagrad.keras.Adagrad` beside `keras.optimizers.Adagrad`.

Two models: dense layers, and an embedding table with one output. Both optimizers train models of equal weights on equal
batches; that they agree, on a batch without repeated ids, is checked before anything is timed. On JAX the embedding model is
also trained by `row_train_step`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from adagrad import IndexedSlices
from adagrad.keras import Adagrad, Embedding, row_train_step
from bench import harness, peers
from bench.candidates import Skipped, case
from bench.harness import THREADS, Candidate
from bench.rows import WIDTH, draw

__all__ = ["BATCHES", "run"]

BATCHES = 8  # of one call of fit
_LAYERS = 4
# After one batch, at the size of the largest entry of each array; 1 was measured.
_ULP = 4.0
_WHY = "rounded in other places; the programs that other optimizers are compiled into may sum gradients in another order"
_BY_ROWS = "ours by rows"


def run(process: str, *, width: int, batch: int, rows: int, ids: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Two cases on the backend of this process: layers of ``width``, and a table of ``rows`` with ``ids`` a batch."""
    assert keras.backend.backend() == process
    rng = np.random.default_rng(1)
    x = rng.standard_normal((BATCHES * batch, width), np.float32)
    title = f"{_LAYERS} dense layers of {width:,}, batches of {batch:,}"
    dense = _case(title, ("Keras", "ours"), lambda kind: _dense_model(width), x, rng, rounds, seconds)
    x = draw(rng, "zipf", rows, BATCHES * ids).astype(np.int32)[:, None]
    x[:ids, 0] = rng.permutation(rows)[:ids]  # the first batch, by which they are compared
    title = f"an embedding of {rows:,} x {WIDTH}, batches of {ids:,} zipf ids"
    kinds = ("Keras", "ours", _BY_ROWS) if process == "jax" else ("Keras", "ours")
    return [dense, _case(title, kinds, lambda kind: _embedding_model(kind, rows), x, rng, rounds, seconds)]


def _dense_model(width: int) -> keras.Model:
    hidden = [keras.layers.Dense(width, "relu") for _ in range(_LAYERS)]
    return keras.Sequential([keras.Input((width,)), *hidden, keras.layers.Dense(1)])


class _RowModel(keras.Model):
    def train_step(self, state: Any, data: Any) -> Any:
        """By row gradients."""
        return row_train_step(self, state, data)


def _embedding_model(kind: str, rows: int) -> keras.Model:
    inputs = keras.Input((1,), dtype="int32")
    embedding = keras.layers.Embedding if kind == "Keras" else Embedding
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(embedding(rows, WIDTH)(inputs)))
    return (_RowModel if kind == _BY_ROWS else keras.Model)(inputs, outputs)


@contextlib.contextmanager
def _turn(kind: str) -> Iterator[None]:
    """All threads: PyTorch's, and on PyTorch ours, each on a processor of its own."""
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "torch":
            from bench.peers_torch import torch_threads

            stack.enter_context(torch_threads(THREADS[-1]))
            if kind != "Keras":
                stack.enter_context(harness.own_threads(THREADS[-1]))
        yield


def _case(
    title: str,
    kinds: tuple[str, ...],
    make: Callable[[str], keras.Model],
    x: np.ndarray,
    rng: np.random.Generator,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    batch = len(x) // BATCHES
    y = rng.standard_normal((len(x), 1), np.float32)
    models: dict[str, keras.Model] = {}
    for kind in kinds:
        model = make(kind)
        model.compile((keras.optimizers.Adagrad if kind == "Keras" else Adagrad)(**peers.SETTINGS), "mse")
        if models:
            model.set_weights(models["Keras"].get_weights())
        models[kind] = model
    for kind, model in models.items():
        with _turn(kind):
            _fit(model, x[:batch], y[:batch], batch)
    distances: dict[str, Any] = {}
    skipped: Skipped = []
    for kind in kinds[1:]:
        found = _distance(models["Keras"], models[kind])
        distances[kind] = {"allowed_ulp": _ULP, "why": _WHY, "found": {"timed": found}}
        if not found["ulp"] <= _ULP:
            reason = f"departs from Keras by {found['ulp']:.3g} ULP, where {_ULP:g} are allowed"
            skipped.append({"name": kind, "reason": reason})
            del models[kind]
    candidates = []
    for kind, model in models.items():
        step = _optimizer_step(model, x[batch : 2 * batch], y[batch : 2 * batch])
        fit = functools.partial(_fit, model, x, y, batch)
        ways: tuple[tuple[str, Callable[[], object], dict[str, int]], ...] = (
            (f"fit of {BATCHES} batches", fit, {}),
            ("the optimizer alone", step, {"steps": 3, "warm": 1}),
        )
        for way, call, options in ways:
            against = f"Keras, {way}" if kind != "Keras" else None
            turn = functools.partial(_turn, kind)
            candidates.append(Candidate(f"{kind}, {way}", lambda _, f=call: f(), lambda: None, against, turn=turn, **options))
    times = harness.interleave(candidates, rounds=rounds, seconds=seconds)
    return case(title, candidates, times, distances, process=keras.backend.backend(), skipped=skipped)


def _fit(model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int) -> None:
    model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)


def _distance(keras_model: keras.Model, ours: keras.Model) -> dict[str, float]:
    """The worst over the trainable weights."""
    found = []
    for theirs, mine in zip(keras_model.trainable_variables, ours.trainable_variables, strict=True):
        a, b = (keras.ops.convert_to_numpy(v.value) for v in (mine, theirs))
        found.append(peers.distance(np.full_like(a, np.abs(a).max()), a, b))
    return {key: max(each[key] for each in found) for key in found[0]}


def _optimizer_step(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    """A step of the model's optimizer by gradients as the training loop hands them to it, of one batch."""
    make = {"tensorflow": _tensorflow_step, "jax": _jax_step, "torch": _torch_step}[keras.backend.backend()]
    return make(model, x, y)


def _tensorflow_step(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    import tensorflow as tf

    optimizer, variables = model.optimizer, model.trainable_variables

    @tf.function
    def gradients_of(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        return tape.gradient(loss, [v.value for v in variables])

    found = gradients_of(tf.constant(x), tf.constant(y))
    step: Callable[[], object] = tf.function(lambda: optimizer.apply(found, variables))
    return step


def _torch_step(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    import torch

    optimizer, variables = model.optimizer, model.trainable_variables
    model.zero_grad()
    (model(torch.from_numpy(x)) - torch.from_numpy(y)).square().mean().backward()
    found = [v.value.grad for v in variables]

    def step() -> None:
        with torch.no_grad():
            optimizer.apply(found, variables)

    return step


def _jax_step(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    """Compiled, with everything donated, as in ``fit``; the numbers of the gradients, which don't matter, are made up."""
    import jax
    import jax.numpy as jnp

    optimizer = model.optimizer
    # Copies: what a call is given is given away.
    kept = [[jnp.array(v.value) for v in part] for part in (model.trainable_variables, optimizer.variables)]
    found: list[Any] = [jnp.full(v.shape, 1e-3) for v in kept[0]]
    ids = jnp.array(x[:, 0])
    if isinstance(model, _RowModel):
        found[0] = jnp.full((len(x), WIDTH), 1e-3)

    def apply(parameters: Any, state: Any, gradients: Any) -> Any:
        if isinstance(model, _RowModel):
            gradients = [IndexedSlices(gradients[0], ids), *gradients[1:]]
        return optimizer.stateless_apply(state, gradients, parameters)

    compiled = jax.jit(apply, donate_argnums=(0, 1))

    def step() -> None:
        kept[:] = compiled(*kept, found)
        jax.block_until_ready(kept)

    return step
