"""Training with Keras: `fit` and the optimizer alone, `adagrad.keras.Adagrad` beside `keras.optimizers.Adagrad`.

    python -m bench.keras_fit                      # each backend in a process of its own; stores bench/results/keras.json
    python -m bench.keras_fit --quick --out FILE   # small sizes, to see that it runs; measures nothing
    python -m bench.keras_fit --backends torch     # one backend

Two models: dense layers, and an embedding table with one output. Both optimizers train models of equal weights on equal
batches; that they agree, on a batch without repeated ids, is checked before anything is timed. On JAX the embedding model is
also trained by `row_train_step`. The optimizer alone steps by the gradients that Keras hands it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness
from bench.harness import Candidate
from bench.plan import environment

ROOT = Path(__file__).parents[1]
BACKENDS = ("tensorflow", "jax", "torch")
BATCHES = 8  # of one call of fit
AGREE = 2e-5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.keras_fit", description="Time training with Keras.")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; measures nothing")
    parser.add_argument("--out", type=Path, help="store the results there (required with --quick)")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--here", action="store_true", help="run in this process, and print the cases as JSON")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(run(given.backends[0], quick=given.quick)))
        return
    if given.quick and given.out is None:
        parser.error("--quick needs --out FILE: its figures must not stand where measured ones do")
    cases: list[dict[str, Any]] = []
    for backend in given.backends:
        command = [sys.executable, "-m", "bench.keras_fit", "--here", "--backends", backend, *["--quick"] * given.quick]
        variables = os.environ | environment(backend)
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{backend} failed:\n{done.stderr[-3000:]}")
        for found in json.loads(done.stdout.splitlines()[-1]):
            cases.append(found)
            print(f"{found['case']} on {backend}; they agree within {found['distance']:.1e}")
            for entry in found["candidates"]:
                ratio = f"   {entry['ratio']['median']:8.2f} x {entry['against']}" if "ratio" in entry else ""
                print(f"    {entry['name']:<44} {entry['milliseconds']['median']:10.2f} ms{ratio}")
    about = {"quick": given.quick, "machine": harness.machine(), "versions": harness.versions(), "cases": cases}
    out = given.out or ROOT / "bench" / "results" / "keras.json"
    out.write_text(json.dumps(about, indent=1) + "\n")


def run(backend: str, *, quick: bool) -> list[dict[str, Any]]:
    """All cases of a backend, whose process this is."""
    import keras

    assert keras.backend.backend() == backend
    seconds, rounds = (0.0, 3) if quick else (40.0, 15)
    rng = np.random.default_rng(1)
    width, batch = (16, 32) if quick else (1024, 512)
    x = rng.normal(size=(BATCHES * batch, width)).astype(np.float32)
    y = rng.normal(size=(len(x), 1)).astype(np.float32)
    dense = _case("dense layers", lambda kind: _dense_model(width), ("Keras", "ours"), x, y, batch, rounds, seconds)
    rows, dim, ids = (2000, 8, 64) if quick else (1_000_000, 64, 8192)
    x = (rng.zipf(1.2, size=(BATCHES * ids, 1)) % rows).astype(np.int32)
    x[:ids, 0] = rng.permutation(rows)[:ids]  # the first batch, by which they are compared
    y = rng.normal(size=(len(x), 1)).astype(np.float32)
    kinds = ("Keras", "ours", "ours, row_train_step") if backend == "jax" else ("Keras", "ours")
    title = f"an embedding of {rows:,} x {dim}, batches of {ids:,}"
    return [dense, _case(title, lambda kind: _embedding_model(kind, rows, dim), kinds, x, y, ids, rounds, seconds)]


def _dense_model(width: int) -> Any:
    import keras

    return keras.Sequential(
        [keras.Input((width,)), *[keras.layers.Dense(width, "relu") for _ in range(4)], keras.layers.Dense(1)]
    )


def _embedding_model(kind: str, rows: int, dim: int) -> Any:
    import keras

    from adagrad.keras import Embedding, row_train_step

    class RowModel(keras.Model):
        def train_step(self, state: Any, data: Any) -> Any:
            return row_train_step(self, state, data)

    inputs = keras.Input((1,), dtype="int32")
    embedding = keras.layers.Embedding if kind == "Keras" else Embedding
    model = RowModel if "row_train_step" in kind else keras.Model
    return model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(embedding(rows, dim)(inputs))))


def _case(
    title: str, make: Any, kinds: tuple[str, ...], x: np.ndarray, y: np.ndarray, batch: int, rounds: int, seconds: float
) -> dict[str, Any]:
    import keras

    from adagrad.keras import Adagrad

    models: dict[str, Any] = {}
    for kind in kinds:
        model = make(kind)
        model.compile(optimizer=(keras.optimizers.Adagrad if kind == "Keras" else Adagrad)(0.01), loss="mse")
        if models:
            for mine, theirs in zip(model.variables, models["Keras"].variables, strict=True):
                mine.assign(theirs)
        models[kind] = model
    for model in models.values():
        model.fit(x[:batch], y[:batch], batch_size=batch, shuffle=False, verbose=0)
    first = models["Keras"].trainable_variables
    distance = max(
        float(np.abs(keras.ops.convert_to_numpy(a) - keras.ops.convert_to_numpy(b)).max())
        for model in models.values()
        for a, b in zip(model.trainable_variables, first, strict=True)
    )
    if distance > AGREE:
        raise ValueError(f"{title}: the models depart from each other by {distance}, where {AGREE} is allowed")

    def fit(model: Any) -> Any:
        return lambda _: model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)

    candidates = [
        Candidate(f"{kind}, fit, {BATCHES} batches", fit(model), lambda: None, _against(kind, f"Keras, fit, {BATCHES} batches"))
        for kind, model in models.items()
    ]
    for kind, model in models.items():
        step = _optimizer_step(model, x[batch : 2 * batch], y[batch : 2 * batch])
        candidates.append(
            Candidate(f"{kind}, the optimizer alone", step, lambda: None, _against(kind, "Keras, the optimizer alone"), 3)
        )
    times = harness.interleave(candidates, rounds=rounds, seconds=seconds)
    return {
        "case": title,
        "process": keras.backend.backend(),
        "distance": distance,
        "candidates": harness.results(candidates, times),
    }


def _against(kind: str, other: str) -> str | None:
    return None if kind == "Keras" else other


def _optimizer_step(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """A step of the model's optimizer by the gradients of one batch, as the training loop hands them to it."""
    import keras

    backend, optimizer, variables = keras.backend.backend(), model.optimizer, model.trainable_variables
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def gradients_of(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x) - y))
            return tape.gradient(loss, [v.value for v in variables])

        found = gradients_of(tf.constant(x), tf.constant(y))
        apply = tf.function(lambda: optimizer.apply(found, variables))
        return lambda _: apply()
    if backend == "torch":
        import torch

        model.zero_grad()
        (model(torch.from_numpy(x)) - torch.from_numpy(y)).square().mean().backward()
        found = [v.value.grad for v in variables]

        def step(_: Any) -> None:
            with torch.no_grad():
                optimizer.apply(found, variables)

        return step
    import jax
    import jax.numpy as jnp

    from adagrad import IndexedSlices

    # Copies: what a call is given is given away.
    values, state = [jnp.array(v.value) for v in variables], [jnp.array(v.value) for v in optimizer.variables]
    if "RowModel" in type(model).__name__:
        found = [jnp.ones((len(x), values[0].shape[1])) * 1e-3, *[jnp.ones(v.shape) * 1e-3 for v in values[1:]]]
        ids = jnp.array(x[:, 0])
        compiled = jax.jit(
            lambda p, s, g: optimizer.stateless_apply(s, [IndexedSlices(g[0], ids), *g[1:]], p), donate_argnums=(0, 1)
        )
    else:
        found = [jnp.ones(v.shape) * 1e-3 for v in values]
        compiled = jax.jit(lambda p, s, g: optimizer.stateless_apply(s, g, p), donate_argnums=(0, 1))
    kept = [values, state]

    def stateless(_: Any) -> None:
        kept[:] = compiled(*kept, found)
        jax.block_until_ready(kept)

    return stateless


if __name__ == "__main__":
    main()
