"""The sparse law: a row gradient gives the bits of the equal dense gradient, for every argument and combination.

Both are compared with `plain`, the rule as array code, which knows dense gradients only.
"""

import math
import warnings

import hypothesis
import numpy as np
import pytest
import scipy.sparse
from hypothesis import strategies as st

import adagrad
from adagrad import passes
from plain import DTYPES, PlainAdagrad, assert_same_bits
from strategies import LAYOUTS, SHAPES, arguments, dtypes_with_stages, gradient, laid_out, numbers

CALLS = 5
KINDS = ["dense", "rows", "rows", "other", "none"]


def counters(optimizer):
    """How many of `Adagrad.variables` come before the arrays: the count of calls and a rate that is a number."""
    return len(optimizer.variables) - sum(array.ndim > 0 or array.dtype.kind == "f" for array in optimizer.variables[2:])


def assert_as_plain(optimizer, variables, plain, what=""):
    for v, (variable, expected) in enumerate(zip(variables, plain.parameters, strict=True)):
        assert_same_bits(variable, expected, f"parameter {v} {what}")
    for number, (array, expected) in enumerate(zip(optimizer.variables[2:], plain.state, strict=True)):
        assert_same_bits(array, expected, f"state {number} {what}")


def apply(optimizer, gradients, variables):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # None: skipped
        optimizer.apply(gradients, variables)


def check(settings, dtype, shapes, layouts, seed, special, calls=CALLS, constraints=None):
    """Take some calls with gradients of every kind; after each, all parameters and state are those of the array code."""
    rng = np.random.default_rng(seed)
    dtype = DTYPES[dtype]
    start = [numbers(rng, shape, dtype, special) for shape in shapes]
    variables = [laid_out(array, layout) for array, layout in zip(start, layouts, strict=True)]
    optimizer = adagrad.Adagrad(**settings)
    optimizer.build(variables, constraints)
    plain = PlainAdagrad(start, settings, constraints=constraints)
    for call in range(calls):
        kinds = [str(rng.choice(KINDS)) for _ in shapes]
        if not settings.get("gradient_accumulation_steps"):
            kinds[0] = "rows"  # all None is an error
        pairs = [gradient(rng, kind, shape, dtype, special) for kind, shape in zip(kinds, shapes, strict=True)]
        order = rng.permutation(len(shapes))
        apply(optimizer, [pairs[v][0] for v in order], [variables[v] for v in order])
        plain.apply([judged for _, judged in pairs])
        assert_as_plain(optimizer, variables, plain, f"after call {call}, {kinds}")
    optimizer.finalize_variable_values(variables)
    if settings.get("use_ema") and optimizer.iterations and not constraints:
        for variable, average in zip(variables, plain.averages, strict=True):
            with np.errstate(over="ignore"):
                assert_same_bits(variable, average.astype(dtype), "finalized")


@pytest.mark.parametrize(("dtype", "stages"), dtypes_with_stages(), ids=list(DTYPES))
def test_every_kind_of_gradient_gives_the_bits_of_the_array_code(dtype, stages):
    @hypothesis.settings(max_examples=150 if dtype == "float32" else 50)
    @hypothesis.given(
        settings=arguments(stages),
        variables=st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(LAYOUTS)), min_size=1, max_size=3),
        seed=st.integers(0, 2**32 - 1),
        special=st.sampled_from([0.0, 0.05, 0.5]),
    )
    def law(settings, variables, seed, special):
        shapes, layouts = zip(*variables, strict=True)
        check(settings, dtype, shapes, layouts, seed, special)

    law()


@hypothesis.given(settings=arguments(), seed=st.integers(0, 2**32 - 1), special=st.sampled_from([0.0, 0.3]))
def test_constraints_and_kinds(settings, seed, special):
    def halve(p):
        return p / 2

    def unit(p):
        return np.clip(p, -1, 1)

    constraints = [halve, None, unit]
    check(settings, "float32", [(5, 3), (17,), (4, 16)], ["C", "C", "strided"], seed, special, constraints=constraints)


