"""What is refused: the message names the argument, the allowed range and the value, and nothing at all has changed."""

import re
import warnings

import hypothesis
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from hypothesis import strategies as st

import adagrad
from adagrad import IndexedSlices, schedules

NAN, INF = float("nan"), float("inf")

# ---- arguments -------------------------------------------------------------------------------------------------------

NOT_NEGATIVE = [NAN, -1e-300, -1, INF, -INF, "0.1", None, True, 1j, [0.1], np.array([0.1]), b"1", 10**400]
POSITIVE = [NAN, 0, 0.0, -0.0, -1.0, -INF, INF, "1", True, 1j, [1.0]]
COUNT = [0, -1, 1.0, 2.5, NAN, "2", True, [2]]

BAD_ARGUMENTS = {
    ("learning_rate", "[0, inf)"): NOT_NEGATIVE,
    ("initial_accumulator_value", "[0, inf)"): NOT_NEGATIVE,
    ("epsilon", "[0, inf)"): NOT_NEGATIVE,
    ("weight_decay", "[0, inf)"): [value for value in NOT_NEGATIVE if value is not None],
    ("clipnorm", "(0, inf)"): POSITIVE,
    ("clipvalue", "(0, inf)"): POSITIVE,
    ("global_clipnorm", "(0, inf)"): POSITIVE,
    ("use_ema", "True or False"): [1, 0, None, "yes", NAN],
    ("ema_momentum", "[0, 1]"): [NAN, -0.1, 1.0000001, INF, None, "0.9", True],
    ("ema_overwrite_frequency", ">= 1"): COUNT,
    ("loss_scale_factor", "[1.17549e-38, inf)"): [*POSITIVE, 1e-38, 5e-324],
    ("gradient_accumulation_steps", ">= 1"): COUNT,
    ("name", "string"): ["", 1, b"adagrad", "a/b"],
    ("epsilon_placement", "'inside', 'outside'"): ["Inside", "", None, 1, NAN],
    ("weight_decay_mode", "'decoupled', 'l2'"): ["L2", "", None, 1, NAN],
    ("row_wise", "True or False"): [1, 0, None, "yes", NAN],
}
# A value of a wrong type is told so, without a range.
NUMBER = (int, float)


def short(value):
    return repr(value)[:20]


@pytest.mark.parametrize(
    ("argument", "allowed", "value"),
    [(argument, allowed, value) for (argument, allowed), values in BAD_ARGUMENTS.items() for value in values],
    ids=short,
)
def test_bad_arguments(argument, allowed, value):
    with pytest.raises(ValueError) as refusal:
        adagrad.Adagrad(**{argument: value})
    message = str(refusal.value)
    assert message.startswith(argument)
    assert repr(value)[:20] in message
    if isinstance(value, NUMBER) and not isinstance(value, bool):
        assert allowed in message
    else:
        assert "must be" in message


def _number(low, high=INF):
    return lambda value: (
        isinstance(value, NUMBER) and not isinstance(value, bool) and low <= value <= high and abs(value) < 1e309
    )


ALLOWED = {
    "learning_rate": _number(0),
    "initial_accumulator_value": _number(0),
    "epsilon": _number(0),
    "weight_decay": lambda value: value is None or _number(0)(value),
    "clipnorm": lambda value: value is None or _number(5e-324)(value),
    "use_ema": lambda value: value is True or value is False,
    "ema_momentum": _number(0, 1),
    "gradient_accumulation_steps": lambda value: value is None or (type(value) is int and value >= 1),
    "loss_scale_factor": lambda value: value is None or _number(2.0**-126)(value),
    "epsilon_placement": lambda value: value in ("inside", "outside"),
}
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.floats(0, 1),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
)


