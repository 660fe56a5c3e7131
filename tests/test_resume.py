"""Training that is saved and resumed at any call, in the middle of a cycle too, equals training that never stopped."""

import copy
import json
import pickle
import tempfile
import threading
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import adagrad
from adagrad import IndexedSlices, StateFileError, schedules
from plain import DTYPES, assert_same_bits
from strategies import arguments, dtypes_with_stages, gradient, numbers

SHAPES = {"table": (6, 3), "bias": (17,), "scalar": ()}
KINDS = ["dense", "rows", "rows", "none"]
CALLS = 7


def training(settings, dtype, seed, special=0.0):
    """The variables, a builder of the optimizer for any copy of them, and the gradients of each call."""
    rng = np.random.default_rng(seed)
    variables = {name: numbers(rng, shape, DTYPES[dtype], special) for name, shape in SHAPES.items()}

    def build(copies):
        optimizer = adagrad.Adagrad(**settings)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.build(copies)
        return optimizer

    def gradients():
        result = {n: gradient(rng, str(rng.choice(KINDS)), shape, DTYPES[dtype], special)[0] for n, shape in SHAPES.items()}
        return result if any(g is not None for g in result.values()) else gradients()

    return variables, build, [gradients() for _ in range(CALLS)]


def run(optimizer, variables, calls):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for gradients in calls:
            optimizer.apply(gradients, variables)


def copies_of(variables):
    return {name: array.copy() for name, array in variables.items()}


def assert_same_training(one, other):
    for (optimizer, variables), (expected, expected_variables) in [(one, other)]:
        assert optimizer.iterations == expected.iterations
        assert optimizer.learning_rate == expected.learning_rate
        for name, array in variables.items():
            assert_same_bits(array, expected_variables[name], name)
        for number, (array, wanted) in enumerate(zip(optimizer.variables, expected.variables, strict=True)):
            assert_same_bits(array, wanted, number)


def through_file(optimizer, build, copies):
    again = build(copies)
    with tempfile.TemporaryDirectory() as folder:
        optimizer.save(Path(folder) / "state")
        again.load(Path(folder) / "state")
    return again


def through_store(optimizer, build, copies):
    store = {}
    optimizer.save_own_variables(store)
    again = build(copies)
    again.load_own_variables(store)
    return again


@pytest.mark.parametrize(("dtype", "stages"), dtypes_with_stages(), ids=list(DTYPES))
def test_resumed_at_any_call(dtype, stages):
    @hypothesis.settings(max_examples=60 if dtype == "float32" else 25)
    @hypothesis.given(
        settings=arguments(stages),
        stop=st.integers(0, CALLS),
        seed=st.integers(0, 2**32 - 1),
        special=st.sampled_from([0.0, 0.3]),
    )
    def law(settings, stop, seed, special):
        variables, build, calls = training(settings, dtype, seed, special)
        copies = copies_of(variables)
        straight, first = build(variables), build(copies)
        run(straight, variables, calls)
        run(first, copies, calls[:stop])
        copies = copies_of(copies)
        resumed = through_file(first, build, copies)
        run(resumed, copies, calls[stop:])
        assert_same_training((resumed, copies), (straight, variables))

    law()


@hypothesis.given(settings=arguments(), stop=st.integers(0, CALLS), seed=st.integers(0, 2**32 - 1))
def test_resumed_through_the_store_of_keras(settings, stop, seed):
    # It has no place for "this cycle has brought a gradient": what is exact is a stop where a buffer is not all zero, which
    # gradients without special numbers give, or between cycles.
    variables, build, calls = training(settings, "float32", seed)
    calls = [{name: np.ones(SHAPES[name], np.float32) if g is None else g for name, g in call.items()} for call in calls]
    calls = [
        {n: np.ones(SHAPES[n], np.float32) if isinstance(g, IndexedSlices) and not len(g.indices) else g for n, g in c.items()}
        for c in calls
    ]
    copies = copies_of(variables)
    straight, first = build(variables), build(copies)
    run(straight, variables, calls)
    run(first, copies, calls[:stop])
    copies = copies_of(copies)
    resumed = through_store(first, build, copies)
    run(resumed, copies, calls[stop:])
    assert_same_training((resumed, copies), (straight, variables))