def test_variables_of_all_dtypes_together():
    settings = {"learning_rate": 0.3, "global_clipnorm": 1.0}
    rng = np.random.default_rng(0)
    start = [numbers(rng, (5, 3), dtype, 0.0) for dtype in DTYPES.values()]
    variables = [array.copy() for array in start]
    optimizer, plain = adagrad.Adagrad(**settings), PlainAdagrad(start, settings)
    for _ in range(3):
        pairs = [gradient(rng, "rows", (5, 3), array.dtype, 0.0) for array in start]
        apply(optimizer, [given for given, _ in pairs], variables)
        plain.apply([judged for _, judged in pairs])
        assert_as_plain(optimizer, variables, plain)


# ---- SciPy -----------------------------------------------------------------------------------------------------------

CLASSES = [
    "coo_matrix",
    "coo_array",
    "csr_matrix",
    "csr_array",
    "csc_matrix",
    "csc_array",
    "bsr_array",
    "lil_array",
    "dok_array",
]


@pytest.mark.parametrize("name", CLASSES)
def test_sparse_matrices_are_the_dense_gradient(name):
    settings = {"learning_rate": 0.3, "clipnorm": 1.0, "weight_decay": 0.1}
    rng = np.random.default_rng(3)
    start = [rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=7).astype(np.float32)]
    variables = [array.copy() for array in start]
    optimizer, plain = adagrad.Adagrad(**settings), PlainAdagrad(start, settings)
    make = getattr(scipy.sparse, name)
    for _ in range(3):
        gradients = [scipy.sparse.random_array(shape, density=0.4, rng=rng, dtype=np.float32) for shape in [(6, 5), (1, 7)]]
        optimizer.apply([make(g) for g in gradients], variables)
        plain.apply([gradients[0].toarray(), gradients[1].toarray()[0]])
        assert_as_plain(optimizer, variables, plain)