@pytest.mark.parametrize("argument", ALLOWED)
@hypothesis.given(value=ANYTHING)
def test_what_is_not_allowed_is_refused_and_what_is_is_kept(argument, value):
    if ALLOWED[argument](value):
        kept = adagrad.Adagrad(**{argument: value}).get_config()[argument]
        assert kept == value
    else:
        with pytest.raises(ValueError, match=argument):
            adagrad.Adagrad(**{argument: value})


@pytest.mark.parametrize("value", [0, 1, np.float32(0.5), np.int64(2), np.array(0.25)])
def test_numbers_of_every_kind_are_taken(value):
    optimizer = adagrad.Adagrad(value, initial_accumulator_value=value, epsilon=value, weight_decay=value)
    assert optimizer.learning_rate == float(value)
    assert type(optimizer.get_config()["epsilon"]) is float


def test_edges_that_are_allowed():
    adagrad.Adagrad(0.0, 0.0, 0.0, weight_decay=0.0, clipnorm=1e308, use_ema=np.True_, ema_momentum=0.0)
    adagrad.Adagrad(ema_momentum=1.0, ema_overwrite_frequency=1, gradient_accumulation_steps=np.int32(1), name=None)
    adagrad.Adagrad(clipnorm=None, clipvalue=5e-324, loss_scale_factor=2**-20)
    adagrad.Adagrad(loss_scale_factor=2.0**-126)


def test_two_kinds_of_clipping():
    with pytest.raises(ValueError, match=r"at most one of clipnorm, clipvalue, global_clipnorm.*clipnorm=1\.0.*clipvalue=2\.0"):
        adagrad.Adagrad(clipnorm=1.0, clipvalue=2)


def test_unknown_arguments():
    with pytest.raises(ValueError, match="unknown arguments: lr=0.1, decay=3"):
        adagrad.Adagrad(lr=0.1, decay=3)
    with pytest.raises(ValueError, match="unknown arguments: 'lr'"):
        adagrad.Adagrad.from_config({"lr": 0.1})
    with pytest.raises(TypeError):
        adagrad.Adagrad(0.1, 0.1, 1e-7, None, None, None, None, False, 0.99, None, None, None, "name", "outside")


def test_a_callable_has_no_config():
    with pytest.raises(ValueError, match="learning_rate is a callable"):
        adagrad.Adagrad(lambda: 0.1).get_config()


@pytest.mark.parametrize("value", NOT_NEGATIVE, ids=short)
def test_setting_a_bad_learning_rate(value):
    optimizer = adagrad.Adagrad(0.25)
    with pytest.raises(ValueError, match="learning_rate must be"):
        optimizer.learning_rate = value
    assert optimizer.learning_rate == 0.25


def test_a_schedule_can_not_be_set_over():
    optimizer = adagrad.Adagrad(schedules.ExponentialDecay(0.5, 10, 0.9))
    with pytest.raises(TypeError, match="learning_rate is a schedule"):
        optimizer.learning_rate = 0.1
    assert optimizer.learning_rate == 0.5


# ---- build -----------------------------------------------------------------------------------------------------------

BASE = np.zeros((4, 3), np.float32)


def _read_only():
    w = np.ones(3)
    w.setflags(write=False)
    return w


