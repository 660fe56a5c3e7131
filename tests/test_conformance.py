"""Every row of the capability table: near the float64 reference, and bit for bit the rule as array code."""

import importlib.util
import inspect
import re
from pathlib import Path

import capabilities
import overview
import pytest

import adagrad
from capability import ARGUMENTS, CASES, check, check_coverage, rows
from faces import FACES

ROOT = Path(__file__).parents[1]
HERE = [place.load() for place in FACES if not place.environment and importlib.util.find_spec(place.library)]
ROWS = [(face, *row) for face in HERE for row in rows(face)]


@pytest.mark.parametrize(
    ("face", "dtype", "case", "kind"), ROWS, ids=[f"{f.name}-{d}-{c.name}-{k}".replace(" ", "_") for f, d, c, k in ROWS]
)
def test_row(face, dtype, case, kind):
    check(face, dtype, case, kind)


def test_every_argument_stands_in_the_table_away_from_its_default():
    signature = inspect.signature(adagrad.Adagrad).parameters
    defaults = {name: p.default for name, p in signature.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    for name, default in defaults.items():
        for cases in (ARGUMENTS, CASES):
            assert any(case.arguments.get(name, default) != default for case in cases), name


def test_every_argument_of_the_pytorch_face_is_one_of_the_table():
    torch_tools = pytest.importorskip("torch_tools", exc_type=ImportError)
    signature = inspect.signature(torch_tools.Adagrad).parameters
    taken = [case for case in CASES if case.name not in torch_tools.TorchFace.lacks]
    for name, parameter in signature.items():
        if name not in ("params", "maximize"):
            cases = [torch_tools.torch_names(case.arguments) for case in taken]
            assert any(arguments.get(name, parameter.default) != parameter.default for arguments in cases), name


@pytest.mark.parametrize("face", HERE, ids=lambda face: face.name)
def test_every_argument_meets_every_dtype_and_kind(face):
    check_coverage(face)


@pytest.mark.parametrize("face", HERE, ids=lambda face: face.name)
def test_page_is_what_the_table_gives(face):
    assert capabilities.is_on_page(face)


def test_page_has_every_face():
    page = (ROOT / "docs" / "capabilities.md").read_text()
    assert page.startswith(capabilities.INTRODUCTION)
    assert re.findall("^## (.*),", page, re.MULTILINE) == [place.name for place in FACES]


def test_page_shows_what_the_benchmark_has_measured():
    assert overview.has_times(), "python docs/scripts/overview.py --times writes it"
