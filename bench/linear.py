"""Online learning of a linear model, one example a step: rows of 18 ones among 2**18 columns, beside scikit-learn's SGD."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np

from bench import harness
from bench.candidates import case
from bench.harness import Candidate

__all__ = ["run"]

_COLUMNS, _ENTRIES = 1 << 18, 18


def run(process: str, *, rows: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One pass over ``rows`` examples by ``partial_fit``; the log loss of the first pass on other rows is stored too."""
    title = f"{rows:,} rows of {_ENTRIES}"
    absent = [name for name in ("sklearn", "scipy") if importlib.util.find_spec(name) is None]
    if absent:
        skipped = [{"name": "ours and scikit-learn", "reason": f"{' and '.join(absent)} not installed"}]
        return [case(title, [], {}, {}, process=process, skipped=skipped)]
    from scipy.sparse import csr_array
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import log_loss

    from adagrad.sklearn import AdagradClassifier

    rng = np.random.default_rng(6)
    truth = rng.normal(size=_COLUMNS) * 0.5

    def sample(count: int) -> tuple[Any, np.ndarray]:
        columns = (rng.zipf(1.3, count * _ENTRIES) * 2654435761 % _COLUMNS).astype(np.int32)
        indptr = np.arange(0, count * _ENTRIES + 1, _ENTRIES, dtype=np.int32)
        X = csr_array((np.ones(count * _ENTRIES, np.float32), columns, indptr), shape=(count, _COLUMNS))
        X.sum_duplicates()
        X.data[:] = 1
        return X, (rng.random(count) < 1 / (1 + np.exp(-X @ truth))).astype(np.int64)

    X, y = sample(rows)
    X_test, y_test = sample(max(100, rows // 10))
    models = {
        "ours": AdagradClassifier(learning_rate=0.05),
        "ours, with an L1 penalty": AdagradClassifier(learning_rate=0.05, penalty="l1", alpha=1e-6),
        "scikit-learn SGDClassifier": SGDClassifier(loss="log_loss", alpha=1e-6),
    }
    classes = np.array([0, 1])
    candidates = [
        Candidate(
            name,
            lambda data, model=model: model.partial_fit(*data, classes=classes),
            lambda: (X, y),
            against="ours" if name != "ours" else None,
            turn=functools.partial(harness.own_threads, 1),
        )
        for name, model in models.items()
    ]
    losses = {}
    for name, model in models.items():
        model.partial_fit(X, y, classes=classes)
        losses[name] = float(log_loss(y_test, model.predict_proba(X_test)[:, 1]))
    times = harness.interleave(candidates, rounds=rounds, seconds=seconds)
    found = case(title, candidates, times, {}, process=process, skipped=[], log_loss=losses, nonzeros=int(X.nnz))
    return [found]
