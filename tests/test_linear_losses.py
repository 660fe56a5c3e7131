"""Losses and penalties of the linear learners, against plain loops in float64 that share no line with the package."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from adagrad import schedules
from adagrad.kernels import proximal
from adagrad.kernels.losses import LOSSES, SOFTMAX
from adagrad.linear import BatchLearner, Objective, OnlineLearner, make_learner
from adagrad.settings import Settings

pytestmark = pytest.mark.slow  # on a cold machine: each loss and penalty is compiled

FEATURES = 7
PARAMETERS = {"loss_epsilon": 0.3, "quantile": 0.8}
CLASSES = ("log_loss", "hinge", "squared_hinge", "modified_huber")


# -- the plain loops ---------------------------------------------------------------------------------------------------


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def value_and_slope(name: str, z: float, t: float) -> tuple[float, float]:
    """The loss of a margin and its derivative, written down from the textbooks."""
    s = 2 * t - 1
    e, q = PARAMETERS["loss_epsilon"], PARAMETERS["quantile"]
    r = z - t
    if name == "log_loss":
        return math.log1p(math.exp(-s * z)), sigmoid(z) - t
    if name == "poisson":
        return math.exp(z) - t * z, math.exp(z) - t
    if name == "hinge":
        return max(0.0, 1 - s * z), (-s if s * z < 1 else 0.0)
    if name == "squared_hinge":
        return max(0.0, 1 - s * z) ** 2, -2 * s * max(0.0, 1 - s * z)
    if name == "modified_huber":
        if s * z < -1:
            return -4 * s * z, -4 * s
        return max(0.0, 1 - s * z) ** 2, -2 * s * max(0.0, 1 - s * z)
    if name == "squared_error":
        return r * r / 2, r
    if name == "huber":
        return (r * r / 2, r) if abs(r) <= e else (e * abs(r) - e * e / 2, math.copysign(e, r))
    if name == "epsilon_insensitive":
        return max(0.0, abs(r) - e), (math.copysign(1.0, r) if abs(r) > e else 0.0)
    if name == "squared_epsilon_insensitive":
        return max(0.0, abs(r) - e) ** 2, 2 * math.copysign(1.0, r) * max(0.0, abs(r) - e)
    assert name == "quantile"
    return (q * -r, -q) if r < 0 else ((1 - q) * r, (1 - q) if r > 0 else 0.0)


def example(name: str, *, rows: int = 150, outputs: int = 1, dtype: Any = np.float64, seed: int = 0) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    dense = rng.integers(-4, 5, (rows, FEATURES)) / 4 * (rng.random((rows, FEATURES)) < 0.4)
    dense[:, -1] *= np.arange(rows) % 50 == 3  # a column that is rarely there
    targets = rng.integers(0, 2, (rows, outputs)).astype(float) if name in CLASSES else rng.normal(size=(rows, outputs))
    if name == "poisson":
        targets = rng.poisson(1.5, (rows, outputs)).astype(float)
    weights = rng.integers(0, 4, rows) / 2
    return SimpleNamespace(X=sp.csr_array(dense.astype(dtype)), dense=dense, targets=targets, weights=weights, name=name)


def plain(
    data: SimpleNamespace, *, l1: float = 0.0, l2: float = 0.0, rate: Any = 0.5, batch: int = 1, momentum: Any = None,
    decay: float = 0.0, cycle: int = 1, outside: bool = False, epsilon: float = 1e-7,
) -> SimpleNamespace:  # fmt: skip
    """Adagrad with the penalty's step of every weight at every step, in loops over Python floats."""
    outputs = data.targets.shape[1]
    size = FEATURES + 1  # the last is the intercept
    p = [[0.0] * size for _ in range(outputs)]
    a = [[0.1] * size for _ in range(outputs)]
    m = [[0.0] * size for _ in range(outputs)]
    total = [[0.0] * size for _ in range(outputs)]
    margins = np.zeros((len(data.dense), outputs))
    losses = np.zeros(len(data.dense))
    steps = 0
    for call, lo in enumerate(range(0, len(data.dense), batch)):
        chosen = range(lo, min(lo + batch, len(data.dense)))
        for i in chosen:
            x = [*map(float, data.dense[i]), 1.0]
            for c in range(outputs):
                z = sum(weight * value for weight, value in zip(p[c], x, strict=True))
                value, slope = value_and_slope(data.name, z, float(data.targets[i, c]))
                margins[i, c], losses[i] = z, losses[i] + value
                for k in range(size):
                    total[c][k] += slope * float(data.weights[i]) * x[k] / len(chosen)
        if (call + 1) % cycle:
            continue
        lr = rate(call) if callable(rate) else rate
        for c in range(outputs):
            for k in range(size):
                g, total[c][k] = total[c][k] / cycle, 0.0
                p[c][k] -= p[c][k] * decay * lr
                a[c][k] += g * g
                h = math.sqrt(a[c][k]) + epsilon if outside else math.sqrt(a[c][k] + epsilon)
                p[c][k] -= lr * g / h
                if k < FEATURES:
                    p[c][k] = math.copysign(max(abs(p[c][k]) - lr * l1 / h, 0.0) / (1 + lr * l2 / h), p[c][k])
                m[c][k] = p[c][k] if momentum is None or steps == 0 else momentum * m[c][k] + (1 - momentum) * p[c][k]
        steps += 1
    found = np.array(m if momentum is not None else p)
    return SimpleNamespace(
        coef=found[:, :-1].T, intercept=found[:, -1], margins=margins, losses=losses, accumulator=np.array(a)
    )


