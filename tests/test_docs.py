"""Every code block of the README and of docs/ runs, in order, one page in one folder and one namespace; so do doctests.

A ``python`` block is executed; of a ``console`` block each line is a command: ``adagrad`` runs here, ``make`` must name a
target of the Makefile, ``pip install`` an extra of the package. Blocks without a language are drawings.
"""

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")  # for the README; Keras has one backend a process

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The Keras page and the examples of its modules are executed by tests/keras_worker_models.py.
ELSEWHERE = ROOT / "docs" / "keras.md"
SOURCES = sorted((ROOT / "src" / "adagrad").rglob("*.py"))
MODULES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in SOURCES
    if "\n    >>> " in path.read_text() and path.parent.name != "keras"
]


def _blocks(page: Path) -> list[tuple[str, str]]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert {language for language, _ in found} <= {"python", "console", ""}, "a block in a language that nothing runs"
    return found


def _run_command(line: str, folder: Path) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {words[1]}"
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(.*)\]", words[2])) <= set(extras), line
    else:
        assert words[0] == "adagrad", f"a command that nothing runs: {line}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(line, shell=True, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if page != ELSEWHERE], ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    if page.name == "README.md":  # its commands name files that the reader has
        from adagrad.cli.synthetic import write_clicks

        for name in ("clicks.csv", "tomorrow.csv", "new.csv"):
            write_clicks(name, 2000, seed=1)
    for language, code in _blocks(page):
        if language == "python":
            exec(compile(code, f"{page.name}", "exec"), namespace)
        elif language == "console":
            for line in code.strip().splitlines():
                _run_command(line, tmp_path)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_public_names_are_documented_and_shown() -> None:
    import adagrad

    shown = "".join(page.read_text() for page in PAGES if page.parent.name != "api")
    for name in adagrad.__all__:
        if name != "__version__":
            assert getattr(adagrad, name).__doc__, f"{name} has no docstring"
            assert name in shown, f"{name} is shown on no page"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text()))
    assert not {str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")} - linked
