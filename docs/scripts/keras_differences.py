"""Write docs/keras-differences.md: Keras on each of its backends beside this package, case by case, numbers as run.

    python docs/scripts/keras_differences.py                     # needs keras, tensorflow, jax, torch; some minutes
    python docs/scripts/keras_differences.py --only tensorflow repeated_ids    # one case on one face, printed

The cases stand in keras_cases/. Each face runs all of them in a process of its own (Keras has one backend a process). A
face is a small class that lets one text of a case run everywhere; a new one is added to `FACES`.
"""

# ruff: noqa: D102 - the methods of a face are those that the cases call

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from keras_cases import CASES, Case

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "keras-differences.md"


class KerasFace:
    """keras.optimizers.Adagrad on one backend: `variable` is a keras.Variable, a gradient the backend's tensor."""

    def __init__(self, backend: str) -> None:
        os.environ["KERAS_BACKEND"] = backend
        import keras

        self.keras, self.backend = keras, backend
        self.Adagrad = keras.optimizers.Adagrad
        self.LossScaleOptimizer = keras.optimizers.LossScaleOptimizer
        self.schedules = keras.optimizers.schedules

    def variable(self, values: Any, dtype: str = "float32") -> Any:
        return self.keras.Variable(np.array(values), dtype=dtype)

    def gradient(self, values: Any, dtype: str = "float32") -> Any:
        return self.keras.ops.convert_to_tensor(np.array(values), dtype=dtype)

    def rows(self, values: Any, indices: Any, rows: int) -> Any:
        shape = (rows, len(values[0]))
        values = np.array(values, np.float32)
        if self.backend == "tensorflow":
            import tensorflow as tf

            return tf.IndexedSlices(tf.constant(values), tf.constant(indices), dense_shape=shape)
        if self.backend == "jax":
            from jax.experimental.sparse import BCOO

            return BCOO((values, np.array(indices)[:, None]), shape=shape)
        import torch

        return torch.sparse_coo_tensor(torch.tensor([indices]), torch.tensor(values), shape)

    def nonneg(self, w: Any) -> Any:
        return self.keras.ops.maximum(w, 0.0)

    def build(self, optimizer: Any, variables: Any, constraints: Any = ()) -> None:
        for variable, constraint in zip(variables, constraints, strict=False):
            variable.constraint = constraint
        optimizer.build(variables)

    def assign(self, variable: Any, values: Any) -> None:
        variable.assign(np.array(values))

    def read(self, value: Any) -> Any:
        if str(getattr(value, "dtype", "")).split(".")[-1] in ("float16", "bfloat16"):
            value = self.keras.ops.cast(value, "float32")
        return np.asarray(self.keras.ops.convert_to_numpy(value)).tolist()

    def set_iterations(self, optimizer: Any, calls: int) -> None:
        optimizer.variables[0].assign(calls)

    def copy_state(self, saved: Any, loaded: Any) -> None:
        store: dict[str, Any] = {}
        saved.save_own_variables(store)
        loaded.load_own_variables(store)


class OurKerasFace(KerasFace):
    """adagrad.keras on one backend."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        import adagrad.keras

        self.Adagrad = adagrad.keras.Adagrad
        self.LossScaleOptimizer = adagrad.keras.LossScaleOptimizer
        self.schedules = adagrad.schedules


class OurFace:
    """Our package on NumPy: variables and gradients are arrays."""

    def __init__(self) -> None:
        import adagrad

        self.adagrad = adagrad
        self.Adagrad = adagrad.Adagrad
        self.LossScaleOptimizer = adagrad.LossScaleOptimizer
        self.schedules = adagrad.schedules

    def variable(self, values: Any, dtype: str = "float32") -> Any:
        import ml_dtypes

        return np.array(values, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    gradient = variable

    def rows(self, values: Any, indices: Any, rows: int) -> Any:
        return self.adagrad.IndexedSlices(np.array(values, np.float32), np.array(indices))

    def nonneg(self, w: Any) -> Any:
        return np.maximum(w, 0.0)

    def build(self, optimizer: Any, variables: Any, constraints: Any = None) -> None:
        optimizer.build(variables, constraints=constraints)

    def assign(self, variable: Any, values: Any) -> None:
        variable[...] = values

    def read(self, value: Any) -> Any:
        return np.asarray(value).tolist()

    def set_iterations(self, optimizer: Any, calls: int) -> None:
        optimizer.set_weights([np.array(calls), *optimizer.variables[1:]])

    def copy_state(self, saved: Any, loaded: Any) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            saved.save("state.safetensors")
            loaded.load("state.safetensors")


class TrueFace(OurFace):
    """The float64 reference of the tests: what a step is in real arithmetic."""

    def __init__(self) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        import reference

        class Adagrad(reference.ReferenceAdagrad):
            def apply(self, grads: Any, variables: Any = None) -> None:
                if not self.slots:
                    self.build(variables)
                super().apply(grads, variables)

            @property
            def variables(self) -> list[Any]:
                return [self.accumulator(slot.variable) for slot in self.slots]

        class LossScaleOptimizer(reference.ReferenceLossScale):
            def __init__(self, inner: Any, initial_scale: float = 2.0**15) -> None:
                super().__init__(inner, initial_scale)

        self.Adagrad, self.LossScaleOptimizer = Adagrad, LossScaleOptimizer  # type: ignore[assignment]

    def variable(self, values: Any, dtype: str = "float64") -> Any:
        return np.array(values, np.float64)

    gradient = variable

    def rows(self, values: Any, indices: Any, rows: int) -> Any:
        return ("rows", np.array(values, np.float64), indices)


FACES: dict[str, tuple[str, Any]] = {
    "tensorflow": ("Keras on TensorFlow", lambda: KerasFace("tensorflow")),
    "jax": ("Keras on JAX", lambda: KerasFace("jax")),
    "torch": ("Keras on PyTorch", lambda: KerasFace("torch")),
    "ours-tensorflow": ("`adagrad.keras` on TensorFlow", lambda: OurKerasFace("tensorflow")),
    "ours-jax": ("`adagrad.keras` on JAX", lambda: OurKerasFace("jax")),
    "ours-torch": ("`adagrad.keras` on PyTorch", lambda: OurKerasFace("torch")),
    "ours": ("`adagrad.Adagrad`", OurFace),
    "true": ("true value", TrueFace),
}


def run_case(case: Case, name: str, face: Any) -> Any:
    """Return what the case gives on one face: a value, or {"error": ...} with the first line of what was raised."""
    if name == "true" and case.true != "reference":
        return case.true
    try:
        return case.run(face)
    except Exception as error:
        lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
        # Keras wraps errors of its operations: what went wrong stands on the second line
        first = next((line for line in lines if line and not line.startswith("Exception encountered when")), "")
        return {"error": f"{type(error).__name__}: {first}".rstrip(": ")}


def run_face(name: str, only: list[str]) -> dict[str, Any]:
    """Run all cases on one face, in this process."""
    warnings.simplefilter("ignore")
    face = FACES[name][1]()
    return {c.run.__name__: run_case(c, name, face) for c in CASES if not only or c.run.__name__ in only}


def run_faces() -> dict[str, dict[str, Any]]:
    """Run all cases on all faces, each face in a process of its own."""
    results = {}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    for name in FACES:
        print(f"running {FACES[name][0]} ...", file=sys.stderr)
        command = [sys.executable, __file__, "--only", name]
        done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        results[name] = json.loads(done.stdout.splitlines()[-1])
    return results


def shown(value: Any, digits: int) -> str:
    """Return a result as it stands in a table's cell."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        text = value["error"].replace("|", "\\|").replace("<", "&lt;")
        return text if len(text) <= 110 else text[:107] + "..."
    if isinstance(value, list):
        return "no elements" if not value else ", ".join(shown(x, digits) for x in value)
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.{digits}g}"
    return str(value)


