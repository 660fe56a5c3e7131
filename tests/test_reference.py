"""The reference against numbers worked out by hand: each stage of the contract at least once, each sum in a comment.

Most cases use accumulators that start at 0 with epsilon 0, or gradients like 0.6 and 0.8, so that the roots are whole
numbers and the results can be followed without a calculator.
"""

import math

import numpy as np
import pytest

from reference import ReferenceAdagrad, ReferenceLossScale, dense, norm

# One rounding or a few of float64: hand results are real numbers, 0.1 + 0.2 is not 0.3.
close = {"rtol": 1e-15, "atol": 1e-16}


def array(*values):
    return np.array(values, dtype=np.float64)


def start(*variables, constraints=None, **arguments):
    reference = ReferenceAdagrad(**arguments)
    reference.build(list(variables), constraints=constraints)
    return reference


def test_rule_with_the_page_defaults():
    p = array(1.0, 1.0, 1.0)
    reference = start(p)
    reference.apply([array(1.0, -2.0, 0.0)], [p])
    # a = 0.1 + g*g; p = 1 - 0.001 * g / sqrt(a + 1e-7); where g is 0 nothing moves
    np.testing.assert_allclose(reference.accumulator(p), [1.1, 4.1, 0.1], **close)
    np.testing.assert_allclose(p, [1 - 0.001 / math.sqrt(1.1000001), 1 + 0.002 / math.sqrt(4.1000001), 1.0], **close)


def test_paper_form():
    # Duchi, Hazan and Singer, diagonal: x = x - eta * g / sqrt(sum of g^2), eta = 1, sum from 0.
    p = array(5.0)
    reference = start(p, learning_rate=1.0, initial_accumulator_value=0.0, epsilon=0.0)
    reference.apply([array(3.0)], [p])
    assert p == 4.0  # 5 - 3/sqrt(9)
    reference.apply([array(4.0)], [p])
    np.testing.assert_allclose(p, 3.2, **close)  # 4 - 4/sqrt(9 + 16) = 4 - 0.8
    assert reference.accumulator(p) == 25.0
    reference.apply([array(-12.0)], [p])
    np.testing.assert_allclose(p, 3.2 + 12 / 13, **close)  # sqrt(25 + 144) = 13
    assert reference.iterations == 3


def test_epsilon_inside_and_outside():
    inside, outside = array(0.0), array(0.0)
    arguments = {"learning_rate": 1.0, "initial_accumulator_value": 7.0, "epsilon": 9.0}
    start(inside, **arguments).apply([array(3.0)], [inside])
    start(outside, **arguments, epsilon_placement="outside").apply([array(3.0)], [outside])
    assert inside == -0.6  # a = 16; -3 / sqrt(16 + 9)
    np.testing.assert_allclose(outside, -3 / 13, **close)  # -3 / (sqrt(16) + 9)


@pytest.mark.parametrize("placement", ["inside", "outside"])
def test_zero_accumulator_and_zero_epsilon(placement):
    p = array(1.0, 1.0, 1.0)
    reference = start(p, learning_rate=0.25, initial_accumulator_value=0.0, epsilon=0.0, epsilon_placement=placement)
    # 0 moves nothing; 1e-200 squared is 0 in float64, so its step is the rate times the sign
    reference.apply([array(0.0, 1e-200, -1e-200)], [p])
    np.testing.assert_array_equal(p, [1.0, 0.75, 1.25])
    np.testing.assert_array_equal(reference.accumulator(p), [0.0, 0.0, 0.0])


def test_none_gradients_and_empty_lists():
    p, q = array(1.0), array(2.0)
    reference = start(p, q, learning_rate=1.0, initial_accumulator_value=0.0, epsilon=0.0, weight_decay=0.5)
    reference.apply([None, array(2.0)], [p, q])
    assert p == 1.0  # skipped: not even decayed
    assert q == 0.0  # 2 - 2*0.5*1 = 1, then 1 - 2/2
    with pytest.raises(ValueError, match="None"):
        reference.apply([None, None], [p, q])
    reference.apply([], [])
    assert (reference.calls, reference.iterations) == (1, 1)


