"""The learning-rate schedules: against plain loops, against Keras's own numbers, at huge steps, and their refusals."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import inspect
import json
import math
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from adagrad import schedules
from adagrad.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
    deserialize,
    serialize,
)

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "schedules.json").read_text())

# One schedule of each class with every argument away from its default; the first six arguments of the refusals, too.
EXAMPLES = [
    ExponentialDecay(0.3, 7, 0.8, True, "a"),
    InverseTimeDecay(0.3, 7, 0.8, True, "b"),
    PolynomialDecay(0.3, 7, 0.05, 2.0, True, "c"),
    CosineDecay(0.3, 7, 0.1, "d", 0.5, 4),
    CosineDecayRestarts(0.3, 7, 3.0, 0.9, 0.1, "e"),
    PiecewiseConstantDecay([7, 9.5, 2**60 + 1], [0.3, 0.2, 0.4, 0.1], "f"),
]
by_class = pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda schedule: type(schedule).__name__)


def assert_close(schedule: LearningRateSchedule, expected: dict[int, float], peak: float) -> None:
    """Within 8 rounding errors of a double at the peak: the plain formulas round up to six times."""
    for step, rate in expected.items():
        assert abs(schedule(step) - rate) <= 8 * 2.0**-53 * peak, (schedule, step)


# ---- against the formulas, written out once more ---------------------------------------------------------------------


@pytest.mark.parametrize("staircase", [False, True])
@pytest.mark.parametrize("decay_steps", [10, 7, 2.5, 1])
def test_exponential_and_inverse_time(staircase: bool, decay_steps: float) -> None:
    exponential, inverse = {}, {}
    for step in range(60):
        p = float(step // decay_steps) if staircase else step / decay_steps
        exponential[step] = 0.3 * 0.9**p
        inverse[step] = 0.3 / (1 + 0.7 * p)
    assert_close(ExponentialDecay(0.3, decay_steps, 0.9, staircase), exponential, 0.3)
    assert_close(InverseTimeDecay(0.3, decay_steps, 0.7, staircase), inverse, 0.3)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5, 0.0])
@pytest.mark.parametrize(("initial", "end"), [(0.3, 0.02), (0.02, 0.3)])
def test_polynomial(initial: float, end: float, power: float) -> None:
    held, cycled = {}, {}
    length = 7
    for step in range(60):
        held[step] = (initial - end) * max(0.0, 1 - step / 7) ** power + end
        if step > length:
            length += 7
        cycled[step] = (initial - end) * (1 - step / length) ** power + end
    assert_close(PolynomialDecay(initial, 7, end, power), held, 0.3)
    assert_close(PolynomialDecay(initial, 7, end, power, cycle=True), cycled, 0.3)


@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("warmup_steps", [None, 0, 5, 2.5])
def test_cosine(alpha: float, warmup_steps: float | None) -> None:
    expected = {}
    for step in range(40):
        t, peak = step, 0.3
        if warmup_steps is not None:
            t, peak = step - warmup_steps, 0.8
        if t < 0:
            expected[step] = 0.3 + (0.8 - 0.3) * step / warmup_steps
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * min(t, 20) / 20))
            expected[step] = peak * ((1 - alpha) * cosine + alpha)
    if warmup_steps is None:
        assert_close(CosineDecay(0.3, 20, alpha), expected, 0.3)
    else:
        assert_close(CosineDecay(0.3, 20, alpha, warmup_target=0.8, warmup_steps=warmup_steps), expected, 0.8)


@pytest.mark.parametrize("t_mul", [1, 1.0, 1.5, 2.0, 3])
@pytest.mark.parametrize("first", [1, 4, 6.5])
def test_cosine_restarts(first: float, t_mul: float) -> None:
    expected, start, length, height = {}, 0.0, float(first), 1.0  # sums and products of these are exact in a double
    for step in range(300):
        while step >= start + length:
            start, length, height = start + length, length * t_mul, height * 1.01
        cosine = 0.5 * (1 + math.cos(math.pi * (step - start) / length))
        expected[step] = 0.3 * (0.9 * height * cosine + 0.1)
    # 1.01**i as one power, not as i products: i more rounding errors.
    assert_close(CosineDecayRestarts(0.3, first, t_mul, 1.01, 0.1), expected, 0.3 * height * max(1.0, 300 / first / 8))


def test_piecewise() -> None:
    schedule = PiecewiseConstantDecay([0, 2.7, 5, 2**70], [1, 2, 3, 4, 5])
    rates = [schedule(step) for step in (0, 1, 2, 3, 5, 6, 2**70, 2**70 + 1)]
    assert rates == [1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0]
    assert all(type(rate) is float for rate in rates)
    assert PiecewiseConstantDecay([], [0.5])(10**9) == 0.5


def test_endpoints_are_exact() -> None:
    """0.1 - 0.0001 + 0.0001 is not 0.1 in a double; the first and the last rate are those given all the same."""
    rng = random.Random(5)
    for _ in range(200):
        initial, end, alpha = (10 ** rng.uniform(-5, 0) for _ in range(3))
        assert PolynomialDecay(initial, 10, end)(0) == initial
        assert PolynomialDecay(initial, 10, end)(10) == end
        assert CosineDecay(initial, 10, alpha)(0) == initial
        assert CosineDecay(initial, 10, alpha)(10) == initial * alpha
        assert CosineDecay(initial, 10, alpha, warmup_target=end, warmup_steps=3)(0) == initial
        assert CosineDecay(initial, 10, alpha, warmup_target=end, warmup_steps=3)(3) == end
        assert CosineDecayRestarts(initial, 10, alpha=alpha)(30) == initial


# ---- against Keras ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["arguments"]))
def test_keras_values(case: dict) -> None:
    """Keras computes in float32: two of its rounding steps (2**-23) of the largest rate; 1.6 were measured."""
    schedule = deserialize(case["serialized"])
    assert type(schedule).__name__ == case["serialized"]["class_name"]
    assert schedule == type(schedule)(**case["arguments"])
    assert schedule.get_config() == case["serialized"]["config"]
    rates = [schedule(step) for step in GOLDEN["steps"]]
    for step, rate, keras in zip(GOLDEN["steps"], rates, case["values"], strict=True):
        assert abs(rate - keras) <= 2 * 2.0**-23 * max(rates), (schedule, step)


@pytest.mark.parametrize("name", GOLDEN["arguments"])
def test_keras_arguments(name: str) -> None:
    """Names, order and defaults of the arguments."""
    parameters = inspect.signature(getattr(schedules, name)).parameters.values()
    ours = [[p.name] if p.default is p.empty else [p.name, p.default] for p in parameters]
    assert ours == GOLDEN["arguments"][name]


def test_integer_rates_are_rates() -> None:
    """Keras computes these in integers: 1, 0, 0, ... and 0 for ever."""
    assert ExponentialDecay(1, 10, 0.5)(5) == 0.5**0.5
    warm = CosineDecay(0, 1000, warmup_target=0.1, warmup_steps=1000)
    assert [warm(0), warm(500), warm(1000)] == [0.0, 0.05, 0.1]
    assert PolynomialDecay(1, 4, 0)(1) == 0.75
    for schedule in (ExponentialDecay(1, 10, 1), PiecewiseConstantDecay([3], [1, 0])):
        assert type(schedule(0)) is float


# ---- huge steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "t_mul"), [(1, 2), (1, 3), (1, 7), (10, 2), (3, 10)])
def test_restarts_are_never_missed(first: int, t_mul: int) -> None:
    """Keras misses the one at 8191 (first 1, t_mul 2) and the one at 57 (t_mul 7, JAX)."""
    schedule = CosineDecayRestarts(0.3, first, t_mul, 0.75)
    start, length = 0, first
    for cycle in range(300):
        assert schedule(start) == 0.3 * 0.75**cycle
        # In the cycle's last step (pi / 2 / length)**2 of its height is left, or a rounding error.
        assert length == 1 or schedule(start + length - 1) <= 0.3 * 0.75**cycle * ((2 / length) ** 2 + 2.0**-52)
        start, length = start + length, length * t_mul


def test_restarts_by_hand() -> None:
    """A factor is the decimal as written: 1.1 is eleven tenths, so 10 + 11 steps end at 21; 100 + 110 + 121 at 331."""
    assert [CosineDecayRestarts(0.3, 10, 1.1)(step) for step in (10, 21)] == [0.3, 0.3]
    assert CosineDecayRestarts(0.3, 10, 1.1)(20) < 0.01
    assert [CosineDecayRestarts(0.3, 100, 1.1)(step) for step in (100, 210, 331)] == [0.3, 0.3, 0.3]
    assert [CosineDecayRestarts(0.3, 8, 1.5)(step) for step in (8, 20, 38, 65)] == [0.3, 0.3, 0.3, 0.3]
    assert [CosineDecayRestarts(0.3, 0.1, 1)(step) for step in (1, 3, 10**30)] == [0.3, 0.3, 0.3]
    assert CosineDecayRestarts(0.3, 7, 1.0, 0.5)(7 * 10**30) == 0.0
    assert CosineDecayRestarts(0.3, 7, 1.0)(7 * 10**30) == 0.3
    # Cycles hardly longer than the first: r**i = 1.001 at step 10**9, so i = 999.5; f is the part of cycle 999 over.
    f = math.expm1(math.log1p(1e-3) - 999 * math.log1p(1e-6)) / 1e-6
    expected = 0.5**999 * 0.5 * (1 + math.cos(math.pi * f))
    assert CosineDecayRestarts(1.0, 10**6, 1.000001, 0.5)(10**9) == pytest.approx(expected, rel=1e-6)


def test_steps_never_collide() -> None:
    """Steps that a float32 (2**24) or a double (2**53) can't tell apart."""
    for edge in (2**24 + 1, 2**53 + 1, 10**20, 10**300):
        for cls in (ExponentialDecay, InverseTimeDecay):
            schedule = cls(1.0, edge, 0.5, staircase=True)
            assert schedule(edge - 1) == 1.0
            assert schedule(edge) == {ExponentialDecay: 0.5, InverseTimeDecay: 1 / 1.5}[cls]
        assert PiecewiseConstantDecay([edge], [1.0, 0.5])(edge) == 1.0
        assert PiecewiseConstantDecay([edge], [1.0, 0.5])(edge + 1) == 0.5
        assert PolynomialDecay(1.0, edge, 0.0)(edge - 1) == 1 / edge
        assert PolynomialDecay(1.0, edge, 0.0, cycle=True)(edge) == 0.0
        assert PolynomialDecay(1.0, edge, 0.0, cycle=True)(edge + 1) == pytest.approx(0.5)
        assert CosineDecayRestarts(1.0, edge)(edge) == 1.0
        assert CosineDecayRestarts(1.0, edge)(edge - 1) < 1e-10
        warm = CosineDecay(0.0, edge, warmup_target=1.0, warmup_steps=edge)
        assert (warm(edge), warm(2 * edge)) == (1.0, 0.0)


