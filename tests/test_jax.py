"""The JAX face: pure functions, optax's contracts, and the numbers of real steps."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adagrad import schedules
from adagrad.jax import Adagrad, AdagradState, IndexedSlices, adagrad, counting, optax_schedule, rates
from adagrad.jax import optimizer as module
from jax_tools import numpy_run, ulps

EVERYTHING = {
    "learning_rate": 0.3, "gradient_accumulation_steps": 2, "global_clipnorm": 0.8, "weight_decay": 0.05, "use_ema": True,
    "ema_momentum": 0.8, "ema_overwrite_frequency": 2, "loss_scale_factor": 3.0,
}  # fmt: skip


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {"w": jnp.asarray((scale * rng.normal(size=(4, 3))).astype(np.float32)), "b": jnp.asarray(np.float32(rng.normal()))}


def same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# -- a step ------------------------------------------------------------------------------------------------------------


def test_compiled_once_and_nothing_left_over():
    """One trace and one executable for all steps, in the middle of a cycle too; everything donated comes back in place."""
    traces = 0
    optimizer = Adagrad(**EVERYTHING)

    def step(params, state, grads):
        nonlocal traces
        traces += 1
        return optimizer.apply(grads, state, params)

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = tree(0)
    state = optimizer.init(params)
    calls = [tree(k, 3) for k in range(1, 6)]
    arrays, _ = numpy_run(EVERYTHING, params, calls)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    for grads in calls:
        old = params["w"], state.average["w"]
        params, state = compiled(params, state, grads)
        assert all(x.is_deleted() for x in old)
    assert traces == 1
    assert compiled._cache_size() == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == shapes
    assert optimizer.iterations(state) == 2
    for name in arrays:
        assert ulps(params[name], arrays[name]) <= 8
    finished = optimizer.finalize(params, state)
    same(finished, state.average)
    same(optimizer.finalize(params, optimizer.init(params)), params)
    same(Adagrad().finalize(params, Adagrad().init(params)), params)
    assert optimizer.scale_loss(2.0) == 6.0
    assert Adagrad().scale_loss(2.0) == 2.0


def test_state_by_dtype():
    params = {
        "half": jnp.ones(3, jnp.float16),
        "brain": jnp.ones((2, 2), jnp.bfloat16),
        "single": jnp.ones(3),
        "complex": jnp.ones(2, jnp.complex64),
    }
    optimizer = Adagrad(0.1, use_ema=True, gradient_accumulation_steps=2)
    state = optimizer.init(params)
    assert {x.dtype for x in jax.tree.leaves(state.accumulator)} == {jnp.dtype("float32")}
    for each in (state.average, state.gradient_accumulator):
        assert {name: x.dtype.name for name, x in each.items()} == {
            "half": "float32", "brain": "float32", "single": "float32", "complex": "complex64",
        }  # fmt: skip
    assert state.in_cycle["half"].dtype == bool
    plain = Adagrad(0.1)
    after, state = plain.apply(params, plain.init(params), params)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, params)
    tiny = jnp.full(3, 6e-8, jnp.float16)  # whose square is no float16
    exact = Adagrad(0.5, 0.0, 0.0)
    p = jnp.ones(3, jnp.float16)
    state = exact.init(p)
    for step in range(1, 4):
        p, state = exact.apply(tiny, state, p)
        np.testing.assert_allclose(state.accumulator, step * float(tiny[0]) ** 2, rtol=1e-6)
    np.testing.assert_allclose(p, 1 - 0.5 * sum(step**-0.5 for step in (1, 2, 3)), rtol=0, atol=3 * 2**-12)


def test_complex_parameters_move_as_in_optax():
    p = jnp.array([1 + 2j, -0.5j, 0.25], jnp.complex64)
    theirs, ours = optax.adagrad(0.1), adagrad(0.1)
    expected, actual = theirs.init(p), ours.init(p)
    for g in (jnp.array([3 - 4j, 1j, 0.0], jnp.complex64), jnp.array([0.1, -2 + 1j, 0.0], jnp.complex64)):
        update, expected = theirs.update(g, expected, p)
        found, actual = ours.update(g, actual, p)
        np.testing.assert_allclose(found, update, rtol=1e-6)
    np.testing.assert_allclose(actual.accumulator, np.real(expected[0].sum_of_squares), rtol=1e-6)
    assert actual.accumulator.dtype == jnp.float32
    with pytest.raises(ValueError, match="clipvalue needs real"):
        adagrad(0.1, clipvalue=1.0).update(g, ours.init(p), p)


def test_extreme_gradients_clip_and_zeros_stay():
    for scale, bound in ((1e20, 1.0), (1e-30, 1e-31), (1.0, 2.0)):
        for name in ("clipnorm", "global_clipnorm"):
            optimizer = Adagrad(1.0, 0.0, 0.0, **{name: bound})
            g = {"w": jnp.array([3.0, -4.0, 0.0]) * scale}
            params, state = optimizer.apply(g, optimizer.init(g), jax.tree.map(jnp.zeros_like, g))
            np.testing.assert_allclose(params["w"], [-1.0, 1.0, 0.0], rtol=1e-6)
            np.testing.assert_allclose(
                state.accumulator["w"], [(0.6 * bound) ** 2, (0.8 * bound) ** 2, 0.0], rtol=1e-6, atol=1e-37
            )
    optimizer = Adagrad(0.1, clipnorm=1.0)
    params, _ = optimizer.apply(jnp.array([jnp.inf, 1.0, 0.0]), optimizer.init(jnp.ones(3)), jnp.ones(3))
    np.testing.assert_array_equal(params, [np.nan, np.nan, 1.0])


def test_no_nan_is_made_where_none_is_due():
    """The paper's form divides 0 by 0 where a gradient is zero, and does not select it; also in the plain call."""
    optimizer = Adagrad(1.0, 0.0, 0.0)
    g = jnp.array([0.0, 2.0, -1e-30])
    with jax.debug_nans(True):
        for apply in (optimizer.apply, jax.jit(optimizer.apply)):
            params, _ = apply(g, optimizer.init(g), jnp.zeros(3))
            assert params.tolist() == [0.0, -1.0, 1.0]