BAD_VARIABLES = {
    "list": ([[1.0, 2.0]], TypeError, "must be a NumPy array.*got list"),
    "scalar": ([np.float32(1.0)], TypeError, "must be a NumPy array.*got float32"),
    "int": ([np.ones(3, int)], TypeError, "must be float64, float32, float16 or bfloat16, got int64"),
    "bool": ([np.ones(3, bool)], TypeError, "got bool"),
    "complex": ([np.ones(3, complex)], TypeError, "got complex128"),
    "longdouble": ([np.ones(3, np.longdouble)], TypeError, "got float128|got longdouble"),
    "float8": ([np.ones(3, ml_dtypes.float8_e4m3)], TypeError, "got float8_e4m3"),
    "object": ([np.array([1.0, None])], TypeError, "got object"),
    "read-only": ([_read_only()], ValueError, "variable_0 must be writable"),
    "broadcast": ([np.lib.stride_tricks.as_strided(np.zeros(1), (3,), (0,))], ValueError, "broadcast"),
    "sliding window": ([np.lib.stride_tricks.sliding_window_view(np.zeros(4), 2, writeable=True)], ValueError, "share memory"),
    "sliding backwards": ([np.lib.stride_tricks.as_strided(np.zeros(9), (2, 3), (8, 8))[::-1]], ValueError, "share memory"),
    "half an element on": ([np.lib.stride_tricks.as_strided(np.zeros(9), (3,), (4,))], ValueError, "share memory"),
    "twice": ([BASE, BASE], ValueError, "variable_0 again as variable_1"),
    "overlap": ([BASE[:3], BASE[2:]], ValueError, "must not share memory, got variable_0 and variable_1"),
    "nested": ([np.ones(2), BASE[1, 1:2], BASE], ValueError, "must not share memory"),
    "strided overlap": ([BASE[:, ::2], BASE[1:2]], ValueError, "must not share memory"),
    "empty name": ({"": np.ones(2)}, TypeError, "names"),
    "name": ({1: np.ones(2)}, TypeError, "names.*got 1"),
}


@pytest.mark.parametrize("name", BAD_VARIABLES)
def test_bad_variables(name):
    variables, error, message = BAD_VARIABLES[name]
    optimizer = adagrad.Adagrad()
    with pytest.raises(error, match=message):
        optimizer.build(variables)
    assert not optimizer.built
    optimizer.build([np.ones(3)])


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2, 2), (16, 24)), ((3, 2), (16, 8)), ((2, 3), (8, 16)), ((1, 3), (0, 8)), ((0, 3), (0, 0))],
    ids=["interlocked", "C", "Fortran", "one row", "empty"],
)
def test_strides_of_any_kind_are_taken(shape, strides):
    w = np.lib.stride_tricks.as_strided(np.zeros(9), shape, strides)
    adagrad.Adagrad(1.0, 0.0, 0.0).apply([np.ones(shape)], [w])
    assert (w == -1).all()


def test_bad_constraints():
    w = np.ones(3)
    for constraints, error, message in [
        ([None, None], ValueError, "constraints must be as many as variables, 1, got 2"),
        ([3], TypeError, "constraint of variable_0 must be a callable.*got 3"),
        ({"bias": np.abs}, ValueError, "'bias'; known: variable_0"),
    ]:
        optimizer = adagrad.Adagrad()
        with pytest.raises(error, match=message):
            optimizer.build([w], constraints)
        assert not optimizer.built


def test_building_again():
    v, w = np.ones(3), np.ones(2)
    optimizer = adagrad.Adagrad()
    optimizer.build([v, w])
    optimizer.build([v, w])
    for again in ([v], [w, v, np.ones(2)], [np.ones(3), w]):
        with pytest.raises(ValueError, match="already built|unknown to this optimizer"):
            optimizer.build(again)
    with pytest.raises(ValueError, match="already built"):
        optimizer.build([v, w], [None, np.abs])


def test_excluding_what_is_unknown():
    v, w = np.ones(3), np.ones(2)
    optimizer = adagrad.Adagrad(weight_decay=0.1)
    optimizer.build([v])
    with pytest.raises(ValueError, match="unknown to this optimizer"):
        optimizer.exclude_from_weight_decay(var_list=[v, w])
    optimizer.apply([np.zeros(3)], [v])
    assert (v != 1).all()


def test_excluding_what_is_not_built_later():
    v, w = np.ones(3), np.ones(2)
    optimizer = adagrad.Adagrad(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=[w])
    with pytest.raises(ValueError, match="unknown to this optimizer"):
        optimizer.build([v])
    assert not optimizer.built
    optimizer.build([v, w])