def learner_of(
    data: SimpleNamespace, *, l1: float = 0.0, l2: float = 0.0, batch: Any = None, rate: Any = 0.5, **more: Any
) -> Any:
    loss = LOSSES[data.name]
    objective = Objective(loss.number, PARAMETERS.get(str(loss.parameter), 0.0), l1, l2)
    settings = Settings(**{"learning_rate": rate, **more})
    return make_learner(settings, FEATURES, data.targets.shape[1], objective, True, data.X.dtype, batch)


def learned(data: SimpleNamespace, **arguments: Any) -> Any:
    learner = learner_of(data, **arguments)
    learner.learn(data.X, data.targets, data.weights)
    return learner


def ulps(ours: np.ndarray, true: np.ndarray) -> float:
    """The largest distance in units of the last place of the true value, or of 0.5, the size of a first step, if larger."""
    unit = np.spacing(np.maximum(np.abs(true), 0.5).astype(ours.dtype)).astype(np.float64)
    return float((np.abs(ours.astype(np.float64) - true) / unit).max())


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_the_slopes_of_the_loops_are_derivatives(name: str) -> None:
    for z in np.linspace(-2.303, 2.297, 47):
        for t in (0.0, 1.0):
            difference = value_and_slope(name, z + 1e-6, t)[0] - value_and_slope(name, z - 1e-6, t)[0]
            assert abs(difference / 2e-6 - value_and_slope(name, z, t)[1]) < 1e-5


