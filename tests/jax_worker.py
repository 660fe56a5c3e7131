"""What needs a JAX of its own: ``python jax_worker.py sharding`` with 8 virtual devices, and ``double`` with x64 on."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adagrad
from adagrad.jax import Adagrad, IndexedSlices, counting, rates, row_kernels, value_and_row_grad
from jax_tools import numpy_run

ARGUMENTS = {"learning_rate": 0.3, "clipnorm": 0.7, "weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.8}
TOLERANCE = {"rtol": 3e-6, "atol": 3e-6}


def sharding():
    """Data parallel, row-sharded and column-sharded: the numbers of one device, and everything stays where it was."""
    assert jax.device_count() == 8
    assert row_kernels() == "array code: there are 8 devices, and parameters may be sharded"
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    start = {
        "rows": rng.normal(size=(64, 16)).astype(np.float32),
        "columns": rng.normal(size=(24, 16)).astype(np.float32),
        "replicated": rng.normal(size=16).astype(np.float32),
    }
    places = {"rows": P("x", None), "columns": P(None, "x"), "replicated": P()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in places.items()}
    data = [
        (rng.integers(0, 65, (32, 2)).astype(np.int32), rng.integers(0, 24, 32).astype(np.int32), rng.normal(size=32))
        for _ in range(3)
    ]

    def loss(params, rows, y):
        return jnp.mean((((rows["rows"].sum(1) + rows["columns"]) * params).sum(-1) - y) ** 2)

    arguments = ARGUMENTS | {"clipnorm": None, "global_clipnorm": 0.2, "row_wise": True}
    optimizer = Adagrad(**arguments)

    @jax.jit
    def train(params, state, ids, y):
        tables = {name: params[name] for name in ids}
        _, grad, row_grads = value_and_row_grad(loss)(params["replicated"], tables, ids, y)
        return optimizer.apply({**row_grads, "replicated": grad}, state, params)

    def trained(place):
        params = {name: place(array, name) for name, array in start.items()}
        state = optimizer.init(params)
        for ids_rows, ids_columns, y in data:
            batch = [place(x.astype(np.float32) if x.dtype == np.float64 else x, None) for x in (ids_rows, ids_columns, y)]
            params, state = train(params, state, {"rows": batch[0], "columns": batch[1]}, batch[2])
        return params, state

    one = trained(lambda array, name: jnp.asarray(array))
    eight = trained(lambda array, name: jax.device_put(array, shardings[name] if name else NamedSharding(mesh, P("x"))))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **TOLERANCE), eight, one)
    params, state = eight
    for name, where in shardings.items():
        for tree in (params, state.average, state.gradient_accumulator):
            if tree is not None:
                assert tree[name].sharding.is_equivalent_to(where, tree[name].ndim), (name, tree[name].sharding)
    assert state.accumulator["rows"].sharding.is_equivalent_to(NamedSharding(mesh, P("x")), 1)
    assert (
        Adagrad()
        .init({name: jax.device_put(a, shardings[name]) for name, a in start.items()})
        .accumulator["rows"]
        .sharding.is_equivalent_to(shardings["rows"], 2)
    )


def double():
    """float64 is computed in float64, and rates and norms are; the row kernels have the engine's bits."""
    rng = np.random.default_rng(1)
    params = {"w": rng.normal(size=(20, 4)), "single": rng.normal(size=5).astype(np.float32)}
    rate = adagrad.schedules.CosineDecayRestarts(0.3, 7, t_mul=1.5)
    arguments = {"learning_rate": rate, "weight_decay": 0.1}
    optimizer = Adagrad(**arguments)
    tree = {name: jnp.asarray(array) for name, array in params.items()}
    assert tree["w"].dtype == jnp.float64
    state = optimizer.init(tree)
    assert {name: a.dtype.name for name, a in state.accumulator.items()} == {"w": "float64", "single": "float32"}
    calls = []
    for k in range(4):
        ids = rng.integers(0, 20, 6)
        w = IndexedSlices(rng.normal(size=(6, 4)), ids) if k % 2 else rng.normal(size=(20, 4))
        calls.append({"w": w, "single": rng.normal(size=5)})
    step = jax.jit(optimizer.apply)
    for grads in calls:
        tree, state = step(grads, state, tree)
    arrays, _ = numpy_run(arguments, params, calls)
    assert tree["w"].dtype == jnp.float64
    np.testing.assert_allclose(tree["w"], arrays["w"], rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(tree["single"], arrays["single"], rtol=2e-6, atol=2e-6)
    for calls_so_far in (0, 5, 7, 17, 10**6, 2**40):
        found = rates.rate_at(rate, counting.of(calls_so_far))
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, rate(calls_so_far), rtol=1e-11)
    huge = Adagrad(1.0, 0.0, 0.0, clipnorm=1.0)
    _, state = huge.apply(jnp.array([3e200, -4e200]), huge.init(jnp.zeros(2)), jnp.zeros(2))
    np.testing.assert_allclose(state.accumulator, [0.36, 0.64], rtol=1e-14)
    assert row_kernels() == "compiled"
    plain = Adagrad(0.3)
    w, values = jnp.asarray(params["w"]), rng.normal(size=(3, 4))
    arrays, _ = numpy_run({"learning_rate": 0.3}, {"w": w}, [{"w": IndexedSlices(values, np.array([3, 3, 7]))}])
    found, _ = jax.jit(plain.apply)(IndexedSlices(values, np.array([3, 3, 7], np.uint64)), plain.init(w), w)
    assert np.asarray(found).tobytes() == arrays["w"].tobytes()


if __name__ == "__main__":
    {"sharding": sharding, "double": double}[sys.argv[1]]()