@pytest.mark.parametrize("step", [2**63, 10**400])
def test_steps_beyond_every_float(step: int) -> None:
    assert ExponentialDecay(0.3, 7, 0.5)(step) == ExponentialDecay(0.3, 7, 0.5, True)(step) == 0.0
    assert ExponentialDecay(0.3, 7, 1.0)(step) == InverseTimeDecay(0.3, 7, 0.0)(step) == 0.3
    assert InverseTimeDecay(0.3, 7, 5.0)(step) < 1e-17
    assert PolynomialDecay(0.3, 7, 0.01)(step) == 0.01
    assert CosineDecay(0.3, 7, 0.5)(step) == 0.15
    assert 0.0 <= CosineDecayRestarts(0.3, 7)(step) <= 0.3
    assert PiecewiseConstantDecay([3], [1, 0.5])(step) == 0.5


def test_a_rate_beyond_a_double_is_refused() -> None:
    assert ExponentialDecay(1.0, 1, 2.0)(1023) == 2.0**1023
    with pytest.raises(ValueError, match="step 1024 is beyond the range of a double"):
        ExponentialDecay(1.0, 1, 2.0)(1024)
    with pytest.raises(ValueError, match="step 1024 is beyond the range of a double"):
        CosineDecayRestarts(1.0, 1, 1.0, 2.0, alpha=0.5)(1024)


