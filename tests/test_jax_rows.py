"""Row gradients in the JAX face: the sparse law, padding, no table-size temporary, and the engine's kernels inside jit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adagrad.jax import Adagrad, IndexedSlices, ffi, row_kernels, value_and_row_grad
from jax_tools import numpy_run
from plain import assert_same_bits

COUNT, WIDTH = 40, 5
CASES = {
    "plain": {},
    "clipnorm, decay": {"clipnorm": 0.7, "weight_decay": 0.1},
    "global_clipnorm, EMA": {"global_clipnorm": 0.9, "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2},
    "clipvalue, l2, loss scale": {"clipvalue": 0.4, "weight_decay": 0.1, "weight_decay_mode": "l2", "loss_scale_factor": 3.0},
    "row-wise": {"row_wise": True, "epsilon_placement": "outside", "epsilon": 0.01},
}
# Operations in another order and contracted ones: over three steps, a few roundings of the largest number in play.
TOLERANCE = {"rtol": 2e-6, "atol": 2e-6}


def batch(seed, dtype=np.float32, padding=2):
    """A table, and for three steps values and ids; ids repeat, some are padding with values that must not matter."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(COUNT, WIDTH)).astype(dtype)
    steps = []
    for _ in range(3):
        ids = rng.integers(0, COUNT, 12).astype(np.int32)
        ids[5] = ids[9] = ids[0]
        values = (2 * rng.normal(size=(12, WIDTH))).astype(dtype)
        if padding:
            ids[-padding:] = COUNT
            values[-padding:] = np.nan
        steps.append((values, ids))
    return table, steps


def run(optimizer, table, gradients):
    params = {"t": jnp.asarray(table)}
    state = optimizer.init(params)
    step = jax.jit(lambda params, state, grads: optimizer.apply(grads, state, params), donate_argnums=(0, 1))
    for gradient in gradients:
        params, state = step(params, state, {"t": gradient})
    assert step._cache_size() == 1
    return params["t"], state


def on_numpy(arguments, table, steps):
    kept = [{"t": IndexedSlices(values[ids < COUNT], ids[ids < COUNT])} for values, ids in steps]
    arrays, optimizer = numpy_run({"learning_rate": 0.3, **arguments}, {"t": table}, kept)
    return arrays["t"], optimizer.variables[2:]


@pytest.fixture
def array_code(monkeypatch):
    monkeypatch.setenv("ADAGRAD_JAX_KERNELS", "0")
    assert row_kernels() == "array code: ADAGRAD_JAX_KERNELS is 0"


@pytest.mark.parametrize("name", CASES)
def test_kernels_inside_jit_have_the_bits_of_the_engine(name):
    assert row_kernels() == "compiled"
    table, steps = batch(1)
    found, state = run(Adagrad(0.3, **CASES[name]), table, [IndexedSlices(*each) for each in steps])
    expected, arrays = on_numpy(CASES[name], table, steps)
    kept = [tree["t"] for tree in (state.average, state.accumulator) if tree is not None]
    for array, wanted in zip([found, *kept], [expected, *arrays], strict=True):
        if "norm" in name:  # the factor of clipping is taken in float32
            np.testing.assert_allclose(array, wanted, **TOLERANCE)
        else:
            assert_same_bits(array, wanted)


@pytest.mark.parametrize("name", CASES)
def test_array_code_does_what_the_kernels_do(name, array_code):
    table, steps = batch(1)
    found, state = run(Adagrad(0.3, **CASES[name]), table, [IndexedSlices(*each) for each in steps])
    expected, arrays = on_numpy(CASES[name], table, steps)
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    kept = [tree["t"] for tree in (state.average, state.accumulator) if tree is not None]
    for array, wanted in zip(kept, arrays, strict=True):
        np.testing.assert_allclose(array, wanted, **TOLERANCE)


@pytest.mark.parametrize(("dtype", "compiled"), [("bfloat16", "1"), ("float16", "0")])
def test_half_tables(dtype, compiled, monkeypatch):
    monkeypatch.setenv("ADAGRAD_JAX_KERNELS", compiled)
    table, steps = batch(2, jnp.dtype(dtype))
    found, _ = run(Adagrad(0.3, weight_decay=0.1), table, [IndexedSlices(*each) for each in steps])
    expected, _ = on_numpy({"weight_decay": 0.1}, table, steps)
    if compiled == "1":
        assert_same_bits(found, expected)
    different = np.asarray(found) != expected
    assert different.mean() <= 0.02
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=2 * float(jnp.finfo(dtype).eps))


def test_rows_are_the_equal_dense_gradient_under_accumulation():
    table, steps = batch(3, padding=0)
    arguments = {"gradient_accumulation_steps": 2, "clipnorm": 0.5, "weight_decay": 0.1, "loss_scale_factor": 2.0}
    dense = [jnp.zeros_like(table).at[ids].add(values) for values, ids in steps] * 2
    rows, state = run(Adagrad(0.3, **arguments), table, [IndexedSlices(*each) for each in steps * 2])
    equal, other = run(Adagrad(0.3, **arguments), table, dense)
    np.testing.assert_allclose(rows, equal, **TOLERANCE)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **TOLERANCE), state, other)
    assert not np.asarray(state.gradient_accumulator["t"]).any()