def test_excluding_one_twice():
    w, optimizer = np.ones(2), adagrad.Adagrad(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=[w, w])
    optimizer.apply([np.zeros(2)], [w])
    np.testing.assert_array_equal(w, np.ones(2))


def test_excluding_one_name_that_is_no_list():
    with pytest.raises(TypeError, match="var_names.*got 'bias'"):
        adagrad.Adagrad(weight_decay=0.1).exclude_from_weight_decay(var_names="bias")


# ---- apply -----------------------------------------------------------------------------------------------------------


class Scene:
    """An optimizer in the middle of its work, and a picture of everything that a refused call must leave alone."""

    def __init__(self, **settings):
        rng = np.random.default_rng(0)
        self.variables = {
            "table": rng.normal(size=(6, 3)).astype(np.float32),
            "bias": rng.normal(size=3).astype(np.float32),
            "scalar": np.array(0.5, np.float32),
        }
        self.constraint = lambda p: np.abs(p)
        self.optimizer = adagrad.Adagrad(**{"learning_rate": 0.3, **settings})
        self.optimizer.build(self.variables, {"bias": lambda p: self.constraint(p)})
        for seed in range(3):
            self.optimizer.apply(self.good(seed), self.variables)

    def good(self, seed=9):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(4, 3)).astype(np.float32)
        return {"table": IndexedSlices(values, [5, 0, 5, 2]), "bias": np.ones(3, np.float32), "scalar": np.float32(2.0)}

    def picture(self):
        arrays = [*self.variables.values(), *self.optimizer.variables]
        return [(a.tobytes(), a.ctypes.data if a.ndim else 0) for a in arrays], self.optimizer.iterations

    def refuses(self, call, error, message):
        before = self.picture()
        with pytest.raises(error, match=message):
            call()
        assert self.picture() == before


EVERYTHING = {
    "use_ema": True, "ema_overwrite_frequency": 1, "gradient_accumulation_steps": 2, "global_clipnorm": 1.0, "weight_decay": 0.1,
}  # fmt: skip
SETTINGS = pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])

F = np.float32
BAD_GRADIENTS = {
    "shape": ("table", np.ones((6, 4), F), ValueError, r"gradient of table must have its shape \(6, 3\), got \(6, 4\)"),
    "transposed": ("table", np.ones((3, 6), F), ValueError, r"\(6, 3\), got \(3, 6\)"),
    "flat": ("table", np.ones(18, F), ValueError, r"\(6, 3\), got \(18,\)"),
    "scalar for a row": ("bias", np.float32(1), ValueError, r"\(3,\), got \(\)"),
    "row for a scalar": ("scalar", np.ones(1, F), ValueError, r"\(\), got \(1,\)"),
    "bool": ("bias", np.ones(3, bool), TypeError, "gradient of bias must have a real dtype, got bool"),
    "complex": ("bias", np.ones(3, complex), TypeError, "got complex128"),
    "object": ("bias", np.array([1, None, 2]), TypeError, "got object"),
    "text": ("bias", "abc", TypeError, "gradient of bias must have a real dtype"),
    "id too large": ("table", IndexedSlices(np.ones((2, 3), F), [0, 6]), ValueError, r"indices of table.*\[0, 6\), got 6 at position 1"),
    "id negative": ("table", IndexedSlices(np.ones((2, 3), F), [-1, 0]), ValueError, r"\[0, 6\), got -1 at position 0"),
    "id huge": ("table", IndexedSlices(np.ones((1, 3), F), np.array([2**64 - 1], np.uint64)), ValueError, "got 18446744073709551615"),
    "float ids": ("table", IndexedSlices(np.ones((2, 3), F), [0.0, 1.0]), TypeError, "1-D array of integers, got float64"),
    "bool ids": ("table", IndexedSlices(np.ones((2, 3), F), [False, True]), TypeError, "integers, got bool"),
    "2-D ids": ("table", IndexedSlices(np.ones((2, 3), F), [[0, 1]]), TypeError, r"of \(1, 2\)"),
    "too few ids": ("table", IndexedSlices(np.ones((2, 3), F), [0]), ValueError, r"gradient rows of table.*\(1, 3\).*got \(2, 3\)"),
    "row width": ("table", IndexedSlices(np.ones((2, 4), F), [0, 1]), ValueError, r"got \(2, 4\)"),
    "bool rows": ("table", IndexedSlices(np.ones((2, 3), bool), [0, 1]), TypeError, "real dtype, got bool"),
    "rows of a scalar": ("scalar", IndexedSlices(np.ones(1, F), [0]), ValueError, "scalar and has no rows"),
    "rows of a vector": ("bias", IndexedSlices(np.ones((1, 3), F), [0]), ValueError, r"\(1,\).*got \(1, 3\)"),
    "sparse shape": ("table", scipy.sparse.csr_array((5, 3), dtype=F), ValueError, r"\(6, 3\), got \(5, 3\)"),
    "sparse vector": ("bias", scipy.sparse.csr_matrix((3, 1), dtype=F), ValueError, r"\(1, 3\), got \(3, 1\)"),
    "sparse scalar": ("scalar", scipy.sparse.csr_matrix((1, 1), dtype=F), ValueError, "scalar"),
    "sparse complex": ("table", scipy.sparse.csr_array((6, 3), dtype=complex), TypeError, "complex"),
    "sparse bool": ("table", scipy.sparse.csr_array((6, 3), dtype=bool), TypeError, "bool"),
}  # fmt: skip


