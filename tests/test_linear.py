"""The linear learners: against the float64 reference, against the engine, against themselves cut and resumed."""

from __future__ import annotations

import copy
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import adagrad
from adagrad import linear, schedules
from adagrad.kernels import lazy
from adagrad.linear import LOGISTIC, SOFTMAX, SQUARED, BatchLearner, OnlineLearner, make_learner
from adagrad.settings import Settings
from reference import ReferenceAdagrad

FEATURES = 9
WIDTHS = {SQUARED: 1, LOGISTIC: 1, SOFTMAX: 3}
DECAYING = schedules.ExponentialDecay(0.4, 40, 0.5)

# Every argument away from its default, and the combinations that meet in one kernel.
PLAIN: dict[str, dict[str, Any]] = {
    "defaults": {},
    "epsilon": {"epsilon": 0.3},
    "outside": {"epsilon": 0.3, "epsilon_placement": "outside"},
    "accumulator": {"initial_accumulator_value": 2.0},
    "paper": {"initial_accumulator_value": 0.0, "epsilon": 0.0},
    "schedule": {"learning_rate": DECAYING},
    "clipvalue": {"clipvalue": 0.02},
    "scale": {"loss_scale_factor": 3.0},
    "momentum unused": {"ema_momentum": 0.3, "ema_overwrite_frequency": 2},
}
NORMS: dict[str, dict[str, Any]] = {
    "clipnorm": {"clipnorm": 0.2},
    "global_clipnorm": {"global_clipnorm": 0.2},
    "clipnorm, scale": {"clipnorm": 0.2, "loss_scale_factor": 3.0},
}
LAZY: dict[str, dict[str, Any]] = {
    "decay": {"weight_decay": 0.02},
    "decay, schedule": {"weight_decay": 0.02, "learning_rate": DECAYING},
    "decay, clipnorm": {"weight_decay": 0.02, "clipnorm": 0.2},
    "decay of all": {"weight_decay": 2.0},  # d = 0
    "decay beyond all": {"weight_decay": 3.0},  # d = -0.5
    "decay far beyond": {"weight_decay": 4.5, "learning_rate": schedules.PiecewiseConstantDecay([5, 9], [0.01, 0.5, 0.01])},
    "average": {"use_ema": True, "ema_momentum": 0.9},
    "average of momentum 0": {"use_ema": True, "ema_momentum": 0.0},
    "average of momentum 1": {"use_ema": True, "ema_momentum": 1.0},
    "average, overwrite": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 7},
    "both": {"use_ema": True, "ema_momentum": 0.9, "weight_decay": 0.02},
    "both, overwrite": {"use_ema": True, "ema_momentum": 0.9, "weight_decay": 0.02, "ema_overwrite_frequency": 7},
    "decay stronger than momentum": {"use_ema": True, "ema_momentum": 0.9, "weight_decay": 0.9},
    "both, decay of all": {"use_ema": True, "ema_momentum": 0.9, "weight_decay": 2.0},
}
WHOLE: dict[str, dict[str, Any]] = {  # no lazy equal: batches of one
    "l2": {"weight_decay": 0.02, "weight_decay_mode": "l2"},
    "accumulation": {"gradient_accumulation_steps": 4},
    "accumulation, both": {"gradient_accumulation_steps": 4, "use_ema": True, "weight_decay": 0.02},
}
CASES = PLAIN | NORMS | LAZY | WHOLE