def test_loss_scale_factor_divides_the_gradient():
    p = array(0.0)
    reference = start(p, learning_rate=1.0, initial_accumulator_value=0.0, epsilon=16.0, loss_scale_factor=4.0)
    reference.apply([array(12.0)], [p])
    assert p == -0.6  # g = 3, a = 9, -3 / sqrt(9 + 16)
    assert reference.accumulator(p) == 9.0


def test_accumulation_takes_the_mean_and_counts_calls():
    p = array(0.0)
    asked = []

    def schedule(step):
        asked.append(step)
        return 1.0

    reference = start(p, schedule=schedule, initial_accumulator_value=0.0, epsilon=16.0, gradient_accumulation_steps=3)
    reference.apply([array(1.0)], [p])
    reference.apply([array(6.0)], [p])
    assert p == 0.0
    assert reference.gradient_buffer(p) == 7.0
    assert reference.accumulator(p) == 0.0
    assert (reference.calls, reference.iterations) == (2, 0)
    reference.apply([array(2.0)], [p])
    assert p == -0.6  # (1 + 6 + 2)/3 = 3; -3 / sqrt(9 + 16)
    assert reference.gradient_buffer(p) == 0.0
    assert (reference.calls, reference.iterations) == (3, 1)
    for _ in range(3):
        reference.apply([array(0.0)], [p])
    assert asked == [2, 5]  # real steps only, with the count of calls before them


def test_accumulation_and_none():
    p, q = array(0.0), array(8.0)
    reference = start(
        p,
        q,
        learning_rate=1.0,
        initial_accumulator_value=0.0,
        epsilon=16.0,
        weight_decay=0.5,
        use_ema=True,
        ema_momentum=0.5,
        gradient_accumulation_steps=2,
    )
    reference.apply([array(6.0), None], [p, q])
    reference.apply([None, None], [p, q])
    assert p == -0.6  # (6 + 0)/2 = 3; -3 / sqrt(9 + 16); p was 0, so no decay
    assert q == 8.0  # no gradient in the whole cycle: no decay either
    assert reference.average(q) == 8.0
    reference.apply([None, None], [p, q])  # all None: still a cycle
    q[...] = 4.0
    reference.apply([None, None], [p, q])
    assert p == -0.6
    assert reference.average(q) == 6.0  # 0.5*8 + 0.5*4: the average moves all the same
    assert (reference.calls, reference.iterations) == (4, 2)


def test_a_variable_left_out_of_the_real_step_keeps_what_it_brought():
    p, q = array(0.0), array(0.0)
    reference = start(p, q, learning_rate=1.0, initial_accumulator_value=0.0, epsilon=16.0, gradient_accumulation_steps=2)
    reference.apply([array(6.0), array(1.0)], [p, q])
    reference.apply([array(1.0)], [q])
    assert p == -0.6  # as if None had been given
    np.testing.assert_allclose(q, -1 / math.sqrt(17), **close)


def one_step(g, **arguments):
    """The gradient that stage 7 sees: with a huge epsilon and a rate of its root, p = 0 - g * rate / root."""
    p = np.zeros_like(g)
    start(p, learning_rate=2.0**100, initial_accumulator_value=0.0, epsilon=2.0**200, **arguments).apply([g], [p])
    return -p


def test_clipvalue_is_two_sided():
    g = one_step(array(3.0, -3.0, 1.5, math.inf, -math.inf, math.nan), clipvalue=2.0)
    np.testing.assert_array_equal(g, [2.0, -2.0, 1.5, 2.0, -2.0, math.nan])


def test_clipnorm_scales_only_what_is_too_long():
    np.testing.assert_allclose(one_step(array(3.0, -4.0), clipnorm=1.0), [0.6, -0.8], **close)  # norm 5
    np.testing.assert_array_equal(one_step(array(3.0, -4.0), clipnorm=5.0), [3.0, -4.0])
    np.testing.assert_array_equal(one_step(array(3.0, -4.0), clipnorm=10.0), [3.0, -4.0])
    g = one_step(array(3e200, 4e200), clipnorm=1.0)  # the squares would be inf
    np.testing.assert_allclose(g, [0.6, 0.8], **close)


