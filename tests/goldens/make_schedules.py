"""Make schedules.json: what Keras's own schedules give (PyTorch backend, float32), for tests/test_schedules.py.

    python tests/goldens/make_schedules.py        # needs keras and torch; writes schedules.json beside this file

Beside the values: the constructors' arguments with their defaults, and Keras's serialized form. Where Keras is wrong
(integer rates, missed restarts, steps above 2**24, and more) is not here but in docs/keras-differences.md.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from keras.optimizers import schedules

OUT = Path(__file__).with_name("schedules.json")
STEPS = [0, 1, 2, 3, 7, 9, 10, 11, 19, 20, 21, 29, 30, 31, 50, 99, 100, 101, 250, 1000]

CASES = [
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.9}),
    ("ExponentialDecay", {"initial_learning_rate": 0.3, "decay_steps": 7, "decay_rate": 0.5, "staircase": True}),
    ("ExponentialDecay", {"initial_learning_rate": 0.3, "decay_steps": 312.5, "decay_rate": 1.5, "name": "up"}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.5}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 20, "decay_rate": 2.0, "staircase": True}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 100}),
    (
        "PolynomialDecay",
        {"initial_learning_rate": 0.1, "decay_steps": 10, "end_learning_rate": 0.02, "power": 0.5, "cycle": True},
    ),
    ("PolynomialDecay", {"initial_learning_rate": 0.01, "decay_steps": 30, "end_learning_rate": 0.5, "power": 2.0}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 100}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 30, "alpha": 0.25}),
    (
        "CosineDecay",
        {
            "initial_learning_rate": 0.01,
            "decay_steps": 90,
            "alpha": 0.1,
            "warmup_target": 0.2,
            "warmup_steps": 10,
        },
    ),
    ("CosineDecay", {"initial_learning_rate": 0.01, "decay_steps": 90, "warmup_target": 0.2, "warmup_steps": 0}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 10}),
    (
        "CosineDecayRestarts",
        {"initial_learning_rate": 0.1, "first_decay_steps": 10, "t_mul": 1.0, "m_mul": 0.9, "alpha": 0.1},
    ),
    (
        "CosineDecayRestarts",
        {"initial_learning_rate": 0.1, "first_decay_steps": 7, "t_mul": 1.5, "m_mul": 0.8, "alpha": 0.05},
    ),
    ("PiecewiseConstantDecay", {"boundaries": [10, 30, 100], "values": [1.0, 0.5, 0.25, 0.1]}),
    ("PiecewiseConstantDecay", {"boundaries": [0], "values": [0.3, 0.2], "name": "two"}),
]


def main() -> None:
    """Write the file."""
    cases = []
    for class_name, arguments in CASES:
        schedule = getattr(schedules, class_name)(**arguments)
        values = [float(schedule(torch.tensor(step))) for step in STEPS]
        cases.append({"arguments": arguments, "serialized": schedules.serialize(schedule), "values": values})
    arguments = {
        class_name: [
            [name] if parameter.default is parameter.empty else [name, parameter.default]
            for name, parameter in inspect.signature(getattr(schedules, class_name)).parameters.items()
        ]
        for class_name in sorted({class_name for class_name, _ in CASES})
    }
    golden = {
        "versions": {"keras": keras.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "backend": keras.config.backend(),
        "dtype": keras.config.floatx(),
        "arguments": arguments,
        "steps": STEPS,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items()]
    lines.append('"cases": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]")
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