@pytest.mark.parametrize("make", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_entries_that_repeat_are_summed_in_the_order_they_came(make):
    # In float32 (1e8 + 1) - 1e8 is 0 from left to right, and 1 in the other order.
    w = np.zeros((2, 2), np.float32)
    data, indices = np.array([1e8, 1.0, -1e8, 2.0], np.float32), np.array([1, 1, 1, 0])
    adagrad.Adagrad(1.0, 0.0, 0.0).apply([make((data, indices, np.array([0, 3, 4])), (2, 2))], [w])
    expected = np.array([[0, 0], [-1, 0]], np.float32)
    np.testing.assert_array_equal(w, expected if make is scipy.sparse.csr_matrix else expected.T)


def test_entries_whose_sum_is_not_finite_are_summed_without_a_word():
    w = np.zeros((1, 2), np.float32)
    entries = np.array([np.inf, -np.inf, 3e38, 3e38], np.float32), (np.zeros(4, int), np.array([0, 0, 1, 1]))
    optimizer = adagrad.Adagrad()
    optimizer.apply([scipy.sparse.coo_array(entries, shape=(1, 2))], [w])
    assert np.isnan(w[0, 0])
    assert np.isinf(optimizer.variables[-1][0, 1])


def test_one_dimensional_sparse_arrays_are_rows_of_a_vector():
    w = np.zeros(5, np.float32)
    gradient = scipy.sparse.coo_array((np.array([1.0, 2.0, 1.0], np.float32), (np.array([4, 1, 4]),)), shape=(5,))
    adagrad.Adagrad(1.0, 0.0, 0.0).apply([gradient], [w])
    np.testing.assert_array_equal(w, [0, -1, 0, 0, -1])


# ---- ids -------------------------------------------------------------------------------------------------------------


def test_one_id_many_times_moves_once_by_its_sum():
    table = np.zeros((3, 2), np.float32)
    adagrad.Adagrad(1.0).apply([adagrad.IndexedSlices(np.ones((4, 2), np.float32), [1, 1, 1, 1])], [table])
    step = np.float32(4) / np.sqrt(np.float32(0.1) + np.float32(16) + np.float32(1e-7))
    np.testing.assert_array_equal(table, np.float32([[0, 0], [-step, -step], [0, 0]]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_summed_in_float32(dtype):
    # 1 + 300 times 2**-9 is lost, element by element, in both halves' own arithmetic.
    values = np.full((301, 1), 2.0**-9 if dtype == "bfloat16" else 2.0**-11).astype(DTYPES[dtype])
    values[0] = 1.0
    table = np.zeros((2, 1), DTYPES[dtype])
    optimizer = adagrad.Adagrad(1.0)
    optimizer.apply([adagrad.IndexedSlices(values, np.zeros(301, int))], [table])
    total = np.float32(1 + 300 * float(values[1, 0]))
    assert optimizer.variables[-1][0, 0] == np.float32(0.1) + total * total


@pytest.mark.parametrize("count", [2, 3, 2**11, 2**11 + 1, 2**22 + 1, 2**23 - 7])
def test_ids_are_grouped_over_every_number_of_radix_passes(count):
    rng = np.random.default_rng(count)
    ids = np.concatenate([rng.integers(0, count, 500), [0, count - 1, 0, count - 1]])
    values = rng.normal(size=ids.size).astype(np.float32)
    table = np.zeros(count, np.float32)
    optimizer = adagrad.Adagrad(1.0, 0.0, 0.0)
    optimizer.apply([adagrad.IndexedSlices(values, ids)], [table])
    expected = np.zeros(count, np.float32)
    np.add.at(expected, ids, values)
    np.testing.assert_array_equal(optimizer.variables[-1], expected * expected)
    np.testing.assert_array_equal(table != 0, expected != 0)


def test_tables_beyond_two_to_the_31_rows_group_their_ids_alike():
    ids = np.random.default_rng(0).integers(0, 50, 300)
    for by_sort, by_radix in zip(passes._group(ids, 2**31), passes._group(ids, 50), strict=True):
        np.testing.assert_array_equal(by_sort, by_radix)


# ---- what a step touches ---------------------------------------------------------------------------------------------


def _signaling(array):
    """Fill with a signaling NaN, which any arithmetic turns into a quiet one; a copy of the bits."""
    array.view(np.uint32)[...] = 0x7F800001
    return array.view(np.uint32).copy()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clipnorm": 1.0},
        {"clipvalue": 1.0, "loss_scale_factor": 2.0},
        {"gradient_accumulation_steps": 2, "global_clipnorm": 1.0},
    ],
    ids=["plain", "clipnorm", "clipvalue", "accumulation"],
)
def test_rows_without_a_gradient_take_no_part_in_any_arithmetic(settings):
    optimizer, table = adagrad.Adagrad(**settings), np.zeros((1000, 8), np.float32)
    optimizer.build([table])
    for array in (table, optimizer.variables[-1]):
        before = _signaling(array)
    gradient = adagrad.IndexedSlices(np.ones((3, 8), np.float32), [7, 900, 7])
    for _ in range(4):
        optimizer.apply([gradient], [table])
    others = np.setdiff1d(np.arange(1000), [7, 900])
    for array in (table, optimizer.variables[-1]):
        np.testing.assert_array_equal(array.view(np.uint32)[others], before[others])
    # The bits do tell: an equal dense gradient reads every accumulator.
    optimizer.apply([np.zeros_like(table)] * 1, [table])
    optimizer.apply([np.zeros_like(table)] * 1, [table])
    assert (optimizer.variables[-1].view(np.uint32)[others] != before[others]).all()


@pytest.mark.parametrize(
    "settings", [{"use_ema": True}, {"weight_decay": 0.1}, {"gradient_accumulation_steps": 2, "use_ema": True}]
)
def test_a_learning_rate_beyond_float32(settings):
    check({"learning_rate": 1e39, **settings}, "float32", [(5, 3), (17,)], ["C", "C"], 0, 0.0)


# ---- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize("argument", ["clipnorm", "global_clipnorm"])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 1e20), ("float32", 2e38), ("float32", 1e-20), ("float64", 1e200), ("float64", 1e-200), ("float64", 1e308),
     ("float64", 1e-310), ("float16", 6e4), ("bfloat16", 2e38)],
)  # fmt: skip
def test_clipping_neither_overflows_nor_vanishes(kind, argument, dtype, size):
    dtype = DTYPES[dtype]
    g = (np.array([[0.6, 0.8]]) * size).astype(dtype)
    bound = min(0.5, size / 2)
    w = np.zeros((1, 2), dtype)
    optimizer = adagrad.Adagrad(1.0, 1.0, 0.0, **{argument: bound})
    optimizer.apply([g if kind == "dense" else adagrad.IndexedSlices(g, [0])], [w])
    wide = g[0].astype(np.longdouble)
    clipped = wide * (bound / np.sqrt((wide * wide).sum()))
    expected = -clipped / np.sqrt(1 + clipped * clipped)
    np.testing.assert_allclose(w[0].astype(float), expected.astype(float), rtol={2: 4e-3, 4: 2e-7, 8: 1e-13}[dtype.itemsize])


