"""What changes and what doesn't: arrays change where they lie, whatever their layout, and nothing else changes."""

import itertools
import tracemalloc
import warnings
import weakref

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import adagrad
from plain import DTYPES, PlainAdagrad, assert_same_bits
from strategies import LAYOUTS, laid_out

EVERYTHING = {
    "learning_rate": 0.3,
    "use_ema": True,
    "ema_momentum": 0.8,
    "ema_overwrite_frequency": 2,
    "gradient_accumulation_steps": 2,
    "global_clipnorm": 1.0,
    "weight_decay": 0.1,
    "loss_scale_factor": 3.0,
}
SETTINGS = [{"learning_rate": 0.3}, {"learning_rate": 0.3, "clipnorm": 1.0, "weight_decay": 0.1}, EVERYTHING]


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(DTYPES[dtype])


def rows_of(gradient, ids):
    return adagrad.IndexedSlices(gradient[ids], ids)


# ---- the variables and the state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "staged", "everything"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_variables_and_state_change_where_they_lie(dtype, settings):
    w = normal(6, 4, dtype=dtype)
    optimizer = adagrad.Adagrad(**settings)
    optimizer.build([w])
    arrays = [w, *optimizer.variables[2:]]
    places = [array.ctypes.data for array in arrays]
    before = [array.copy() for array in arrays]
    for seed in range(4):
        optimizer.apply([normal(6, 4, dtype=dtype, seed=seed)], [w])
    optimizer.apply([rows_of(normal(6, 4, dtype=dtype), [1, 1])], [w])  # under accumulation, the buffer has something
    after = [w, *optimizer.variables[2:]]
    assert [array.ctypes.data for array in after] == places
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("dtype", "state"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32")]
)
def test_state_is_wide_and_stays_wide(tmp_path, dtype, state):
    w = normal(3, 2, dtype=dtype)
    optimizer = adagrad.Adagrad(use_ema=True, gradient_accumulation_steps=2)
    for _ in range(3):
        optimizer.apply([np.ones_like(w)], [w])
    optimizer.save(tmp_path / "state")
    again = adagrad.Adagrad(use_ema=True, gradient_accumulation_steps=2)
    again.build([w])
    again.load(tmp_path / "state")
    again.set_weights(optimizer.variables)
    for array in (*optimizer.variables[2:], *again.variables[2:]):
        assert array.dtype == state
    assert w.dtype == DTYPES[dtype]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_half_accumulator_neither_stops_nor_loses_small_squares(dtype):
    # A bfloat16 accumulator stops at 256; the square of 2**-13 is 0 in float16.
    w = np.zeros(2, DTYPES[dtype])
    optimizer = adagrad.Adagrad(learning_rate=0.0, initial_accumulator_value=0.0)
    gradient = np.array([1.0, 2.0**-13]).astype(DTYPES[dtype])
    for _ in range(600):
        optimizer.apply([gradient], [w])
    np.testing.assert_array_equal(optimizer.variables[-1], np.float32([600, 600 * 2.0**-26]))


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "kind"), [((), "dense"), *itertools.product([(0,), (17,), (6, 5), (3, 4, 2)], ["dense", "rows"])]
)
def test_layouts_give_the_same_bits(layout, shape, kind):
    start = normal(*shape)
    w, plain = laid_out(start, layout), PlainAdagrad([start], EVERYTHING)
    strides, dtype = w.strides, w.dtype
    optimizer = adagrad.Adagrad(**EVERYTHING)
    for seed in range(5):
        g = normal(*shape, seed=seed)
        if kind == "rows":
            ids = np.arange(shape[0])[::-2]
            g[np.setdiff1d(np.arange(shape[0]), ids)] = 0
            optimizer.apply([rows_of(g, ids)], [w])
        else:
            optimizer.apply([laid_out(g, layout)], [w])
        plain.apply([g])
        assert_same_bits(w, plain.parameters[0])
        for array, expected in zip(optimizer.variables[2:], plain.state, strict=True):
            assert_same_bits(array, expected)
    assert (w.strides, w.dtype) == (strides, dtype)


