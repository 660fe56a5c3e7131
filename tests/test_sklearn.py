"""The scikit-learn face: the estimators' contract, what they refuse, and their state."""

from __future__ import annotations

import copy
import doctest
import inspect
import json
import pickle
from typing import Any

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_class_weight_classifiers, parametrize_with_checks

import adagrad
import adagrad.sklearn
from adagrad import schedules
from adagrad.kernels import losses
from adagrad.linear import ClassifierModel, RegressorModel
from adagrad.sklearn import AdagradClassifier, AdagradRegressor
from adagrad.state import read, write

# The same failures that scikit-learn expects of its SGDClassifier: a row of weight 2 is one longer step, not two. And what its
# check of class weights learns takes many passes, for which it sets an argument max_iter; ours is epochs: see below.
EXPECTED = {
    f"check_sample_weight_equivalence_on_{kind}_data": "a weight scales a step, a repeated row is another step"
    for kind in ("dense", "sparse")
} | {"check_class_weight_classifiers": "one pass is too few for it; it passes with epochs=100"}


@parametrize_with_checks(
    [AdagradClassifier(), AdagradRegressor(), AdagradClassifier(batch_size=8, use_ema=True, weight_decay=1e-3)],
    expected_failed_checks=lambda estimator: EXPECTED,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("arguments", [{}, {"batch_size": 8}, {"loss": "hinge"}])
def test_scikit_learn_s_check_of_class_weights(arguments: dict[str, Any]) -> None:
    check_class_weight_classifiers("AdagradClassifier", AdagradClassifier(epochs=100, **arguments))


def test_examples() -> None:
    parts = ((adagrad.sklearn, 4), (adagrad.sklearn.classifier, 4), (adagrad.sklearn.regressor, 4), (losses, 1))
    for module, examples in parts:
        results = doctest.testmod(module)
        assert (results.failed, results.attempted) == (0, examples)


def data(classes: int = 2, rows: int = 300, dtype: Any = None) -> tuple[np.ndarray, np.ndarray]:
    X, y = make_classification(
        rows, 8, n_informative=5, n_redundant=0, n_classes=classes, n_clusters_per_class=1, random_state=0
    )
    return X.astype(dtype or (np.float32 if classes == 2 else np.float64)), y


def same(one: Any, other: Any) -> None:
    ours, theirs = one.state_arrays(), other.state_arrays()
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


# -- shapes, types, labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["no", "yes"], [3, -1], [False, True], [2.0, -1.0], ["a", "bc"]])
def test_two_labels_of_any_kind(labels: list[Any]) -> None:
    X, y = data()
    named = np.array(labels)[y]
    model = AdagradClassifier().fit(X, named)
    np.testing.assert_array_equal(model.classes_, np.unique(named))
    assert (model.coef_.shape, model.intercept_.shape) == ((1, 8), (1,))
    assert model.coef_.dtype == np.float32
    assert model.decision_function(X).shape == (300,)
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (300, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-15)
    np.testing.assert_array_equal(model.predict(X), model.classes_[(probabilities[:, 1] > 0.5).astype(int)])
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(probabilities))
    assert model.score(X, named) > 0.85
    margins = X.astype(np.float64) @ model.coef_[0].astype(np.float64) + model.intercept_[0]
    np.testing.assert_allclose(model.decision_function(X), margins, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-margins)), rtol=1e-12)


def test_objects_as_labels_and_rare_margins() -> None:
    X, y = data()
    named = np.array(["no", "yes"], object)[y]
    model = AdagradClassifier().fit(X, named)
    assert set(model.predict(X)) == {"no", "yes"}
    far = np.full((1, 8), 1e6, np.float32) * np.sign(model.coef_)
    assert model.predict_proba(far).tolist() == [[0.0, 1.0]]
    assert model.predict_log_proba(far).tolist() == [[-np.inf, 0.0]]