def test_transformations_of_jax():
    optimizer = Adagrad(0.1, clipnorm=1.0, weight_decay=0.1)
    params, grads = tree(0), [tree(k) for k in (1, 2, 3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)

    def body(carry, g):
        return optimizer.apply(g, carry[1], carry[0]), None

    expected = params, optimizer.init(params)
    for g in grads:
        expected = optimizer.apply(g, expected[1], expected[0])
    scanned, _ = jax.jit(lambda c: jax.lax.scan(body, c, stacked))((params, optimizer.init(params)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), scanned, expected)

    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    states = jax.vmap(optimizer.init)(many)
    mapped = jax.vmap(optimizer.apply)(jax.tree.map(lambda x: jnp.stack([x, x]), grads[0]), states, many)
    alone = optimizer.apply(grads[0], optimizer.init(params), params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[0], y, rtol=1e-6), mapped, alone)

    keep = jax.jit(
        lambda on: jax.lax.cond(on, lambda: optimizer.apply(grads[0], expected[1], params), lambda: (params, expected[1]))
    )
    same(keep(False)[0], params)
    assert counting.to_int(keep(True)[1].count) == 4

    # Through an unrolled step, against a difference quotient.
    def after(x):
        new, state = optimizer.apply(jax.tree.map(lambda g: g * x, grads[0]), optimizer.init(params), params)
        new, _ = optimizer.apply(grads[1], state, new)
        return new["w"].sum()

    slope = (float(after(0.4 + 1e-2)) - float(after(0.4 - 1e-2))) / 2e-2
    np.testing.assert_allclose(jax.grad(after)(0.4), slope, rtol=1e-2)


# -- optax -------------------------------------------------------------------------------------------------------------


