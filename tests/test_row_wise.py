"""Row-wise Adagrad, one accumulator a row: beside plain loops in float64, and the sparse law, on NumPy and on PyTorch."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import adagrad
from plain import DTYPES, PlainAdagrad, assert_same_bits
from strategies import EVERY_STAGE, FEW_STAGES, arguments, laid_out, numbers
from strategies import LAYOUTS as NUMPY_LAYOUTS
from test_sparse_law import check

# ---- an own reference ------------------------------------------------------------------------------------------------


def row_wise(p, a, g, lr=0.001, epsilon=1e-7, *, outside=False, weight_decay=0.0, l2=False, clipnorm=None):
    """One step on lists of rows (lists) in place, as the formula says; ``a`` has a number for each row."""
    if clipnorm is not None:
        norm = math.hypot(*[x for row in g for x in row])
        g = [[x * clipnorm / norm if norm > clipnorm else x for x in row] for row in g]
    for r, row in enumerate(g):
        if l2:
            row = [x + weight_decay * y for x, y in zip(row, p[r], strict=True)]
        elif weight_decay:
            p[r] = [y - y * weight_decay * lr for y in p[r]]
        a[r] += sum(x * x for x in row) / len(row)
        root = math.sqrt(a[r]) + epsilon if outside else math.sqrt(a[r] + epsilon)
        for i, x in enumerate(row):
            p[r][i] -= lr * x / root


CASES = {
    "defaults": ({}, {}),
    "rule": ({"learning_rate": 0.3, "epsilon": 0.01, "initial_accumulator_value": 0.7}, {"lr": 0.3, "epsilon": 0.01}),
    "outside": ({"learning_rate": 0.3, "epsilon": 0.01, "epsilon_placement": "outside"},
                {"lr": 0.3, "epsilon": 0.01, "outside": True}),
    "decay": ({"learning_rate": 0.3, "weight_decay": 0.1}, {"lr": 0.3, "weight_decay": 0.1}),
    "l2": ({"learning_rate": 0.3, "weight_decay": 0.1, "weight_decay_mode": "l2"}, {"lr": 0.3, "weight_decay": 0.1, "l2": True}),
    "clipnorm": ({"learning_rate": 0.3, "clipnorm": 0.7}, {"lr": 0.3, "clipnorm": 0.7}),
}  # fmt: skip


class OnNumpy:
    """A table under `adagrad.Adagrad`."""

    def __init__(self, start, settings):
        self.table = start.copy()
        self.optimizer = adagrad.Adagrad(row_wise=True, **settings)
        self.optimizer.build([self.table])

    def step(self, values, ids=None):
        self.optimizer.apply([values if ids is None else adagrad.IndexedSlices(values, ids)], [self.table])

    def arrays(self):
        return self.table, self.optimizer.variables[-1]


class OnTorch:
    """A table under `adagrad.torch.Adagrad`."""

    def __init__(self, start, settings):
        pytest.importorskip("torch")
        import torch_tools as tools
        from adagrad.torch import Adagrad

        self.tools, self.p = tools, tools.parameter(start)
        self.optimizer = Adagrad([self.p], row_wise=True, **tools.torch_names(settings))

    def step(self, values, ids=None):
        self.p.grad = self.tools.tensor(values) if ids is None else self.tools.coo(values, ids, tuple(self.p.shape))
        self.optimizer.step()

    def arrays(self):
        return self.tools.array(self.p), self.tools.array(self.optimizer.state[self.p]["sum"])


FACES = pytest.mark.parametrize("face", [OnNumpy, OnTorch])


@FACES
@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(7, 5), (6, 1), (3, 64), (4, 2, 3), (1, 9)], ids=str)
@pytest.mark.parametrize(("settings", "own"), CASES.values(), ids=CASES)
def test_the_formula(settings, own, shape, dtype, kind, face):
    rng = np.random.default_rng(0)
    start = rng.normal(size=shape).astype(dtype)
    run = face(start, settings)
    width = math.prod(shape[1:])
    p = start.astype(float).reshape(len(start), width).tolist()
    a = [settings.get("initial_accumulator_value", 0.1)] * len(start)
    for _ in range(5):
        values = rng.normal(size=shape).astype(dtype)
        ids = None if kind == "dense" else rng.integers(0, shape[0], shape[0])
        run.step(values, ids)
        g = np.zeros(shape)
        np.add.at(g, slice(None) if ids is None else ids, values)
        row_wise(p, a, g.reshape(len(g), width).tolist(), **own)
        table, accumulator = run.arrays()
        assert accumulator.shape == shape[:1]
        rtol = 1e-13 if dtype == "float64" else 1e-5
        np.testing.assert_allclose(accumulator, a, rtol=rtol)
        np.testing.assert_allclose(table.reshape(len(table), width), p, rtol=rtol, atol=rtol)


@FACES
def test_rows_of_zero_gradient_and_elements_of_zero_gradient_stay(face):
    start = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])
    run = face(start, {"learning_rate": 0.5, "initial_accumulator_value": 0.0, "epsilon": 0.0})
    run.step(np.float32([[0, 0, 0, 0], [0, 4, 0, 0]]))
    table, accumulator = run.arrays()
    np.testing.assert_array_equal(accumulator, [0, 4])
    np.testing.assert_array_equal(table, np.float32([[1, 2, 3, 4], [5, 6 - 0.5 * 4 / 2, 7, 8]]))


@FACES
def test_squares_that_vanish_step_by_the_sign(face):
    run = face(np.zeros((1, 4)), {"learning_rate": 0.5, "initial_accumulator_value": 0.0, "epsilon": 0.0})
    run.step(np.array([[1e-200, -1e-200, 0.0, 1e-170]]))
    np.testing.assert_array_equal(run.arrays()[0], [[-0.5, 0.5, 0.0, -0.5]])


@FACES
def test_a_mean_is_taken_in_double(face):
    # The squares of float32 overflow, their mean does not; and small ones are not lost behind a large one.
    run = face(np.zeros((2, 2), np.float32), {"learning_rate": 1.0, "initial_accumulator_value": 0.0, "epsilon": 0.0})
    run.step(np.float32([[2e19, 0], [4096, 1]]))
    np.testing.assert_array_equal(run.arrays()[1], np.float32([float(np.float32(2e19)) ** 2 / 2, (4096.0**2 + 1) / 2]))


# ---- the sparse law --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "stages", "examples"),
    [
        ("float32", EVERY_STAGE, 80),
        ("float64", FEW_STAGES, 25),
        pytest.param("float16", FEW_STAGES, 25, marks=pytest.mark.slow),
        pytest.param("bfloat16", FEW_STAGES, 25, marks=pytest.mark.slow),
    ],
    ids=["float32", "float64", "float16", "bfloat16"],
)
def test_rows_give_the_bits_of_the_dense_gradient_for_every_argument(dtype, stages, examples):
    shapes = [(7, 1), (5, 3), (4, 16), (3, 64), (2, 65), (4, 2, 3), (70, 65), (0, 3), (3, 0), (17,), ()]

    @hypothesis.settings(max_examples=examples)
    @hypothesis.given(
        settings=arguments(stages),
        variables=st.lists(st.tuples(st.sampled_from(shapes), st.sampled_from(NUMPY_LAYOUTS)), min_size=1, max_size=3),
        seed=st.integers(0, 2**32 - 1),
        special=st.sampled_from([0.0, 0.05, 0.5]),
    )
    def law(settings, variables, seed, special):
        shapes, layouts = zip(*variables, strict=True)
        check({"row_wise": True, **settings}, dtype, shapes, layouts, seed, special)

    law()


def test_constraints():
    def unit(p):
        return np.clip(p, p.dtype.type(-0.5), p.dtype.type(0.5))

    for settings in (
        {"learning_rate": 0.3},
        {"learning_rate": 0.3, "use_ema": True, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2},
    ):
        check(
            {"row_wise": True, **settings}, "float32", [(5, 3), (4, 16), (17,)], ["C", "F", "C"], 0, 0.0,
            constraints=[unit, unit, None],
        )  # fmt: skip


@pytest.mark.parametrize(
    "settings", [{"learning_rate": 0.3}, {"learning_rate": 0.3, "clipnorm": 0.7, "use_ema": True}], ids=str
)
def test_layouts_of_pytorch(settings):
    tools = pytest.importorskip("torch_tools", exc_type=ImportError)
    from adagrad.torch import Adagrad

    rng = np.random.default_rng(0)
    for dtype in DTYPES.values():
        for layout in tools.LAYOUTS:
            start = [rng.normal(size=shape).astype(dtype) for shape in [(6, 5), (3, 4, 2, 2)]]
            parameters, judge = [tools.parameter(s, layout) for s in start], PlainAdagrad(start, {"row_wise": True, **settings})
            optimizer = Adagrad(parameters, row_wise=True, **tools.torch_names(settings))
            for _ in range(3):
                gradients = [rng.normal(size=s.shape).astype(dtype) for s in start]
                rows = rng.normal(size=(4, 5)).astype(dtype), np.array([5, 0, 5, 2])
                parameters[0].grad = tools.coo(*rows, (6, 5))
                parameters[1].grad = tools.laid_out(tools.tensor(gradients[1]), layout)
                optimizer.step()
                judge.apply([("rows", *rows), gradients[1]])
                for p, expected in zip(parameters, judge.parameters, strict=True):
                    assert_same_bits(tools.array(p), expected, (dtype, layout))
                for found, expected in zip(tools.states(optimizer), judge.state, strict=True):
                    assert_same_bits(found, expected, (dtype, layout))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "global_clipnorm": 1.0}], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(settings, kind):
    rng = np.random.default_rng(0)
    start = rng.standard_normal((20_000, 64), np.float32)
    ids = rng.integers(0, 20_000, 15_000) ** 2 // 20_000 if kind == "rows" else None
    calls = [rng.standard_normal((len(start) if ids is None else len(ids), 64), np.float32) for _ in range(2)]
    results = []
    for count in (1, 2, 3):
        adagrad.set_num_threads(count)
        run = OnNumpy(start, {"learning_rate": 0.3, **settings})
        for values in calls:
            run.step(values, ids)
        results.append(run.arrays())
    plain = PlainAdagrad([start], {"learning_rate": 0.3, "row_wise": True, **settings})
    for values in calls:
        plain.apply([values if ids is None else ("rows", values, ids)])
    for table, accumulator in results:
        assert_same_bits(table, plain.parameters[0])
        assert_same_bits(accumulator, plain.accumulators[0])


def test_rows_without_a_gradient_are_not_touched():
    table = np.zeros((1000, 8), np.float32)
    optimizer = adagrad.Adagrad(row_wise=True, clipnorm=1.0)
    optimizer.build([table])
    for array in (table, optimizer.variables[-1]):
        array.view(np.uint32)[...] = 0x7F800001  # a signaling NaN, which any arithmetic makes a quiet one
    optimizer.apply([adagrad.IndexedSlices(np.ones((3, 8), np.float32), [7, 900, 7])], [table])
    others = np.setdiff1d(np.arange(1000), [7, 900])
    for array in (table, optimizer.variables[-1]):
        assert (array.view(np.uint32)[others] == 0x7F800001).all()


# ---- variables that have no rows, state ------------------------------------------------------------------------------


@FACES
@pytest.mark.parametrize("shape", [(), (17,), (0,)])
def test_variables_of_less_than_two_dimensions_are_as_without(face, shape):
    rng = np.random.default_rng(0)
    start, g = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    run = face(start, {"learning_rate": 0.3})
    run.step(g)
    other, optimizer = start.copy(), adagrad.Adagrad(0.3)
    optimizer.apply([g], [other])
    assert_same_bits(run.arrays()[0], other)
    assert_same_bits(run.arrays()[1], optimizer.variables[-1])


@FACES
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("settings", [{}, {"clipnorm": 1.0, "weight_decay": 0.1}], ids=str)
def test_rows_of_no_elements_keep_their_accumulator(face, shape, settings):
    run = face(np.zeros(shape, np.float32), settings)
    run.step(np.zeros(shape, np.float32))
    run.step(np.zeros((shape[0], *shape[1:]), np.float32), np.arange(shape[0])[::-1])
    np.testing.assert_array_equal(run.arrays()[1], np.full(shape[:1], np.float32(0.1)))


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_saved_and_resumed_at_every_call(tmp_path, layout):
    settings = {"learning_rate": 0.3, "row_wise": True, "use_ema": True, "gradient_accumulation_steps": 3, "weight_decay": 0.1}
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 4)).astype(np.float16)
    calls = [(numbers(rng, (5, 4), np.dtype(np.float16), 0.0), rng.integers(0, 6, 5)) for _ in range(7)]

    def train(variables, optimizer, calls):
        for values, ids in calls:
            optimizer.apply([adagrad.IndexedSlices(values, ids)], variables)

    def made():
        variables, optimizer = [laid_out(start, layout)], adagrad.Adagrad(**settings)
        optimizer.build(variables)
        return variables, optimizer

    whole = made()
    train(*whole, calls)
    for stop in range(len(calls) + 1):
        first = made()
        train(*first, calls[:stop])
        first[1].save(tmp_path / "state")
        resumed = made()
        resumed[0][0][...] = first[0][0]
        resumed[1].load(tmp_path / "state")
        train(*resumed, calls[stop:])
        for found, expected in zip([*resumed[0], *resumed[1].variables], [*whole[0], *whole[1].variables], strict=True):
            assert_same_bits(found, expected)


def test_state_of_one_kind_does_not_load_into_the_other(tmp_path):
    table = np.ones((4, 3))
    one, other = adagrad.Adagrad(row_wise=True), adagrad.Adagrad()
    for optimizer in (one, other):
        optimizer.build([table])
    one.save(tmp_path / "state")
    for strict in (True, False):
        with pytest.raises(ValueError, match="row_wise|accumulator"):
            other.load(tmp_path / "state", strict=strict)
    with pytest.raises(ValueError, match="shape"):
        other.set_weights(one.variables)
    weights = one.variables
    one.set_weights(weights)
    assert adagrad.Adagrad.from_config(one.get_config()).get_config()["row_wise"] is True