@pytest.mark.parametrize("kind", ["dense", "rows"])
def test_gaps_of_a_strided_variable_stay_untouched(kind):
    big = normal(8, 9)
    before = big.copy()
    w = big[1::2, 1:8:3]
    g = normal(*w.shape)
    optimizer = adagrad.Adagrad(**EVERYTHING)
    for _ in range(4):
        optimizer.apply([g if kind == "dense" else rows_of(g, [3, 0, 3])], [w])
    mask = np.zeros(big.shape, bool)
    mask[1::2, 1:8:3] = True
    assert (big != before)[mask].any()
    np.testing.assert_array_equal(big[~mask], before[~mask])


@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_mapped_variables(tmp_path, dtype, kind):
    start = normal(50, 7, dtype=dtype)
    w = np.memmap(tmp_path / "table", start.dtype, "w+", shape=start.shape)
    w[...] = start
    settings = {"learning_rate": 0.3}
    optimizer, plain = adagrad.Adagrad(**settings), PlainAdagrad([start], settings)
    g = normal(50, 7, dtype=dtype, seed=1)
    g[20:] = 0
    for _ in range(2):
        optimizer.apply([g if kind == "dense" else rows_of(g, np.arange(20))], [w])
        plain.apply([g])
    w.flush()
    assert_same_bits(np.fromfile(tmp_path / "table", start.dtype).reshape(start.shape), plain.parameters[0])


def test_a_subclass_of_ndarray_is_a_variable():
    class Named(np.ndarray):
        pass

    w = np.ones(3).view(Named)
    adagrad.Adagrad(1.0, 0.0, 0.0).apply([np.ones(3).view(Named)], [w])
    assert type(w) is Named
    np.testing.assert_array_equal(w, [0.0, 0.0, 0.0])