def test_plain_updates_have_the_numbers_of_optax_and_of_apply():
    params, grads = tree(0), [tree(k) for k in (1, 2, 3)]
    ours, theirs, exact = adagrad(0.1, 0.2, 1e-5), optax.adagrad(0.1, 0.2, 1e-5), Adagrad(0.1, 0.2, 1e-5)
    p, q, r = params, params, params
    state, other, pair = ours.init(p), theirs.init(q), exact.init(r)
    for g in grads:
        updates, state = ours.update(g, state)  # without params: the rule needs none
        p = optax.apply_updates(p, updates)
        theirs_updates, other = theirs.update(g, other, q)
        q = optax.apply_updates(q, theirs_updates)
        r, pair = exact.apply(g, pair, r)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), p, q)
    assert max(jax.tree.leaves(jax.tree.map(ulps, p, r))) <= 1
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), state.accumulator, other[0].sum_of_squares)


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": 0.1, "use_ema": True, "ema_overwrite_frequency": 2, "ema_momentum": 0.5},
        {"weight_decay": 0.1, "weight_decay_mode": "l2", "gradient_accumulation_steps": 2, "row_wise": True},
    ],
    ids=["decay, EMA", "l2, accumulation, row-wise"],
)
def test_updates_do_what_apply_does(arguments):
    params = tree(0)
    transformation, exact = adagrad(0.3, **arguments), Adagrad(0.3, **arguments)
    p, r = params, params
    state, pair = transformation.init(p), exact.init(r)
    update, apply = jax.jit(transformation.update), jax.jit(exact.apply)
    for k in range(1, 5):
        updates, state = update(tree(k), state, p)
        p = optax.apply_updates(p, updates)
        r, pair = apply(tree(k), pair, r)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), (p, state), (r, pair))
    with pytest.raises(ValueError, match="needs params for"):
        transformation.update(tree(1), state)


def test_an_update_has_the_digits_of_its_parameter():
    """Of a half gradient, as in mixed precision (the step of 3e-8 is no float16), of integers, of a real one of a complex."""
    moving = {"weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
    for p, g, arguments in (
        (jnp.zeros(3), jnp.full(3, 1e-5, jnp.float16), {}),
        (jnp.full(3, 0.1), jnp.ones(3, jnp.bfloat16), moving),
        (jnp.zeros(3), jnp.ones(3, jnp.int32), {}),
        (jnp.full(3, 2 - 1j), jnp.ones(3), moving),
    ):
        transformation, exact = adagrad(1e-3, **arguments), Adagrad(1e-3, **arguments)
        q, r = p, p
        state, pair = transformation.init(p), exact.init(p)
        for _ in range(2):
            update, state = transformation.update(g, state, q)
            assert update.dtype == p.dtype
            q = optax.apply_updates(q, update)
            r, pair = exact.apply(g, pair, r)
            np.testing.assert_allclose(q, r, rtol=1e-6)
            assert (np.asarray(q) != np.asarray(p)).all()
    assert adagrad(0.1).update(jnp.ones(3, jnp.int32), adagrad(0.1).init(p.real))[0].dtype == jnp.float32


def test_composition():
    params, grads = tree(0), tree(1)
    plain = adagrad(0.1)
    expected, _ = plain.update(grads, plain.init(params), params)

    def updates(transformation, count=1, **extra):
        state = transformation.init(params)
        for _ in range(count):
            found, state = jax.jit(transformation.update)(grads, state, params, **extra)
        return found, state

    found, _ = updates(optax.chain(optax.scale(2.0), adagrad(0.1, loss_scale_factor=2.0)), value=jnp.ones(()))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
    found, _ = updates(optax.masked(adagrad(0.1), {"w": True, "b": False}))
    same(found["b"], grads["b"])
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)
    found, _ = updates(optax.partition({"a": adagrad(0.1), "s": optax.sgd(1.0)}, {"w": "a", "b": "s"}))
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)
    same(found["b"], -grads["b"])
    found, state = updates(optax.partition({"a": adagrad(0.1, global_clipnorm=1.0), "s": optax.sgd(1.0)}, {"w": "s", "b": "s"}))
    same(found, jax.tree.map(jnp.negative, grads))  # no parameter is ours
    found, state = updates(optax.MultiSteps(adagrad(0.1), 2), 2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
    found, state = updates(optax.apply_if_finite(adagrad(0.1), 3))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
    bad, state = optax.apply_if_finite(adagrad(0.1), 3).update({**grads, "b": jnp.asarray(jnp.nan)}, state, params)
    same(bad, jax.tree.map(jnp.zeros_like, bad))

    injected = optax.inject_hyperparams(adagrad)(0.5, weight_decay=0.3, clipnorm=1e6)
    found, state = updates(injected)
    whole = adagrad(0.5, weight_decay=0.3)
    wanted, _ = whole.update(grads, whole.init(params), params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), found, wanted)
    state.hyperparams["learning_rate"] = jnp.asarray(0.0)
    found, _ = jax.jit(injected.update)(grads, state, params)
    assert float(jnp.abs(found["w"]).max()) == 0
    scheduled = optax.inject_hyperparams(adagrad)(optax_schedule(schedules.InverseTimeDecay(0.5, 1, 1.0)))
    _, state = updates(scheduled, 3)
    np.testing.assert_allclose(state.hyperparams["learning_rate"], 0.5 / 3, rtol=1e-6)
    with pytest.raises(TypeError, match="gradient_accumulation_steps decides what is compiled.*static_args"):
        updates(optax.inject_hyperparams(adagrad)(0.5, gradient_accumulation_steps=2))
    optax.tree_utils.tree_get(state, "accumulator")


