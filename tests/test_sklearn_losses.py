"""The estimators' losses, penalties, several classes and labels, weights of classes, early stopping, and files."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import logsumexp
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import log_loss, mean_pinball_loss, mean_poisson_deviance
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline

from adagrad import schedules
from adagrad.kernels.losses import LOSSES, REGRESSION
from adagrad.sklearn import AdagradClassifier, AdagradRegressor
from adagrad.state import write

RNG = np.random.default_rng(0)
X, Y = make_classification(400, 8, n_informative=5, n_redundant=0, n_classes=3, n_clusters_per_class=1, random_state=0)
TWO = (Y > 0).astype(int)
CLASSIFIERS = [name for name, loss in LOSSES.items() if loss.task != REGRESSION]
REGRESSORS = [name for name, loss in LOSSES.items() if loss.task == REGRESSION]


def same(one: Any, other: Any) -> None:
    ours, theirs = one.state_arrays(), other.state_arrays()
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


# -- classes and labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", CLASSIFIERS)
def test_every_loss_classifies(loss: str) -> None:
    for y, shape in ((TWO, (1, 8)), (Y, (3, 8))):
        model = AdagradClassifier(loss=loss, learning_rate=0.3, epochs=5).fit(X, y)
        assert model.coef_.shape == shape
        assert model.score(X, y) > 0.8
        margins = model.decision_function(X)
        if not LOSSES[loss].probabilities:
            assert not hasattr(model, "predict_proba")
            with pytest.raises(AttributeError, match="predict_proba"):
                model.predict_proba(X)
            continue
        p = model.predict_proba(X)
        np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-12)
        np.testing.assert_array_equal(model.classes_[p.argmax(1)][p.max(1) > 0.999], model.predict(X)[p.max(1) > 0.999])
        if loss == "modified_huber" and shape[0] == 1:
            np.testing.assert_allclose(p[:, 1], (np.clip(margins, -1, 1) + 1) / 2)
        np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), p)


def test_one_against_the_rest_is_a_model_a_class() -> None:
    together = AdagradClassifier(multi_class="ovr", epochs=2).fit(X, Y)
    for c in range(3):
        alone = AdagradClassifier(epochs=2).fit(X, c == Y)
        np.testing.assert_allclose(together.coef_[c], alone.coef_[0], rtol=1e-12)
        np.testing.assert_allclose(together.intercept_[c], alone.intercept_[0], rtol=1e-12)
    margins = together.decision_function(X)
    p = 1 / (1 + np.exp(-margins))
    np.testing.assert_allclose(together.predict_proba(X), p / p.sum(1, keepdims=True), rtol=1e-12)
    assert (together.coef_ != AdagradClassifier(epochs=2).fit(X, Y).coef_).any()  # the softmax
    same(AdagradClassifier(multi_class="multinomial").fit(X, Y), AdagradClassifier().fit(X, Y))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_several_labels_a_row(form: Any) -> None:
    rows, y = make_multilabel_classification(200, 8, n_classes=4, random_state=0)
    model = AdagradClassifier(learning_rate=0.3, epochs=5).fit(rows, form(y))
    assert (model.coef_.shape, model.classes_.tolist()) == ((4, 8), [0, 1, 2, 3])
    for c in range(4):
        alone = AdagradClassifier(learning_rate=0.3, epochs=5).fit(rows, y[:, c])
        np.testing.assert_allclose(model.coef_[c], alone.coef_[0], rtol=1e-10)
        np.testing.assert_allclose(model.predict_proba(rows)[:, c], alone.predict_proba(rows)[:, 1], rtol=1e-10)
    predicted = model.predict(rows)
    assert predicted.shape == y.shape
    assert (predicted == y).mean() > (y == (y.mean(0) > 0.5)).mean() + 0.1
    chunks = AdagradClassifier(learning_rate=0.3, epochs=5)
    for _ in range(5):
        chunks.partial_fit(rows, form(y))
    same(model, chunks)
    with pytest.raises(ValueError, match="y must have 4 columns, one a label, got 3"):
        chunks.partial_fit(rows, y[:, :3])
    with pytest.raises(ValueError, match="y must have a column for each label"):
        chunks.partial_fit(rows, y[:, 0])
    with pytest.raises(ValueError, match="class_weight is not for several labels"):
        AdagradClassifier(class_weight="balanced").fit(rows, y)


def test_weights_of_classes_are_weights_of_rows() -> None:
    weights = np.where(TWO == 1, 3.0, 0.5)
    same(AdagradClassifier(class_weight={1: 3.0, 0: 0.5}).fit(X, TWO), AdagradClassifier().fit(X, TWO, weights))
    shares = len(Y) / (3 * np.bincount(Y))
    balanced = AdagradClassifier(class_weight="balanced").fit(X, Y, np.full(400, 2.0))
    same(balanced, AdagradClassifier().fit(X, Y, 2.0 * shares[Y]))
    same(AdagradClassifier(class_weight={0: 2.0}).partial_fit(X, TWO, [0, 1]), AdagradClassifier().fit(X, TWO, 2.0 - TWO))
    for wrong, message in (
        ({5: 1.0}, "class_weight has the label 5"),
        ({0: -1.0}, r"class_weight of 0 must be in \[0, inf\), got -1.0"),
        ({0: "x"}, "class_weight of 0 must be a real number, got 'x'"),
        (3, "class_weight must be a dict, 'balanced' or None, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            AdagradClassifier(class_weight=wrong).fit(X, TWO)
    with pytest.raises(ValueError, match="class_weight='balanced' needs all of y"):
        AdagradClassifier(class_weight="balanced").partial_fit(X, TWO, [0, 1])


# -- regression --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", REGRESSORS)
def test_every_loss_fits_what_it_is_for(loss: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(600, 3))
    mean = 0.5 * rows[:, 0] - 0.3 * rows[:, 1] + 0.4
    y = rng.poisson(np.exp(mean)).astype(float) if loss == "poisson" else mean + 0.2 * rng.normal(size=600)
    model = AdagradRegressor(loss=loss, learning_rate=0.3, epochs=60, quantile=0.9, loss_epsilon=0.2).fit(rows, y)
    found = model.predict(rows)
    margins = rows @ model.coef_ + model.intercept_
    np.testing.assert_allclose(found, np.exp(margins) if loss == "poisson" else margins, rtol=1e-10)
    if loss == "quantile":
        assert 0.85 < (y <= found).mean() < 0.95
        assert mean_pinball_loss(y, found, alpha=0.9) < 0.05
    elif loss == "poisson":
        assert mean_poisson_deviance(y, found) < mean_poisson_deviance(y, np.full(600, y.mean())) - 0.2
        with pytest.raises(ValueError, match="y must not be negative for loss='poisson', got -1.0"):
            model.fit(rows, y - 1)
    else:
        np.testing.assert_allclose(model.coef_, [0.5, -0.3, 0.0], atol=0.06)


def test_the_losses_parameters_matter() -> None:
    y = X @ np.arange(8.0)
    for loss in ("huber", "epsilon_insensitive", "squared_epsilon_insensitive"):
        one, other = (AdagradRegressor(loss=loss, loss_epsilon=e).fit(X, y).coef_ for e in (0.1, 3.0))
        assert (one != other).any()
    with pytest.raises(ValueError, match=r"loss_epsilon must be in \(0, inf\), got 0"):
        AdagradRegressor(loss="huber", loss_epsilon=0).fit(X, y)
    with pytest.raises(ValueError, match=r"quantile must be in \(0, 1\), got 1.0"):
        AdagradRegressor(quantile=1.0).fit(X, y)


# -- penalties ---------------------------------------------------------------------------------------------------------


def test_penalties_by_scikit_learn_s_names() -> None:
    noisy = np.hstack([X, RNG.normal(size=(400, 20))])
    arguments: dict[str, Any] = {"alpha": 0.1, "l1_ratio": 0.5, "epochs": 3}
    coefs = {p: AdagradClassifier(penalty=p, **arguments).fit(noisy, TWO).coef_[0] for p in (None, "l2", "l1", "elasticnet")}
    zeros = {penalty: int((coef == 0).sum()) for penalty, coef in coefs.items()}
    assert zeros[None] == zeros["l2"] == 0
    assert 0 < zeros["elasticnet"] <= zeros["l1"] < 28
    assert np.abs(coefs["l2"]).sum() < np.abs(coefs[None]).sum()
    for ratio, penalty in ((0.0, "l2"), (1.0, "l1")):
        model = AdagradClassifier(penalty="elasticnet", **arguments | {"l1_ratio": ratio}).fit(noisy, TWO)
        np.testing.assert_array_equal(model.coef_[0], coefs[penalty])
    model = AdagradClassifier(penalty="l1", **arguments).fit(noisy, TWO)
    assert model.sparsify() is model
    assert sp.issparse(model.coef_)
    assert model.coef_.nnz == 28 - zeros["l1"]
    np.testing.assert_array_equal(model.coef_.toarray()[0], coefs["l1"])
    assert isinstance(model.densify().coef_, np.ndarray)
    assert sp.issparse(AdagradRegressor().fit(X, Y).sparsify().coef_)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "squared_error"}, "loss must be one of log_loss, hinge, squared_hinge, modified_huber, got 'squared_error'"),
        ({"penalty": "l3"}, "penalty must be one of l2, l1, elasticnet or None, got 'l3'"),
        ({"alpha": -1.0}, r"alpha must be in \[0, inf\), got -1.0"),
        ({"l1_ratio": 1.5}, r"l1_ratio must be in \[0, 1\], got 1.5"),
        ({"multi_class": "all"}, "multi_class must be one of auto, multinomial, ovr, got 'all'"),
        ({"multi_class": "multinomial", "loss": "hinge"}, "multi_class='multinomial' needs loss='log_loss', got 'hinge'"),
        ({"early_stopping": 1}, "early_stopping must be True or False, got 1"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \(0, 1\), got 1.0"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be an integer >= 1, got 0"),
        ({"tol": -1}, r"tol must be in \[0, inf\), got -1"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdagradClassifier(**arguments).fit(X, Y)


@pytest.mark.parametrize("change", [{"loss": "hinge"}, {"penalty": "l1"}, {"alpha": 0.5}, {"multi_class": "ovr"}])
def test_what_is_learned_can_not_change_on_the_way(change: dict[str, Any]) -> None:
    model = AdagradClassifier(penalty="l2").partial_fit(X, Y, [0, 1, 2])
    with pytest.raises(ValueError, match=f"{next(iter(change))} can't change while a model is learned"):
        model.set_params(**change).partial_fit(X, Y)


# -- early stopping and progress ---------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_pass() -> None:
    noisy = np.hstack([X[:120], RNG.normal(size=(120, 60))])  # it overfits
    arguments: dict[str, Any] = {"learning_rate": 1.0, "random_state": 3, "early_stopping": True, "validation_fraction": 0.25}
    model = AdagradClassifier(epochs=200, n_iter_no_change=4, **arguments).fit(noisy, TWO[:120])
    losses = model.validation_losses_
    best = int(np.argmin(losses))
    assert best + 1 < model.n_iter_ == len(losses) < 200
    assert not any(loss < min(losses[:-4]) - 1e-3 for loss in losses[-4:])
    until = AdagradClassifier(epochs=best + 1, **arguments).fit(noisy, TWO[:120])
    same(model, until)
    assert until.validation_losses_ == losses[: best + 1]
    patient = AdagradClassifier(epochs=20, tol=None, **arguments).fit(noisy, TWO[:120])
    assert patient.n_iter_ == 20
    same(model, patient)
    averaged = AdagradClassifier(epochs=30, use_ema=True, **arguments).fit(noisy, TWO[:120])
    held = [loss for loss in averaged.validation_losses_ if loss == min(averaged.validation_losses_)]
    assert held != [min(losses)]
    assert not hasattr(model.set_params(early_stopping=False).fit(noisy, TWO[:120]), "validation_losses_")
    with pytest.raises(ValueError, match="early_stopping must be False for partial_fit"):
        AdagradClassifier(early_stopping=True).partial_fit(X, Y, [0, 1, 2])


def test_the_held_out_loss_is_that_of_rows_never_learned() -> None:
    y = X @ np.arange(8.0)
    weights = np.r_[np.zeros(200), np.ones(200)]
    model = AdagradRegressor(epochs=2, early_stopping=True, random_state=0, tol=None).fit(X, y, weights)
    order = np.random.RandomState(0).permutation(400)
    held, kept = order[:40], np.sort(order[40:])
    alone = AdagradRegressor(epochs=2).fit(X[kept], y[kept], weights[kept])
    same(model, alone)
    errors = (alone.predict(X[held]) - y[held]) ** 2 / 2
    np.testing.assert_allclose(model.validation_losses_[-1], np.average(errors, weights=weights[held]))


@pytest.mark.parametrize("classes", [2, 3])
def test_sure_mistakes_have_their_whole_loss(classes: int) -> None:
    """Where the probability of the wrong class is rounded to 1."""
    x, y = 1e4 * X, np.where(np.arange(400) % 7, (X[:, 0] > 0).astype(int) + (classes == 3) * (X[:, 1] > 0), 0)
    arguments: dict[str, Any] = {"learning_rate": 1.0, "random_state": 0, "early_stopping": True}
    model = AdagradClassifier(**arguments).fit(x, y)
    _, held = train_test_split(np.arange(400), test_size=0.1, stratify=y, random_state=np.random.RandomState(0))
    margins = model.decision_function(x[held]).reshape(40, -1)
    margins = np.hstack([np.zeros((40, 1)), margins]) if classes == 2 else margins
    losses = logsumexp(margins, axis=1) - margins[np.arange(40), y[held]]
    assert losses.max() > 1000
    np.testing.assert_allclose(model.validation_losses_, [losses.mean()])


def test_probabilities_are_those_of_the_loss_that_was_learned() -> None:
    model = AdagradClassifier(loss="hinge").fit(X, TWO).set_params(loss="log_loss")
    assert not hasattr(model, "predict_proba")
    model = AdagradClassifier().fit(X, Y)
    expected = model.predict_proba(X)
    np.testing.assert_array_equal(model.set_params(loss="modified_huber", multi_class="ovr").predict_proba(X), expected)


def test_a_bar_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    AdagradClassifier(verbose=1, early_stopping=True, random_state=0).fit(X, TWO)
    out, err = capsys.readouterr()
    assert out.startswith("epoch 1 of 1: online loss ")
    assert ", validation loss " in out
    assert not err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    AdagradClassifier(verbose=1, epochs=2).fit(X, TWO)
    bar = terminal.getvalue()
    assert "epoch 1 of 2 [........................] 0 of 400 rows" in bar
    assert "epoch 2 of 2 [########################] 400 of 400 rows, " in bar
    assert bar.endswith("\r")
    AdagradClassifier().fit(X, TWO)
    assert terminal.getvalue() == bar


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "y"),
    [
        (AdagradClassifier, {"loss": "hinge", "penalty": "elasticnet", "class_weight": {"a": 2.0, "b": 1.0}}, np.array(list("abc"))[Y]),
        (AdagradClassifier, {"random_state": 3, "use_ema": True}, np.eye(3, dtype=int)[Y]),
        (AdagradRegressor, {"loss": "quantile", "quantile": 0.2, "learning_rate": schedules.ExponentialDecay(0.3, 90, 0.5), "penalty": "l2"}, Y),
    ],
)  # fmt: skip
def test_saved_and_loaded_it_goes_on(kind: Any, arguments: dict[str, Any], y: np.ndarray, tmp_path: Any) -> None:
    more = {"classes": np.unique(y)} if y.ndim == 1 and kind is AdagradClassifier else {}
    model = kind(**arguments).partial_fit(X[:99], y[:99], **more)
    model.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model")
    params = loaded.get_params()
    assert {name: params[name] for name in arguments if name != "learning_rate"} == {
        name: value for name, value in arguments.items() if name != "learning_rate"
    }
    np.testing.assert_array_equal(model.predict(X), loaded.predict(X))
    for one in (model, loaded):
        one.partial_fit(X[99:], y[99:])
    same(model, loaded)
    other = AdagradRegressor if kind is AdagradClassifier else AdagradClassifier
    with pytest.raises(ValueError, match=f"holds an {kind.__name__}, not an {other.__name__}"):
        other.load(tmp_path / "model")


def test_files_that_can_not_be(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="learning_rate is a callable"):
        AdagradClassifier(learning_rate=lambda: 0.1).fit(X, Y).save(tmp_path / "a")
    with pytest.raises(ValueError, match="random_state, to be saved, must be an integer"):
        AdagradClassifier(random_state=np.random.RandomState(0)).fit(X, Y).save(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    write(tmp_path / "b", {"x": np.zeros(1)}, {"kind": "other"})
    with pytest.raises(ValueError, match="not of an estimator that save wrote"):
        AdagradClassifier.load(tmp_path / "b")


def test_states_of_the_first_format_are_read() -> None:
    model = AdagradClassifier().fit(X, TWO)
    arrays, metadata = model.state_arrays(), model.state_metadata()
    new = ("loss", "penalty", "alpha", "l1_ratio", "loss_epsilon", "quantile", "multi_class")
    old = metadata | {"format": 1, "arguments": {k: v for k, v in metadata["arguments"].items() if k not in new}}
    same(AdagradClassifier().load_state(arrays, old), model)
    with pytest.raises(ValueError, match="loss is 'log_loss' there and 'hinge' here"):
        AdagradClassifier(loss="hinge").load_state(arrays, old)
    with pytest.raises(ValueError, match="penalty is None there and 'l1' here"):
        AdagradClassifier(penalty="l1").load_state(arrays, old)


# -- in scikit-learn's company -----------------------------------------------------------------------------------------


def test_hashed_words_and_features_in_a_pipeline() -> None:
    good, bad = ["fine film", "a joy", "fine and warm"], ["dull film", "a bore", "dull and cold"]
    texts, labels = (good + bad) * 10, ([1] * 3 + [0] * 3) * 10
    words = make_pipeline(HashingVectorizer(n_features=2**10), AdagradClassifier(learning_rate=0.5, epochs=3))
    assert words.fit(texts, labels).score(texts, labels) == 1.0
    counted = [dict.fromkeys(text.split(), 1) for text in texts]
    hashed = make_pipeline(FeatureHasher(2**10), AdagradClassifier(loss="hinge", penalty="l1", alpha=1e-3, epochs=3))
    assert hashed.fit(counted, labels).score(counted, labels) == 1.0
    assert (hashed[-1].coef_ == 0).sum() > 900


def test_calibration_search_and_cross_validation() -> None:
    hinge = AdagradClassifier(loss="hinge", epochs=3)
    calibrated = CalibratedClassifierCV(hinge, cv=3).fit(X, TWO)
    assert log_loss(TWO, calibrated.predict_proba(X)) < 0.35
    grid = {"loss": ["hinge", "log_loss"], "penalty": [None, "l1"], "alpha": [1e-4, 10.0]}
    search = GridSearchCV(AdagradClassifier(), grid, cv=3).fit(X, Y)
    assert search.best_params_["alpha"] == 1e-4 or search.best_params_["penalty"] is None
    assert cross_val_score(AdagradRegressor(loss="huber", learning_rate=1.0, epochs=5), X, X @ np.arange(8.0), cv=3).min() > 0.9


def test_frames() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    names = [f"x{k}" for k in range(8)]
    frames = [pandas.DataFrame(X, columns=names), polars.DataFrame(dict(zip(names, X.T, strict=True)))]
    expected = AdagradClassifier().fit(X, Y)
    for frame in frames:
        model = AdagradClassifier().fit(frame, pandas.Series(Y))
        assert model.feature_names_in_.tolist() == [f"x{k}" for k in range(8)]
        same(model, expected)
        np.testing.assert_array_equal(model.predict_proba(frame), expected.predict_proba(X))


def test_the_page_shows_the_table_of_losses() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "sklearn.md").read_text()
    section = page.partition("\n## Losses\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    expected = [
        f"| {name} | `{loss.link}` | `{loss.formula}` | `{loss.slope}` |".replace("|p - t|", "abs(p - t)")
        for name, loss in LOSSES.items()
    ]
    assert rows == expected