@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize("argument", ["clipnorm", "global_clipnorm"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_norm_that_is_not_finite_makes_nan_where_the_gradient_is_not_zero(kind, argument, bad):
    g = np.array([[1.0, 0.0, bad], [0.0, 0.0, 0.0], [2.0, 0.0, -0.0]], np.float32)
    w, v = np.ones((3, 3), np.float32), np.ones(2, np.float32)
    given = g if kind == "dense" else adagrad.IndexedSlices(g[[2, 0]], [2, 0])
    adagrad.Adagrad(0.5, **{argument: 1.0}).apply([given, np.array([0.25, 0.0], np.float32)], [w, v])
    np.testing.assert_array_equal(np.isnan(w), g != 0)
    np.testing.assert_array_equal(w[g == 0], 1.0)
    assert math.isnan(v[0]) == (argument == "global_clipnorm")
    assert v[1] == 1.0


def test_a_norm_at_the_bound_leaves_the_gradient_untouched():
    w, other = np.zeros(2), np.zeros(2)
    g = np.array([0.3, 0.4])
    optimizer = adagrad.Adagrad(clipnorm=float(np.sqrt(0.3 * 0.3 + 0.4 * 0.4)))
    optimizer.apply([g], [w])
    adagrad.Adagrad().apply([g], [other])
    np.testing.assert_array_equal(w, other)


@pytest.mark.parametrize("argument", ["clipnorm", "global_clipnorm"])
def test_norms_of_large_tables_agree_to_the_bit(argument):
    # Many blocks; a strided copy goes through chunks, the rows one by one.
    rng = np.random.default_rng(0)
    shape = (1500, 64)
    ids = np.flatnonzero(rng.random(1500) < 0.3)
    values = rng.normal(size=(ids.size, 64)).astype(np.float32)
    g = np.zeros(shape, np.float32)
    g[ids] = values
    start = rng.normal(size=shape).astype(np.float32)
    results = []
    for layout, given in [
        ("C", g),
        ("C", adagrad.IndexedSlices(values[::-1], ids[::-1])),
        ("strided", g),
        ("F", np.asfortranarray(g)),
    ]:
        w = laid_out(start, layout)
        optimizer = adagrad.Adagrad(0.3, **{argument: 0.7})
        optimizer.apply([given], [w])
        results.append((np.ascontiguousarray(w), optimizer.variables[-1]))
    plain = PlainAdagrad([start], {"learning_rate": 0.3, argument: 0.7})
    plain.apply([g])
    for w, accumulator in results:
        assert_same_bits(w, plain.parameters[0])
        assert_same_bits(accumulator, plain.accumulators[0])