def test_clipnorm_with_a_norm_that_is_not_finite():
    for bad in (math.inf, math.nan):
        np.testing.assert_array_equal(one_step(array(0.0, 1.0, bad), clipnorm=1.0), [0.0, math.nan, math.nan])


def test_clipnorm_is_per_variable_and_global_clipnorm_over_all():
    arguments = {"learning_rate": 2.0**100, "initial_accumulator_value": 0.0, "epsilon": 2.0**200}
    g, h = array(3.0, 0.0), array(0.0, 4.0)
    p, q, skipped = array(0.0, 0.0), array(0.0, 0.0), array(0.0, 0.0)
    start(p, q, clipnorm=2.0, **arguments).apply([g, h], [p, q])
    np.testing.assert_allclose([-p, -q], [[2.0, 0.0], [0.0, 2.0]], **close)  # norms 3 and 4, each to 2
    p[...], q[...] = 0.0, 0.0
    start(p, q, skipped, global_clipnorm=1.0, **arguments).apply([g, h, None], [p, q, skipped])
    np.testing.assert_allclose([-p, -q], [[0.6, 0.0], [0.0, 0.8]], **close)  # one norm, 5
    p[...], q[...] = 0.0, 0.0
    start(p, q, global_clipnorm=1.0, **arguments).apply([g, array(0.0, math.inf)], [p, q])
    np.testing.assert_array_equal([-p, -q], [[math.nan, 0.0], [0.0, math.nan]])


def test_norm_of_extreme_values():
    assert norm([3e-200, 4e-200]) == 5e-200
    assert norm([1e308, 1e308]) == pytest.approx(math.sqrt(2) * 1e308, rel=1e-15)
    assert norm([]) == 0.0


def test_clipping_comes_after_the_mean():
    p = array(0.0)
    reference = start(
        p,
        learning_rate=1.0,
        initial_accumulator_value=0.0,
        epsilon=16.0,
        clipvalue=3.0,
        gradient_accumulation_steps=2,
    )
    reference.apply([array(14.0)], [p])
    reference.apply([array(-10.0)], [p])
    np.testing.assert_allclose(p, -2 / math.sqrt(20), **close)  # (14 - 10)/2 = 2, not clipped


def test_weight_decay_decoupled_and_excluded():
    p, q, r = array(8.0), array(8.0), array(8.0)
    reference = ReferenceAdagrad(0.5, 0.0, 0.0, 0.25)
    reference.build({"dense/kernel": p, "dense/bias": q, "head": r})
    reference.exclude_from_weight_decay(var_list=[r], var_names=["bias$"])
    reference.apply({"dense/kernel": array(2.0), "dense/bias": array(2.0), "head": array(0.0)})
    assert p == 6.5  # 8 - 8*0.25*0.5 = 7; 7 - 0.5*2/sqrt(4)
    assert q == 7.5  # no decay
    assert r == 8.0
    assert reference.accumulator(p) == 4.0  # decay is not in the gradient


def test_weight_decay_l2_goes_through_the_accumulator():
    p, q = array(8.0), array(8.0)
    reference = start(
        p, q, learning_rate=0.5, initial_accumulator_value=0.0, epsilon=9.0, weight_decay=0.25, weight_decay_mode="l2"
    )
    reference.exclude_from_weight_decay(var_list=[q])
    reference.apply([array(2.0), array(4.0)], [p, q])
    assert p == 7.6  # g = 2 + 0.25*8 = 4, a = 16; 8 - 0.5*4/sqrt(25)
    assert q == 7.6
    assert reference.accumulator(p) == 16.0
    unclipped = array(8.0)
    clipped = start(
        unclipped,
        learning_rate=0.5,
        initial_accumulator_value=0.0,
        epsilon=9.0,
        weight_decay=0.25,
        weight_decay_mode="l2",
        clipvalue=2.0,
    )
    clipped.apply([array(100.0)], [unclipped])
    assert unclipped == 7.6  # the clip sees only the gradient: 2 + 0.25*8 = 4