def test_overlapping_extents_without_a_shared_element_are_two_variables():
    big = np.zeros((4, 2))
    left, right = big[:, 0], big[:, 1]
    adagrad.Adagrad(1.0, 0.0, 0.0).apply([np.ones(4), -np.ones(4)], [left, right])
    np.testing.assert_array_equal(big, [[-1.0, 1.0]] * 4)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "staged", "everything"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_never_written(layout, settings):
    g, values, ids = laid_out(normal(6, 4), layout), laid_out(normal(5, 4), layout), np.array([5, 0, 5, 2, 0])
    copies = [g.copy(), values.copy(), ids.copy()]
    for array in (g, values, ids) if settings is SETTINGS[0] else [g]:  # kernels of their own are compiled for such rows
        array.setflags(write=False)
    w, v = normal(6, 4), normal(6, 4)
    optimizer = adagrad.Adagrad(**settings)
    for _ in range(3):
        optimizer.apply([g, adagrad.IndexedSlices(values, ids)], [w, v])
    for array, copy in zip((g, values, ids), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8", "int64", "uint16"])
@pytest.mark.parametrize("kind", ["dense", "rows"])
def test_gradients_of_every_real_dtype_are_rounded_to_the_arithmetic(dtype, kind):
    g = np.array([[1.1, -2.7], [100.3, 3.0]]).astype(DTYPES.get(dtype, dtype))
    for stored in ("float64", "float32"):
        w, expected = np.ones((2, 2), stored), PlainAdagrad([np.ones((2, 2), stored)], {"learning_rate": 0.3})
        adagrad.Adagrad(0.3).apply([g if kind == "dense" else rows_of(g, [0, 1])], [w])
        expected.apply([g])
        assert_same_bits(w, expected.parameters[0])


@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize(
    "ids", [np.arange(8)[::2], np.arange(8)[::-2], np.broadcast_to(np.int64(3), 4), np.arange(4, dtype=">i8")]
)
def test_ids_of_every_layout(ids, writeable):
    if ids.flags.writeable:
        ids.setflags(write=writeable)
    w, expected = np.zeros((8, 2)), np.zeros((8, 2))
    adagrad.Adagrad(1.0, 0.0, 0.0).apply([adagrad.IndexedSlices(np.ones((4, 2)), ids)], [w])
    expected[ids] = -1.0
    np.testing.assert_array_equal(w, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_row_values_laid_out_as_their_variable(layout):
    w, g = laid_out(normal(6, 4), layout), laid_out(normal(2, 4), layout)
    p, expected = np.ones(3), PlainAdagrad([w.astype(w.dtype.newbyteorder("="))], {"learning_rate": 0.3})
    adagrad.Adagrad(0.3).apply([np.ones(3), adagrad.IndexedSlices(g, [4, 1])], [p, w])
    expected.apply([("rows", g.astype(g.dtype.newbyteorder("=")), np.array([4, 1]))])
    np.testing.assert_array_equal(w, expected.parameters[0])


def test_a_list_of_gradients_may_be_emptied_while_it_is_used():
    w, grads = np.zeros(1 << 20), [np.ones(1 << 20)]
    optimizer = adagrad.Adagrad(lambda: grads.clear() or 1.0, 0.0, 0.0)
    optimizer.build([w])
    optimizer.apply(grads, [w])
    assert (w == -1).all()


def test_gradients_may_be_lists_and_numbers():
    w, b = np.zeros((2, 2)), np.zeros(())
    adagrad.Adagrad(1.0, 0.0, 0.0).apply([[[1, 2], [0, -1]], 3], [w, b])
    np.testing.assert_array_equal(w, [[-1, -1], [0, 1]])
    assert b == -1


def _aliases(w):
    """Gradients in the memory of the variable itself, each with its name."""
    flat = w.reshape(-1)
    yield "itself", w
    yield "view", w[:]
    yield "backwards", w[::-1]
    yield "transposed", w.T
    yield "broadcast", np.broadcast_to(w[1], w.shape)
    yield "reinterpreted", flat.view(np.int32).reshape(w.shape)
    yield "rows", adagrad.IndexedSlices(w[:3], np.array([2, 2, 1]))
    yield "rows backwards", adagrad.IndexedSlices(w[::-1], np.array([0, 1, 2, 3]))


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "staged", "everything"])
@pytest.mark.parametrize("name", [name for name, _ in _aliases(np.zeros((4, 4), np.float32))])
@pytest.mark.parametrize("constrained", [False, True], ids=["", "constrained"])
def test_a_gradient_in_the_memory_of_its_variable_is_as_good_as_its_copy(name, settings, constrained):
    results = []
    for copied in (False, True):
        w = normal(4, 4)
        optimizer = adagrad.Adagrad(**settings)
        optimizer.build([w], [np.cbrt] if constrained else None)
        for _ in range(3):
            g = dict(_aliases(w))[name]
            if copied:
                g = adagrad.IndexedSlices(g.values.copy(), g.indices) if isinstance(g, adagrad.IndexedSlices) else g.copy()
            optimizer.apply([g], [w])
        results.append([w, *optimizer.variables[2:]])
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected, name)


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "staged", "everything"])
def test_gradients_in_the_memory_of_other_variables_and_of_the_state(settings):
    results = []
    for copied in (False, True):
        p, q, big = normal(5, seed=1), normal(5, seed=2), normal(20, seed=3)
        r, s = big[3:8], big[10:15]
        optimizer = adagrad.Adagrad(**settings)
        optimizer.build([p, q, r, s])
        accumulator, other = optimizer.variables[-4:-2]
        for _ in range(3):
            gradients = [q, accumulator, big[8:13], other[::-1]]
            optimizer.apply([g.copy() for g in gradients] if copied else gradients, [p, q, r, s])
        results.append([p, q, big, *optimizer.variables[2:]])
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected)


@hypothesis.given(
    offsets=st.lists(st.integers(0, 40), min_size=4, max_size=4), step=st.sampled_from([1, -1]), seed=st.integers(0, 99)
)
def test_partly_overlapping_gradients(offsets, step, seed):
    # Two variables of 10 at fixed places of one piece of memory, their gradients anywhere in it.
    results = []
    for copied in (False, True):
        memory = normal(50, seed=seed)
        variables = [memory[5:15], memory[20:30]]
        optimizer = adagrad.Adagrad(0.3, clipnorm=1.0)
        for a, b in (offsets[:2], offsets[2:]):
            gradients = [memory[a : a + 10][::step], memory[b : b + 10][::step]]
            optimizer.apply([g.copy() for g in gradients] if copied else gradients, variables)
        results.append([memory, *optimizer.variables[2:]])
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected)