def test_no_temporary_of_the_size_of_the_table(monkeypatch):
    """From XLA's own analysis of what it compiled, with everything donated."""
    rows, n = 20_000, 16
    table = rows * 64 * 4
    spec = jax.ShapeDtypeStruct

    def analysis(optimizer, dense):
        params = spec((rows, 64), jnp.float32)
        state = jax.eval_shape(optimizer.init, params)
        grads = params if dense else IndexedSlices(spec((n, 64), jnp.float32), spec((n,), jnp.int32))
        step = jax.jit(lambda params, state, grads: optimizer.apply(grads, state, params), donate_argnums=(0, 1))
        return step.lower(params, state, grads).compile().memory_analysis()

    # Decay, with l2 and by array code, moves every row by rows that it has yet to read: it has one such array.
    for compiled, arguments in (
        ("1", {}),
        ("1", {"weight_decay": 0.1, "weight_decay_mode": "l2", "global_clipnorm": 1.0, "use_ema": True}),
        ("0", {}),
        ("0", {"weight_decay": 0.1, "clipnorm": 1.0, "use_ema": True, "ema_overwrite_frequency": 2}),
    ):
        monkeypatch.setenv("ADAGRAD_JAX_KERNELS", compiled)
        found = analysis(Adagrad(0.1, **arguments), dense=False)
        assert found.temp_size_in_bytes < table / 100, arguments
        assert found.output_size_in_bytes - found.alias_size_in_bytes < 1000
    found = analysis(Adagrad(0.1, clipnorm=1.0, weight_decay=0.1, use_ema=True), dense=True)
    assert found.temp_size_in_bytes < table / 100
    assert found.output_size_in_bytes - found.alias_size_in_bytes < 1000


def test_a_training_step():
    rng = np.random.default_rng(4)
    tables = {"word": jnp.asarray(rng.normal(size=(30, 4)).astype(np.float32)), "tag": jnp.ones(6)}
    params = {"w": jnp.asarray(rng.normal(size=4).astype(np.float32))}
    ids = {"word": jnp.array([[3, 3, 30], [7, 0, 3]], jnp.uint8), "tag": jnp.array([5, 2])}
    y = jnp.array([1.0, -1.0])

    def loss(params, rows, y):
        predicted = rows["word"].sum(1) @ params["w"] + rows["tag"]
        return jnp.mean((predicted - y) ** 2), predicted

    def whole(params, tables):
        padded = jnp.concatenate([tables["word"], jnp.zeros((1, 4))])
        return loss(params, {"word": padded[ids["word"].astype(int)], "tag": tables["tag"][ids["tag"]]}, y)[0]

    (value, predicted), grads, row_grads = value_and_row_grad(loss, has_aux=True)(params, tables, ids, y)
    expected = jax.grad(whole, (0, 1))(params, tables)
    np.testing.assert_allclose(value, whole(params, tables), rtol=1e-6)
    assert predicted.shape == (2,)
    np.testing.assert_allclose(grads["w"], expected[0]["w"], rtol=1e-6)
    assert row_grads["word"].values.shape == (6, 4)
    optimizer = Adagrad(0.1, global_clipnorm=0.5)
    state = optimizer.init((params, tables))

    @jax.jit
    def train(params, tables, state, ids, y):
        (value, _), grads, row_grads = value_and_row_grad(loss, has_aux=True)(params, tables, ids, y)
        (params, tables), state = optimizer.apply((grads, row_grads), state, (params, tables))
        return params, tables, state, value

    found = train(params, tables, state, ids, y)
    wanted, _ = jax.jit(optimizer.apply)(expected, state, (params, tables))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **TOLERANCE), found[:2], wanted)

    with pytest.raises(ValueError, match="tables and ids must have the same keys"):
        value_and_row_grad(loss)(params, tables, {"word": ids["word"]}, y)
    with pytest.raises(ValueError, match=r"ids\['tag'\] must be in \[0, 6\), or 6 for padding, got 7"):
        value_and_row_grad(loss)(params, tables, {**ids, "tag": jnp.array([7])}, y)