@pytest.mark.parametrize("through", [pickle.dumps, None], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_copies_of_an_optimizer_with_its_variables(stop, through):
    settings = {
        "learning_rate": schedules.CosineDecay(0.3, 5),
        "gradient_accumulation_steps": 3,
        "clipnorm": 1.0,
        "use_ema": True,
    }
    variables, build, calls = training(settings, "float32", 5)
    straight = build(variables)
    run(straight, variables, calls[:stop])
    resumed, copies = pickle.loads(through((straight, variables))) if through else copy.deepcopy((straight, variables))
    run(straight, variables, calls[stop:])
    run(resumed, copies, calls[stop:])
    assert_same_training((resumed, copies), (straight, variables))


@pytest.mark.parametrize("through", ["pickle", "deepcopy"])
@pytest.mark.parametrize("kind", [*DTYPES, "big-endian", "memmap", "memmap float16"])
def test_a_copy_steps_its_own_variables(kind, through, tmp_path):
    dtype = {"big-endian": ">f4", "memmap": "f4", "memmap float16": "f2"}.get(kind) or DTYPES[kind]
    w = np.memmap(tmp_path / "w", dtype, "w+", shape=(3, 4)) if "memmap" in kind else np.zeros((3, 4), dtype)
    optimizer = adagrad.Adagrad(0.5)
    optimizer.apply([np.ones((3, 4))], [w])
    again, copied = pickle.loads(pickle.dumps((optimizer, w))) if through == "pickle" else copy.deepcopy((optimizer, w))
    before = np.array(w)
    again.apply([np.ones((3, 4))], [copied])
    np.testing.assert_array_equal(w, before)
    optimizer.apply([np.ones((3, 4))], [w])
    assert (np.asarray(copied) != before).all()
    np.testing.assert_array_equal(copied, w)


@pytest.mark.parametrize("order", [[0, 1, 3, 2, 4, 5], [0, 1, 2, 3, 5, 4], [0, 1, 4, 5, 5, 4]])
def test_weights_may_be_its_own_state_in_another_order(order):
    variables = [np.zeros(5), np.ones(5)]
    optimizer = adagrad.Adagrad(0.3, use_ema=True)
    for step in (1.0, 2.0):
        optimizer.apply([np.arange(5) + step, np.arange(5) - step], variables)
    own = optimizer.variables
    expected = [own[k].copy() for k in order]
    optimizer.set_weights([own[k] for k in order])
    for array, wanted in zip(optimizer.variables, expected, strict=True):
        assert_same_bits(array, wanted)


def test_weights_too_large_for_the_state_become_infinite_all_the_same():
    optimizer = adagrad.Adagrad()
    optimizer.build([np.zeros(2, np.float32)])
    calls, rate, accumulator = optimizer.variables
    optimizer.set_weights([calls, rate, np.full(2, 1e300)])
    assert np.isinf(accumulator).all()


def test_a_buffer_of_zeros_in_the_store_of_keras_is_a_cycle_without_gradient():
    def train(through):
        variables = {"w": np.ones(3), "other": np.ones(3)}
        optimizer = adagrad.Adagrad(0.1, weight_decay=0.5, gradient_accumulation_steps=2)
        optimizer.build(variables)
        run(optimizer, variables, [{"w": np.zeros(3), "other": None}])
        store = {}
        optimizer.save_own_variables(store)
        if through:
            optimizer.load_own_variables(store)
        run(optimizer, variables, [{"w": None, "other": None}])
        return variables["w"][0], variables["other"][0]

    assert train(through=False) == (0.95, 1.0)
    assert train(through=True) == (1.0, 1.0)  # no place for it there; a variable that is never trained must stay


@pytest.mark.parametrize("what", ["save", "load", "set_weights"])
def test_state_goes_out_and_in_between_two_steps(what, tmp_path):
    optimizer = adagrad.Adagrad()
    optimizer.build([np.zeros(2)])
    optimizer.save(tmp_path / "state")
    argument = optimizer.variables if what == "set_weights" else tmp_path / "state"
    thread = threading.Thread(target=getattr(optimizer, what), args=(argument,))
    with optimizer._engine._lock:  # as a step holds it
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()


def test_a_learning_rate_that_was_set_comes_back_exactly(tmp_path):
    w = np.ones(3)
    one, other = adagrad.Adagrad(0.5), adagrad.Adagrad(0.25)
    for optimizer in (one, other):
        optimizer.build([w])
    one.learning_rate = 0.1 + 0.2
    one.save(tmp_path / "state")
    other.load(tmp_path / "state")
    assert other.learning_rate == 0.1 + 0.2


def test_a_callable_rate_is_brought_again(tmp_path):
    w = np.ones(3)
    one, other, number = adagrad.Adagrad(lambda: 0.5), adagrad.Adagrad(lambda: 0.25), adagrad.Adagrad(0.125)
    for optimizer in (one, other, number):
        optimizer.build([w])
    one.apply([w])
    one.save(tmp_path / "state")
    other.load(tmp_path / "state")
    assert (other.learning_rate, other.iterations) == (0.25, 1)
    with pytest.raises(StateFileError, match="learning_rate is 'callable' there and 0.125 here"):
        number.load(tmp_path / "state")


def test_a_count_beyond_two_to_the_53_stays_exact(tmp_path):
    w = np.ones(3)
    one, other = adagrad.Adagrad(gradient_accumulation_steps=3), adagrad.Adagrad(gradient_accumulation_steps=3)
    for optimizer in (one, other):
        optimizer.build([w])
    weights = one.variables
    weights[0] = np.array(2**62 + 1, np.int64)
    one.set_weights(weights)
    one.apply([w])
    one.save(tmp_path / "state")
    other.load(tmp_path / "state")
    assert other.variables[0] == 2**62 + 2
    assert other.iterations == (2**62 + 2) // 3


# ---- what is not loaded ----------------------------------------------------------------------------------------------

SAVED = {"learning_rate": 0.3, "use_ema": True, "gradient_accumulation_steps": 2, "weight_decay": 0.1}


def built(shapes=SHAPES, dtype="float32", excluded=(), **settings):
    variables = {name: np.full(shape, 0.5, DTYPES[dtype]) for name, shape in shapes.items()}
    optimizer = adagrad.Adagrad(**(SAVED | settings))
    optimizer.exclude_from_weight_decay(var_names=excluded)
    optimizer.build(variables)
    optimizer.apply({name: np.ones(shape) for name, shape in shapes.items()}, variables)
    return optimizer, variables


def picture(optimizer):
    return [array.tobytes() for array in optimizer.variables], optimizer.get_config()


OTHERS = {
    "epsilon": ({"epsilon": 0.5}, "epsilon is 1e-07 there and 0.5 here"),
    "clip": ({"clipnorm": 1.0}, "clipnorm is None there and 1.0 here"),
    "average": ({"use_ema": False}, "use_ema is True there and False here"),
    "cycle": ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps is 2 there and 3 here"),
    "schedule": (
        {"learning_rate": schedules.ExponentialDecay(0.3, 1, 0.5)},
        "learning_rate is 0.3 there and .*ExponentialDecay",
    ),
    "dtype": ({"dtype": "float16"}, "dtype of table is float32 there and float16 here"),
    "wide": ({"dtype": "float64"}, "dtype of table is float32 there and float64 here"),
    "shape": ({"shapes": {**SHAPES, "bias": (5,)}}, r"shape of bias is \[17\] there and \[5\] here"),
    "name": (
        {"shapes": {"table": (6, 3), "b": (17,), "scalar": ()}},
        "it has no variable b; .*variable bias that is unknown here",
    ),
    "more": ({"shapes": {**SHAPES, "new": (1,)}}, "it has no variable new"),
    "fewer": ({"shapes": {"table": (6, 3)}}, "variable bias that is unknown here"),
    "excluded": ({"excluded": ["bias"]}, "decays of bias is True there and False here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_optimizer_is_refused_and_nothing_changes(tmp_path, name):
    saved, _ = built()
    saved.save(tmp_path / "state")
    arguments, message = OTHERS[name]
    optimizer, _ = built(**arguments)
    before = picture(optimizer)
    with pytest.raises(StateFileError, match=message):
        optimizer.load(tmp_path / "state")
    assert picture(optimizer) == before


@pytest.mark.parametrize("name", ["average", "cycle", "dtype", "shape", "name", "more", "fewer"])
def test_not_strict_takes_other_settings_but_no_other_state(tmp_path, name):
    saved, _ = built()
    saved.save(tmp_path / "state")
    optimizer, _ = built(**OTHERS[name][0])
    before = picture(optimizer)
    with pytest.raises(StateFileError, match=OTHERS[name][1]):
        optimizer.load(tmp_path / "state", strict=False)
    assert picture(optimizer) == before


@pytest.mark.parametrize("name", ["epsilon", "clip", "schedule", "excluded"])
def test_not_strict_keeps_the_settings_that_are_here(tmp_path, name):
    saved, variables = built()
    saved.apply({"bias": np.ones(17)}, {"bias": variables["bias"]})
    saved.save(tmp_path / "state")
    optimizer, _ = built(**OTHERS[name][0])
    config = optimizer.get_config()
    optimizer.load(tmp_path / "state", strict=False)
    assert optimizer.get_config() == config
    assert optimizer.iterations == 1
    for array, expected in zip(optimizer.variables[-9:], saved.variables[-9:], strict=True):
        assert_same_bits(array, expected)


def damaged(content):
    """Files that are not what was saved."""
    yield "empty", b""
    yield "truncated", content[: len(content) * 2 // 3]
    yield "longer", content + b"\0"
    flipped = bytearray(content)
    flipped[-3] ^= 4
    yield "flipped", bytes(flipped)
    yield "foreign", b"\x89HDF\r\n\x1a\n" + bytes(500)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for key in header["__metadata__"]:
        other = {**header, "__metadata__": {k: v for k, v in header["__metadata__"].items() if k != key}}
        text = json.dumps(other).encode()
        yield f"without {key}", len(text).to_bytes(8, "little") + text + content[8 + size :]


def test_a_damaged_file_is_refused_and_nothing_changes(tmp_path):
    saved, _ = built()
    saved.save(tmp_path / "state")
    optimizer, variables = built(learning_rate=0.25)
    optimizer.apply({"bias": np.ones(17)}, {"bias": variables["bias"]})
    before = picture(optimizer)
    for name, content in damaged((tmp_path / "state").read_bytes()):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StateFileError):
            optimizer.load(tmp_path / name)
        assert picture(optimizer) == before, name
    with pytest.raises((StateFileError, OSError)):
        optimizer.load(tmp_path / "missing")
    assert picture(optimizer) == before
    optimizer.load(tmp_path / "state")


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    from adagrad import state

    optimizer, _ = built()
    for metadata in (
        {},
        {"kind": "model"},
        {"kind": "optimizer"},
        {"kind": "optimizer", "calls": -1, "settings": {}, "variables": {}},
    ):
        state.write(tmp_path / "state", {}, metadata)
        before = picture(optimizer)
        with pytest.raises(StateFileError):
            optimizer.load(tmp_path / "state")
        assert picture(optimizer) == before


# ---- configs ---------------------------------------------------------------------------------------------------------


@hypothesis.given(settings=arguments())
def test_config_round_trip(settings):
    optimizer = adagrad.Adagrad(**settings)
    config = json.loads(json.dumps(optimizer.get_config()))
    again = adagrad.Adagrad.from_config(config)
    assert again.get_config() == optimizer.get_config()
    assert {name: config[name] for name in settings} == settings


def test_config_has_every_argument_away_from_its_default():
    given = {
        "learning_rate": 0.5, "initial_accumulator_value": 0.25, "epsilon": 0.125, "weight_decay": 0.5, "clipnorm": 2.0,
        "clipvalue": None, "global_clipnorm": None, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3,
        "loss_scale_factor": 4.0, "gradient_accumulation_steps": 5, "name": "mine", "epsilon_placement": "outside",
        "weight_decay_mode": "l2",
    }  # fmt: skip
    assert adagrad.Adagrad.from_config(adagrad.Adagrad(**given).get_config()).get_config() == given


def test_config_of_a_schedule_of_your_own():
    class Own(schedules.LearningRateSchedule):
        def __init__(self, rate):
            self.rate = rate

        def __call__(self, step):
            return self.rate

        def get_config(self):
            return {"rate": self.rate}

    config = adagrad.Adagrad(Own(0.5)).get_config()
    assert adagrad.Adagrad.from_config(config, custom_objects={"Own": Own}).learning_rate == 0.5
    with pytest.raises(ValueError, match="Own"):
        adagrad.Adagrad.from_config(config)
