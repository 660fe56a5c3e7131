"""`adagrad.keras` on TensorFlow, JAX and PyTorch, each in a process of its own; the checks are those of `keras_worker`."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keras_worker import BACKENDS, PARTS, here

FOLDER = Path(__file__).parent
PACKAGES = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}


def names(backend):
    """The names of a backend's checks, read without importing what they import."""
    found = []
    for part in PARTS:
        tree = ast.parse((FOLDER / f"{part}.py").read_text())
        found += [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]
    assert len(set(found)) == len(found)
    return [name for name in found if here(name, backend)]


# On JAX each check compiles anew; what PyTorch has beside is the engine, which the other tests know.
@pytest.mark.parametrize("backend", [pytest.param(b, marks=pytest.mark.slow) if b != "tensorflow" else b for b in BACKENDS])
def test_checks(backend):
    if any(importlib.util.find_spec(package) is None for package in ("keras", PACKAGES[backend])):
        pytest.skip(f"needs keras and {backend}")
    done = subprocess.run(
        [sys.executable, str(FOLDER / "keras_worker.py")],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(done.stdout, done.stderr)
    passed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("PASSED ")]
    assert passed == names(backend)
    assert done.returncode == 0


def test_importing_the_package_imports_no_keras():
    code = "import adagrad, sys; assert 'keras' not in sys.modules; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