def test_constraint_after_the_rule():
    p, q = array(0.5, 3.0), array(0.5)
    reference = start(
        p,
        q,
        learning_rate=1.0,
        initial_accumulator_value=0.0,
        epsilon=0.0,
        constraints=[lambda w: np.maximum(w, 0.0), None],
    )
    reference.apply([array(2.0, 2.0), array(2.0)], [p, q])
    np.testing.assert_array_equal(p, [0.0, 2.0])  # -0.5 becomes 0
    assert q == -0.5


def test_a_constraint_that_raises_leaves_everything_as_it_was():
    p, q = array(1.0), array(1.0)

    def fail(_):
        raise RuntimeError("no")

    reference = start(p, q, constraints=[None, fail])
    with pytest.raises(RuntimeError):
        reference.apply([array(1.0), array(1.0)], [p, q])
    assert (p, q, reference.accumulator(p), reference.calls) == (1.0, 1.0, 0.1, 0)


def test_average_follows_the_formula_of_the_page():
    p = array(4.0)
    reference = start(p, learning_rate=1.0, initial_accumulator_value=0.0, epsilon=0.0, use_ema=True, ema_momentum=0.75)
    reference.finalize_variable_values([p])
    assert p == 4.0  # no step yet: nothing to put there
    reference.apply([array(3.0)], [p])
    assert (p, reference.average(p)) == (3.0, 3.0)  # the first average is the variable
    reference.apply([array(4.0)], [p])
    np.testing.assert_allclose(p, 2.2, **close)  # 3 - 4/5
    np.testing.assert_allclose(reference.average(p), 2.8, **close)  # 0.75*3 + 0.25*2.2
    reference.finalize_variable_values([p])
    np.testing.assert_allclose(p, 2.8, **close)


def test_overwrite_every_second_real_step_under_accumulation():
    p = array(4.0)
    reference = start(
        p,
        learning_rate=1.0,
        initial_accumulator_value=0.0,
        epsilon=0.0,
        use_ema=True,
        ema_momentum=0.75,
        ema_overwrite_frequency=2,
        gradient_accumulation_steps=2,
    )
    seen = []
    for g in (3.0, 3.0, 4.0, 4.0, 12.0, 12.0):
        reference.apply([array(g)], [p])
        seen.append((p.item(), reference.average(p).item()))
    # real steps at calls 2, 4, 6: 4 - 3/3 = 3; 3 - 4/5 = 2.2, average 2.8, put in place; 2.8 - 12/13
    last = 2.8 - 12 / 13
    expected = [(4, 0), (3, 3), (3, 3), (2.8, 2.8), (2.8, 2.8), (last, 0.75 * 2.8 + 0.25 * last)]
    np.testing.assert_allclose(seen, expected, **close)


def test_average_is_constrained_where_it_is_put_in_place():
    p = array(1.0)

    def round_up(w):
        return np.ceil(w)

    reference = start(
        p,
        learning_rate=1.0,
        initial_accumulator_value=0.0,
        epsilon=0.0,
        use_ema=True,
        ema_momentum=0.5,
        ema_overwrite_frequency=2,
        constraints=[round_up],
    )
    reference.apply([array(-3.0)], [p])  # 1 + 3/3 = 2
    reference.apply([array(-4.0)], [p])  # 2 + 4/5 = 2.8, constrained to 3; average (2 + 3)/2 = 2.5, in place as 3
    assert (p, reference.average(p)) == (3.0, 2.5)
    p[...] = 0.0
    reference.finalize_variable_values([p])
    assert p == 3.0


def test_average_moves_without_a_gradient_and_finalize_goes_by_identity():
    p, q = array(1.0), array(2.0)
    reference = start(p, q, learning_rate=0.0, initial_accumulator_value=0.1, epsilon=0.0, use_ema=True, ema_momentum=0.5)
    reference.apply([array(1.0)], [p])  # q is not even given
    p[...], q[...] = 3.0, 4.0
    reference.apply([array(1.0), None], [p, q])
    assert (reference.average(p), reference.average(q)) == (2.0, 3.0)
    reference.finalize_variable_values([q, p])
    assert (p, q) == (2.0, 3.0)