@pytest.mark.parametrize("batch", [None, 16])
@pytest.mark.parametrize(("name", "outputs"), [*((name, 1) for name in LOSSES), ("hinge", 3), ("log_loss", 3)])
def test_a_loss_is_learned_as_by_the_loops(name: str, outputs: int, batch: int | None) -> None:
    data = example(name, outputs=outputs)
    true = plain(data, batch=batch or 1)
    learner = learner_of(data, batch=batch)
    predictions = learner.learn(data.X, data.targets, data.weights)
    linked = {"log_loss": np.vectorize(sigmoid), "poisson": np.exp}.get(name, np.asarray)(true.margins)
    # Sums over a batch and over a row go in another order: measured up to 18 units of the last place.
    np.testing.assert_allclose(predictions, linked, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(learner.weights()[0], true.coef, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(learner.weights()[1], true.intercept, rtol=1e-13, atol=1e-13)
    losses = learner.losses(predictions, data.targets)
    np.testing.assert_allclose(losses, true.losses, rtol=1e-10, atol=1e-12)  # log(p) of a p near 1
    assert np.ptp(losses) > 0.1
    by_margins = learner.losses(true.margins, data.targets, linked=False)
    np.testing.assert_allclose(by_margins, true.losses, rtol=1e-13, atol=1e-13)


def test_classes_by_number_are_one_against_the_rest() -> None:
    data = example("hinge", outputs=3)
    numbers = np.arange(150) % 3
    data.targets = (numbers[:, None] == np.arange(3)).astype(float)
    whole, by_number = learner_of(data), learner_of(data)
    first = whole.learn(data.X, data.targets, data.weights)
    second = by_number.learn(data.X, numbers, data.weights)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(whole.weights()[0], by_number.weights()[0])
    np.testing.assert_array_equal(whole.losses(first, data.targets), whole.losses(first, numbers))


def test_the_softmax_s_loss() -> None:
    learner = make_learner(Settings(), 2, 3, Objective(SOFTMAX), True, np.dtype(np.float64), None)
    predictions = np.array([[0.2, 0.3, 0.5], [0.7, 0.3, 0.0]])
    np.testing.assert_allclose(learner.losses(predictions, np.array([2.0, 1.0])), [-math.log(0.5), -math.log(0.3)])
    assert 700 < learner.losses(predictions[1:], np.array([2.0]))[0] < 710  # of a probability of 0: large, not infinite


def test_a_count_beyond_all_bounds_is_infinite() -> None:
    learner = make_learner(Settings(), 1, 1, Objective(LOSSES["poisson"].number), False, np.dtype(np.float64), None)
    learner._table[0, 0, 0] = 1.0
    found = learner.predict(np.array([[709.7], [709.8], [-1e4], [np.nan]]))[:, 0]
    np.testing.assert_array_equal(found, [math.exp(709.7), math.inf, 0.0, math.nan])


def test_targets_of_another_shape_are_refused() -> None:
    data = example("squared_error", outputs=3)
    with pytest.raises(ValueError, match=r"targets must have shape \(150, 3\), got \(150,\)"):
        learner_of(data).learn(data.X, data.targets[:, 0], data.weights)


# -- penalties ---------------------------------------------------------------------------------------------------------

PENALTIES = {"l1": (0.02, 0.0), "l2": (0.0, 0.03), "elastic net": (0.01, 0.02), "strong": (0.5, 3.0), "faint": (1e-9, 1e-9)}
RATES = {
    "constant": 0.5,
    "decaying": schedules.ExponentialDecay(0.5, 60, 0.3),
    "warm-up": schedules.PolynomialDecay(0.0, 100, 0.5),
    "jumping": schedules.PiecewiseConstantDecay([9, 50, 51], [0.5, 0.1, 0.0, 0.3]),
}
# Measured over these cases and four seeds: float64 14.8, float32 4.3; without a penalty 1.8 and 4.3. Each lazy step is rounded
# once where the loop rounds every step, and what comes later hangs on it; of three outputs, below, measured 21.
ULPS = {"float64": 24.0, "float32": 6.0}


@pytest.mark.parametrize("batch", [None, 8])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_penalty_is_the_eager_step(penalty: str, rate: str, batch: int | None) -> None:
    l1, l2 = PENALTIES[penalty]
    for dtype in (np.float64, np.float32):
        data = example("log_loss", dtype=dtype)
        true = plain(data, l1=l1, l2=l2, rate=RATES[rate], batch=batch or 1)
        learner = learned(data, l1=l1, l2=l2, rate=RATES[rate], batch=batch)
        for ours, exact in zip(learner.weights(), (true.coef, true.intercept), strict=True):
            assert ulps(ours, exact) <= ULPS[np.dtype(dtype).name]
            np.testing.assert_array_equal(ours == 0, exact == 0)
            assert not np.signbit(ours[ours == 0]).any()


def test_penalties_of_several_outputs_and_other_arguments() -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"epsilon_placement": "outside", "epsilon": 0.2}, {"outside": True, "epsilon": 0.2}),
        ({"epsilon": 0.2}, {"epsilon": 0.2}),
        ({"loss_scale_factor": 3.0}, {}),
    ]
    data = example("hinge", outputs=3)
    for arguments, same in cases:
        true = plain(data, l1=0.02, l2=0.01, **same)
        learner = learner_of(data, l1=0.02, l2=0.01, **arguments)
        factor = arguments.get("loss_scale_factor", 1.0)
        learner.learn(data.X, data.targets, data.weights)
        assert ulps(learner.weights()[0], true.coef) <= ULPS["float64"], (arguments, factor)


@pytest.mark.parametrize("batch", [None, 8])
def test_a_penalty_beside_what_moves_every_weight(batch: int | None) -> None:
    data = example("squared_error")
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"use_ema": True, "ema_momentum": 0.9}, {"momentum": 0.9}),
        ({"weight_decay": 0.1}, {"decay": 0.1}),
        ({"gradient_accumulation_steps": 3}, {"cycle": 3}),
        ({"gradient_accumulation_steps": 3, "use_ema": True, "ema_momentum": 0.5}, {"cycle": 3, "momentum": 0.5}),
    ]
    for arguments, same in cases:
        true = plain(data, l1=0.05, l2=0.02, batch=batch or 1, **same)
        learner = learned(data, l1=0.05, l2=0.02, batch=batch, **arguments)
        assert isinstance(learner, BatchLearner)
        learner.finalize()
        assert ulps(learner.weights()[0], true.coef) <= 6.0, arguments  # measured 3.0
        assert ulps(learner.weights()[1], true.intercept) <= 6.0, arguments


