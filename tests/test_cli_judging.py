"""Figures of merit against scikit-learn's, the running mean and the online loss against plain loops."""

import math

import numpy as np
import pytest
from scipy import sparse
from sklearn import metrics

from adagrad.cli.holdout import Holdout
from adagrad.cli.judging import Baseline, RunningMean, make_score, row_losses
from adagrad.cli.labels import Labels
from adagrad.cli.online import Online
from adagrad.cli.roles import Column

TARGET = Column("y", "text", "target", "")


def labels(classes: str = "", mean: float = 0.0) -> Labels:
    task = "classification" if classes else "regression"
    return Labels(TARGET, None, task, list(classes), "", mean, 2.0)


def drawn(classes: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), rows)
    y = (p.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return p, y, rng.random(rows) + 0.1


@pytest.mark.parametrize("classes", ["ab", "abcd"])
def test_classification_figures_are_sklearns(classes: str) -> None:
    p, y, weight = drawn(len(classes), 4000)
    score = make_score(labels(classes))
    for part in np.array_split(np.arange(4000), 3):
        score.add(p[part], y[part], weight[part])
    found = score.table()
    assert found["log_loss"] == pytest.approx(metrics.log_loss(y, p, sample_weight=weight), rel=1e-12)
    judged = [1] if len(classes) == 2 else range(4)
    areas = [metrics.roc_auc_score(y == k, p[:, k], sample_weight=weight) for k in judged]
    assert found["auc"] == pytest.approx(np.mean(areas), abs=2e-6 if len(classes) == 2 else 1e-4)
    ratios = [float(weight @ p[:, k] / weight[y == k].sum()) for k in judged]
    assert found["calibration"] == pytest.approx(max(ratios, key=lambda r: abs(math.log(r))), rel=1e-12)


def test_regression_figures_are_sklearns() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(1e6, 3.0, 5000)  # far from zero, where a plain sum of squares would lose all
    made, weight = y + rng.normal(0.0, 1.0, 5000), rng.random(5000)
    score = make_score(labels(mean=1e6 + 1))
    for part in np.array_split(np.arange(5000), 4):
        score.add(made[part], y[part], weight[part])
    found = score.table()
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(y, made, sample_weight=weight), rel=1e-10)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, made, sample_weight=weight), rel=1e-10)
    assert found["r2"] == pytest.approx(metrics.r2_score(y, made, sample_weight=weight), rel=1e-9)


def test_the_loss_that_was_minimized_is_judged_too() -> None:
    """In the target's units: of deviation 2, the learner's 0.4 are 0.8 there."""
    rng = np.random.default_rng(1)
    made, weight = rng.gamma(3.0, 1.0, 500), rng.random(500)
    y = rng.poisson(made).astype(float)
    error = np.abs(made - y)
    true = {
        "quantile": metrics.mean_pinball_loss(y, made, sample_weight=weight, alpha=0.4),
        "huber": np.average(np.where(error <= 0.8, error**2 / 2, 0.8 * error - 0.32), weights=weight),
        "epsilon_insensitive": np.average(np.maximum(error - 0.8, 0.0), weights=weight),
        "squared_epsilon_insensitive": np.average(np.maximum(error - 0.8, 0.0) ** 2, weights=weight),
        "poisson": np.average(made - y * np.log(made), weights=weight),
    }
    for loss, expected in true.items():
        learned = labels()
        learned.loss, learned.parameter = loss, 0.4
        score = make_score(learned)
        assert score.table() == {"rmse": None, "mae": None, "r2": None, loss: None}
        for part in np.array_split(np.arange(500), 3):
            score.add(made[part], y[part], weight[part])
        assert list(score.table())[-1] == loss
        assert score.table()[loss] == pytest.approx(expected, rel=1e-12)
    learned.loss = "squared_error"
    assert list(make_score(learned).table()) == ["rmse", "mae", "r2"]


def test_ties_count_half_and_what_is_not_there_is_none() -> None:
    score = make_score(labels("ab"))
    assert score.table() == {"log_loss": None, "auc": None, "calibration": None}
    score.add(np.full((3, 2), 0.5), np.array([0, 0, 0]), np.ones(3))
    assert score.table()["auc"] is None
    score.add(np.full((2, 2), 0.5), np.array([1, 1]), np.ones(2))
    assert score.table() == pytest.approx({"log_loss": math.log(2), "auc": 0.5, "calibration": 1.25})
    score = make_score(labels())
    assert score.table() == {"rmse": None, "mae": None, "r2": None}
    score.add(np.array([1.0, 2.0]), np.array([2.0, 2.0]), np.ones(2))
    assert score.table() == {"rmse": math.sqrt(0.5), "mae": 0.5, "r2": None}


def test_a_sure_mistake_costs_much_but_not_everything() -> None:
    losses = row_losses(labels("ab"), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1]))
    assert losses.tolist() == [-math.log(1e-15), 0.0]


