"""Dynamic loss scaling: the scale's whole life, steps that are skipped whole, and the bits of the steps that are not."""

import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import adagrad
from adagrad import Adagrad, IndexedSlices, LossScaleOptimizer
from plain import DTYPES, PlainAdagrad, assert_same_bits, dense_of
from reference import ReferenceAdagrad, ReferenceLossScale
from strategies import gradient, numbers

SHAPES = [(6, 3), (17,), ()]
SETTINGS = [
    {"learning_rate": 0.3},
    {"learning_rate": 0.3, "gradient_accumulation_steps": 2, "global_clipnorm": 1.0, "weight_decay": 0.1, "use_ema": True},
]


def wrapped(dtype="float32", settings=SETTINGS[0], **arguments):
    rng = np.random.default_rng(0)
    start = [numbers(rng, shape, DTYPES[dtype], 0.0) for shape in SHAPES]
    optimizer = LossScaleOptimizer(Adagrad(**settings), **arguments)
    optimizer.build(start)
    return optimizer, start


@hypothesis.given(
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    settings=st.sampled_from(SETTINGS),
    growth=st.integers(1, 3),
    scale=st.sampled_from([2.0**-20, 0.75, 1024.0, 2.0**40]),
    seed=st.integers(0, 2**32 - 1),
)
def test_calls_as_the_contract_says(dtype, settings, growth, scale, seed):
    rng = np.random.default_rng(seed)
    optimizer, variables = wrapped(dtype, settings, initial_scale=scale, dynamic_growth_steps=growth)
    plain = PlainAdagrad(variables, dict(settings))
    clean = 0
    for _ in range(6):
        pairs = [gradient(rng, str(rng.choice(["dense", "rows"])), s, DTYPES[dtype], rng.choice([0, 0.05])) for s in SHAPES]
        optimizer.apply([given for given, _ in pairs], variables)
        with np.errstate(all="ignore"):
            unscaled = [dense_of(g, s, DTYPES[dtype]) for (_, g), s in zip(pairs, SHAPES, strict=True)]
            finite = all(np.isfinite(g / g.dtype.type(scale)).all() for g in unscaled)
        if finite:
            plain.arguments["loss_scale_factor"] = scale
            plain.apply([g for _, g in pairs])
            clean += 1
            if clean == growth:
                clean, scale = 0, min(scale * 2, 2.0**40)
        else:
            clean, scale = 0, max(scale / 2, 2.0**-20)
        assert (optimizer.scale, optimizer.clean_steps) == (scale, clean)
        assert optimizer.variables[2] == plain.calls
        for variable, expected in zip(variables, plain.parameters, strict=True):
            assert_same_bits(variable, expected)
        for array, expected in zip(optimizer.variables[4:], plain.state, strict=True):
            assert_same_bits(array, expected)


def test_beside_the_reference():
    settings = {"learning_rate": 0.3, "gradient_accumulation_steps": 2, "clipnorm": 1.0}
    rng = np.random.default_rng(1)
    ours, theirs = np.ones((5, 2)), np.ones((5, 2))
    optimizer = LossScaleOptimizer(Adagrad(**settings), 4.0, 2)
    inner = ReferenceAdagrad(**settings)
    inner.build([theirs])
    reference = ReferenceLossScale(inner, 4.0, 2)
    for call in range(12):
        values, ids = rng.normal(size=(3, 2)), np.array([1, 4, 1])
        if call in (3, 6, 7):
            values[0, 0] = [np.inf, np.nan, -np.inf][call % 3]
        optimizer.apply([IndexedSlices(values, ids)], [ours])
        reference.apply([("rows", values, ids)], [theirs])
        assert (optimizer.scale, optimizer.clean_steps) == (reference.scale, reference.clean_steps)
        assert optimizer.iterations == inner.iterations
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", ["dense", "rows", "sum of rows", "foreign"])
@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "everything"])
def test_one_bad_number_skips_everything(settings, kind, bad):
    optimizer, variables = wrapped(settings=settings, initial_scale=8.0, dynamic_growth_steps=3)
    for _ in range(2):
        optimizer.apply([np.ones_like(v) for v in variables], variables)
    before = [array.tobytes() for array in (*variables, *optimizer.inner_optimizer.variables)]
    values = np.ones((2, 3), np.float32)
    values[1, 2] = bad
    gradient = {
        "dense": np.pad(values, ((0, 4), (0, 0))),
        "rows": IndexedSlices(values, [5, 2]),
        "sum of rows": IndexedSlices(np.full((2, 3), 3e38, np.float32), [4, 4]),  # each is finite
        "foreign": np.pad(values, ((0, 4), (0, 0))).astype(np.float64)[::1, :],
    }[kind]
    optimizer.apply([gradient, *map(np.ones_like, variables[1:])], variables)
    assert [array.tobytes() for array in (*variables, *optimizer.inner_optimizer.variables)] == before
    assert (optimizer.scale, optimizer.clean_steps) == (4.0, 0)