def test_several_classes_are_a_softmax() -> None:
    X, y = data(4)
    model = AdagradClassifier(epochs=5, learning_rate=0.3).fit(X, y)
    assert (model.coef_.shape, model.intercept_.shape) == ((4, 8), (4,))
    assert model.coef_.dtype == np.float64
    margins = X @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(model.decision_function(X), margins, rtol=1e-10, atol=1e-12)
    powers = np.exp(margins)
    np.testing.assert_allclose(model.predict_proba(X), powers / powers.sum(1, keepdims=True), rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), margins.argmax(1))
    assert model.score(X, y) > 0.75


def test_regression() -> None:
    X, _ = data(dtype=np.float64)
    y = X @ np.arange(8.0) + 3.0
    model = AdagradRegressor(learning_rate=1.0, epochs=30).fit(X, y)
    assert (model.coef_.shape, model.intercept_.shape) == ((8,), (1,))
    np.testing.assert_allclose(model.coef_, np.arange(8.0), atol=1e-3)
    np.testing.assert_allclose(model.predict(X), X @ model.coef_ + model.intercept_, rtol=1e-10, atol=1e-10)
    assert model.score(X, y) > 0.999


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csr_array, sp.csc_array, sp.coo_matrix])
def test_sparse_input_is_the_dense(form: Any) -> None:
    X, y = data(3)
    X[X < 0] = 0
    dense, sparse = AdagradClassifier().fit(X, y), AdagradClassifier().fit(form(X), y)
    same(dense, sparse)
    np.testing.assert_array_equal(dense.predict_proba(X), sparse.predict_proba(form(X)))


def test_names_of_features() -> None:
    pandas = pytest.importorskip("pandas")
    X, y = data()
    frame = pandas.DataFrame(X, columns=[f"x{k}" for k in range(8)])
    model = AdagradClassifier().fit(frame, y)
    assert model.feature_names_in_.tolist() == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[frame.columns[::-1]])


# -- fit and partial_fit -----------------------------------------------------------------------------------------------


def test_fit_is_partial_fit_in_chunks() -> None:
    X, y = data(3)
    whole = AdagradClassifier(weight_decay=1e-3, epochs=2).fit(X, y)
    chunks = AdagradClassifier(weight_decay=1e-3)
    for part in (slice(100), slice(100, 101), slice(101, None)) * 2:
        chunks.partial_fit(X[part], y[part], classes=[0, 1, 2])
    same(whole, chunks.finalize())
    assert whole.t_ == chunks.t_ == 600
    assert (whole.n_iter_, chunks.n_iter_) == (2, 1)
    assert AdagradClassifier(batch_size=64).fit(X, y).t_ == 5


def test_the_average_is_the_model_at_the_end_of_fit() -> None:
    X, y = data()
    fitted = AdagradClassifier(use_ema=True, ema_momentum=0.9).fit(X, y)
    running = AdagradClassifier(use_ema=True, ema_momentum=0.9).partial_fit(X, y, [0, 1])
    raw = AdagradClassifier().fit(X, y)
    np.testing.assert_array_equal(running.coef_, raw.coef_)
    assert (fitted.coef_ != raw.coef_).any()
    np.testing.assert_array_equal(fitted.coef_, running.finalize().coef_)
    np.testing.assert_array_equal(fitted.coef_[0], fitted.state_arrays()["coef/average"][:, 0])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_progressive_predictions_are_from_before(classes: int, batch_size: int | None) -> None:
    X, y = data(classes)
    model = AdagradClassifier(batch_size=batch_size).partial_fit(X[:50], y[:50], range(classes))
    for lo in range(50, 114, 16):
        before = model.predict_proba(X[lo : lo + 16])
        model.partial_fit(X[lo : lo + 16], y[lo : lo + 16])
        found = model.progressive_prediction_
        assert (found.dtype, found.shape) == (np.float64, (16,) if classes == 2 else (16, 3))
        known = 16 if batch_size else 1  # rows that were predicted by the model as it was before this call
        np.testing.assert_array_equal(found[:known], before[:known, 1] if classes == 2 else before[:known])
    assert not hasattr(model.fit(X, y), "progressive_prediction_")