@SETTINGS
@pytest.mark.parametrize("name", BAD_GRADIENTS)
def test_bad_gradients(name, settings):
    variable, gradient, error, message = BAD_GRADIENTS[name]
    scene = Scene(**settings)
    for others in (scene.good(), dict.fromkeys(scene.variables)):
        bad = {**others, variable: gradient}
        scene.refuses(lambda bad=bad: scene.optimizer.apply(bad, scene.variables), error, message)
        scene.refuses(lambda bad=bad: scene.optimizer.apply(dict(reversed(bad.items())), scene.variables), error, message)


@hypothesis.given(
    ids=st.lists(st.integers(-2, 8), max_size=4),
    dtype=st.sampled_from([np.int8, np.int32, np.int64, np.uint8, np.float32]),
    count=st.integers(0, 4),
    width=st.integers(2, 4),
    everything=st.booleans(),
)
def test_row_gradients_are_taken_or_refused_whole(ids, dtype, count, width, everything):
    ids = np.array(ids, np.int64).astype(dtype)
    scene = Scene(**(EVERYTHING if everything else {}))
    gradients = {**scene.good(), "table": IndexedSlices(np.ones((count, width), F), ids)}
    right = (ids.dtype.kind in "iu" or not ids.size) and (count, width) == (len(ids), 3) and all(0 <= i < 6 for i in ids)
    if right:
        scene.optimizer.apply(gradients, scene.variables)
        assert scene.optimizer.variables[0] == 4
    else:
        scene.refuses(lambda: scene.optimizer.apply(gradients, scene.variables), (ValueError, TypeError), "of table must")