def test_rows_that_sum_to_something_finite_are_no_reason_to_skip():
    table = np.zeros((3, 1), np.float16)
    optimizer = LossScaleOptimizer(Adagrad(1.0, 0.0, 0.0), 2.0)
    optimizer.apply([IndexedSlices(np.full((3, 1), 6e4, np.float16), [1, 1, 1])], [table])  # 180,000 is no float16
    np.testing.assert_array_equal(table, [[0], [-1], [0]])
    assert optimizer.clean_steps == 1


def test_the_scale_stays_within_its_bounds():
    optimizer, variables = wrapped(initial_scale=2.0**-19, dynamic_growth_steps=1)
    good, bad = [np.ones_like(v) for v in variables], [np.full_like(v, np.nan) for v in variables]
    scales = []
    for _ in range(3):
        optimizer.apply(bad, variables)
        scales.append(optimizer.scale)
    assert scales == [2.0**-20] * 3
    optimizer.scale = 2.0**39
    for _ in range(3):
        optimizer.apply(good, variables)
        scales.append(optimizer.scale)
    assert scales[3:] == [2.0**40] * 3


def test_unscaling_is_a_division_in_the_dtype_of_the_arithmetic():
    # 65504 / 3 is no float16, and 1 / 3 rounds in float32.
    w = np.zeros(2, np.float16)
    optimizer = LossScaleOptimizer(Adagrad(initial_accumulator_value=0.0), 3.0)
    optimizer.apply([np.array([65504, 1], np.float16)], [w])
    unscaled = np.array([65504, 1], np.float32) / np.float32(3)
    np.testing.assert_array_equal(optimizer.variables[-1], unscaled * unscaled)


def test_scale_loss_and_the_round_trip_of_a_step():
    optimizer, variables = wrapped(initial_scale=16.0)
    assert optimizer.scale_loss(0.5) == 8.0
    plain, same = Adagrad(0.3), [v.copy() for v in variables]
    optimizer.apply([optimizer.scale_loss(np.ones_like(v)) for v in variables], variables)
    plain.apply([np.ones_like(v) for v in same], same)
    for v, w in zip(variables, same, strict=True):
        assert_same_bits(v, w)
    assert Adagrad(loss_scale_factor=3.0).scale_loss(2.0) == 6.0
    assert Adagrad().scale_loss(2.0) == 2.0


def test_none_and_empty_lists():
    optimizer, variables = wrapped()
    optimizer.apply([], [])
    assert optimizer.variables[2] == optimizer.clean_steps == 0
    with pytest.raises(ValueError, match="no gradient"):
        optimizer.apply([None] * 3, variables)
    assert optimizer.scale == 2.0**15
    with pytest.warns(UserWarning, match="variable_1"):
        optimizer.apply([np.ones_like(variables[0]), None, 1.0], variables)
    assert optimizer.clean_steps == 1