def test_progressive_values() -> None:
    X, y = data()
    model = AdagradRegressor().partial_fit(X, y)
    assert model.progressive_prediction_.shape == (300,)
    before = model.predict(X[:1])
    np.testing.assert_array_equal(model.partial_fit(X[:1], y[:1]).progressive_prediction_, before)


def test_weights_of_examples() -> None:
    X, y = data()
    weights = np.random.default_rng(0).uniform(0, 2, 300)
    weighted = AdagradClassifier().fit(X, y, sample_weight=weights)
    assert (weighted.coef_ != AdagradClassifier().fit(X, y).coef_).any()
    ones = AdagradClassifier().fit(X, y, sample_weight=np.ones(300))
    same(ones, AdagradClassifier().fit(X, y))
    # A weight of zero teaches nothing: the model of the other rows (their steps are counted, here by nothing that matters).
    weights[::2] = 0.0
    half = AdagradClassifier().fit(X[1::2], y[1::2], sample_weight=weights[1::2])
    same(half, AdagradClassifier().fit(X, y, sample_weight=weights))
    nothing = clone(half).partial_fit(X, y, [0, 1], sample_weight=np.zeros(300))
    assert not nothing.coef_.any()


def test_warm_start_and_set_params() -> None:
    X, y = data()
    model = AdagradClassifier(warm_start=True).fit(X, y)
    twice = model.fit(X, y)
    same(twice, AdagradClassifier(epochs=2).fit(X, y))
    assert twice.t_ == 600
    model.set_params(learning_rate=0.0)
    before = model.coef_
    np.testing.assert_array_equal(model.fit(X, y).coef_, before)
    with pytest.raises(ValueError, match="clipnorm can't change while a model is learned"):
        model.set_params(clipnorm=1.0).fit(X, y)
    with pytest.raises(ValueError, match="labels that are not in classes"):
        model.set_params(clipnorm=None).fit(X, y + 1)


def test_shuffling_is_by_the_seed() -> None:
    X, y = data()
    first = AdagradClassifier(shuffle=True, random_state=3, epochs=2).fit(X, y)
    same(first, AdagradClassifier(shuffle=True, random_state=3, epochs=2).fit(sp.csr_array(X), y))
    rng = np.random.RandomState(3)
    by_hand = AdagradClassifier()
    weights = np.arange(300.0)
    for _ in range(2):
        order = rng.permutation(300)
        X, y, weights = X[order], y[order], weights[order]
        by_hand.partial_fit(X, y, [0, 1])
    same(first, by_hand)