@pytest.mark.parametrize("rate", ["constant", "decaying"])
def test_long_absence_is_many_steps(rate: str) -> None:
    """A weight that was left for 40,000 steps, longer than the history is, has shrunk as often."""
    rows = 40_000
    X = sp.csr_array((np.ones(rows), np.r_[0, np.ones(rows - 2, int), 0], np.arange(rows + 1)), shape=(rows, FEATURES))
    data = SimpleNamespace(X=X, targets=np.ones((rows, 1)), weights=np.ones(rows), name="squared_error")
    lr = schedules.ExponentialDecay(0.5, 10_000, 0.3) if rate == "decaying" else 0.5
    learner = learner_of(data, l1=1e-6, l2=1e-5, rate=lr)
    learner.learn(X[: rows - 1], data.targets[:-1], data.weights[:-1])
    p, a = np.longdouble(0.0), np.longdouble(0.1)
    for step in range(rows - 1):
        r = lr(step) if callable(lr) else lr
        if step == 0:
            a, p = a + 1, r / np.sqrt(a + 1 + 1e-7)
        h = np.sqrt(a + 1e-7)
        p = max(abs(p) - r * 1e-6 / h, 0.0) / (1 + r * 1e-5 / h)
    before = float(learner.weights()[0][0, 0])
    assert 0.2 < p < 0.47
    assert abs(before / p - 1) < 1e-12
    again = copy.deepcopy(learner)
    prediction = learner.learn(X[rows - 1 :], data.targets[-1:], data.weights[-1:])
    np.testing.assert_array_equal(prediction[0, 0], before + again.weights()[1][0])
    if rate == "decaying":
        assert learner._penalty.window[0] > 0  # it has begun anew


@pytest.mark.parametrize("batch", [None, 8])
@pytest.mark.parametrize("rate", ["constant", "decaying"])
def test_penalized_state_goes_on_bit_for_bit(rate: str, batch: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proximal, "ROWS", 50)  # so that it begins anew on the way
    data = example("log_loss")
    arguments = {"l1": 0.01, "l2": 0.02, "rate": RATES[rate], "batch": batch}
    whole, cut = learner_of(data, **arguments), learner_of(data, **arguments)
    expected = whole.learn(data.X, data.targets, data.weights)
    cut.learn(data.X[:64], data.targets[:64], data.weights[:64])
    cut.predict(data.X)  # which must not move anything
    loaded = learner_of(data, **arguments)
    loaded.load(cut.state(), cut.counters())
    for other in (loaded, pickle.loads(pickle.dumps(cut)), copy.deepcopy(cut), cut):
        found = other.learn(data.X[64:], data.targets[64:], data.weights[64:])
        np.testing.assert_array_equal(found, expected[64:])
        assert list(other.state()) == list(whole.state())
        for name, array in whole.state().items():
            np.testing.assert_array_equal(array, other.state()[name], err_msg=name)
        other.finalize()
        np.testing.assert_array_equal(other.weights()[0], whole.weights()[0])
    wrong = {**cut.state(), "lazy/shrunk": cut.state()["lazy/shrunk"] + 1000}
    with pytest.raises(ValueError, match="shrunk and window are not of step"):
        loaded.load(wrong, cut.counters())


def test_another_kind_of_rate_may_take_over() -> None:
    data = example("log_loss")
    for first, second in (("constant", "decaying"), ("decaying", "constant")):
        before = learner_of(data, l1=0.01, l2=0.02, rate=RATES[first])
        before.learn(data.X[:70], data.targets[:70], data.weights[:70])
        after = learner_of(data, l1=0.01, l2=0.02, rate=RATES[second])
        after.load(before.state(), before.counters())
        before.set_rate(Settings(learning_rate=RATES[second]))
        for learner in (before, after):
            learner.learn(data.X[70:], data.targets[70:], data.weights[70:])
        np.testing.assert_array_equal(before.weights()[0], after.weights()[0])
        one, two = (rate if callable(rate) else lambda step: 0.5 for rate in (RATES[first], RATES[second]))
        true = plain(data, l1=0.01, l2=0.02, rate=lambda step, one=one, two=two: (one if step < 70 else two)(step))
        assert ulps(after.weights()[0], true.coef) <= ULPS["float64"]


def test_a_penalty_is_lazy_where_it_can_be() -> None:
    data = example("log_loss")
    assert isinstance(learner_of(data, l1=0.1), OnlineLearner)
    learner = learned(data, l1=0.01)
    untouched = learner.state()
    learner.predict(data.X)
    learner.weights()
    for name, array in learner.state().items():
        np.testing.assert_array_equal(array, untouched[name])
    assert (learner.state()["coef"] != learner.weights()[0]).any()
    learner.finalize()
    np.testing.assert_array_equal(learner.state()["coef"], learner.weights()[0])
