"""The capability table as data: each face, dtype, argument and kind of gradient, with its class and its tolerance.

`CASES` are the arguments, each away from its default, and combinations; a `Face` is what they run on, its `tolerances` bound
the distance to the float64 reference. `check` runs one row. The conformance tests and docs/capabilities.md are made of
these. A new face is a subclass of `Face`, with a line in `faces.FACES`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import scipy.sparse

from adagrad import schedules
from plain import DTYPES, PlainAdagrad, state_dtype
from reference import ReferenceAdagrad

STEPS = 7  # two cycles and a half of three calls; three overwrites every two steps
SHAPES: dict[str, tuple[int, ...]] = {"table": (23, 5), "vector": (17,), "scalar": ()}
KINDS = ("dense", "rows", "sparse", "mixed")

# ---- the arguments ---------------------------------------------------------------------------------------------------


def unit(p: np.ndarray) -> np.ndarray:
    """A constraint that acts on both sides."""
    return np.clip(p, p.dtype.type(-1), p.dtype.type(1))


def nonneg(p: np.ndarray) -> np.ndarray:
    """A constraint as users write it."""
    return np.maximum(p, p.dtype.type(0))


@dataclass(frozen=True, eq=False)
class Case:
    """One row of the table: arguments of the optimizer, and what goes with them."""

    name: str
    arguments: dict[str, Any]
    constraints: dict[str, Callable[[np.ndarray], Any]] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()  # from weight decay
    rate: Callable[[int], float] | None = None  # what a schedule or a callable gives at a call, in plain arithmetic

    costly: bool = False  # compiles kernels of its own, seconds for each dtype: in float32 only

    @property
    def callable_rate(self) -> bool:
        """Whether the learning rate is a callable that is no schedule."""
        rate = self.arguments.get("learning_rate")
        return callable(rate) and not isinstance(rate, schedules.LearningRateSchedule)

    @functools.cached_property
    def unconstrained(self) -> Case:
        """The case for a face whose parameters have no constraints."""
        return dataclasses.replace(self, constraints={}) if self.constraints else self


def _alone(argument: str, value: Any, *, costly: bool = False, **others: Any) -> Case:
    return Case(f"{argument}={value}", {"learning_rate": 0.3, argument: value, **others}, costly=costly)


ARGUMENTS = [
    Case("defaults", {}),
    Case("learning_rate=0.3", {"learning_rate": 0.3}),
    Case(
        "learning_rate=InverseTimeDecay(0.5, 2, 0.75)",
        {"learning_rate": schedules.InverseTimeDecay(0.5, 2, 0.75)},
        rate=lambda calls: 0.5 / (1 + 0.75 * calls / 2),
    ),
    Case("learning_rate=callable", {"learning_rate": lambda: 0.7}, rate=lambda calls: 0.7),
    _alone("initial_accumulator_value", 0.7),
    _alone("epsilon", 0.01),
    _alone("weight_decay", 0.1),
    _alone("clipnorm", 0.7),
    _alone("clipvalue", 0.3),
    _alone("global_clipnorm", 0.9),
    _alone("use_ema", True, costly=True),
    _alone("ema_momentum", 0.6, use_ema=True, costly=True),
    _alone("ema_overwrite_frequency", 2, use_ema=True, ema_momentum=0.8, costly=True),
    _alone("loss_scale_factor", 3.0),
    _alone("gradient_accumulation_steps", 3, costly=True),
    _alone("name", "mine"),
    _alone("epsilon_placement", "outside", epsilon=0.01),
    _alone("weight_decay_mode", "l2", weight_decay=0.1),
    _alone("row_wise", True, costly=True),
    Case("constraint", {"learning_rate": 0.3}, {"table": nonneg, "scalar": nonneg}),
    Case("exclude_from_weight_decay", {"learning_rate": 0.3, "weight_decay": 0.1}, excluded=("^vec", "scalar")),
]

COMBINATIONS = [
    Case(
        "the paper's form",
        {"learning_rate": 1.0, "initial_accumulator_value": 0.0, "epsilon": 0.0},
    ),
    Case(
        "PyTorch's form",
        {"learning_rate": 0.1, "initial_accumulator_value": 0.0, "epsilon": 1e-10, "epsilon_placement": "outside",
         "weight_decay": 0.01, "weight_decay_mode": "l2"},
    ),
    Case(
        "accumulation, global_clipnorm, decay, EMA with overwrite, loss scale",
        {"learning_rate": 0.3, "gradient_accumulation_steps": 2, "global_clipnorm": 0.8, "weight_decay": 0.05,
         "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2, "loss_scale_factor": 3.0},
        excluded=("vector",),
    ),
    Case(
        "accumulation, clipnorm, l2, EMA, constraint, schedule",
        {"learning_rate": schedules.PolynomialDecay(0.5, 10, 0.1), "gradient_accumulation_steps": 3, "clipnorm": 0.6,
         "weight_decay": 0.02, "weight_decay_mode": "l2", "use_ema": True, "ema_momentum": 0.5,
         "ema_overwrite_frequency": 2, "epsilon": 0.003, "epsilon_placement": "outside"},
        {"table": nonneg, "vector": unit},
        rate=lambda calls: 0.4 * (1 - calls / 10) + 0.1,
        costly=True,
    ),
    Case(
        "clipnorm, l2, loss scale",
        {"learning_rate": 0.3, "clipnorm": 0.6, "weight_decay": 0.02, "weight_decay_mode": "l2", "loss_scale_factor": 5.0},
    ),
    Case("clipvalue, decay", {"learning_rate": 0.3, "clipvalue": 0.4, "weight_decay": 0.1}, {"vector": nonneg}),
    Case("row-wise, clipnorm, l2", {"learning_rate": 0.3, "row_wise": True, "clipnorm": 2.0, "weight_decay": 0.02,
         "weight_decay_mode": "l2"}),
]  # fmt: skip

CASES = ARGUMENTS + COMBINATIONS

# ---- tolerances ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distances:
    """In ULP, the largest after any of `STEPS` calls: of parameters and averages in the stored dtype, of the sums
    (accumulators and gradient buffers) in the dtype of the arithmetic."""

    parameters: float
    averages: float
    sums: float


@dataclass(frozen=True)
class Tolerance:
    """How far from the reference a row may be, and what the distance comes from."""

    distances: Distances
    cause: str


# What rounding every operation of the contract to the dtype of the arithmetic comes to, so of every bitwise face.
TOLERANCES = {
    "float64": Tolerance(
        Distances(5.0, 2.0, 3.0), "the reference adds the squares of a norm, and of a row, in another order; else equal"
    ),
    "float32": Tolerance(Distances(7.0, 7.5, 8.5), "each operation of each call rounds to float32"),
    "float16": Tolerance(Distances(1.0, 1.0, 4.0), "as float32; now and then a parameter rounds to the other neighbour"),
    "bfloat16": Tolerance(Distances(1.0, 1.0, 4.0), "as float32; now and then a parameter rounds to the other neighbour"),
}

# ---- gradients -------------------------------------------------------------------------------------------------------


def start_values(dtype: np.dtype) -> dict[str, np.ndarray]:
    """The variables before the first step."""
    rng = np.random.default_rng(7)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


def gradient_calls(kind: str, dtype: np.dtype) -> Iterator[dict[str, Any]]:
    """The gradients of each call by name, as the reference takes them; "mixed" is each kind, and None, in turn."""
    rng = np.random.default_rng(11)
    for step in range(STEPS):
        turn = {"mixed": ("dense", "rows", None, "sparse")[step % 4]}.get(kind, kind)
        gradients: dict[str, Any] = {}
        for name, shape in SHAPES.items():
            if turn is None and name == "table":
                gradients[name] = None
            elif turn in ("rows", "sparse") and shape:
                indices = rng.integers(0, shape[0], 9)
                indices[3] = indices[7] = indices[0]
                values = (3 * rng.normal(size=(9, *shape[1:]))).astype(dtype)
                gradients[name] = (turn, values, indices)
            else:
                gradients[name] = (3 * rng.normal(size=shape)).astype(dtype)
        yield gradients


def as_rows(gradient: Any) -> Any:
    """The gradient as the judges take it."""
    return ("rows", *gradient[1:]) if isinstance(gradient, tuple) else gradient


def scipy_matrix(values: np.ndarray, indices: np.ndarray, shape: tuple[int, ...], step: int) -> Any:
    """Rows as a SciPy matrix of float64 or float32 whose entries repeat as the ids do."""
    values = values.astype(state_dtype(values.dtype))
    if values.ndim == 1:
        coordinates, shape = (np.zeros_like(indices), indices), (1, *shape)
    else:
        coordinates = (np.repeat(indices, shape[1]), np.tile(np.arange(shape[1]), len(indices)))
    order = np.argsort(coordinates[step % 2], kind="stable")  # by rows or by columns, those of one entry as they came
    data, (row, column) = values.reshape(-1)[order], (c[order] for c in coordinates)
    if step % 3 == 0:
        return scipy.sparse.coo_matrix((data, (row, column)), shape)
    order = np.argsort(row if step % 3 == 1 else column, kind="stable")
    outer, inner = (row, column) if step % 3 == 1 else (column, row)
    count = shape[0] if step % 3 == 1 else shape[1]
    starts = np.searchsorted(outer[order], np.arange(count + 1))
    make = scipy.sparse.csr_matrix if step % 3 == 1 else scipy.sparse.csc_array
    return make((data[order], inner[order], starts), shape)


# ---- faces -----------------------------------------------------------------------------------------------------------


class Face:
    """What the table asks of a face: these attributes, a run of one case in one dtype, and how the page describes it."""

    name: str
    device = "CPU"
    bitwise: bool  # the same bits as rule.py as array code
    tolerances = TOLERANCES
    dtypes = tuple(DTYPES)
    kinds: dict[str, str]  # of gradient, of `KINDS`, with what each is here
    cases = CASES
    lean = False  # beside float32 the combinations alone: where each row takes seconds
    lacks: dict[str, str] = {}  # noqa: RUF012  # cases by name, with the reason why they can't be here
    remarks: tuple[str, ...] = ()  # what the page says besides

    @classmethod
    def tested(cls, dtype: str, case: Case, kind: str) -> bool:
        """Whether the tests run a row; the page has all, also where each takes seconds to compile."""
        return True

    @staticmethod
    def adapted(case: Case) -> Case:
        """The case as it can be run here."""
        return case

    def __init__(self, case: Case, dtype: np.dtype) -> None:
        raise NotImplementedError

    def apply(self, gradients: dict[str, Any]) -> None:
        """One call, by gradients as `gradient_calls` has them."""
        raise NotImplementedError

    def save_and_load(self) -> None:
        """Go on with other arrays and another optimizer, which has only what was saved."""
        raise NotImplementedError

    def parameters(self) -> list[np.ndarray]:
        """As they are now."""
        raise NotImplementedError

    def state(self) -> list[np.ndarray]:
        """Averages, gradient buffers, accumulators, as far as there are any."""
        raise NotImplementedError


# ---- one row ---------------------------------------------------------------------------------------------------------


class Ruler:
    """The largest distance to the reference, in ULP at the largest size that the entry has had.

    An error that was made while an entry was 2 does not shrink when it comes near 0.
    """

    def __init__(self, dtype: np.dtype, start: list[np.ndarray]) -> None:
        finfo = ml_dtypes.finfo(dtype)
        self.eps, self.tiny = float(finfo.eps), float(finfo.tiny)
        self.sizes = [np.abs(array.astype(np.float64)) for array in start]
        self.worst = 0.0

    def see(self, arrays: list[np.ndarray], expected: list[np.ndarray]) -> None:
        for k, (array, target) in enumerate(zip(arrays, expected, strict=True)):
            assert array.shape == target.shape
            self.sizes[k] = np.maximum(self.sizes[k], np.abs(target))
            unit = np.exp2(np.floor(np.log2(np.maximum(self.sizes[k], self.tiny)))) * self.eps
            self.worst = max(self.worst, float(np.max(np.abs(array.astype(np.float64) - target) / unit)))


@dataclass(frozen=True)
class Measured:
    """What a row gave: distances to the reference, and whether all bits were those of the array code after every call."""

    distances: Distances
    bitwise: bool


def rows(face: type[Face], *, tested: bool = False) -> Iterator[tuple[str, Case, str]]:
    """The rows of the table for a face, or those of them that the tests run: dtype, case, kind of gradient.

    Each pair of a dtype and a set of stages is compiled apart. So float32 has every row; float64 has no costly case, the
    halves have no costly case, and sparse and mixed gradients only in combinations, as has a lean face all: every argument
    stands in one of those.
    """
    for dtype, case, kind in itertools.product(face.dtypes, face.cases, face.kinds):
        half = DTYPES[dtype].itemsize == 2
        if case.name in face.lacks or (dtype != "float32" and case.costly):
            continue
        if case not in COMBINATIONS and ((half and kind in ("sparse", "mixed")) or (face.lean and dtype != "float32")):
            continue
        if not tested or face.tested(dtype, case, kind):
            yield dtype, face.adapted(case), kind


def check_coverage(*faces: type[Face]) -> None:
    """Every argument meets every dtype and kind of gradient in the rows of each face; those tested have every one of all."""
    names = {name for case in CASES for name in case.arguments} - {"name"}
    met = set()
    for face in faces:
        assert set(face.kinds) <= set(KINDS)
        present = list(rows(face))
        for dtype, kind in itertools.product(face.dtypes, face.kinds):
            here = {name for d, case, k in present if (d, k) == (dtype, kind) for name in case.arguments}
            assert names <= here, (face.name, dtype, kind, names - here)
        met |= {what for dtype, case, kind in rows(face, tested=True) for what in (dtype, kind, *case.arguments)}
    assert met >= {what for face in faces for what in (*face.dtypes, *face.kinds)} | names


def check(face: type[Face], dtype: str, case: Case, kind: str) -> Distances:
    """Run a row: within the tolerance of the face, and with the bits of the rule where the face has them; what it measured."""
    found, allowed = measure(face, dtype, case, kind), face.tolerances[dtype].distances
    what = f"{face.name}, {dtype}, {case.name}, {kind}: {found}, where {allowed} is allowed"
    assert all(getattr(found.distances, name) <= getattr(allowed, name) for name in Distances.__annotations__), what
    assert found.bitwise or not face.bitwise, what
    return found.distances


@functools.cache
def measure(face: type[Face], dtype: str, case: Case, kind: str) -> Measured:
    """Run the case beside the reference and the array code; compare after every call and after a save and load."""
    stored = DTYPES[dtype]
    run, start = face(case, stored), start_values(stored)
    plain, (judge, wide) = _plain(case, start), _judge(case, start)
    values = list(start.values())
    parameters, averages = Ruler(stored, values), Ruler(stored, values)
    count = len(values) if case.arguments.get("use_ema") else 0
    sums = Ruler(state_dtype(stored), [np.zeros(array.shape) for array in run.state()[count:]])
    bitwise = True
    for step, gradients in enumerate(gradient_calls(kind, stored)):
        if step == STEPS // 2:
            run.save_and_load()
        run.apply(gradients)
        plain.apply([as_rows(g) for g in gradients.values()])
        judge.apply({name: as_rows(g) for name, g in gradients.items()})
        ours, theirs = run.state(), _state(judge, case, wide)
        parameters.see(run.parameters(), list(wide.values()))
        averages.see(ours[:count], theirs[:count])
        sums.see(ours[count:], theirs[count:])
        pairs = zip([*run.parameters(), *ours], [*plain.parameters, *plain.state], strict=True)
        bitwise = bitwise and all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)
    return Measured(Distances(parameters.worst, averages.worst, sums.worst), bitwise)


def _plain(case: Case, start: dict[str, np.ndarray]) -> PlainAdagrad:
    rate = case.arguments.get("learning_rate")
    return PlainAdagrad(
        list(start.values()),
        case.arguments,
        constraints=[case.constraints.get(name) for name in start],
        decays=[not any(re.search(pattern, name) for pattern in case.excluded) for name in start],
        rate=rate if isinstance(rate, schedules.LearningRateSchedule) else case.rate,
    )


def _judge(case: Case, start: dict[str, np.ndarray]) -> tuple[ReferenceAdagrad, dict[str, np.ndarray]]:
    wide = {name: array.astype(np.float64) for name, array in start.items()}
    arguments = dict(case.arguments)
    if case.rate is not None:
        arguments |= {"learning_rate": 0.0, "schedule": case.rate}
    judge = ReferenceAdagrad(**arguments)

    def round_once(x: float) -> float:
        return float(np.float32(x).astype(dtype))

    (dtype,) = {array.dtype for array in start.values()}
    judge.build(wide, case.constraints, [round_once if dtype.itemsize == 2 else None] * len(wide))
    judge.exclude_from_weight_decay(var_names=case.excluded)
    return judge, wide


def _state(judge: ReferenceAdagrad, case: Case, wide: dict[str, np.ndarray]) -> list[np.ndarray]:
    kinds = []
    if case.arguments.get("use_ema"):
        kinds.append(judge.average)
    if case.arguments.get("gradient_accumulation_steps"):
        kinds.append(judge.gradient_buffer)
    return [kind(array) for kind in (*kinds, judge.accumulator) for array in wide.values()]