def test_verbose_says_the_online_loss(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = data()
    weights = np.random.default_rng(0).uniform(0, 2, 300)
    AdagradClassifier(verbose=1, epochs=2).fit(X, y, sample_weight=weights)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    p = AdagradClassifier().partial_fit(X, y, [0, 1], weights).progressive_prediction_
    loss = np.average(-np.log(np.where(y == 1, p, 1 - p)), weights=weights)
    assert lines[0] == f"epoch 1 of 2: online loss {loss:.6f}"
    AdagradRegressor(verbose=1).fit(X, y)
    p = AdagradRegressor().partial_fit(X, y).progressive_prediction_
    assert capsys.readouterr().out == f"epoch 1 of 1: online loss {np.mean((p - y) ** 2) / 2:.6f}\n"


ARGUMENTS: dict[str, Any] = {
    "learning_rate": 0.3,
    "initial_accumulator_value": 1.0,
    "epsilon": 0.5,
    "weight_decay": 0.01,
    "clipnorm": 0.1,
    "clipvalue": 0.1,
    "global_clipnorm": 0.1,
    "use_ema": True,
    "loss_scale_factor": 3.0,
    "gradient_accumulation_steps": 3,
    "batch_size": 10,
    "epochs": 2,
    "shuffle": True,
    "fit_intercept": False,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_matters(name: str) -> None:
    X, y = data()
    default = AdagradClassifier(random_state=0).fit(X, y)
    other = AdagradClassifier(random_state=0, **{name: ARGUMENTS[name]}).fit(X, y)
    assert (default.coef_ != other.coef_).any()
    assert other.score(X, y) > 0.8
    assert (other.intercept_[0] == 0.0) == (name == "fit_intercept")


def test_arguments_that_matter_with_others() -> None:
    X, y = data()
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"epsilon": 0.5}, {"epsilon_placement": "outside"}),
        ({"weight_decay": 0.1}, {"weight_decay_mode": "l2"}),
        ({"use_ema": True}, {"ema_momentum": 0.5}),
        ({"use_ema": True}, {"ema_overwrite_frequency": 7}),
        ({"shuffle": True, "random_state": 0}, {"random_state": 1}),
    ]
    for with_this, changed in pairs:
        one, other = (AdagradClassifier(**arguments).fit(X, y) for arguments in (with_this, with_this | changed))
        assert (one.coef_ != other.coef_).any(), changed
    assert AdagradClassifier(name="mine").fit(X, y).state_metadata()["arguments"]["name"] == "mine"


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1.0}, r"learning_rate must be in \[0, inf\), got -1.0"),
        ({"epsilon": float("nan")}, "epsilon must be in"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"epochs": 1.5}, "epochs must be an integer >= 1, got 1.5"),
        ({"shuffle": 3}, "shuffle must be True or False, got 3"),
        ({"fit_intercept": None}, "fit_intercept must be True or False, got None"),
        ({"warm_start": "no"}, "warm_start must be True or False, got 'no'"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "at most one of"),
    ],
)
def test_arguments_are_refused_by_fit(arguments: dict[str, Any], message: str) -> None:
    X, y = data()
    model = AdagradClassifier(**arguments)  # scikit-learn wants no check here
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)
    assert not hasattr(model, "coef_")


@pytest.mark.parametrize("warm", [False, True])
def test_a_refused_fit_leaves_what_was_learned(warm: bool) -> None:
    X, y = data()
    model = AdagradClassifier(warm_start=warm).fit(X, y)
    before = dict(vars(model))
    wide, three = np.ones((300, 200_000), np.float32), np.arange(300) % 3
    rate = lambda: -1.0  # noqa: E731
    for refused in (
        lambda: model.fit(wide, y, np.zeros(300)),
        lambda: model.fit(X, three, np.zeros(300)),
        lambda: model.set_params(learning_rate=rate).fit(X, three),
        lambda: model.partial_fit(wide, y),
    ):
        with pytest.raises(ValueError, match="sample_weight|labels|learning_rate|features"):
            refused()
        model.set_params(learning_rate=0.05)
        assert vars(model) == before
    fresh = AdagradClassifier(learning_rate=rate)
    with pytest.raises(ValueError, match="learning_rate"):
        fresh.partial_fit(X, y, [0, 1])
    assert not hasattr(fresh, "n_features_in_")
    assert not hasattr(fresh, "classes_")


@pytest.mark.parametrize("argument", [{"batch_size": 5}, {"fit_intercept": False}], ids=["batch_size", "fit_intercept"])
def test_what_shapes_the_model_can_not_change_while_it_is_learned(argument: dict[str, Any]) -> None:
    X, y = data()
    ((name, value),) = argument.items()
    model = AdagradClassifier(warm_start=True).fit(X, y)
    now, old = model.t_, getattr(model, name)
    model.set_params(**argument)
    for learn in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=f"{name} can't change while a model is learned, got {value} after {old}"):
            learn(X, y)
    assert model.t_ == now
    assert model.state_metadata()["arguments"][name] == old  # what it was learned with
    model.set_params(warm_start=False).fit(X, y)
    assert model.state_metadata()["arguments"][name] == value