# ---- arguments -------------------------------------------------------------------------------------------------------

NUMBERS = [
    (schedule, field.name)
    for schedule in EXAMPLES
    for field in dataclasses.fields(schedule)
    if type(getattr(schedule, field.name)) in (int, float)
]


@pytest.mark.parametrize(("schedule", "name"), NUMBERS, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_refused_numbers(schedule: LearningRateSchedule, name: str) -> None:
    config = schedule.get_config()
    for wrong in (
        math.nan,
        math.inf,
        -1,
        -1e-300,
        10**400,
        "1",
        True,
        [1.0],
        1j,
        np.float32("nan"),
        np.array([1.0, 2.0]),
    ):
        with pytest.raises(ValueError, match=f"{name} must be "):
            type(schedule)(**{**config, name: wrong})
    if name != "warmup_target":
        with pytest.raises(ValueError, match=f"{name} must be a real number, got None"):
            type(schedule)(**{**config, name: None})
    if name in ("decay_steps", "first_decay_steps"):
        with pytest.raises(ValueError, match=rf"{name} must be in \(0, inf\), got 0"):
            type(schedule)(**{**config, name: 0})
    else:
        zero = 1.0 if name == "t_mul" else 0
        assert getattr(type(schedule)(**{**config, name: zero}), name) == zero


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialDecay(0.1, 10, 0.5, staircase=1), "staircase must be a bool, got 1"),
        (lambda: PolynomialDecay(0.1, 10, cycle="no"), "cycle must be a bool, got 'no'"),
        (lambda: CosineDecay(0.1, 10, name=None), "name must be a str, got None"),
        (lambda: CosineDecay(0.1, 10, warmup_steps=5), "warmup_steps needs a warmup_target, got warmup_steps=5"),
        (lambda: CosineDecayRestarts(0.1, 10, t_mul=0.99), r"t_mul must be in \[1, inf\), got 0.99"),
        (lambda: PiecewiseConstantDecay([1, 2], [1.0, 2.0]), "one entry more than boundaries, got 2 values and 2"),
        (lambda: PiecewiseConstantDecay([], []), "one entry more than boundaries, got 0 values and 0"),
        (lambda: PiecewiseConstantDecay([5, 3], [1, 2, 3]), r"strictly increasing, got \[5, 3\]"),
        (lambda: PiecewiseConstantDecay([5, 5], [1, 2, 3]), r"strictly increasing, got \[5, 5\]"),
        (lambda: PiecewiseConstantDecay([math.nan], [1, 2]), r"boundaries\[0\] must be in \[0, inf\), got nan"),
        (lambda: PiecewiseConstantDecay([3, math.inf], [1, 2, 3]), r"boundaries\[1\] must be in \[0, inf\), got inf"),
        (lambda: PiecewiseConstantDecay([-1], [1, 2]), r"boundaries\[0\] must be in \[0, inf\), got -1"),
        (lambda: PiecewiseConstantDecay([3], [1, math.inf]), r"values\[1\] must be in \[0, inf\), got inf"),
        (lambda: PiecewiseConstantDecay([3], [math.nan, 1]), r"values\[0\] must be in \[0, inf\), got nan"),
        (lambda: PiecewiseConstantDecay([3], [1, True]), r"values\[1\] must be a real number, got True"),
        (lambda: PiecewiseConstantDecay(3, [1, 2]), "boundaries must be a sequence of numbers, got 3"),
        (lambda: PiecewiseConstantDecay("3", [1, 2]), r"boundaries\[0\] must be a real number, got '3'"),
    ],
)
def test_refused_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@by_class
def test_steps_are_integers(schedule: LearningRateSchedule) -> None:
    assert schedule(np.int64(8)) == schedule(np.uint8(8)) == schedule(8)
    for wrong in (1.0, "1", None, np.float64(1), np.array([1, 2])):
        with pytest.raises(TypeError, match="step must be an integer, got "):
            schedule(wrong)
    with pytest.raises(ValueError, match=r"step must be in \[0, inf\), got -1"):
        schedule(-1)