def test_values_of_arrays_are_not_compiled_in():
    """Another value of a scalar array takes what is compiled already, in a loop without jit too; it is checked all the same."""
    p, g = jnp.ones(7), jnp.full(7, 0.5)
    size = module._compiled._cache_size()
    for rate, decay in ((0.5, 0.1), (0.25, 0.2), (1.0, 0.0)):
        optimizer = Adagrad(jnp.asarray(rate), weight_decay=jnp.asarray(decay))
        found, state = optimizer.apply(g, optimizer.init(p), p)
        np.testing.assert_allclose(found, 1 - decay * rate - rate * 0.5 / np.sqrt(0.35), rtol=1e-6)
        assert optimizer.traced == []
        assert optimizer.settings.learning_rate == rate
    assert module._compiled._cache_size() == size + 1
    injected = optax.inject_hyperparams(adagrad)(lambda count: 0.5 / (count + 1), loss_scale_factor=2.0)
    state = injected.init(p)
    for step in range(3):
        updates, state = injected.update(2 * g, state, p)
        np.testing.assert_allclose(updates, -0.5 / (step + 1) * 0.5 / np.sqrt(0.1 + 0.25 * (step + 1)), rtol=1e-6)
    assert module._compiled._cache_size() == size + 2
    for arguments in ({"learning_rate": -1.0}, {"epsilon": jnp.nan}, {"weight_decay": -1.0}):
        (name, value), *_ = arguments.items()
        with pytest.raises(ValueError, match=f"{name} must be in"):
            Adagrad(**{name: jnp.asarray(value)})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_optax_contracts(dtype):
    """Dtypes and structure are kept, with and without params; nothing is traced twice."""
    params = {"w": jnp.ones((2, 2), dtype), "n": (jnp.ones(3, dtype), None)}
    transformation = adagrad(0.1)
    traces = 0

    @jax.jit
    def step(updates, state, params):
        nonlocal traces
        traces += 1
        return transformation.update(updates, state, params)

    state = transformation.init(params)
    for _ in range(3):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
    assert traces == 1
    assert {x.dtype.name for x in jax.tree.leaves((updates, params))} == {dtype}
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert isinstance(state, AdagradState)
    for arguments in ({}, {"global_clipnorm": 1.0, "gradient_accumulation_steps": 2}):
        empty = adagrad(0.1, **arguments)
        assert empty.update({}, empty.init({}), {})[0] == {}  # nothing to do is no error


# -- schedules and counts ----------------------------------------------------------------------------------------------