def test_batches_of_wide_rows_have_their_size() -> None:
    X = np.zeros((512, 8192), np.float32)
    X[np.arange(512), np.arange(512)] = 1
    y = np.arange(512) % 2
    dense, sparse = (AdagradClassifier(batch_size=256).fit(rows, y) for rows in (X, sp.csr_array(X)))
    assert dense.t_ == sparse.t_ == 2
    np.testing.assert_array_equal(dense.coef_, sparse.coef_)


def test_data_are_refused() -> None:
    X, y = data()
    model = AdagradClassifier()
    with pytest.raises(NotFittedError, match="not fitted"):
        model.predict(X)
    with pytest.raises(NotFittedError, match="not fitted"):
        model.state_arrays()
    with pytest.raises(ValueError, match="classes must be given at the first call of partial_fit"):
        model.partial_fit(X, y)
    with pytest.raises(ValueError, match="needs two classes or more, got one class"):
        model.fit(X, np.zeros(300))
    with pytest.raises(ValueError, match=r"sample_weight must be in \[0, inf\), got -1.0"):
        model.fit(X, y, np.full(300, -1.0))
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(300,\), got \(299,\)"):
        model.fit(X, y, np.ones(299))
    with pytest.raises(ValueError, match="sample_weight, times class_weight, must not be zero for every row"):
        model.fit(X, y, np.zeros(300))
    with pytest.raises(ValueError, match="times class_weight, must not be zero for every row"):
        type(model)(class_weight={0: 0.0}).fit(X, y, (y == 0).astype(float))
    broken = X.copy()
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.fit(broken, y)
    assert not hasattr(model, "_learner")
    model.partial_fit(X, y, [0, 1, 2])
    before = model.state_arrays()
    with pytest.raises(ValueError, match="y has labels that are not in classes"):
        model.partial_fit(X, y + 5)
    with pytest.raises(ValueError, match="classes must stay"):
        model.partial_fit(X, y, [0, 1])
    with pytest.raises(ValueError, match="expecting 8 features"):
        model.partial_fit(X[:, :5], y)
    damaged = sp.csr_array(X)
    damaged.indices[7] = 8
    with pytest.raises(ValueError, match=r"X.indices must be in \[0, 8\), got 0 to 8"):
        model.partial_fit(damaged, y)
    np.testing.assert_array_equal(before["coef"], model.coef_.T)


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"use_ema": True, "weight_decay": 1e-3, "learning_rate": schedules.CosineDecay(0.3, 200)},
        {"batch_size": 16, "gradient_accumulation_steps": 3, "use_ema": True},
        {"fit_intercept": False, "learning_rate": lambda: 0.1},
    ],
)
@pytest.mark.parametrize("labels", [["a", "b"], [1, 2, 3], [1.0, 2.0], [False, True]])
def test_going_on_from_files(arguments: dict[str, Any], labels: list[Any], tmp_path: Any) -> None:
    X, y = data(len(labels))
    y = np.array(labels)[y]
    whole = AdagradClassifier(**arguments).partial_fit(X[:77], y[:77], labels)
    metadata = json.loads(json.dumps(whole.state_metadata()))
    assert metadata == whole.state_metadata()
    write(tmp_path / "state", whole.state_arrays(), metadata)
    whole.partial_fit(X[77:], y[77:])
    resumed = AdagradClassifier(**arguments).load_state(*read(tmp_path / "state"))
    assert resumed.classes_.dtype == np.array(labels).dtype
    resumed.partial_fit(X[77:], y[77:])
    same(whole, resumed)
    np.testing.assert_array_equal(whole.progressive_prediction_, resumed.progressive_prediction_)
    np.testing.assert_array_equal(whole.predict(X), resumed.predict(X))
    assert whole.state_metadata() == resumed.state_metadata()


def test_going_on_with_another_rate() -> None:
    X, y = data()
    first = AdagradRegressor().fit(X, y)
    second = AdagradRegressor(learning_rate=0.0, epochs=3, warm_start=True)
    second.load_state(first.state_arrays(), first.state_metadata()).fit(X, y)
    np.testing.assert_array_equal(first.coef_, second.coef_)
    assert second.t_ == 1200