def test_what_is_the_inner_optimizers():
    optimizer, variables = wrapped(settings={"learning_rate": 0.5, "use_ema": True, "weight_decay": 0.1})
    optimizer.exclude_from_weight_decay(var_names=["variable_1"])
    optimizer.learning_rate = 0.25
    assert optimizer.learning_rate == optimizer.inner_optimizer.learning_rate == 0.25
    before = variables[1].copy()
    assert optimizer.apply_gradients([(np.zeros_like(v), v) for v in variables]) == 1
    np.testing.assert_array_equal(variables[1], before)
    variables[0][...] = 7
    optimizer.finalize_variable_values(variables)
    assert (variables[0] != 7).all()


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize("through", ["file", "weights"])
def test_resumed_at_any_call(tmp_path, through, stop):
    rng = np.random.default_rng(2)
    calls = [[numbers(rng, shape, np.dtype(np.float32), 0.0) for shape in SHAPES] for _ in range(7)]
    calls[3][1][2] = np.inf
    arguments = {"settings": SETTINGS[1], "initial_scale": 4.0, "dynamic_growth_steps": 2}
    straight, variables = wrapped(**arguments)
    for gradients in calls:
        straight.apply(gradients, variables)
    first, copies = wrapped(**arguments)
    for gradients in calls[:stop]:
        first.apply(gradients, copies)
    resumed = LossScaleOptimizer(Adagrad(**SETTINGS[1]), 4.0, 2)
    resumed.build(copies)
    if through == "file":
        first.save(tmp_path / "state")
        resumed.load(tmp_path / "state")
    else:
        resumed.set_weights(first.variables)
    for gradients in calls[stop:]:
        resumed.apply(gradients, copies)
    for actual, expected in zip([*copies, *resumed.variables], [*variables, *straight.variables], strict=True):
        assert_same_bits(actual, expected)


def test_files_that_do_not_fit(tmp_path):
    optimizer, variables = wrapped(initial_scale=8.0)
    optimizer.apply([np.ones_like(v) for v in variables], variables)
    optimizer.inner_optimizer.save(tmp_path / "inner")
    before = [array.tobytes() for array in optimizer.variables]
    with pytest.raises(ValueError, match="holds no loss scale"):
        optimizer.load(tmp_path / "inner")
    for position, value in [(0, -1), (0, 1.5), (1, 0.0), (1, np.nan), (1, 2.0**41)]:
        weights = optimizer.variables
        weights[position] = np.array(value)
        with pytest.raises(ValueError, match="must be"):
            optimizer.set_weights(weights)
    with pytest.raises(ValueError, match="weights must be"):
        optimizer.set_weights(optimizer.variables[:-1])
    assert [array.tobytes() for array in optimizer.variables] == before


def test_config_round_trip():
    optimizer = LossScaleOptimizer(Adagrad(0.5, clipnorm=2.0), 64.0, 7)
    config = optimizer.get_config()
    assert (config["initial_scale"], config["dynamic_growth_steps"]) == (64.0, 7)
    assert LossScaleOptimizer.from_config(config).get_config() == config
    for bad in ({**config, "extra": 1}, {"initial_scale": 1.0}):
        with pytest.raises(ValueError, match="config must have inner_optimizer"):
            LossScaleOptimizer.from_config(bad)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"initial_scale": 0.0}, ValueError, r"initial_scale must be in \[9\.5.*e-07, 1\.09.*e\+12\], got 0\.0"),
        ({"initial_scale": 2.0**41}, ValueError, "initial_scale must be in"),
        ({"initial_scale": float("nan")}, ValueError, "got nan"),
        ({"initial_scale": "1"}, ValueError, "real number, got '1'"),
        ({"dynamic_growth_steps": 0}, ValueError, "dynamic_growth_steps must be an integer >= 1, got 0"),
        ({"dynamic_growth_steps": 2.5}, ValueError, "got 2.5"),
        ({"dynamic_growth_steps": True}, ValueError, "got True"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LossScaleOptimizer(Adagrad(), **arguments)


def test_bad_inner_optimizers():
    with pytest.raises(ValueError, match=r"no loss_scale_factor.*got 2\.0"):
        LossScaleOptimizer(Adagrad(loss_scale_factor=2.0))
    with pytest.raises(TypeError, match="inner_optimizer must be an adagrad.Adagrad"):
        LossScaleOptimizer(LossScaleOptimizer(Adagrad()))


def test_a_refused_call_changes_no_scale():
    optimizer, variables = wrapped()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bad in ([np.ones(3)] * 3, [np.full((6, 3), np.nan), np.ones(17), np.ones(2)]):
            with pytest.raises(ValueError, match="shape"):
                optimizer.apply(bad, variables)
    assert (optimizer.scale, optimizer.clean_steps, optimizer.iterations) == (2.0**15, 0, 0)
    assert adagrad.LossScaleOptimizer is LossScaleOptimizer