# ---- skipped variables, order, memory --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_is_not_forgotten():
    p, q = np.ones(3), np.ones(3)
    optimizer = adagrad.Adagrad()
    for _ in range(2):
        with pytest.raises(UserWarning, match="variable_0"):
            optimizer.apply([None, np.ones(3)], [p, q])
    np.testing.assert_array_equal(q, np.ones(3))


def test_none_skips_a_variable_and_warns_once():
    p, q = np.ones(3), np.ones(3)
    optimizer = adagrad.Adagrad(0.5, weight_decay=0.1)
    with pytest.warns(UserWarning, match="no gradient for variable_0: skipped"):
        optimizer.apply([None, np.ones(3)], [p, q])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.apply([None, np.ones(3)], [p, q])
    np.testing.assert_array_equal(p, np.ones(3))
    np.testing.assert_array_equal(optimizer.variables[2], np.full(3, 0.1))
    with pytest.warns(UserWarning, match="variable_1"):
        optimizer.apply([np.ones(3), None], [p, q])


def test_dicts_and_lists_and_subsets_name_the_same_variables():
    g = [normal(3, seed=1), normal(2, seed=2)]
    results = []
    for way in range(5):
        p, q = np.ones(3, np.float32), np.ones(2, np.float32)
        optimizer = adagrad.Adagrad(0.5)
        optimizer.build({"p": p, "q": q})
        if way == 0:
            optimizer.apply(g, [p, q])
        elif way == 1:
            optimizer.apply({"q": g[1], "p": g[0]}, {"p": p, "q": q})
        elif way == 2:
            optimizer.apply({"q": g[1], "p": g[0]})
        elif way == 3:
            optimizer.apply(g)
        else:
            assert optimizer.apply_gradients(zip(reversed(g), [q, p], strict=True)) == 1
        results.append((p, q))
    for p, q in results[1:]:
        assert_same_bits(p, results[0][0])
        assert_same_bits(q, results[0][1])
    optimizer.apply([g[1]], [q])  # the others rest
    np.testing.assert_array_equal(p, results[0][0])
    optimizer.apply([], [])
    assert optimizer.iterations == 2


def test_state_is_in_the_order_of_the_variables_not_of_the_gradients():
    p, q = np.zeros(2), np.zeros(3)
    optimizer = adagrad.Adagrad()
    optimizer.apply({"q": np.ones(3), "p": np.ones(2)}, {"p": p, "q": q})
    assert [array.shape for array in optimizer.variables[2:]] == [(2,), (3,)]


def test_variables_may_come_from_an_iterator():
    p, q = np.zeros(2), np.zeros(3)
    optimizer = adagrad.Adagrad(1.0, 0.0, 0.0)
    optimizer.apply((np.ones_like(w) for w in (p, q)), (w for w in (p, q)))
    np.testing.assert_array_equal(np.concatenate([p, q]), -np.ones(5))


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "staged", "everything"])
@pytest.mark.parametrize("kind", ["dense", "rows", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_temporary_of_the_size_of_a_parameter(settings, kind, dtype):
    w = laid_out(normal(20_000, 50, dtype=dtype), "strided" if kind == "strided" else "C")
    ids = np.arange(100) * 7
    g = rows_of(w, ids) if kind == "rows" else np.full(w.shape, 0.5, w.dtype)
    optimizer = adagrad.Adagrad(**settings)
    for _ in range(4):
        optimizer.apply([g], [w])
    tracemalloc.start()
    for _ in range(4):
        optimizer.apply([g], [w])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < w.nbytes / 3


def test_finalizing_copies_nothing():
    w = normal(20_000, 50)
    optimizer = adagrad.Adagrad(0.3, use_ema=True)
    optimizer.apply([w.copy()], [w])
    tracemalloc.start()
    optimizer.finalize_variable_values([w])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < w.nbytes / 3


def test_gradients_are_not_kept_alive():
    w, g = np.ones(3), np.ones(3).view(type("Array", (np.ndarray,), {}))
    optimizer = adagrad.Adagrad()
    optimizer.apply([g], [w])
    gone = weakref.ref(g)
    del g
    assert gone() is None