@pytest.mark.parametrize("classes", ["ab", "abc", ""])
def test_the_running_mean_never_looks_ahead(classes: str) -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, len(classes), 50) if classes else rng.normal(5.0, 1.0, 50)
    weight = rng.random(50)
    mean = RunningMean(labels(classes, mean=4.0))
    found = np.concatenate([mean.follow(y[part], weight[part]) for part in np.array_split(np.arange(50), 3)])
    for i in range(50):
        before = weight[:i].sum() + 1
        if classes:
            for k in range(len(classes)):
                assert found[i, k] == pytest.approx((weight[:i][y[:i] == k].sum() + 1 / len(classes)) / before, rel=1e-12)
        else:
            assert found[i] == pytest.approx((weight[:i] @ y[:i] + 4.0) / before, rel=1e-12)
    constant = mean.constant(2)
    assert constant.shape == ((2, len(classes)) if classes else (2,))
    if classes:
        assert constant[0].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("classes", ["ab", "abc", ""])
def test_online_sums_and_their_state(classes: str) -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, len(classes), 600) if classes else rng.normal(0.0, 1.0, 600)
    made = rng.dirichlet(np.ones(len(classes)), 600) if classes else rng.normal(0.0, 1.0, 600)
    weight = rng.random(600)
    online, again = Online(labels(classes)), Online(labels(classes))
    for part in np.array_split(np.arange(600), 6):
        again.load(online.state())
        online.add(made[part], y[part], weight[part])
        again.add(made[part], y[part], weight[part])
        assert again.state() == online.state()
    loss = float(weight @ row_losses(labels(classes), made, y) / weight.sum())
    losses = online.losses()
    assert losses is not None
    assert losses[0] == pytest.approx(loss if classes else loss**0.5, rel=1e-12)
    curve = online.curve()
    assert [point[0] for point in curve] == [100, 200, 300, 400, 500, 600]
    assert curve[-1][1] == losses[0]
    assert curve[-1][3] == losses[1]
    last = float(weight[500:] @ row_losses(labels(classes), made[500:], y[500:]) / weight[500:].sum())
    assert curve[-1][2] == pytest.approx(last if classes else last**0.5, rel=1e-9)


def test_the_curve_stays_short() -> None:
    online, again = Online(labels("ab")), Online(labels("ab"))
    for step in range(5000):
        online.add(np.full((2, 2), 0.5), np.array([0, 1]), np.ones(2))
        if step == 2500:
            again.load(online.state())
        elif step > 2500:
            again.add(np.full((2, 2), 0.5), np.array([0, 1]), np.ones(2))
    assert again.state() == online.state()
    assert 500 <= len(online.points) <= 1000
    curve = online.curve()
    assert curve[-1][0] == 10_000
    assert [point[1] for point in curve] == pytest.approx([math.log(2)] * len(curve))


@pytest.mark.parametrize("classes", ["ab", "abc", ""])
@pytest.mark.parametrize("parts", [1, 7, 3000])
def test_labels_in_runs_are_noticed(classes: str, parts: int) -> None:
    rng = np.random.default_rng(4)
    y = rng.integers(0, len(classes), 3000) if classes else rng.normal(9.0, 1.0, 3000)
    for order, low, high in ((np.arange(3000), -0.06, 0.06), (np.argsort(y), 0.97, 1.0)):
        online = Online(labels(classes, mean=9.0))
        for part in np.array_split(order, parts):
            made = np.full((len(part), len(classes)), 1 / len(classes)) if classes else np.zeros(len(part))
            online.add(made, y[part], np.ones(len(part)))
        assert low < online.correlation() < high


@pytest.mark.parametrize("classes", ["ab", "abc", ""])
def test_the_baseline_goes_on_from_its_state(classes: str) -> None:
    rng = np.random.default_rng(5)
    x = sparse.random(900, 64, 0.1, format="csr", dtype=np.float32, rng=rng)
    y = rng.integers(0, len(classes), 900) if classes else rng.normal(0.0, 1.0, 900)
    weight = rng.random(900)
    whole, again = Baseline(labels(classes)), Baseline(labels(classes))
    again.load(whole.state())
    for part in np.array_split(np.arange(900), 3):
        whole.learn(x[part], y[part], weight[part])
        again.learn(x[part], y[part], weight[part])
        kept = {name: array.copy() for name, array in again.state().items()}
        again = Baseline(labels(classes))
        again.load(kept)
    for name, array in whole.state().items():
        np.testing.assert_array_equal(array, again.state()[name])
    np.testing.assert_array_equal(whole.predict(x), again.predict(x))


def test_a_baseline_that_overflows_is_out_of_the_game() -> None:
    baseline = Baseline(labels())
    x = sparse.csr_matrix(np.full((500, 1), 1e30, np.float32))
    for _ in range(3):
        baseline.learn(x, np.arange(500.0), None)
    assert baseline.diverged
    again = Baseline(labels())
    again.load(baseline.state())
    assert again.diverged


def test_held_out_rows_hang_on_their_number_alone() -> None:
    random = Holdout(share=0.3, seed=5)
    whole = random.mask(0, 100_000)
    assert whole.mean() == pytest.approx(0.3, abs=0.01)
    parts = [random.mask(start, 10_000) for start in range(0, 100_000, 10_000)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    other = Holdout(share=0.3, seed=6).mask(0, 100_000)
    assert (other & whole).mean() == pytest.approx(0.09, abs=0.01)
    assert Holdout(7).mask(5, 4).tolist() == [False, False, True, True]
    assert not Holdout().mask(0, 9).any()
    assert (random.some, Holdout(7).some, Holdout().some) == (True, True, False)
