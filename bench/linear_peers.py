"""The linear learners that are timed, behind one face: learn a pass, or what comes of some; predict."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.linear_data import BITS, CLASSES, Rows

__all__ = ["LEARNERS", "OURS", "Learner", "Maker"]

OURS = "ours"


class Learner:
    """One library's linear classifier by log loss."""

    def learn(self, rows: Rows) -> None:
        """One pass over the rows, on top of what was learned: what is timed."""
        raise NotImplementedError

    def predict(self, rows: Rows) -> np.ndarray:
        """The probability of class 1 for each row."""
        raise NotImplementedError


class _ScikitLearn(Learner):
    def __init__(self, model: Any) -> None:
        self.model = model

    def learn(self, rows: Rows) -> None:
        self.model.partial_fit(rows.X, rows.y, classes=CLASSES)

    def predict(self, rows: Rows) -> np.ndarray:
        return self.model.predict_proba(rows.X)[:, 1]


class _VowpalWabbit(Learner):
    """Vowpal Wabbit's own driver over its binary cache of the rows (written beforehand), the state kept in files."""

    def __init__(self, rate: float) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._model = Path(self._folder.name) / "model"
        self._arguments = f"-b {BITS} --loss_function logistic -l {rate!r}"

    def learn(self, rows: Rows) -> None:
        going_on = f"-i {self._model} " if self._model.exists() else ""
        self.run(rows, f"{going_on}{self._arguments} --save_resume -f {self._model}")  # a model does not keep its rate

    def fresh_pass(self, rows: Rows) -> None:
        """One pass that begins anew and keeps nothing, so that no file is written."""
        self.run(rows, self._arguments)

    def predict(self, rows: Rows) -> np.ndarray:
        out = Path(self._folder.name) / "predictions"
        self.run(rows, f"-t -i {self._model} -p {out} --link logistic")
        return np.loadtxt(out, usecols=0)

    @staticmethod
    def run(rows: Rows, arguments: str) -> None:
        """Vowpal Wabbit over the rows."""
        from vowpalwabbit import Workspace

        Workspace(f"-d {rows.text} --cache_file {rows.text}.cache --holdout_off --quiet {arguments}").finish()


class _River(Learner):
    """River takes one dict a row, made beforehand."""

    def __init__(self, rate: float) -> None:
        from river import linear_model, optim

        self.model = linear_model.LogisticRegression(optimizer=optim.AdaGrad(rate), l2=0.0)
        self._made: dict[int, list[dict[int, float]]] = {}

    def _dicts(self, rows: Rows) -> list[dict[int, float]]:
        if id(rows) not in self._made:
            edges = zip(rows.X.indptr[:-1], rows.X.indptr[1:], strict=True)
            made = [(rows.X.indices[lo:hi].tolist(), rows.X.data[lo:hi].tolist()) for lo, hi in edges]
            self._made[id(rows)] = [dict(zip(*pair, strict=True)) for pair in made]
        return self._made[id(rows)]

    def learn(self, rows: Rows) -> None:
        learn_one = self.model.learn_one
        for x, y in zip(self._dicts(rows), rows.y.tolist(), strict=True):
            learn_one(x, y)

    def predict(self, rows: Rows) -> np.ndarray:
        return np.array([self.model.predict_proba_one(x)[True] for x in self._dicts(rows)])


def _ours(rate: float, **more: Any) -> Learner:
    from adagrad.sklearn import AdagradClassifier

    return _ScikitLearn(AdagradClassifier(learning_rate=rate, **more))


def _penalized(rate: float) -> Learner:
    return _ours(rate, penalty="l1", alpha=1e-6)


def _sgd(alpha: float) -> Learner:
    from sklearn.linear_model import SGDClassifier

    return _ScikitLearn(SGDClassifier(loss="log_loss", alpha=alpha, random_state=0))


@dataclass(frozen=True)
class Maker:
    """A learner by name: how it is made from the one setting that is chosen for the data, and what that is chosen from.

    ``sample`` says that it is so slow that it gets a part of the rows, ``costly`` that it is timed on one data set alone.
    """

    name: str
    module: str
    make: Callable[[float], Learner]
    setting: str
    choices: tuple[float, ...]
    sample: bool = False
    costly: bool = False

    @property
    def missing(self) -> str | None:
        """Why it can't run here, if so."""
        return None if importlib.util.find_spec(self.module) else f"{self.module} not installed"


LEARNERS = (
    Maker(OURS, "adagrad", _ours, "learning_rate", (0.003, 0.01, 0.03, 0.1, 0.3)),
    Maker("ours, with an L1 penalty", "adagrad", _penalized, "learning_rate", (0.003, 0.01, 0.03, 0.1, 0.3), costly=True),
    Maker("scikit-learn SGDClassifier", "sklearn", _sgd, "alpha", (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)),
    Maker("Vowpal Wabbit", "vowpalwabbit", _VowpalWabbit, "-l", (0.01, 0.03, 0.1, 0.3, 1.0)),
    Maker("river", "river", _River, "AdaGrad's lr", (0.003, 0.01, 0.03, 0.1, 0.3), sample=True),
)
