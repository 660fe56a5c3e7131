"""Make keras.json: what Keras's Adagrad computes (PyTorch backend, float32, CPU), wherever it keeps to our contract.

    python tests/goldens/make_keras.py        # needs keras and torch; writes keras.json beside this file

Every case starts from the same three variables and takes the same six calls of gradients, with other arguments. After
each call it records the variables and the optimizer's whole state in the order of `optimizer.variables`. Cases where
Keras departs from its page, or is plainly wrong, are not here but in docs/keras-differences.md: averages or constraints
under accumulation, a None on the call that ends a cycle, repeated ids, half precision, and more. Numbers are the
shortest decimals that give the float32 back exactly; `numpy.float32(x)` reads them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch

OUT = Path(__file__).with_name("keras.json")
SHAPES = {"kernel": (2, 3), "bias": (3,), "scale": ()}
CALLS = 6


def inputs() -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """Start values of size 0.5 to 2, and gradients from 0.01 to 10 with some zeros after the first call."""
    rng = np.random.default_rng(2011)
    start = {}
    for name, shape in SHAPES.items():
        start[name] = np.float32(rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape))
    gradients = []
    for call in range(CALLS):
        gradients.append(
            {name: np.float32(rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 0.5)) for name, shape in SHAPES.items()}
        )
        if call > 0:
            gradients[-1]["kernel"][0, call % 3] = 0.0
    return start, gradients


def schedule(class_name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": config}


# Each case: the optimizer's arguments, and around them
#   none: (call, variable) pairs whose gradient is None; exclude: names not decayed; nonneg: names kept non-negative;
#   finalize: put the averages in place at the end; loss_scaling: arguments of LossScaleOptimizer, which then wraps it;
#   infinite: (call, variable) pairs whose gradient is made infinite.
# A learning rate {"callable": x} is a function of no arguments that returns x.
EMA = {"learning_rate": 0.3, "use_ema": True, "ema_momentum": 0.6}
DECAY = {"learning_rate": 0.3, "weight_decay": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "learning_rate": {"arguments": {"learning_rate": 0.3}},
    "learning_rate callable": {"arguments": {"learning_rate": {"callable": 0.3}}},
    "initial_accumulator_value": {"arguments": {"learning_rate": 0.3, "initial_accumulator_value": 0.7}},
    "initial_accumulator_value zero": {"arguments": {"learning_rate": 0.3, "initial_accumulator_value": 0.0}},
    "epsilon": {"arguments": {"learning_rate": 0.3, "epsilon": 0.05}},
    "paper": {"arguments": {"learning_rate": 1.0, "initial_accumulator_value": 0.0, "epsilon": 0.0}},
    "weight_decay": {"arguments": DECAY},
    "weight_decay, exclude": {"arguments": DECAY, "exclude": ["bias", "sca"]},
    "weight_decay, none": {"arguments": DECAY, "none": [(0, "kernel"), (2, "scale"), (3, "kernel")]},
    "clipnorm": {"arguments": {"learning_rate": 0.3, "clipnorm": 0.7}},
    "clipnorm never reached": {"arguments": {"learning_rate": 0.3, "clipnorm": 50.0}},
    "clipvalue": {"arguments": {"learning_rate": 0.3, "clipvalue": 0.4}},
    "global_clipnorm": {"arguments": {"learning_rate": 0.3, "global_clipnorm": 0.7}},
    "global_clipnorm, none": {"arguments": {"learning_rate": 0.3, "global_clipnorm": 0.7}, "none": [(1, "kernel")]},
    "ema": {"arguments": EMA, "finalize": True},
    "ema momentum 0": {"arguments": {**EMA, "ema_momentum": 0.0}, "finalize": True},
    "ema momentum 1": {"arguments": {**EMA, "ema_momentum": 1.0}, "finalize": True},
    "ema, none": {"arguments": EMA, "none": [(0, "bias"), (3, "bias"), (3, "kernel")], "finalize": True},
    "ema_overwrite_frequency": {"arguments": {**EMA, "ema_overwrite_frequency": 2}},
    "ema_overwrite_frequency 1": {"arguments": {**EMA, "ema_overwrite_frequency": 1}},
    "loss_scale_factor": {"arguments": {"learning_rate": 0.3, "loss_scale_factor": 10.0}},
    "gradient_accumulation_steps": {"arguments": {"learning_rate": 0.3, "gradient_accumulation_steps": 3}},
    "gradient_accumulation_steps, none": {
        "arguments": {"learning_rate": 0.3, "gradient_accumulation_steps": 3},
        "none": [(0, "kernel"), (1, "bias"), (4, "kernel")],
    },
    "constraint": {"arguments": {"learning_rate": 0.3}, "nonneg": ["kernel", "scale"]},
    "ExponentialDecay": {
        "arguments": {"learning_rate": schedule("ExponentialDecay", initial_learning_rate=0.3, decay_steps=2.5, decay_rate=0.7)}
    },
    "ExponentialDecay staircase": {
        "arguments": {
            "learning_rate": schedule(
                "ExponentialDecay", initial_learning_rate=0.3, decay_steps=2, decay_rate=0.7, staircase=True
            )
        }
    },
    "InverseTimeDecay": {
        "arguments": {"learning_rate": schedule("InverseTimeDecay", initial_learning_rate=0.3, decay_steps=2, decay_rate=0.7)}
    },
    "PolynomialDecay": {
        "arguments": {
            "learning_rate": schedule(
                "PolynomialDecay", initial_learning_rate=0.3, decay_steps=4, end_learning_rate=0.05, power=1.5
            )
        }
    },
    "PolynomialDecay cycle": {
        "arguments": {
            "learning_rate": schedule(
                "PolynomialDecay", initial_learning_rate=0.3, decay_steps=3, end_learning_rate=0.05, cycle=True
            )
        }
    },
    "CosineDecay": {
        "arguments": {"learning_rate": schedule("CosineDecay", initial_learning_rate=0.3, decay_steps=4, alpha=0.1)}
    },
    "CosineDecay warmup": {
        "arguments": {
            "learning_rate": schedule(
                "CosineDecay", initial_learning_rate=0.1, decay_steps=4, warmup_target=0.4, warmup_steps=2
            )
        }
    },
    "CosineDecayRestarts": {
        "arguments": {
            "learning_rate": schedule(
                "CosineDecayRestarts", initial_learning_rate=0.3, first_decay_steps=2, t_mul=1.0, m_mul=0.5, alpha=0.1
            )
        }
    },
    "PiecewiseConstantDecay": {
        "arguments": {"learning_rate": schedule("PiecewiseConstantDecay", boundaries=[1, 3], values=[0.5, 0.25, 0.125])}
    },
    "schedule under accumulation": {
        "arguments": {
            "learning_rate": schedule("PiecewiseConstantDecay", boundaries=[1, 4], values=[0.5, 0.25, 0.125]),
            "gradient_accumulation_steps": 2,
            "weight_decay": 0.05,
        }
    },
    "decay, clip, scale under accumulation": {
        "arguments": {
            **DECAY,
            "epsilon": 0.01,
            "initial_accumulator_value": 0.5,
            "clipnorm": 0.2,
            "loss_scale_factor": 4.0,
            "gradient_accumulation_steps": 2,
        },
        "none": [(2, "bias")],
        "exclude": ["scale"],
    },
    "decay, clip, scale, ema, overwrite": {
        "arguments": {**DECAY, **EMA, "clipvalue": 0.05, "loss_scale_factor": 4.0, "ema_overwrite_frequency": 3},
        "none": [(4, "bias")],
        "exclude": ["bias"],
        "finalize": True,
    },
    "decay, global clip, ema, schedule": {
        "arguments": {
            **DECAY,
            **EMA,
            "global_clipnorm": 0.5,
            "learning_rate": schedule("InverseTimeDecay", initial_learning_rate=0.5, decay_steps=1, decay_rate=0.5),
        },
        "finalize": True,
    },
    "decay, clip, constraint under accumulation": {
        # Keras constrains after every call; at the calls between, the variables are as constrained as before.
        "arguments": {**DECAY, "global_clipnorm": 0.5, "gradient_accumulation_steps": 2},
        "nonneg": ["kernel"],
        "start": "positive",
    },
    "loss scaling": {
        "arguments": {"learning_rate": 0.3},
        "loss_scaling": {"initial_scale": 8.0, "dynamic_growth_steps": 2},
        "infinite": [(2, "bias")],
    },
    "loss scaling, all arguments": {
        "arguments": {**DECAY, **EMA, "clipnorm": 0.2, "ema_overwrite_frequency": 2, "epsilon": 0.01},
        "loss_scaling": {"initial_scale": 4.0, "dynamic_growth_steps": 3},
        "infinite": [(0, "kernel"), (5, "scale")],
        "none": [(2, "kernel")],
        "finalize": True,
    },
}


def numbers(array: Any) -> Any:
    """An array as nested lists of the shortest decimals that give each float32 back."""
    array = np.asarray(array)
    if array.dtype.kind == "i":
        return array.tolist()
    assert array.dtype == np.float32
    if array.ndim == 0:
        number = float(str(array[()]))
        assert np.float32(number) == array
        return number
    return [numbers(x) for x in array]


def value(variable: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable)


def learning_rate(description: Any) -> Any:
    if not isinstance(description, dict):
        return description
    if "callable" in description:
        return lambda: description["callable"]
    return getattr(keras.optimizers.schedules, description["class_name"])(**description["config"])


def run(case: dict[str, Any], start: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The case with its results: variables, state and loss scale after each call, finalized variables at the end."""
    if case.get("start") == "positive":
        start = {name: np.array(abs(array)) for name, array in start.items()}
    arguments = dict(case.get("arguments", {}))
    if "learning_rate" in arguments:
        arguments["learning_rate"] = learning_rate(arguments["learning_rate"])
    variables = [keras.Variable(array, name=name) for name, array in start.items()]
    for variable in variables:
        if variable.name in case.get("nonneg", ()):
            variable.constraint = keras.constraints.NonNeg()
    adagrad = optimizer = keras.optimizers.Adagrad(**arguments)
    if "exclude" in case:
        adagrad.exclude_from_weight_decay(var_names=case["exclude"])
    if "loss_scaling" in case:
        optimizer = keras.optimizers.LossScaleOptimizer(adagrad, **case["loss_scaling"])
    optimizer.build(variables)
    calls = []
    for call, given in enumerate(gradients):
        grads: list[Any] = []
        for name, g in given.items():
            infinite = (call, name) in case.get("infinite", ())
            g = np.full_like(g, np.inf) if infinite else g
            grads.append(None if (call, name) in case.get("none", ()) else torch.from_numpy(np.array(g)))
        optimizer.apply(grads, variables)
        result = {
            "variables": [numbers(value(v)) for v in variables],
            "state": [numbers(value(v)) for v in adagrad.variables],
        }
        if "loss_scaling" in case:
            result["scale"] = numbers(value(optimizer.dynamic_scale))
        calls.append(result)
    made = {"calls": calls, "state_names": [v.path.split("/")[-1] for v in adagrad.variables]}
    if case.get("finalize"):
        optimizer.finalize_variable_values(variables)
        made["finalized"] = [numbers(value(v)) for v in variables]
    return {**case, **made}


def main() -> None:
    start, gradients = inputs()
    written = {
        "made_by": "tests/goldens/make_keras.py",
        "versions": {
            "keras": keras.version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
        },
        "start": {name: numbers(array) for name, array in start.items()},
        "gradients": [{name: numbers(g) for name, g in given.items()} for given in gradients],
        "cases": {name: run(case, start, gradients) for name, case in CASES.items()},
    }
    # One line a call keeps the file small and its differences readable.
    text = json.dumps(written, separators=(",", ":"))
    for before in ('"gradients":', '"cases":', '"versions":', '"calls":', '"finalized":', '"state_names":'):
        text = text.replace(before, "\n" + before)
    for before in ('{"variables":', '"arguments":'):
        text = text.replace(before, "\n " + before)
    assert json.loads(text) == json.loads(json.dumps(written, allow_nan=False))
    OUT.write_text(text + "\n")
    print(f"{len(CASES)} cases -> {OUT} ({len(text)} bytes)", file=sys.stderr)


if __name__ == "__main__":
    main()
