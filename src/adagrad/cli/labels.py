"""The target and the weight: which task it is, which classes there are, and each chunk's labels as numbers."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adagrad.cli import columns as read
from adagrad.cli.bad import BadRows
from adagrad.cli.blocks import Chunk, Part
from adagrad.cli.errors import CliError
from adagrad.cli.roles import Column

__all__ = ["CLASSIFICATION", "LARGEST", "MARGINS", "REGRESSION", "Labels", "plan_labels"]

CLASSIFICATION, REGRESSION = "classification", "regression"
MARGINS = ("hinge", "squared_hinge")  # losses without probabilities
LARGEST = 1e140  # numbers to learn and to predict are smaller: their squares are summed

_NUMERIC = ("integer", "float")
_FEW = 10  # an integer target with at most this many values is taken for classes
_MOST_CLASSES = 1000


class Labels:
    """How the target becomes numbers: class numbers from 0 for classification, ``(y - mean) / deviation`` for regression.

    Attributes
    ----------
    task : str
        "classification" or "regression".
    classes : list of str
        The classes as text, in the order of their numbers; empty for regression.
    reason : str
        Why this task was chosen, in a few words.
    mean, deviation : float
        Of the first chunk's targets, fixed from then on (a running one would move the meaning of the weights).
    loss : str or None
        As the user chose it.
    parameter : float
        The number of such a loss, ``loss_epsilon`` or ``quantile``, as the learner takes it; 0 if it has none.
    """

    def __init__(
        self,
        target: Column,
        weight: str | None,
        task: str,
        classes: Sequence[str],
        reason: str,
        mean: float = 0.0,
        deviation: float = 1.0,
    ) -> None:
        self.target, self.weight, self.task, self.reason = target, weight, task, reason
        self.classes, self.mean, self.deviation = list(classes), mean, deviation
        self.loss: str | None = None
        self.parameter = 0.0

    @property
    def margins(self) -> bool:
        """Whether what is predicted for each class is a margin, not a probability."""
        return self.loss in MARGINS

    @property
    def names(self) -> list[str]:
        """The columns that labelled rows must have."""
        return [self.target.name] + ([self.weight] if self.weight else [])

    def values(self, chunk: Chunk, bad: BadRows) -> tuple[np.ndarray, np.ndarray | None]:
        """``(y, weight)``: int64 class numbers or float64 targets as they are, and float64 weights, None without any."""
        name = self.target.name
        if self.task == REGRESSION:
            if self.loss == "poisson":
                y = _numbers(chunk, name, bad, lambda y: _too_large(y) | (y < 0), "is no count (a finite number, not negative)")
            else:
                y = _numbers(chunk, name, bad, _too_large, f"is not a finite number, smaller than {LARGEST:g}")
        else:
            y = np.concatenate([self._numbered(part_start, part, bad) for part_start, part in _starts(chunk)])
        if self.weight is None:
            return y, None
        return y, _numbers(chunk, self.weight, bad, _not_a_weight, "is not a weight (a finite number, not negative)")

    def scaled(self, y: np.ndarray) -> np.ndarray:
        """What the model learns: ``y`` itself for classes, ``(y - mean) / deviation`` for numbers."""
        return y if self.task == CLASSIFICATION else (y - self.mean) / self.deviation

    def restored(self, prediction: np.ndarray) -> np.ndarray:
        """The inverse of `scaled`, for predictions; probabilities stay as they are."""
        return prediction if self.task == CLASSIFICATION else prediction * self.deviation + self.mean

    def _numbered(self, start: int, part: Part, bad: BadRows) -> np.ndarray:
        if self.target.kind in _NUMERIC:
            values, wrong = read.converted(part, self.target.name, "a number", read.numbers)
            known = np.array([float(c) for c in self.classes])  # in ascending order
            y = np.searchsorted(known, values).clip(0, len(known) - 1)
            missing = np.isnan(values) & ~wrong
            unknown = (known[y] != values) & ~missing
        else:
            words, missing = read.converted(part, self.target.name, "a class", _words, self.target.kind)
            y = pc.index_in(words, pa.array(self.classes, pa.large_string())).fill_null(-1).to_numpy(zero_copy_only=False)
            unknown = (y < 0) & ~missing
        known_ones = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        bad.add(
            self.target.name,
            start,
            unknown,
            f"is a new class; known are {known_ones}: give all of them by --classes{_or_regression(self.target)}",
        )
        bad.add(self.target.name, start, missing, "")
        return y.astype(np.int64)


def _or_regression(target: Column) -> str:
    return ", or --task regression" if target.kind in _NUMERIC else ""


def _starts(chunk: Chunk) -> Iterable[tuple[int, Part]]:
    start = 0
    for part in chunk.parts:
        yield start, part
        start += len(part.rows)


def _too_large(values: np.ndarray) -> np.ndarray:
    return ~(np.abs(values) < LARGEST)


def _not_a_weight(values: np.ndarray) -> np.ndarray:
    return ~((values >= 0) & (values < math.inf))


def _numbers(chunk: Chunk, name: str, bad: BadRows, refused: Callable[[np.ndarray], np.ndarray], what: str) -> np.ndarray:
    out = np.empty(len(chunk))
    for start, part in _starts(chunk):
        values, _ = read.converted(part, name, "a number", read.numbers)
        out[start : start + len(values)] = values
        bad.add(name, start, refused(values), what)
    return out


def _words(array: pa.Array, kind: str) -> tuple[pa.Array, np.ndarray]:
    """``(text, missing)`` of a target's values that are not numbers."""
    try:
        words = read.words(array, kind).cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise CliError("a class is not UTF-8 text") from error
    return words, pc.equal(pc.fill_null(words, ""), "").to_numpy(zero_copy_only=False)


