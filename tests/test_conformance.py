"""Every row of the capability table: near the float64 reference, and bit for bit the rule as array code."""

import inspect
import sys
from pathlib import Path

import pytest

import adagrad
from capability import ARGUMENTS, CASES, FACES, TOLERANCES, measure, rows

ROOT = Path(__file__).parents[1]
ROWS = [(face, *row) for face in FACES for row in rows(face)]


@pytest.mark.parametrize(
    ("face", "dtype", "case", "kind"), ROWS, ids=[f"{f.name}-{d}-{c.name}-{k}".replace(" ", "_") for f, d, c, k in ROWS]
)
def test_row(face, dtype, case, kind):
    measured, allowed = measure(face, dtype, case, kind), TOLERANCES[dtype].distances
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


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)
def test_every_argument_meets_every_dtype_and_kind(face):
    present = list(rows(face))
    names = {name for case in CASES for name in case.arguments} - {"name"}
    for dtype in face.dtypes:
        for kind in face.kinds:
            met = {name for d, case, k in present if (d, k) == (dtype, kind) for name in case.arguments}
            assert met == names | (met & {"name"})


def test_page_is_what_the_table_gives(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "scripts"))
    import capabilities

    assert (ROOT / "docs" / "capabilities.md").read_text() == capabilities.page()
    sys.modules.pop("capabilities")