@by_class
def test_numpy_numbers_become_python_numbers(schedule: LearningRateSchedule) -> None:
    config = schedule.get_config()
    kinds = {int: np.int64, float: np.float64, list: lambda values: [kinds[type(x)](x) for x in values]}
    given = {key: kinds.get(type(value), type(value))(value) for key, value in config.items()}
    assert json.loads(json.dumps(type(schedule)(**given).get_config())) == config
    assert {type(value) for value in vars(type(schedule)(**given)).values()} <= {int, float, bool, str, tuple}


# ---- equal, kept, described ------------------------------------------------------------------------------------------


@by_class
def test_equality_and_copies(schedule: LearningRateSchedule) -> None:
    cls, config = type(schedule), schedule.get_config()
    for same in (cls(**config), cls.from_config(config), copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert same == schedule
        assert hash(same) == hash(schedule)
        assert repr(same) == repr(schedule)
    arguments = ", ".join(f"{key}={getattr(schedule, key)!r}" for key in config)
    assert repr(schedule) == f"{cls.__name__}({arguments})"
    for key, parameter in inspect.signature(cls).parameters.items():
        if parameter.default is not parameter.empty and key != "warmup_target":
            assert cls(**{**config, key: parameter.default}) != schedule
    for other in EXAMPLES:
        assert (other == schedule) is (other is schedule)
    assert schedule != config
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.name = "x"  # type: ignore[attr-defined]


@by_class
def test_round_trip_through_json(schedule: LearningRateSchedule) -> None:
    text = json.dumps(serialize(schedule), allow_nan=False)
    assert deserialize(json.loads(text)) == schedule
    config = schedule.get_config()
    assert type(schedule).from_config(config) == schedule
    assert config == schedule.get_config()
    config.clear()
    assert schedule.get_config()


@by_class
def test_from_config_is_strict(schedule: LearningRateSchedule) -> None:
    config = schedule.get_config()
    with pytest.raises(ValueError, match=r"config of .* doesn't fit: .*'momentum'"):
        type(schedule).from_config({**config, "momentum": 0.9})
    first = next(iter(config))
    del config[first]
    with pytest.raises(ValueError, match=f"config of .* doesn't fit: .*'{first}'"):
        type(schedule).from_config(config)


class Reciprocal(LearningRateSchedule):
    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, step: int) -> float:
        return self.scale / (step + 1)

    def get_config(self) -> dict:
        return {"scale": self.scale}