@SETTINGS
def test_bad_calls(settings):
    scene = Scene(**settings)
    optimizer, (table, bias, scalar) = scene.optimizer, scene.variables.values()
    good = scene.good()
    gradients = list(good.values())
    other = np.ones(3, np.float32)
    for call, error, message in [
        (lambda: optimizer.apply(gradients[:2], [table, bias, scalar]), ValueError, "grads must be as many as variables, 3, got 2"),
        (lambda: optimizer.apply(gradients, [table, bias]), ValueError, "as many as variables, 2, got 3"),
        (lambda: optimizer.apply(gradients[:2]), ValueError, "as many as variables, 3, got 2"),
        (lambda: optimizer.apply(gradients[:2], [table, other]), ValueError, "number 1 is unknown to this optimizer.*table, bias, scalar"),
        (lambda: optimizer.apply(gradients[:2], [table, bias.copy()]), ValueError, "number 1 is unknown"),
        (lambda: optimizer.apply([other, other], [bias, bias]), ValueError, "once, got bias twice"),
        (lambda: optimizer.apply(good, [table, bias, scalar]), TypeError, "grads is a dict"),
        (lambda: optimizer.apply(gradients, scene.variables), TypeError, "trainable_variables is a dict"),
        (lambda: optimizer.apply({**good, "bais": other}, scene.variables), ValueError, "unknown: .'bais'"),
        (lambda: optimizer.apply({"bias": other}, scene.variables), ValueError, "missing: .'table', 'scalar'"),
        (lambda: optimizer.apply({"bais": other}), ValueError, "bais"),
        (lambda: optimizer.apply_gradients([(other, bias), (other, bias)]), ValueError, "bias twice"),
        (lambda: optimizer.finalize_variable_values([other]), ValueError, "unknown"),
    ]:  # fmt: skip
        scene.refuses(call, error, message)
    optimizer.apply(good, scene.variables)