@pytest.mark.parametrize("compiled", ["1", "0"])
def test_odd_batches(compiled, monkeypatch):
    monkeypatch.setenv("ADAGRAD_JAX_KERNELS", compiled)
    optimizer = Adagrad(1.0, 0.0, 0.0)
    p = jnp.zeros((4, 2))
    step = jax.jit(optimizer.apply)
    state = optimizer.init(p)
    # Ids that only a compiled step meets: outside of the table, they touch nothing.
    values = jnp.array([[1.0, 0.0], [2.0, 2.0], [5.0, 5.0], [1.0, 1.0]])
    found, state = step(IndexedSlices(values, jnp.array([0, -1, 9, 4])), state, p)
    assert found.tolist() == [[-1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    found, _ = step(IndexedSlices(jnp.zeros((0, 2)), jnp.zeros(0, jnp.int32)), state, p)
    assert not found.any()
    for shape, gradient in (((3,), IndexedSlices(jnp.ones(2), [1, 1])), ((0, 2), IndexedSlices(jnp.ones((1, 2)), [0])),
                            ((3, 0), IndexedSlices(jnp.ones((1, 0)), [0])), ((2, 2, 2), IndexedSlices(jnp.ones((1, 2, 2)), [1]))):  # fmt: skip
        p = jnp.zeros(shape)
        found, _ = step(gradient, optimizer.init(p), p)
        expected = np.zeros(shape)
        if p.size:
            expected[1] = -1.0
        assert found.tolist() == expected.tolist()


def test_differentiated_and_mapped_steps_by_rows():
    optimizer = Adagrad(0.5, clipnorm=1.0)
    ids, p = jnp.array([1, 1, 3, 4]), jnp.ones((4, 2))
    values = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32))

    def after(values):
        new, _ = optimizer.apply(IndexedSlices(values, ids), optimizer.init(p), p)
        return (new * jnp.arange(8.0).reshape(4, 2)).sum()

    def dense(values):
        g = jnp.zeros((5, 2)).at[ids].add(values)[:4]
        new, _ = optimizer.apply(g, optimizer.init(p), p)
        return (new * jnp.arange(8.0).reshape(4, 2)).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(after))(values), jax.jit(jax.grad(dense))(values), rtol=1e-4, atol=1e-5)
    two, one = jax.jit(jax.vmap(after))(jnp.stack([values, 2 * values])), jax.jit(after)
    np.testing.assert_allclose(two, [one(values), one(2 * values)], rtol=1e-6)


# -- the interface to XLA ----------------------------------------------------------------------------------------------


def test_the_layout_is_that_of_the_headers():
    layout = ffi.read_layout()
    # As a compiler lays these structs out on a 64-bit machine; worked out by hand from c_api.h of jaxlib 0.10.
    assert layout.struct_size("XLA_FFI_Args") == 40
    assert layout.struct_size("XLA_FFI_Buffer") == 48
    assert layout.struct_size("XLA_FFI_CallFrame") == 168
    assert layout.offset("XLA_FFI_CallFrame", "args", "args") == 72
    assert layout.offset("XLA_FFI_CallFrame", "rets", "rets") == 112
    assert layout.offset("XLA_FFI_Buffer", "data") == 24  # behind a dtype of 4 bytes and 4 unused
    assert layout.offset("XLA_FFI_Metadata", "api_version", "minor_version") == 28
    made_up = ffi.Layout(
        """typedef enum { X_A = 3, X_B = 5, } E; typedef uint32_t T; // struct S { int wrong; };
        struct S { size_t n; E e; T t[2]; };
        struct U { E e; /* struct V { } */ const U* next; int64_t count; T last; };
        XLA_FFI_DEFINE_STRUCT_TRAITS(U, count);"""
    )
    assert made_up.offset("U", "next") == 8
    assert made_up.struct_size("U") == 24
    assert made_up.constant("X_B") == 5
    for ask, message in (
        (lambda: made_up.offset("S", "n"), "isn't understood: 'T t"),
        (lambda: made_up.offset("U", "gone"), "no field gone"),
        (lambda: made_up.offset("W", "x"), "no struct W"),
        (lambda: made_up.constant("X_C"), "no single value of X_C"),
        (lambda: made_up.struct_size("V"), "no struct V"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("int64_t* dims;", "", "no field dims"),
        ("XLA_FFI_Args args;", "XLA_FFI_Args args; int64_t more;", "version mismatch|API version"),
        ("#define XLA_FFI_API_MAJOR 0", "#define XLA_FFI_API_MAJOR 1", "version 1 of XLA's interface"),
    ],
    ids=["a field is gone", "the struct has grown", "another major version"],
)
def test_headers_that_do_not_fit_mean_array_code(monkeypatch, old, new, reason):
    text = ffi.read_layout()._text
    assert text.count(old) == 1
    monkeypatch.setattr(ffi, "read_layout", lambda: ffi.Layout(text.replace(old, new)))
    monkeypatch.setattr(ffi, "_registered", {})
    monkeypatch.setattr(ffi, "PROBE", f"adagrad_probe_{len(new)}_{len(old)}")
    ffi.why_not.cache_clear()
    try:
        assert ffi.why_not() is not None
        assert re.search(reason, ffi.why_not()), ffi.why_not()
        table, steps = batch(1)
        found, _ = run(Adagrad(0.3), table, [IndexedSlices(*steps[0])])
        expected, _ = on_numpy({}, table, steps[:1])
        np.testing.assert_allclose(found, expected, **TOLERANCE)
    finally:
        ffi.why_not.cache_clear()