def example(loss: int, rows: int = 120, dtype: Any = np.float64, seed: int = 0) -> SimpleNamespace:
    """Sparse rows (some empty, columns unsorted and repeated), targets, and weights (some zero)."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 6, rows)
    lengths[::17] = 0
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    indices = np.minimum(rng.geometric(0.3, indptr[-1]) - 1, FEATURES - 1).astype(np.int32)
    data = rng.integers(-4, 5, indices.size).astype(dtype) / 4  # sums of repeated columns are exact
    X = sp.csr_array((data, indices, indptr), shape=(rows, FEATURES))
    targets = rng.integers(0, WIDTHS[loss] if loss == SOFTMAX else 2, rows).astype(np.float64)
    if loss == SQUARED:
        targets = rng.normal(size=rows)
    weights = rng.integers(0, 4, rows) / 2.0
    return SimpleNamespace(X=X, targets=targets, weights=weights, dtype=np.dtype(dtype), loss=loss)


def settings_of(case: dict[str, Any]) -> Settings:
    return Settings(**{"learning_rate": 0.5, **case})


def learner_of(case: dict[str, Any], data: SimpleNamespace, *, intercept: bool = True, batch_size: Any = None) -> Any:
    width = WIDTHS[data.loss]
    return make_learner(settings_of(case), data.X.shape[1], width, data.loss, intercept, data.dtype, batch_size)


def predictions_and_slopes(z: list[float], target: float, loss: int) -> tuple[list[float], list[float]]:
    if loss == SQUARED:
        return z, [z[0] - target]
    if loss == LOGISTIC:
        small = math.exp(-abs(z[0]))
        large = 1.0 / (1.0 + small)
        p = large if z[0] >= 0 else small * large
        return [p], [p - target]
    powers = [math.exp(x - max(z)) for x in z]
    total = 0.0
    for power in powers:
        total += power
    p = [power / total for power in powers]
    return p, [x - (c == target) for c, x in enumerate(p)]


def eager(optimizer: Any, data: SimpleNamespace, *, intercept: bool = True, scale: float = 1.0, batch: int = 1) -> Any:
    """The same learning with an optimizer that is handed the whole, dense gradient at every step."""
    dtype, width = data.dtype, WIDTHS[data.loss]
    coef, bias = np.zeros((FEATURES, width), dtype), np.zeros(width, dtype)
    variables = [coef, bias] if intercept else [coef]
    optimizer.build(variables)
    predictions = np.empty((data.X.shape[0], width))
    for lo in range(0, data.X.shape[0], batch):
        g, g_bias = np.zeros_like(coef), np.zeros_like(bias)
        rows = range(lo, min(lo + batch, data.X.shape[0]))
        slopes = []
        for i in rows:
            entries = slice(data.X.indptr[i], data.X.indptr[i + 1])
            ids, x = data.X.indices[entries], data.X.data[entries]
            z = []
            for c in range(width):
                total = 0.0
                for k, value in zip(ids, x, strict=True):
                    total += float(coef[k, c]) * float(value)
                z.append(total + float(bias[c]))
            predictions[i], residuals = predictions_and_slopes(z, data.targets[i], data.loss)
            slopes.append([dtype.type(r * float(data.weights[i]) * scale / len(rows)) for r in residuals])
        for i, slope in zip(rows, slopes, strict=True):
            sums = np.zeros(FEATURES, dtype)
            entries = slice(data.X.indptr[i], data.X.indptr[i + 1])
            for k, value in zip(data.X.indices[entries], data.X.data[entries], strict=True):
                sums[k] += value
            for c in range(width):
                g[:, c] += slope[c] * sums
                g_bias[c] += slope[c]
        optimizer.apply([g, g_bias] if intercept else [g], variables)
    return SimpleNamespace(coef=coef, bias=bias, predictions=predictions, variables=variables)


def reference_of(case: dict[str, Any]) -> ReferenceAdagrad:
    arguments = {"learning_rate": 0.5, **case}
    if isinstance(arguments["learning_rate"], schedules.LearningRateSchedule):
        arguments["schedule"] = arguments.pop("learning_rate")
    return ReferenceAdagrad(**arguments)


def ulps(ours: np.ndarray, true: np.ndarray) -> float:
    """The largest distance, in units of the last place of the true value or of 0.5 (a weight's first step), if larger."""
    unit = np.spacing(np.maximum(np.abs(true), 0.5).astype(ours.dtype)).astype(np.float64)
    return float((np.abs(ours.astype(np.float64) - true) / unit).max(initial=0.0))