SCHEDULES = {
    "exponential": schedules.ExponentialDecay(0.5, 7.5, 0.9),
    "exponential, staircase": schedules.ExponentialDecay(0.5, 1000 / 3, 0.9, staircase=True),
    "inverse time": schedules.InverseTimeDecay(0.5, 10, 0.3, staircase=True),
    "polynomial": schedules.PolynomialDecay(0.5, 1000, 0.01, power=2.0),
    "polynomial, cycle": schedules.PolynomialDecay(0.5, 12.5, 0.01, cycle=True),
    "cosine": schedules.CosineDecay(0.1, 1000, alpha=0.01, warmup_target=0.7, warmup_steps=20),
    "restarts": schedules.CosineDecayRestarts(0.5, 10, t_mul=1.1, m_mul=0.9, alpha=0.05),
    "even restarts": schedules.CosineDecayRestarts(0.5, 7, t_mul=1.0, m_mul=0.99),
    "piecewise": schedules.PiecewiseConstantDecay([3, 6.5, 2**33], [0.5, 0.4, 0.3, 0.2]),
}
STEPS = [0, 1, 2, 3, 4, 6, 7, 9, 10, 11, 12, 13, 20, 21, 25, 50, 77, 333, 334, 1000, 1019, 1020, 10**6, 2**24 + 1, 2**32 + 5,
         2**33, 2**33 + 1, 3 * 10**12]  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_inside_jit(name):
    schedule = SCHEDULES[name]
    counts = jnp.stack([counting.of(step) for step in STEPS])
    found = jax.jit(jax.vmap(lambda count: rates.rate_at(schedule, count)))(counts)
    for step, rate in zip(STEPS, np.asarray(found), strict=True):
        expected = schedule(step)
        allowed = 2**-20 * expected
        if name.startswith("exponential"):
            allowed *= 1 + step / schedule.decay_steps * abs(np.log(schedule.decay_rate))
        if name == "even restarts":
            allowed *= 1 + step // 7 * abs(np.log(schedule.m_mul))
        assert abs(float(rate) - expected) <= allowed + 1e-37, step


def test_schedules_of_the_users():
    class Reciprocal(schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.5 / (step + 1)

    class Table(schedules.LearningRateSchedule):
        def __call__(self, step):
            return [0.5, 0.1][int(step)]

    for rate in (Reciprocal(), optax.join_schedules([optax.constant_schedule(0.5), lambda n: 0.25], [1])):
        optimizer = Adagrad(rate, 0.0, 0.0)
        step, p = jax.jit(optimizer.apply), jnp.zeros(1)
        p, state = step(jnp.ones(1), optimizer.init(p), p)
        assert p.tolist() == [-0.5]
        p, state = step(jnp.zeros(1), state, p)
        new, _ = step(jnp.full(1, 1e15), state, p)  # which outweighs all before: the step is the rate
        np.testing.assert_allclose(p - new, rates.rate_at(rate, state.count), rtol=1e-6)
    with pytest.raises(jax.errors.ConcretizationTypeError) as found:
        jax.jit(Adagrad(Table()).apply)(jnp.ones(1), Adagrad().init(jnp.ones(1)), jnp.ones(1))
    assert "must compute with jax.numpy" in "".join(found.value.__notes__)
    with pytest.raises(ValueError, match=re.escape("learning_rate must give a real scalar, got float32 of (2,)")):
        Adagrad(lambda count: jnp.ones(2)).apply(jnp.ones(1), Adagrad().init(jnp.ones(1)), jnp.ones(1))


def test_the_count_does_not_wrap():
    optimizer = Adagrad(schedules.PiecewiseConstantDecay([2**32 - 1], [0.5, 0.25]), 0.0, 0.0, gradient_accumulation_steps=3)
    p = jnp.zeros(1)
    state = optimizer.init(p)._replace(
        count=counting.of(2**32 - 2)
    )  # a call before a real step: 2**32 - 1 is 3 times 1431655765
    for _ in range(3):
        p, state = optimizer.apply(jnp.ones(1), state, p)
        if counting.to_int(state.count) == 2**32 - 1:
            assert p.tolist() == [-0.5]
    assert counting.to_int(state.count) == 2**32 + 1
    assert optimizer.iterations(state) == (2**32 + 1) // 3
    assert int(counting.saturated(state.count)) == 2**31 - 1
    numbers = (0, 1, 2**32 - 1, 2**32, 2**40 + 12345, 2**63 + 1)
    counts = jnp.stack([counting.of(number) for number in numbers])
    assert [counting.to_int(count) for count in counts] == list(numbers)
    assert [counting.to_int(count) for count in jax.vmap(counting.increment)(counts)] == [number + 1 for number in numbers]
    for length in (3, 2**31 + 11, 2**40 + 1):
        found = jax.jit(jax.vmap(lambda count: counting.divide(count, length, jnp.float32)))(counts)  # noqa: B023
        for number, quotient, elapsed, left in zip(numbers, *found, strict=True):
            assert counting.to_int(quotient) == number // length
            np.testing.assert_allclose([elapsed, left], [number % length, length - number % length], rtol=1e-6)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_none_gradients():
    params = tree(0)
    optimizer = Adagrad(0.1, use_ema=True)
    state = optimizer.init(params)
    with pytest.warns(UserWarning, match="no gradient for b: skipped"):
        new, after = optimizer.apply({"w": params["w"], "b": None}, state, params)
    same(new["b"], params["b"])
    same(after.average["b"], params["b"])
    with pytest.raises(ValueError, match="no gradient is given for any parameter, got None for b, w"):
        optimizer.apply({"w": None, "b": None}, state, params)
    optimizer = Adagrad(0.1, gradient_accumulation_steps=2, weight_decay=0.5)
    state = optimizer.init(params)
    none = {"w": None, "b": None}
    once, state = optimizer.apply({"w": params["w"], "b": None}, state, params)
    same(once, params)
    new, state = optimizer.apply(none, state, params)
    same(new["b"], params["b"])  # not even decayed
    arrays, _ = numpy_run({"learning_rate": 0.1, "gradient_accumulation_steps": 2, "weight_decay": 0.5}, params,
                          [{"w": params["w"], "b": None}, none])  # fmt: skip
    assert ulps(new["w"], arrays["w"]) <= 2


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {
            "weight_decay": 0.5,
            "use_ema": True,
            "ema_momentum": 0.5,
            "ema_overwrite_frequency": 2,
            "gradient_accumulation_steps": 2,
        },
    ],
    ids=["plain", "decay, EMA, overwrite, accumulation"],
)
def test_updates_for_gradients_of_none_do_what_apply_does(arguments):
    params, grads = tree(0), tree(1)
    transformation, exact = adagrad(0.3, **arguments), Adagrad(0.3, **arguments)
    p, r = params, params
    state, pair = transformation.init(p), exact.init(r)
    for given in ("w", "bw", "bw", "w", "w", "w", "bw", "bw"):  # b has a gradient late in a cycle, early, and not at all
        partial = {name: grads[name] if name in given else None for name in grads}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no gradient for", UserWarning)
            updates, state = transformation.update(partial, state, p)
            r, pair = exact.apply(partial, pair, r)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, p)
        p = optax.apply_updates(p, updates)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), (p, state), (r, pair))
    if not arguments:
        with pytest.warns(UserWarning, match="no gradient for b"):
            updates, _ = transformation.update({**grads, "b": None}, transformation.init(params))  # without params, too
        assert float(updates["b"]) == 0