def _shortest(value: float) -> str:
    return str(int(value)) if value == math.floor(value) and abs(value) < 2**53 else repr(value)


def plan_labels(
    first: Chunk,
    learned: Chunk,
    target: Column,
    weight: str | None,
    task: str | None,
    classes: Sequence[str] | None,
    rest: Callable[[], Iterable[Chunk]] | None,
) -> Labels:
    """The task and the classes, from the first chunk and what the user said.

    ``learned`` has the rows of it that are not held out, from which a numeric target gets its scale.
    ``rest`` gives all chunks again, in case the first one shows a single class; None: they can't be read twice.
    """
    if target.kind in ("list", "unusable", "timestamp", "date", "empty"):
        what = "no value in the first rows" if target.kind == "empty" else f"the type {target.kind}"
        raise CliError(f"--target {target.name}: the column has {what}; a target is text, a boolean or a number")
    found = _classes(first, target)
    task, reason = (task, "--task") if task else (CLASSIFICATION, "--classes") if classes else _usual_task(target, found)
    if task == REGRESSION:
        if classes:
            raise CliError("--classes is for classification, but the task is regression")
        return _regression(learned, target, weight, reason)
    if classes:
        found = list(classes)
        if target.kind in _NUMERIC:
            found = [_class_number(c) for c in classes]
        if target.kind == "boolean":
            found = [c.lower() for c in found]
        if len(set(found)) != len(found) or len(found) < 2:
            raise CliError(f"--classes needs two or more different classes, got {', '.join(classes)}")
    elif len(found) < 2:
        known = set(found)
        for chunk in rest() if rest else ():
            known |= set(_classes(chunk, target))
            if len(known) > 1:
                break
        if len(known) < 2:
            only = f"only the class {found[0]!r}" if found else "no class at all"
            hint = "" if rest else " in the first rows; give the classes by --classes"
            raise CliError(f"--target {target.name}: there is {only}{hint}")
        found = sorted(known)
    if len(found) > _MOST_CLASSES:
        raise CliError(
            f"--target {target.name}: {len(found):,} classes are too many (a linear model each, at most {_MOST_CLASSES:,})"
            f"{_or_regression(target).replace(', or', '; did you mean')}"
        )
    return Labels(target, weight, CLASSIFICATION, _in_order(found, target), reason)


def _classes(chunk: Chunk, target: Column) -> list[str]:
    """The classes in a chunk, in order; numbers in their shortest form, so that 1 and 1.0 are one class."""
    known: set[str] = set()
    for part in chunk.parts:
        if target.kind in _NUMERIC:
            values = np.unique(read.converted(part, target.name, "a number", read.numbers)[0])
            known |= {_shortest(value) for value in values[np.isfinite(values)].tolist()}
        else:
            words, missing = read.converted(part, target.name, "a class", _words, target.kind)
            known |= set(pc.unique(words.filter(pa.array(~missing))).to_pylist())
    return _in_order(list(known), target)


def _in_order(classes: list[str], target: Column) -> list[str]:
    return sorted(classes, key=float if target.kind in _NUMERIC else None)


def _class_number(text: str) -> str:
    try:
        return _shortest(float(text))
    except (ValueError, OverflowError):
        raise CliError(f"--classes: the target's values are numbers, and {text!r} is none") from None


def _usual_task(target: Column, found: list[str]) -> tuple[str, str]:
    if target.kind in ("text", "boolean"):
        return CLASSIFICATION, f"the target is {target.kind}"
    whole = all("." not in c and "e" not in c and "n" not in c for c in found)
    if len(found) <= 2 and whole:
        return CLASSIFICATION, f"the target is {' or '.join(found)}"
    if target.kind == "integer" and len(found) <= _FEW:
        return CLASSIFICATION, f"the target is one of {len(found)} whole numbers; --task regression for a number"
    return REGRESSION, f"the target is a number ({target.kind})"


def _regression(learned: Chunk, target: Column, weight: str | None, reason: str) -> Labels:
    parts = [read.converted(part, target.name, "a number", read.numbers)[0] for part in learned.parts]
    y = np.concatenate([np.empty(0), *parts])
    y = y[~_too_large(y)]
    if not len(y):
        raise CliError(f"--target {target.name}: there is no number in the first rows, smaller than {LARGEST:g}")
    return Labels(target, weight, REGRESSION, [], reason, float(np.mean(y)), float(np.std(y)) or 1.0)