class Bare(LearningRateSchedule):
    def __call__(self, step: int) -> float:
        return 0.5


def test_a_schedule_of_your_own() -> None:
    mine = Reciprocal(0.5)
    description = serialize(mine)
    assert description == {"class_name": "Reciprocal", "config": {"scale": 0.5}}
    assert deserialize(description, custom_objects={"Reciprocal": Reciprocal}) == mine != Reciprocal(0.6)
    keras = {**description, "module": "my.package", "registered_name": "my>Reciprocal"}
    assert deserialize(keras, {"Reciprocal": Reciprocal}) == mine
    with pytest.raises(ValueError, match=r"class_name must be one of CosineDecay, .*, got 'Reciprocal'"):
        deserialize(description)
    with pytest.raises(ValueError, match=r"custom_objects\['Reciprocal'\] must be a subclass"):
        deserialize(description, {"Reciprocal": dict})  # type: ignore[dict-item]
    bare = Bare()
    assert bare == bare
    assert bare != Bare()
    with pytest.raises(NotImplementedError, match="Bare must define get_config"):
        serialize(bare)
    with pytest.raises(NotImplementedError, match="must define __call__"):
        LearningRateSchedule()(0)


def test_a_built_in_name_stays_the_built_in() -> None:
    impostor = type("CosineDecay", (Reciprocal,), {})
    with pytest.raises(ValueError, match="can't be called CosineDecay"):
        serialize(impostor(0.5))
    described = {**serialize(CosineDecay(0.1, 10)), "module": "my.package", "registered_name": "my>CosineDecay"}
    with pytest.raises(ValueError, match=r"CosineDecay of module 'my\.package' is not the built-in one"):
        deserialize(described)
    for module in ("keras.optimizers.schedules", "keras.src.optimizers.schedules.learning_rate_schedule"):
        assert deserialize({**described, "module": module}) == CosineDecay(0.1, 10)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"class_name": "os.system", "config": {}}, "class_name must be one of CosineDecay, .*, got 'os.system'"),
        ({"class_name": "_BuiltIn", "config": {}}, "class_name must be one of"),
        ({"class_name": "LearningRateSchedule", "config": {}}, "class_name must be one of"),
        ({"class_name": ["CosineDecay"], "config": {}}, "class_name must be one of"),
        ({"class_name": "CosineDecay"}, "keys class_name and config"),
        ({"config": {}}, "keys class_name and config"),
        ("CosineDecay", "keys class_name and config"),
        ({"class_name": "CosineDecay", "config": [0.1, 10]}, "config must be a dict"),
        ({"class_name": "CosineDecay", "config": {}}, "doesn't fit: .*'initial_learning_rate'"),
        (
            {"class_name": "CosineDecay", "config": {}, "build_config": {}, "x": 1},
            "unknown keys .*: 'build_config', 'x'",
        ),
        (
            {"class_name": "CosineDecay", "config": {"initial_learning_rate": 0.1, "decay_steps": math.nan}},
            "decay_steps",
        ),
    ],
)
def test_refused_descriptions(description: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deserialize(description)  # type: ignore[arg-type]


def test_serialize_takes_schedules_only() -> None:
    with pytest.raises(TypeError, match=r"schedule must be a LearningRateSchedule, got 0\.1"):
        serialize(0.1)  # type: ignore[arg-type]


def test_examples_of_the_docstrings() -> None:
    result = doctest.testmod(schedules)
    assert result.attempted >= 8
    assert result.failed == 0
