"""Every row of the capability table: near the float64 reference, and bit for bit the rule as array code."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest

import adagrad
from capability import ARGUMENTS, CASES, FACES, measure, rows

ROOT = Path(__file__).parents[1]
HERE = [place.load() for place in FACES if not place.environment and importlib.util.find_spec(place.library)]
ROWS = [(face, *row) for face in HERE for row in rows(face)]


@pytest.mark.parametrize(
    ("face", "dtype", "case", "kind"), ROWS, ids=[f"{f.name}-{d}-{c.name}-{k}".replace(" ", "_") for f, d, c, k in ROWS]
)
def test_row(face, dtype, case, kind):
    measured, allowed = measure(face, dtype, case, kind), face.tolerances[dtype].distances
    assert measured.distances.parameters <= allowed.parameters
    assert measured.distances.averages <= allowed.averages
    assert measured.distances.sums <= allowed.sums
    if face.bitwise:
        assert measured.bitwise


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
    present = list(rows(face))
    names = {name for case in CASES if case.name not in face.lacks for name in case.arguments} - {"name"}
    assert names == {name for case in CASES for name in case.arguments} - {"name"}
    for dtype in face.dtypes:
        for kind in face.kinds:
            met = {name for d, case, k in present if (d, k) == (dtype, kind) for name in case.arguments}
            assert met == names | (met & {"name"})


@pytest.mark.parametrize("place", FACES, ids=lambda place: place.name)
def test_page_is_what_the_table_gives(place, monkeypatch):
    """For a face that is not bitwise without the figures, which depend on the processor."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "scripts"))
    import capabilities

    if place.environment or not importlib.util.find_spec(place.library):
        pytest.skip(f"{place.name} runs in a process of its own")
    face = place.load()
    hidden = r"[\d.e+-]*\d" if not face.bitwise else r"(?!)"
    page = (ROOT / "docs" / "capabilities.md").read_text()
    section = capabilities.section(face)
    assert re.sub(hidden, "#", section) in re.sub(hidden, "#", page)
    assert page.startswith(capabilities.INTRODUCTION)
    assert re.findall("^## (.*),", page, re.MULTILINE) == [known.name for known in FACES]
    sys.modules.pop("capabilities")