def test_learning_rate_from_a_callable_is_asked_once_a_real_step():
    rates = iter([1.0, 0.5])
    p, q = array(0.0), array(2.0)
    reference = start(
        p,
        q,
        learning_rate=lambda: next(rates),
        initial_accumulator_value=0.0,
        epsilon=0.0,
        weight_decay=0.5,
        gradient_accumulation_steps=2,
    )
    for _ in range(4):
        reference.apply([array(1.0), array(0.0)], [p, q])
    np.testing.assert_allclose(p, -1.0 * 0.75 - 0.5 / math.sqrt(2), **close)  # -1; decayed by 1/4; second step
    assert q == 0.75  # 2 - 2*0.5*1 = 1; 1 - 1*0.5*0.5


def test_rows_are_summed_before_they_are_squared():
    table, same = np.zeros((3, 2)), np.zeros((3, 2))
    reference, equal = (start(t, learning_rate=1.0, initial_accumulator_value=0.0, epsilon=16.0) for t in (table, same))
    rows = ("rows", np.array([[1.0, 0.0], [5.0, 1.0], [2.0, 0.0]]), np.array([2, 0, 2]))
    assert dense(rows, (3, 2)) == [5.0, 1.0, 0.0, 0.0, 3.0, 0.0]
    reference.apply([rows], [table])
    equal.apply([np.array([[5.0, 1.0], [0.0, 0.0], [3.0, 0.0]])], [same])
    np.testing.assert_array_equal(table, same)
    assert table[2, 0] == -0.6  # 1 + 2 = 3; -3 / sqrt(9 + 16)
    with pytest.raises(ValueError, match="outside"):
        dense(("rows", np.ones((1, 2)), [3]), (3, 2))
    with pytest.raises(ValueError, match="outside"):
        dense(("rows", np.ones((1, 2)), [-1]), (3, 2))


def test_checks_come_before_any_change():
    p, q, other = array(1.0), array(1.0, 1.0), array(1.0)
    reference = start(p, q)
    for grads, variables in [
        ([array(1.0)], [p, q]),
        ([array(1.0), array(1.0)], [p, q]),
        ([array(1.0), array(1.0)], [p, p]),
        ([array(1.0), array(1.0)], [p, other]),
    ]:
        with pytest.raises(ValueError):
            reference.apply(grads, variables)
    assert (p, reference.accumulator(p), reference.calls) == (1.0, 0.1, 0)


def test_rounding_of_a_stored_parameter():
    p = array(1.0)

    def to_quarters(x):
        return math.floor(x * 4.0 + 0.5) / 4.0

    reference = ReferenceAdagrad(1.0, 0.0, 0.0, 0.125, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    reference.build([p], round_params=[to_quarters])
    reference.apply([array(-3.0)], [p])
    assert p == 2.0  # 1 - 0.125 + 1 = 1.875, stored as 2, and 2 is what the average sees
    assert reference.average(p) == 2.0
    reference.apply([array(-4.0)], [p])
    # 2 - 0.25 + 0.8 = 2.55, stored as 2.5; average 2.25 is a quarter already
    assert (p, reference.average(p)) == (2.25, 2.25)


def test_loss_scale_halves_skips_and_grows():
    p = array(0.0)
    inner = start(p, learning_rate=1.0, initial_accumulator_value=0.0, epsilon=16.0)
    scaler = ReferenceLossScale(inner, initial_scale=8.0, dynamic_growth_steps=2)
    scaler.apply([array(24.0)], [p])
    assert p == -0.6  # 24/8 = 3
    scaler.apply([array(math.inf)], [p])
    assert (p, scaler.scale, inner.calls) == (-0.6, 4.0, 1)
    scales = []
    for _ in range(4):
        scaler.apply([array(0.0)], [p])
        scales.append(scaler.scale)
    assert scales == [4.0, 8.0, 8.0, 16.0]  # the skipped step started the count anew
    scaler.scale = 2.0**-20
    table_overflows = ("rows", np.array([1.7e308, 1.7e308]), [0, 0])  # each finite, their sum is not
    scaler.apply([table_overflows], [p])
    assert (scaler.scale, inner.calls) == (2.0**-20, 5)
    scaler.scale = 2.0**40
    scaler.apply([array(0.0)], [p])
    scaler.apply([array(0.0)], [p])
    assert scaler.scale == 2.0**40