def source(case: Case) -> str:
    """Return the text of the case's function, without its decorator."""
    lines = inspect.getsource(case.run).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    return "\n".join(lines[start:])


INTRODUCTION = """\
# Where we differ from Keras

`adagrad.keras.Adagrad` and `adagrad.Adagrad` have the arguments of `keras.optimizers.Adagrad` and their meaning. They
differ where Keras departs from its own documentation, where its backends disagree with each other, and where what it does
is plainly a mistake. Each such case is below, with the numbers that Keras gives on each backend and the numbers that we
give there, and with NumPy arrays.

This page was written by `python docs/scripts/keras_differences.py`, which ran every case on every backend; no number
was typed. Run it yourself. In the snippets `face` is Keras or this package on one of the backends: `face.variable` makes a
`keras.Variable` or a NumPy array, `face.rows` a gradient that is some rows of a table (`tf.IndexedSlices`, a sparse
tensor of JAX or PyTorch, our `IndexedSlices`), `face.read` gives plain Python numbers. The true value is computed in
float64 by plain loops (`tests/reference.py`) or by hand; a dash means that there is none.
"""


def entry(case: Case, results: dict[str, dict[str, Any]]) -> str:
    """Return one case as it stands on the page."""
    cell = {name: shown(results[name][case.run.__name__], case.digits) for name in FACES}
    true = cell["true"]
    lines = [
        ["", "on TensorFlow", "on JAX", "on PyTorch", "on NumPy", "true value"],
        ["---"] * 6,
        ["Keras", cell["tensorflow"], cell["jax"], cell["torch"], "", true],
        ["adagrad", cell["ours-tensorflow"], cell["ours-jax"], cell["ours-torch"], cell["ours"], true],
    ]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    code = f"<details><summary>The code</summary>\n\n```python\n{source(case)}\n```\n\n</details>"
    return f"\n### {case.title}\n\n{rows}\n\n{case.why}\n\n{code}"


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the page's text."""
    packages = importlib.metadata.packages_distributions()
    modules = {"Keras": "keras", "TensorFlow": "tensorflow", "JAX": "jax", "PyTorch": "torch", "NumPy": "numpy"}
    versions = [f"{label} {importlib.metadata.version(packages[module][0])}" for label, module in modules.items()]
    python = f"Python {platform.python_version()}, on {platform.machine()}, CPU"
    parts = [INTRODUCTION, f"Run with {', '.join(versions)}, {python}.", ""]
    sections = {name: [case for case in CASES if case.section == name] for name in [case.section for case in CASES]}
    for name, cases in sections.items():
        anchor = re.sub("[^a-z0-9_ -]", "", name.lower()).replace(" ", "-")
        parts.append(f"- [{name}](#{anchor}) ({len(cases)} case{'s' * (len(cases) > 1)})")
    for name, cases in sections.items():
        parts += [f"\n## {name}", *(entry(case, results) for case in cases)]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Write the page, or run one face."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=FACES, help="run one face here and print its results as JSON")
    parser.add_argument("cases", nargs="*", help="names of cases (with --only)")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(run_face(arguments.only, arguments.cases)))
        return
    PAGE.write_text(page(run_faces()))
    print(f"{len(CASES)} cases -> {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