def test_refusals():
    params = tree(0)
    for arguments, message in (
        ({"learning_rate": -1.0}, "learning_rate must be in"),
        ({"learning_rate": jnp.asarray(-1.0)}, "learning_rate must be in"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "at most one of"),
        ({"gradient_accumulation_steps": 1.5}, "gradient_accumulation_steps must be an integer"),
        ({"weight_decay_mask": True}, "weight_decay_mask needs a weight_decay"),
    ):
        with pytest.raises(ValueError, match=message):
            Adagrad(**arguments)
    state = Adagrad().init(params)
    for grads, wrong, message in (
        ({"w": params["w"]}, ValueError, "grads must have the structure of params"),
        ({"w": params["b"], "b": params["b"]}, ValueError, re.escape("the gradient of w must have its shape (4, 3), got ()")),
        ({"w": params["w"], "b": "no"}, TypeError, "the gradient of b must be an array"),
        ({"w": params["w"], "b": jnp.ones((), complex)}, TypeError, "the gradient of b must be real"),
        ({"w": params["w"], "b": jnp.ones((), bool)}, TypeError, "the gradient of b must be numbers"),
        (
            {"w": IndexedSlices(jnp.ones((1, 3)), [5]), "b": params["b"]},
            ValueError,
            "the indices of the gradient of w must be in",
        ),
        ({"w": IndexedSlices(jnp.ones((1, 3)), [-1]), "b": params["b"]}, ValueError, "got -1"),
        ({"w": IndexedSlices(jnp.ones((1, 3)), [0.5]), "b": params["b"]}, TypeError, "must be integers"),
        ({"w": IndexedSlices(jnp.ones((2, 3)), [0]), "b": params["b"]}, ValueError, "must have indices of shape"),
        ({"w": params["w"], "b": IndexedSlices(jnp.ones(1), [0])}, ValueError, "needs a variable with rows"),
    ):
        with pytest.raises(wrong, match=message):
            Adagrad().apply(grads, state, params)
    for other, message in ((Adagrad(use_ema=True), "has no average"), (Adagrad(row_wise=True), "the accumulator of w must")):
        with pytest.raises(ValueError, match=message):
            other.apply(params, state, params)
    with pytest.raises(ValueError, match="made for other parameters"):
        Adagrad().apply({"x": 1.0}, state, {"x": jnp.ones(())})
    with pytest.raises(TypeError, match="parameter n must be floating or complex, got int32"):
        Adagrad().init({"n": jnp.ones(2, jnp.int32)})
    with pytest.raises(TypeError, match="optax transformation can't take IndexedSlices"):
        optax.chain(optax.scale(1.0), adagrad(0.1)).update(
            {"w": IndexedSlices(jnp.ones((1, 3)), jnp.zeros(1, jnp.int32)), "b": params["b"]},
            optax.chain(optax.scale(1.0), adagrad(0.1)).init(params), params,
        )  # fmt: skip
    decayed = Adagrad(weight_decay=0.1, weight_decay_mask={"w": True})
    with pytest.raises(ValueError, match="weight_decay_mask must be a prefix of params"):
        decayed.apply(params, state, params)
    for mask in ({"w": 0.5, "b": True}, "w", lambda p: {"w": True, "b": jnp.ones(2, bool)}):
        with pytest.raises(TypeError, match="weight_decay_mask must be a pytree of bools, got"):
            Adagrad(weight_decay=0.1, weight_decay_mask=mask).apply(params, state, params)
    with pytest.raises(ValueError, match="a constraint must keep the shape"):
        Adagrad(constraints=jnp.sum).apply(params, state, params)
    # Without params, the state knows their shapes; with other states, nothing is broadcast or computed in half precision.
    with pytest.raises(ValueError, match=re.escape("the gradient of w must have its shape (4, 3), got ()")):
        adagrad(0.1).update({"w": params["b"], "b": params["b"]}, state)
    averaged = Adagrad(use_ema=True, gradient_accumulation_steps=2)
    whole = averaged.init(params)
    for field in ("accumulator", "average", "gradient_accumulator"):
        for wrong_one in (jnp.zeros(3), jnp.zeros((4, 3), jnp.float16)):
            wrong_state = whole._replace(**{field: {**getattr(whole, field), "w": wrong_one}})
            with pytest.raises(ValueError, match=re.escape(f"the {field} of w must be float32 of shape (4, 3), got float")):
                averaged.apply(params, wrong_state, params)
    with pytest.raises(ValueError, match="the count of a state must be two uint32 words"):
        Adagrad().apply(params, state._replace(count=jnp.zeros((), jnp.int32)), params)
    for call in (Adagrad().apply, adagrad(0.1).update, lambda g, s, p: adagrad(0.1).update(g, s)):
        with pytest.raises(TypeError, match="state must be an AdagradState, as init makes it, got tuple"):
            call(params, optax.adagrad(0.1).init(params), params)
    with pytest.raises(TypeError, match="parameter f must be a floating or complex array, got <"):
        Adagrad().init({"w": params["w"], "f": jnp.tanh})  # a model whose functions were not left out


def test_masks_and_constraints_may_be_prefixes():
    params = {"a": {"w": jnp.full(2, 2.0), "b": jnp.full(2, 2.0)}, "c": jnp.full(2, 2.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for mask in ({"a": True, "c": False}, lambda p: {"a": {"w": True, "b": True}, "c": False}):
        optimizer = Adagrad(0.5, weight_decay=0.5, weight_decay_mask=mask, constraints={"a": None, "c": lambda p: p - 1})
        new, _ = optimizer.apply(zeros, optimizer.init(params), params)
        assert jax.tree.map(lambda x: x[0].item(), new) == {"a": {"w": 1.5, "b": 1.5}, "c": 1.0}