def test_no_gradient_at_all():
    scene = Scene()
    scene.refuses(lambda: scene.optimizer.apply([None] * 3), ValueError, "no gradient is given.*table, bias, scalar")
    scene = Scene(gradient_accumulation_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene.optimizer.apply([None] * 3)
    assert scene.optimizer.variables[0] == 4


def test_no_variables_at_the_first_call():
    with pytest.raises(ValueError, match="trainable_variables must be given at the first call"):
        adagrad.Adagrad().apply([np.ones(3)])
    with pytest.raises(ValueError, match="trainable_variables must be given at the first call"):
        adagrad.Adagrad().apply({"w": np.ones(3)})


def test_a_refused_first_call_leaves_the_optimizer_usable():
    w, optimizer = np.ones(3), adagrad.Adagrad(1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="shape"):
        optimizer.apply([np.ones(4)], [w])
    np.testing.assert_array_equal(w, np.ones(3))
    optimizer.apply([np.ones(3)], [w])
    np.testing.assert_array_equal(w, np.zeros(3))


@SETTINGS
@pytest.mark.parametrize("name", ["table", "bias", "scalar"])
def test_a_variable_that_became_read_only(settings, name):
    scene = Scene(**settings)
    scene.variables[name].setflags(write=False)
    for gradients in (scene.good(), {**scene.good(), name: None}):  # an average may still move the variable
        scene.refuses(lambda g=gradients: scene.optimizer.apply(g, scene.variables), ValueError, f"{name} must be writable")
    if settings:
        scene.refuses(lambda: scene.optimizer.finalize_variable_values(scene.variables), ValueError, f"{name} must be writable")
    scene.variables[name].setflags(write=True)
    scene.optimizer.apply(scene.good(), scene.variables)


# ---- constraints and learning rates that fail ------------------------------------------------------------------------


class OwnError(Exception):
    pass


def _raises(*_):
    raise OwnError("no")


def _spoils(p):
    p[...] = 77
    raise OwnError("no")


BAD_CONSTRAINTS = {
    "raises": (_raises, OwnError, "no"),
    "spoils and raises": (_spoils, OwnError, "no"),
    "shape": (
        lambda p: p[:1],
        ValueError,
        r"constraint of bias must return a real array of shape \(3,\), got float32 of \(1,\)",
    ),
    "number": (lambda p: 0.0, ValueError, r"shape \(3,\), got float64 of \(\)"),
    "None": (lambda p: None, ValueError, "constraint of bias.*got object"),
    "complex": (lambda p: p * 1j, ValueError, "got complex64"),
    "bool": (lambda p: p > 0, ValueError, "got bool"),
    "text": (lambda p: np.array(["a", "b", "c"]), ValueError, "got <U1"),
}


@SETTINGS
@pytest.mark.parametrize("name", BAD_CONSTRAINTS)
def test_constraints_that_fail(settings, name):
    constraint, error, message = BAD_CONSTRAINTS[name]
    scene, judge = Scene(**settings), Scene(**settings)
    if settings:  # on to a real step: the constraint isn't called between
        assert scene.optimizer.variables[0] % 2 == 1
    right, scene.constraint = scene.constraint, constraint
    scene.refuses(lambda: scene.optimizer.apply(scene.good(), scene.variables), error, message)
    if settings:
        scene.refuses(lambda: scene.optimizer.finalize_variable_values(scene.variables), error, message)
    scene.constraint = right
    for each in (scene, judge):
        each.optimizer.apply(each.good(), each.variables)
    assert [a for a, _ in scene.picture()[0]] == [a for a, _ in judge.picture()[0]]


@SETTINGS
@pytest.mark.parametrize("value", [NAN, -1.0, INF, "0.1", None, OwnError, np.array([0.1, 0.2])], ids=repr)
def test_learning_rates_that_fail_when_they_are_asked(settings, value):
    def rate(*_):
        if value is OwnError:
            raise OwnError("no")
        return value

    class Schedule(schedules.LearningRateSchedule):
        def __call__(self, step):
            return rate()

        def get_config(self):
            return {}

    for bad in (rate, Schedule()):
        scene = Scene(**settings)
        scene.optimizer.learning_rate = bad
        error, message = (OwnError, "no") if value is OwnError else (ValueError, "learning_rate must be")
        scene.refuses(lambda s=scene: s.optimizer.apply(s.good(), s.variables), error, message)


# ---- state -----------------------------------------------------------------------------------------------------------


@SETTINGS
def test_weights_that_do_not_fit(settings):
    scene = Scene(**settings)
    weights = [array.copy() for array in scene.optimizer.variables]

    def changed(number, value):
        return [*weights[:number], value, *weights[number + 1 :]] if number >= 0 else [*weights[:-1], value]

    for bad, message in [
        (weights[:-1], rf"weights must be {len(weights)} arrays, got {len(weights) - 1}"),
        ([*weights, np.zeros(3)], rf"got {len(weights) + 1}"),
        (changed(0, np.array(-1)), "count of calls must be an integer >= 0, got -1"),
        (changed(0, np.array(1.5)), "castable to int64, got float64"),
        (changed(1, np.array(NAN)), "learning_rate must be"),
        (changed(2, np.zeros((6, 4), F)), r"weight 2 must have shape \(6, 3\), got \(6, 4\)"),
        (changed(2, np.zeros((6, 3), complex)), "castable to float32, got complex128"),
        (changed(-1, np.array(-1e-3, F)), "accumulator of scalar must not be negative"),
    ]:
        scene.refuses(lambda bad=bad: scene.optimizer.set_weights(bad), ValueError, message)
    store = {}
    scene.optimizer.save_own_variables(store)
    for bad in ({**store, "99": np.zeros(1)}, {k: v for k, v in store.items() if k != "0"}, {}):
        scene.refuses(
            lambda bad=bad: scene.optimizer.load_own_variables(bad), ValueError, re.escape("store must have the keys '0' to")
        )


def test_state_before_there_is_any(tmp_path):
    for call in (lambda o: o.save(tmp_path / "state"), lambda o: o.load(tmp_path / "state"), lambda o: o.set_weights([0])):
        with pytest.raises(ValueError, match="must be built before"):
            call(adagrad.Adagrad())
    assert not list(tmp_path.iterdir())


def test_threads():
    for count in (0, -1, 1.5, True, None, "2"):
        with pytest.raises(ValueError, match=f"count must be an integer >= 1, got {count!r}"):
            adagrad.set_num_threads(count)
