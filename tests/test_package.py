"""The package as it is installed: light to import, typed, its wheel whole, its imports running down."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = ["torch", "jax", "keras", "tensorflow", "sklearn", "pandas", "pyarrow", "matplotlib", "typer", "triton"]


def _fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light_and_brings_no_framework() -> None:
    code = """
import time, json, sys
start = time.process_time()
import adagrad
seconds = time.process_time() - start
adagrad.Adagrad()
print(json.dumps([seconds, sorted(sys.modules)]))
"""
    seconds, modules = min(json.loads(_fresh(code)) for _ in range(3))
    assert not set(FRAMEWORKS) & set(modules)
    assert seconds < 1.0


def test_package_alone_needs_no_compiler() -> None:
    modules = json.loads(_fresh("import json, sys, adagrad; print(json.dumps(sorted(sys.modules)))"))
    assert not {"numba", "scipy", *FRAMEWORKS} & set(modules)


def test_unknown_names_are_attribute_errors() -> None:
    import adagrad

    assert not hasattr(adagrad, "Adam")
    assert set(adagrad.__all__) <= set(dir(adagrad))


def test_wheel_holds_every_module_and_the_type_marker(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)], capture_output=True, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "adagrad").rglob("*.py")}
    assert modules <= names
    assert "adagrad/py.typed" in names


def test_version_is_stated_once_for_all() -> None:
    import importlib.metadata

    import adagrad

    assert adagrad.__version__ == importlib.metadata.version("adagrad")