def test_a_state_that_does_not_fit_is_refused() -> None:
    X, y = data()
    first = AdagradClassifier().fit(X, y)
    arrays, metadata = first.state_arrays(), first.state_metadata()
    with pytest.raises(ValueError, match="estimator is 'AdagradClassifier' there and 'AdagradRegressor' here"):
        AdagradRegressor().load_state(arrays, metadata)
    with pytest.raises(ValueError, match=r"clipnorm is None there and 1\.0 here; batch_size is None there and 4 here"):
        AdagradClassifier(clipnorm=1.0, batch_size=4).load_state(arrays, metadata)
    other = AdagradClassifier().fit(X[:, :3], y)
    before = other.state_arrays()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("format of the state must be 1 or 2, got 3", {"format": 3}),
        ("this is no state", {"counters": None}),
        ("dtype of the state", {"dtype": "int8"}),
        ("doesn't fit the model", {"dtype": "float64"}),
        ("doesn't fit the model", {"n_features_in": 9}),
        ("n_features_in must be", {"n_features_in": "many"}),
        ("steps must be", {"counters": {"steps": -1}}),
    ]
    for message, changed in wrong:
        with pytest.raises(ValueError, match=message):
            other.load_state(arrays, metadata | changed)
    for name in metadata:
        with pytest.raises(ValueError, match="this is no state"):
            other.load_state(arrays, {key: value for key, value in metadata.items() if key != name})
    with pytest.raises(ValueError, match="there is no array coef"):
        other.load_state({}, metadata)
    for name, array in before.items():
        np.testing.assert_array_equal(array, other.state_arrays()[name])
    other.load_state(arrays, metadata)
    same(first, other)
    assert other.n_features_in_ == 8


@pytest.mark.parametrize(
    "arguments",
    [{"use_ema": True}, {"batch_size": 32}, {"penalty": "l1"}, {"batch_size": 32, "penalty": "l1", "use_ema": True}],
    ids=lambda arguments: " ".join(arguments),
)
def test_copies_go_on(arguments: dict[str, Any], tmp_path: Any) -> None:
    """By pickle, by deepcopy, and by joblib, which gives shared arrays twice and maps them read-only from the file."""
    X, y = data()
    model = AdagradClassifier(**arguments).partial_fit(X, y, [0, 1])
    joblib.dump(model, tmp_path / "model")
    copies = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    copies += [joblib.load(tmp_path / "model", mmap_mode=mode) for mode in (None, "r")]
    model.partial_fit(X, y)
    for copied in copies:
        same(model, copied.partial_fit(X, y))
        np.testing.assert_array_equal(copied.predict_proba(X), model.predict_proba(X))
    model.finalize()
    same(model, copies[-1].finalize())
    assert not hasattr(clone(model), "coef_")
    assert clone(model).get_params() == model.get_params()


def test_in_a_pipeline_and_a_search() -> None:
    X, y = data(dtype=np.float64)
    pipeline = make_pipeline(StandardScaler(), AdagradClassifier(random_state=0))
    search = GridSearchCV(pipeline, {"adagradclassifier__learning_rate": [1e-4, 0.1]}, cv=3, scoring="neg_log_loss").fit(X, y)
    assert search.best_params_ == {"adagradclassifier__learning_rate": 0.1}
    assert search.best_score_ > -0.4


@pytest.mark.parametrize(("estimator", "model"), [(AdagradClassifier, ClassifierModel), (AdagradRegressor, RegressorModel)])
def test_models_without_scikit_learn_have_the_estimators_defaults(estimator: Any, model: Any) -> None:
    parameters = inspect.signature(estimator).parameters
    assert set(model._names()) <= set(parameters)
    said = [name for name in model._names() if hasattr(model, name)]
    assert {name: getattr(model, name) for name in said} == {name: parameters[name].default for name in said}
    assert len(said) == 6 + len(model._own)
